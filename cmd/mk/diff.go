package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mk/container"
	"mk/snapshot"
)

func newDiff(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "diff CONTAINER", Short: "List what a container changed in its files",
		Long: "List what a container changed in its files: A added, C changed, D deleted.",
		Args: cobra.ExactArgs(1),
	}
	c.RunE = a.insideOf(func(c *cobra.Command, s *store, ctr *container.Container) error {
		if err := layered(ctr); err != nil {
			return fmt.Errorf("%s %s: %w", c.Name(), ctr.Name, err)
		}
		view, err := s.trees.View(ctr.Path("layer"))
		if err != nil {
			return err
		}
		running, err := ctr.Running()
		if err != nil {
			return err
		}
		var stubs []string // mount points that are there only while it runs
		if running {
			if stubs, err = mountPoints(ctr); err != nil {
				return err
			}
		}
		return view.Changes(c.Context(), stubs, func(ch snapshot.Change) error {
			_, err := fmt.Fprintf(&stdout, "%c %s\n", ch.Kind, ch.Path)
			return err
		})
	})
	a.usernsFlag(c)
	return c
}

// insideOf makes a command's body run in the namespaces of the mode that the container named by
// its first argument was made in.
func (a *app) insideOf(run func(*cobra.Command, *store, *container.Container) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		if a.in == nil {
			if a.userns == "" {
				all, err := findContainers(args[:1])
				if err != nil {
					return err
				}
				a.userns = all[0].Mode
			}
			return a.enter()
		}
		return a.withStore(func(c *cobra.Command, s *store, args []string) error {
			ctr, err := s.containers.Find(args[0])
			if err != nil {
				return err
			}
			return run(c, s, ctr)
		})(c, args)
	}
}

// mountPoints are the paths that something is mounted on in a container.
func mountPoints(c *container.Container) ([]string, error) {
	v, err := look(c)
	if err != nil {
		return nil, err
	}
	points := []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
	for _, m := range container.DefaultSpec(container.Namespaces{}).Mounts {
		points = append(points, m.Dest)
	}
	for _, p := range v.words.Places {
		points = append(points, p.Dest)
	}
	return points, nil
}

func newExport(a *app) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "export [flags] CONTAINER", Short: "Write a container's files as a tar",
		Long: "Write all files of a container, without its volumes, as one tar.",
		Args: cobra.ExactArgs(1),
	}
	c.RunE = a.insideOf(func(c *cobra.Command, s *store, ctr *container.Container) error {
		if err := layered(ctr); err != nil {
			return fmt.Errorf("%s %s: %w", c.Name(), ctr.Name, err)
		}
		view, err := s.trees.View(ctr.Path("layer"))
		if err != nil {
			return err
		}
		if output != "" {
			out, err := os.Create(output)
			if err != nil {
				return err
			}
			return errors.Join(view.WriteTree(c.Context(), out), out.Close())
		} else if term.IsTerminal(int(os.Stdout.Fd())) {
			return fmt.Errorf("export: a tar is not for a terminal: use -o FILE or a pipe")
		}
		return view.WriteTree(c.Context(), &stdout)
	})
	c.Flags().StringVarP(&output, "output", "o", "", "file to write to (default: standard output)")
	a.usernsFlag(c)
	return c
}
