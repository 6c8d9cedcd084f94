package main

import (
	"fmt"
	"os"
	"path/filepath"

	"mk/container"
)

// openContainers opens the containers alone, for verbs that touch no image and no tree: they need
// neither a mode nor a lock, and run in the stage host.
func openContainers() (*container.Store, error) {
	root, err := rootDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := checkStoreDir(root); err != nil {
		return nil, err
	}
	return container.OpenStore(filepath.Join(root, "containers"))
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
	var failed error
	for _, name := range names {
		c, err := s.Find(name)
		if err == nil {
			err = do(c)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "mk: %s: %v\n", verb, err)
			failed = &exitError{status: exitFailed}
			continue
		}
		fmt.Println(name)
	}
	return failed
}
