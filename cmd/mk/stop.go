package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/container"
)

const stopHelp = `Ask containers to end with their stop signal (SIGTERM, where neither the image nor
--stop-signal says otherwise), and end those with SIGKILL that are still there
after some seconds.`

func newStop(a *app) *cobra.Command {
	var seconds int
	var signal string
	c := &cobra.Command{Use: "stop [flags] CONTAINER...", Short: "Stop running containers", Long: stopHelp, Args: cobra.MinimumNArgs(1)}
	c.RunE = func(c *cobra.Command, args []string) error {
		given := c.Flags().Changed("time") || c.Flags().Changed("timeout")
		return eachContainer(args, "stop", func(ctr *container.Container) error {
			after := ctr.StopTimeout
			if given {
				after = seconds
			}
			return stopContainer(c.Context(), ctr, signal, after)
		})
	}
	c.Flags().IntVarP(&seconds, "time", "t", 10, "seconds to wait before SIGKILL; -1: for ever")
	c.Flags().IntVar(&seconds, "timeout", 10, "")
	c.Flags().MarkHidden("timeout")
	c.Flags().StringVarP(&signal, "signal", "s", "", "signal to ask with")
	return c
}

// stopContainer stops a container, and waits until it has ended; one that does not run is stopped.
func stopContainer(ctx context.Context, c *container.Container, signal string, seconds int) error {
	if signal == "" {
		signal = c.StopSignal
	}
	sig := unix.SIGTERM
	if signal != "" {
		var err error
		if sig, err = parseSignal(signal); err != nil {
			return err
		}
	}
	err := c.Stop(ctx, sig, seconds)
	if errors.Is(err, container.ErrNotRunning) || errors.Is(err, container.ErrKilled) {
		return nil
	}
	return err
}

func newKill(a *app) *cobra.Command {
	var signal string
	c := &cobra.Command{Use: "kill [flags] CONTAINER...", Short: "Send a signal to running containers", Args: cobra.MinimumNArgs(1)}
	c.RunE = func(c *cobra.Command, args []string) error {
		sig, err := parseSignal(signal)
		if err != nil {
			return err
		}
		return eachContainer(args, "kill", func(ctr *container.Container) error {
			if sig == unix.SIGKILL { // and it is gone when we are back
				err := ctr.Stop(c.Context(), sig, -1)
				if errors.Is(err, container.ErrKilled) {
					return nil
				}
				return err
			}
			_, _, err := ctr.Ask(container.Request{Op: "signal", Signal: int(sig)})
			return err
		})
	}
	c.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal, by name or number")
	return c
}
