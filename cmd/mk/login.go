package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"mk/image/registry"
)

const defaultRegistry = "docker.io"

const loginHelp = `Try a user and password at a registry (docker.io without one), and keep them where docker
does: with the credential helper of its config.json, else in that file.

--authfile, or REGISTRY_AUTH_FILE, names another file; podman's are read too. Without a user, what
is kept already is tried.`

func newLogin(*app) *cobra.Command {
	var user, password string
	var fromStdin, get bool
	var f registryFlags
	c := &cobra.Command{
		Use: "login [flags] [REGISTRY]", Short: "Keep credentials for a registry", Long: loginHelp, Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			host := defaultRegistry
			if len(args) > 0 {
				host = args[0]
			}
			var keptUser, kept string
			var err error
			if get || user == "" {
				if keptUser, kept, err = registry.KeptLogin(f.authfile, host); err != nil {
					return err
				}
			}
			if get {
				if keptUser == "" {
					return fmt.Errorf("not logged in to %s", host)
				}
				fmt.Fprintln(&stdout, keptUser)
				return nil
			}
			if fromStdin {
				if user == "" {
					return errors.New("login: --password-stdin wants --username")
				}
				b, err := io.ReadAll(io.LimitReader(&stdin, 1<<16))
				if err != nil {
					return err
				}
				password = strings.TrimRight(string(b), "\r\n")
			}
			client, err := newClient()
			if err != nil {
				return err
			}
			if err := f.apply(client, host); err != nil {
				return err
			}
			if user == "" && password == "" && keptUser != "" && kept != "" {
				if err = client.Login(c.Context(), host, keptUser, kept); err == nil {
					fmt.Fprintln(&stdout, "Login Succeeded")
					return nil
				}
				if !errors.Is(err, registry.ErrUnauthorized) {
					return err
				}
				fmt.Fprintf(os.Stderr, "The password kept for %s is refused\n", keptUser)
			}
			if err := ask(&user, &password); err != nil {
				return err
			}
			if err := client.Login(c.Context(), host, user, password); err != nil {
				return err
			}
			where, err := registry.SaveLogin(f.authfile, host, user, password)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "The password is kept in %s\n", where)
			fmt.Fprintln(&stdout, "Login Succeeded")
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVarP(&user, "username", "u", "", "user name")
	fl.StringVarP(&password, "password", "p", "", "password; other users of this machine may see it: rather use --password-stdin")
	fl.BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	fl.BoolVar(&get, "get-login", false, "print the user name that is kept for the registry")
	f.registerConnection(fl)
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
		line, err := bufio.NewReader(&stdin).ReadString('\n')
		if err != nil {
			return err
		}
		*user = strings.TrimSpace(line)
	}
	if *password == "" {
		fmt.Fprint(os.Stderr, "Password: ")
		line, err := readHidden(in)
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return err
		}
		*password = strings.TrimRight(line, "\r\n")
	}
	return nil
}

// readHidden reads a line of a terminal that does not show it, and then shows again what is typed,
// also after Ctrl-C.
func readHidden(in int) (string, error) {
	shown, err := unix.IoctlGetTermios(in, unix.TCGETS)
	if err != nil {
		return "", err
	}
	hidden := *shown
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(in, unix.TCSETS, &hidden); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(&stdin).ReadString('\n')
	return line, errors.Join(err, unix.IoctlSetTermios(in, unix.TCSETS, shown))
}

func newLogout(*app) *cobra.Command {
	var authfile string
	var all bool
	c := &cobra.Command{
		Use: "logout [flags] [REGISTRY]", Short: "Forget the credentials for a registry", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			host := defaultRegistry
			if len(args) > 0 {
				host = args[0]
			}
			if all {
				if len(args) > 0 {
					return errors.New("logout: --all wants no registry")
				}
				if _, err := registry.RemoveLogin(authfile, ""); err != nil {
					return err
				}
				fmt.Fprintln(&stdout, "Removed login credentials for all registries")
				return nil
			}
			removed, err := registry.RemoveLogin(authfile, host)
			if err != nil {
				return err
			}
			if !removed {
				return fmt.Errorf("not logged in to %s", host)
			}
			fmt.Fprintln(&stdout, "Removed login credentials for", host)
			return nil
		},
	}
	c.Flags().StringVar(&authfile, "authfile", "", "the file that credentials are kept in (default: docker's and podman's)")
	c.Flags().BoolVarP(&all, "all", "a", false, "forget the credentials for all registries")
	return c
}
