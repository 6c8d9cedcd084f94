package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"mk/container"
	"mk/userns"
)

const startHelp = `Start containers again that are not running, with what they changed before.

With -a, print what the container writes, and end with its exit status.`

// startFlags are the words of one mk start.
type startFlags struct {
	attach, interactive bool
	detachKeys          string
	networks            string // inside: those that the stage host has looked for neighbours on
}

func newStart(a *app) *cobra.Command {
	var f startFlags
	c := &cobra.Command{Use: "start [flags] CONTAINER...", Short: "Start stopped containers", Long: startHelp, Args: cobra.MinimumNArgs(1)}
	c.RunE = func(c *cobra.Command, args []string) error {
		if a.stage == userns.StageInside {
			return a.startInside(c.Context(), args[0], &f)
		}
		if (f.attach || f.interactive) && len(args) > 1 {
			return errors.New("start -a: only one container can be attached to")
		}
		if f.attach || f.interactive {
			all, err := findContainers(args)
			if err != nil {
				return err
			}
			return a.startAttached(all[0], &f)
		}
		return eachContainer(args, "start", a.start)
	}
	c.Flags().BoolVarP(&f.attach, "attach", "a", false, "print what it writes, and wait for its end")
	c.Flags().BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input on, too")
	c.Flags().StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave a container with a terminal")
	c.Flags().StringVar(&f.networks, "networks", "", "")
	c.Flags().MarkHidden("networks")
	a.usernsFlag(c)
	return c
}

func newRestart(a *app) *cobra.Command {
	var seconds int
	var signal string
	c := &cobra.Command{Use: "restart [flags] CONTAINER...", Short: "Stop containers, and start them again", Args: cobra.MinimumNArgs(1)}
	c.RunE = func(c *cobra.Command, args []string) error {
		return eachContainer(args, "restart", func(ctr *container.Container) error {
			after := ctr.StopTimeout
			if c.Flags().Changed("time") || c.Flags().Changed("timeout") {
				after = seconds
			}
			if err := stopContainer(c.Context(), ctr, signal, after); err != nil {
				return err
			}
			if err := a.start(ctr); err != nil {
				return err
			}
			ctr.Tell("restart", nil)
			return nil
		})
	}
	c.Flags().IntVarP(&seconds, "time", "t", 10, "seconds to wait before SIGKILL; -1: for ever")
	c.Flags().IntVar(&seconds, "timeout", 10, "as --time")
	c.Flags().StringVarP(&signal, "signal", "s", "", "signal to stop with")
	a.usernsFlag(c)
	return c
}

// holder starts a container's holder, in the mode that its files were made in.
func (a *app) holder(c *container.Container, flags ...string) (*session, error) {
	containers, err := openContainers()
	if err != nil {
		return nil, err
	}
	for {
		choice, err := userns.Choose(c.Mode)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", c.Name, err)
		}
		var w words
		if err := json.Unmarshal(c.Words, &w); err != nil {
			return nil, fmt.Errorf("start %s: %w", c.Name, err)
		}
		line := append([]string{"start", "--userns", c.Mode, "--networks", strings.Join(w.networks(), ",")}, flags...)
		s, err := a.launch(choice, &w, append(line, c.ID))
		if err != nil || s.id != "" {
			return s, err
		}
		// It was connected with another network meanwhile, whose neighbours must be asked, too.
		s.close()
		if _, err := s.child.Wait(); err != nil {
			return nil, err
		}
		if c, err = containers.Find(c.ID); err != nil {
			return nil, err
		}
	}
}

// start starts a container in the background; one that runs is left as it is.
func (a *app) start(c *container.Container) error {
	if st, err := c.Status(); err != nil || st.Running {
		return err
	}
	s, err := a.holder(c)
	if err != nil {
		return err
	}
	s.close()
	return nil
}

func (a *app) startAttached(c *container.Container, f *startFlags) error {
	keys, err := parseDetachKeys(f.detachKeys)
	if err != nil {
		return err
	}
	if st, err := c.Status(); err != nil {
		return err
	} else if st.Running {
		return attachTo(c, f.interactive, true, keys)
	}
	flags := []string{"-a"}
	if f.interactive {
		flags = append(flags, "-i")
	}
	s, err := a.holder(c, flags...)
	if err != nil {
		return err
	}
	defer s.close()
	s.tty, s.stdin, s.sigProxy, s.keys = c.Tty, f.interactive, !c.Tty, keys
	return s.relay()
}

