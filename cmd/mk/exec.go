package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mk/container"
)

const execHelp = `Run another command in a running container: in its namespaces, with its
environment, capabilities and filter.

The exit status is the command's own; 128+n if signal n ended it; 126 if the
command cannot be executed, 127 if there is none of that name.`

// execFlags are the words of one mk exec.
type execFlags struct {
	interactive, tty, detach, privileged bool
	env, envFiles                        []string
	workdir, user, detachKeys            string
}

func newExec(a *app) *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long:  execHelp,
		Args:  cobra.MinimumNArgs(2),
		RunE:  func(_ *cobra.Command, args []string) error { return f.exec(args[0], args[1:]) },
	}
	fl := c.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fl.BoolVarP(&f.detach, "detach", "d", false, "do not wait for it")
	fl.BoolVar(&f.privileged, "privileged", false, "all capabilities, and no filter")
	fl.VarP((*list)(&f.env), "env", "e", "environment variable, as NAME=value, or NAME to pass it on")
	fl.Var((*list)(&f.envFiles), "env-file", "file of environment variables, one a line")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fl.StringVarP(&f.user, "user", "u", "", "user[:group], by name or number, of the container")
	fl.StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave the command")
	return c
}

// exec asks the container's holder to start the command, and passes it mk's own streams.
func (f *execFlags) exec(name string, args []string) error {
	if f.tty && f.interactive && !f.detach && !term.IsTerminal(int(os.Stdin.Fd())) {
		return errNotTerminal
	}
	keys, err := parseDetachKeys(f.detachKeys)
	if err != nil {
		return err
	}
	all, err := findContainers([]string{name})
	if err != nil {
		return err
	}
	e := &container.Exec{Args: args, Cwd: f.workdir, User: f.user, Privileged: f.privileged}
	var env environ
	if err := env.add(f.env, f.envFiles); err != nil {
		return err
	}
	e.Env = env
	request := container.Request{Op: "exec", Exec: e}
	var files []*os.File
	switch {
	case f.tty && !f.detach:
		size := terminalSize()
		e.Terminal = &size
		e.Env = append([]string{"TERM=xterm"}, e.Env...)
	case f.detach:
	default:
		request.Streams, files = []string{"stdout", "stderr"}, []*os.File{os.Stdout, os.Stderr}
		if f.interactive {
			request.Streams, files = append(request.Streams, "stdin"), append(files, os.Stdin)
		}
	}
	conn, err := all[0].Dial()
	if err != nil {
		return &exitError{status: exitFailed, err: fmt.Errorf("exec in %w", err)}
	}
	s := &session{conn: conn, tty: f.tty, stdin: f.tty && f.interactive, sigProxy: !f.tty, keys: keys}
	defer s.close()
	reply, passed, err := conn.Ask(request, files...)
	if err != nil {
		var start *container.StartError
		if errors.As(err, &start) {
			return &exitError{status: start.Code, err: err}
		}
		return err
	}
	s.take(reply, passed)
	if f.detach {
		return nil
	}
	return s.relay()
}
