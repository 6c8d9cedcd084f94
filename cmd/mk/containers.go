package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"mk/container"
	"mk/userns"
)

// openContainers opens the containers alone, for verbs that touch no image and no tree: they need
// neither a mode nor a lock, and run in the stage host.
func openContainers() (*container.Store, error) {
	root, err := storeDir()
	if err != nil {
		return nil, err
	}
	return container.OpenStore(filepath.Join(root, "containers"))
}

// swept is a verb that, in the stage host, first looks at all containers, by which what killed holders
// left of them ends.
func (a *app) swept(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		if a.stage == userns.StageHost {
			s, err := openContainers()
			if err != nil {
				return err
			}
			if err := s.Sweep(); err != nil {
				return err
			}
		}
		return run(c, args)
	}
}

// findContainers finds containers by their names or IDs.
func findContainers(names []string) ([]*container.Container, error) {
	s, err := openContainers()
	if err != nil {
		return nil, err
	}
	var all []*container.Container
	for _, name := range names {
		c, err := s.Find(name)
		if err != nil {
			return nil, &exitError{status: exitFailed, err: err}
		}
		all = append(all, c)
	}
	return all, nil
}

// eachContainer does something with each container that is named, and prints its name as it was
// given. A failure does not keep it from the others.
func eachContainer(names []string, verb string, do func(*container.Container) error) error {
	s, err := openContainers()
	if err != nil {
		return err
	}
	return each(names, func(name string) error {
		c, err := s.Find(name)
		if err == nil {
			err = do(c)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		return nil
	})
}

// each does something with each name, and prints the name. A failure does not keep it from the
// others, an interruption does; the exit status tells.
func each(names []string, do func(name string) error) (failed error) {
	for _, name := range names {
		if err := do(name); canceled(err) {
			return err
		} else if err != nil {
			var said *exitError // by inside, which ended by itself
			if !errors.As(err, &said) || said.err != nil || said.status >= 128 {
				fmt.Fprintln(os.Stderr, "mk:", err)
			}
			failed = &exitError{status: exitFailed}
			continue
		}
		fmt.Fprintln(&stdout, name)
	}
	return failed
}