// startInside becomes the holder of a container.
func (a *app) startInside(ctx context.Context, id string, f *startFlags) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := s.containers.Find(id)
	if err != nil {
		return err
	}
	unlock, err := c.Change()
	if err != nil {
		return err
	}
	if running, err := c.Running(); err != nil {
		return err
	} else if running {
		unlock()
		if f.attach || f.interactive {
			return fmt.Errorf("start %s: %w", c.Name, container.ErrRunning)
		}
		return a.answer(container.Reply{Started: c.ID}) // by another mk, since ours asked
	}
	if c, err = s.containers.Find(c.ID); err != nil { // as it is since nobody else may change it
		unlock()
		return err
	}
	var w words
	if err := json.Unmarshal(c.Words, &w); err != nil {
		unlock()
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	if strings.Join(w.networks(), ",") != f.networks {
		unlock()
		return a.answer(container.Reply{}) // ask again
	}
	layer, err := s.openLayer(c)
	if err != nil {
		unlock()
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	return a.hold(ctx, holding{
		store: s, c: c, layer: layer, attach: f.attach || f.interactive, stdin: f.interactive,
		settled: func() error { unlock(); return nil },
	})
}

// answer tells the process outside how it is, where no container is started.
func (a *app) answer(r container.Reply) error {
	client, err := container.NewConn(a.in.Files[0])
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Send(r)
}

func newAttach(a *app) *cobra.Command {
	var noStdin, sigProxy bool
	var detachKeys string
	c := &cobra.Command{
		Use: "attach [flags] CONTAINER", Short: "Connect to a running container's streams", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := parseDetachKeys(detachKeys)
			if err != nil {
				return err
			}
			all, err := findContainers(args)
			if err != nil {
				return err
			}
			return attachTo(all[0], !noStdin && all[0].Stdin, sigProxy, keys)
		},
	}
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "do not pass standard input on")
	c.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the command")
	c.Flags().StringVar(&detachKeys, "detach-keys", defaultDetachKeys, "keys that leave a container with a terminal")
	return c
}

// attachTo connects mk's streams with a running container's, and ends as that does.
func attachTo(c *container.Container, stdin, sigProxy bool, keys []byte) error {
	conn, err := c.Dial()
	if err != nil {
		return &exitError{status: exitFailed, err: fmt.Errorf("attach to %w", err)}
	}
	s := &session{conn: conn, tty: c.Tty, stdin: stdin, sigProxy: sigProxy && !c.Tty, keys: keys}
	defer s.close()
	reply, files, err := conn.Ask(container.Request{Op: "attach", Stdin: stdin})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c.Name, err)
	}
	s.take(reply, files)
	return s.relay()
}

func newCreate(a *app) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Make a container, and do not start it",
		Long:  "Make a container as 'mk run' does, print its ID, and leave it to 'mk start'.",
		Args:  f.arguments,
	}
	create := a.inside(func(c *cobra.Command, args []string) error {
		f.entrypointSet = c.Flags().Changed("entrypoint")
		name, args := f.image(args)
		return a.create(c.Context(), &f, name, args)
	})
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := a.takeUserns(&f.words); err != nil {
			return err
		}
		return create(c, args)
	}
	f.define(c.Flags())
	c.Flags().BoolVar(&f.rm, "rm", false, "remove the container when it ends")
	a.usernsFlag(c)
	return c
}

func (a *app) create(ctx context.Context, f *runFlags, name string, args []string) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	f.detach = true // it needs no terminal of ours
	d, layer, err := s.createContainer(ctx, f, name, args)
	if err != nil {
		return err
	}
	defer d.Close()
	c, err := d.Commit()
	if err != nil {
		layer.Discard()
		return err
	}
	if err := layer.Close(); err != nil {
		return err
	}
	if f.cidfile != "" {
		if err := os.WriteFile(f.cidfile, []byte(c.ID), 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintln(&stdout, c.ID)
	return nil
}

func newRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Give a container another name", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := findContainers(args[:1])
			if err != nil {
				return err
			}
			if err := all[0].Rename(args[1]); err != nil {
				return &exitError{status: exitFailed, err: fmt.Errorf("rename %s: %w", args[0], err)}
			}
			return nil
		},
	}
}

// newContainer is the noun "container", whose verbs are also mk's own, as in docker.
func newContainer(a *app) *cobra.Command {
	c := &cobra.Command{Use: "container", Short: "Manage containers"}
	for _, make := range []func(*app) *cobra.Command{
		newRun, newCreate, newStart, newStop, newKill, newRestart, newRm, newWait, newPs, newLogs, newAttach,
		newExec, newRename, newDiff, newCommit, newExport, newCp, newTop, newPort, newContainerPrune,
		newStats, newUpdate, newPause, newUnpause, newContainerInspect,
	} {
		sub := make(a)
		if sub.Name() == "ps" {
			sub.Use, sub.Aliases = "ls [flags]", []string{"ps", "list"}
		}
		c.AddCommand(sub)
	}
	return c
}
