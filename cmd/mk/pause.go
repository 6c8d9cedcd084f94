package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"mk/container"
)

func newPause(*app) *cobra.Command {
	return &cobra.Command{
		Use: "pause CONTAINER...", Short: "Stop all processes of containers where they are", Args: cobra.MinimumNArgs(1),
		Long: "Stop all processes of containers where they are, until 'mk unpause'. They are not told,\nand cannot refuse. It needs a cgroup of the container's own.",
		RunE: func(_ *cobra.Command, args []string) error {
			return eachContainer(args, "pause", func(c *container.Container) error {
				st, err := ownCgroup(c)
				if err != nil {
					return err
				}
				if st.Paused {
					return fmt.Errorf("%s is paused already", c.Name)
				}
				return container.Freeze(st.Cgroup)
			})
		},
	}
}

func newUnpause(*app) *cobra.Command {
	return &cobra.Command{
		Use: "unpause CONTAINER...", Short: "Let paused containers go on", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return eachContainer(args, "unpause", func(c *container.Container) error {
				st, err := ownCgroup(c)
				if err != nil {
					return err
				}
				if !st.Paused {
					return fmt.Errorf("%s is not paused", c.Name)
				}
				return container.Thaw(st.Cgroup)
			})
		},
	}
}

// ownCgroup gives the status of a running container that has a cgroup of its own.
func ownCgroup(c *container.Container) (container.Status, error) {
	st, err := c.Status()
	switch {
	case err != nil:
		return st, err
	case st.Pid == 0:
		return st, fmt.Errorf("%s: %w", c.Name, container.ErrNotRunning)
	case st.Cgroup == "":
		return st, fmt.Errorf("%s: %w", c.Name, errNoCgroup)
	}
	return st, nil
}

// errNoCgroup: the container was started where mk was given no cgroup, and asked for no limit.
var errNoCgroup = errors.New("it has no cgroup of its own: one that is started with a limit has, or wherever 'mk info' shows a directory to divide")
