package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"mk/container"
)

const rmHelp = `Remove containers, with what they changed and the volumes that are theirs alone.

A running one is removed only with --force, which kills it.`

func newRm(a *app) *cobra.Command {
	var force, volumes bool
	c := &cobra.Command{Use: "rm [flags] CONTAINER...", Short: "Remove containers", Long: rmHelp, Args: cobra.MinimumNArgs(1)}
	c.RunE = a.swept(a.inside(a.withStore(func(c *cobra.Command, s *store, args []string) error {
		var failed error
		for _, name := range args {
			err := s.rm(c.Context(), name, force)
			if force && errors.Is(err, container.ErrNotFound) {
				continue
			}
			if canceled(err) {
				return err
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "mk: remove %s: %v\n", name, err)
				failed = &exitError{status: exitFailed}
				continue
			}
			fmt.Fprintln(&stdout, name)
		}
		return failed
	})))
	c.Flags().BoolVarP(&force, "force", "f", false, "kill running ones; say nothing of missing ones")
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "as in docker; a container's own volumes always go with it")
	a.usernsFlag(c)
	return c
}

// rm removes one container.
func (s *store) rm(ctx context.Context, name string, force bool) error {
	c, err := s.containers.Find(name)
	if err != nil {
		return err
	}
	unlock, err := s.changeStopped(ctx, c, force)
	if errors.Is(err, container.ErrNotFound) && force {
		return nil // it was one of --rm
	} else if err != nil {
		return err
	}
	defer unlock()
	if mode := string(s.mode); c.Mode != mode {
		return fmt.Errorf("it was made in mode %s, and its files have the owners of that; use --userns %s", c.Mode, c.Mode)
	}
	var w words
	if err := json.Unmarshal(c.Words, &w); err != nil {
		return err
	}
	return s.removeContainer(c, nil, &w)
}

// changeStopped takes the lock to change a container that does not run; with force, it is killed first. One that is just
// starting cannot be asked yet, and one that is ending no longer, while it runs.
func (s *store) changeStopped(ctx context.Context, c *container.Container, force bool) (unlock func(), err error) {
	for end := time.Now().Add(endingTakes); ; time.Sleep(5 * time.Millisecond) {
		if force {
			if err := stopContainer(ctx, c, "KILL", -1); err != nil {
				return nil, err
			}
		}
		if unlock, err = c.Change(); err != nil {
			return nil, err
		}
		running, err := c.Running()
		switch {
		case err == nil && !running:
			return unlock, nil
		case err == nil && !force:
			err = fmt.Errorf("%w: stop it first, or use --force", container.ErrRunning)
		case err == nil && time.Now().After(end):
			err = fmt.Errorf("%w, %s after it was killed", container.ErrRunning, endingTakes)
		}
		unlock()
		if err != nil {
			return nil, err
		}
	}
}

// endingTakes is how long a container that was killed may still be there.
const endingTakes = 10 * time.Second

// containerPrune removes all containers that do not run.
func newContainerPrune(a *app) *cobra.Command {
	var force bool
	var filters []string
	c := &cobra.Command{Use: "prune", Short: "Remove all containers that do not run", Args: cobra.NoArgs}
	c.RunE = a.swept(a.inside(a.withStore(func(_ *cobra.Command, s *store, _ []string) error {
		return reclaimed(s.pruneContainers(c.Context(), filters))
	})))
	c.Flags().Var((*list)(&filters), "filter", "remove only these: label[!]=KEY[=value], or until=TIME: made before that time or duration")
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk prune never asks")
	a.usernsFlag(c)
	return c
}

// pruneContainers removes those that do not run, and prints their IDs. It gives the bytes that they had.
func (s *store) pruneContainers(ctx context.Context, filters []string) (freed int64, err error) {
	all, err := s.containers.List()
	if err != nil {
		return freed, err
	}
	keep, err := pruneFilter(filters, func(c *container.Container) map[string]string { return c.Labels }, func(c *container.Container) time.Time { return c.Created })
	if err != nil {
		return freed, err
	}
	for _, c := range all {
		if !keep.keeps(c) {
			continue
		}
		if running, err := c.Running(); err != nil || running || c.Mode != string(s.mode) {
			continue
		}
		used := diskUse(c.Path(""))
		if err := s.rm(ctx, c.ID, false); errors.Is(err, container.ErrRunning) || errors.Is(err, container.ErrNotFound) {
			continue
		} else if err != nil {
			return freed, fmt.Errorf("remove %s: %w", c.Name, err)
		}
		freed += used
		fmt.Fprintln(&stdout, c.ID)
	}
	return freed, nil
}
