package main

import (
	"fmt"
	"os"
	"strings"

	"mk/container"
	"mk/userns"
)

// neighbours are what a container that is about to start needs of one that runs already, to be in
// one network with it: the kernel connects only what one user namespace owns, so the holder of the
// second joins that of the first. It is found in the stage host, which alone may join.
type neighbours struct {
	user   *os.File   // the user namespace; nil: there is nobody to join
	files  []*os.File // for inside: the network namespace to share, or the bridge's
	mode   string     // of that user namespace
	unlock func()     // of the named network; nil
}

func (n *neighbours) close() {
	if n.unlock != nil {
		n.unlock()
	}
	if n.user != nil {
		n.user.Close()
	}
	for _, f := range n.files {
		f.Close()
	}
}

// findNeighbours looks who is in a network. For one with a name it keeps others from starting there,
// until close.
func findNeighbours(network string) (_ *neighbours, err error) {
	n := &neighbours{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	name, isContainer := strings.CutPrefix(network, containerNetwork)
	switch {
	case isContainer:
		all, err := findContainers([]string{name})
		if err != nil {
			return n, err
		}
		if err := n.ask(all[0], "net"); err != nil {
			return n, fmt.Errorf("--network %s: %w", network, err)
		}
		return n, nil
	case !isNamed(network):
		return n, nil
	}
	s, err := openNetworks()
	if err == nil {
		n.unlock, err = s.lock(network)
	}
	if err == nil {
		_, err = s.find(network)
	}
	if err != nil {
		return n, fmt.Errorf("--network %w", err)
	}
	running, err := s.on(network)
	if err != nil {
		return n, err
	}
	for _, v := range running {
		if n.ask(v.Container, "bridge") == nil {
			break // else it is just ending
		}
	}
	return n, nil
}

// ask has a container's holder send the namespaces.
func (n *neighbours) ask(c *container.Container, want string) error {
	reply, files, err := c.Ask(container.Request{Op: "network"})
	if err != nil {
		return err
	}
	got := map[string]*os.File{}
	for i, f := range files {
		if i < len(reply.Streams) {
			got[reply.Streams[i]] = f
		}
	}
	if got["user"] == nil || got[want] == nil {
		for _, f := range files {
			f.Close()
		}
		return fmt.Errorf("the holder of %s sent no network", c.Name)
	}
	for name, f := range got {
		switch name {
		case "user":
			n.user = f
		case want:
			n.files = []*os.File{f}
		default:
			f.Close()
		}
	}
	n.mode = c.Mode
	return nil
}

// enter starts stage inside: in the neighbours' user namespace, or in one of its own.
func (n *neighbours) enter(choice userns.Choice, args []string, client *os.File) (*userns.Child, error) {
	if n.user == nil {
		return userns.Launch(choice, args, client)
	}
	if string(choice.Mode) != n.mode {
		var err error
		if choice, err = userns.Choose(n.mode); err != nil {
			return nil, fmt.Errorf("containers of one network are of one mode, here %s: %w", n.mode, err)
		}
	}
	return userns.Join(choice, n.user, args, append([]*os.File{client}, n.files...)...)
}
