package main

import (
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	"mk/container"
)

const updateHelp = `Change the limits and the restart policy of containers. A running one is limited
anew at once, if it was started with a cgroup; what is not said stays as it is.`

func newUpdate(*app) *cobra.Command {
	var l limits
	var restart string
	c := &cobra.Command{Use: "update [flags] CONTAINER...", Short: "Change the limits of containers", Long: updateHelp, Args: cobra.MinimumNArgs(1)}
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().NFlag() == 0 {
			return errors.New("update: say what to change: mk update --help lists it")
		}
		if err := checkRestart(restart); err != nil {
			return err
		}
		return eachContainer(args, "update", func(c *container.Container) error { return updateContainer(c, &l, restart) })
	}
	l.defineUpdate(c.Flags())
	c.Flags().StringVar(&restart, "restart", "", "when to start it again: no, on-failure[:N], always, unless-stopped")
	return c
}

// updateContainer limits a running container anew, and writes down what a later start is to do.
func updateContainer(c *container.Container, l *limits, restart string) error {
	unlock, err := c.Change()
	if err != nil {
		return err
	}
	defer unlock()
	return c.Amend(func(r *container.Record) error {
		if restart != "" {
			r.Restart = restart
		}
		var w words
		if err := json.Unmarshal(r.Words, &w); err != nil {
			return err
		}
		devices := w.Limits.IO
		before := w.Limits
		if w.Limits, err = l.parse(w.Limits); err != nil {
			return err
		}
		w.Limits.IO = devices // which cannot be changed
		if running, err := c.Running(); err != nil {
			return err
		} else if running && !w.Limits.Equal(&before) {
			st, err := ownCgroup(c)
			if err != nil {
				return err
			}
			if err := container.Limit(st.Cgroup, w.Limits, w.Init, w.ownPID()); err != nil {
				return err
			}
		}
		r.Words, err = json.Marshal(w)
		return err
	})
}
