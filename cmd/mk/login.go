package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mk/image/registry"
)

const defaultRegistry = "docker.io"

func newLogin(*app) *cobra.Command {
	var user, password string
	var fromStdin, get, verify bool
	c := &cobra.Command{
		Use: "login [flags] [REGISTRY]", Short: "Keep credentials for a registry", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			host := defaultRegistry
			if len(args) > 0 {
				host = args[0]
			}
			if get {
				name, err := registry.LoginName(host)
				if err == nil && name == "" {
					err = fmt.Errorf("not logged in to %s", host)
				}
				if err == nil {
					fmt.Println(name)
				}
				return err
			}
			if fromStdin {
				if user == "" {
					return errors.New("login: --password-stdin wants --username")
				}
				b, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<16))
				if err != nil {
					return err
				}
				password = strings.TrimRight(string(b), "\r\n")
			}
			if err := ask(&user, &password); err != nil {
				return err
			}
			client, err := newClient()
			if err != nil {
				return err
			}
			client.SkipTLSVerify = !verify
			if err := client.Login(c.Context(), host, user, password); err != nil {
				return fmt.Errorf("login to %s: %w", host, err)
			}
			where, err := registry.SaveLogin(host, user, password)
			if err != nil {
				return fmt.Errorf("login to %s: %w", host, err)
			}
			fmt.Fprintf(os.Stderr, "The password is kept in %s\n", where)
			fmt.Println("Login Succeeded")
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVarP(&user, "username", "u", "", "user name")
	fl.StringVarP(&password, "password", "p", "", "password; other users of this machine may see it: rather use --password-stdin")
	fl.BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	fl.BoolVar(&get, "get-login", false, "print the user name that is kept for the registry")
	fl.BoolVar(&verify, "tls-verify", true, "verify the registry's certificate")
	return c
}

// ask asks on the terminal for what was not given.
func ask(user, password *string) error {
	if *user != "" && *password != "" {
		return nil
	}
	in := int(os.Stdin.Fd())
	if !term.IsTerminal(in) {
		return errors.New("login: standard input is not a terminal: give --username and --password-stdin")
	}
	if *user == "" {
		fmt.Fprint(os.Stderr, "Username: ")
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			return err
		}
		*user = strings.TrimSpace(line)
	}
	if *password == "" {
		fmt.Fprint(os.Stderr, "Password: ")
		b, err := term.ReadPassword(in)
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return err
		}
		*password = string(b)
	}
	return nil
}

func newLogout(*app) *cobra.Command {
	return &cobra.Command{
		Use: "logout [REGISTRY]", Short: "Forget the credentials for a registry", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			host := defaultRegistry
			if len(args) > 0 {
				host = args[0]
			}
			removed, err := registry.RemoveLogin(host)
			if err != nil {
				return fmt.Errorf("logout of %s: %w", host, err)
			}
			if !removed {
				return fmt.Errorf("not logged in to %s", host)
			}
			fmt.Println("Removed login credentials for", host)
			return nil
		},
	}
}
