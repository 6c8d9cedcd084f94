package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"mk/container"
	"mk/userns"
)

// neighbours are what a container that is about to start needs of those that run already and that it
// shares something with: the kernel connects only what one user namespace owns, so the holder of
// the second joins that of the first. They are found in the stage host, which alone may join, and
// sent to the holder (container.Request, "given").
type neighbours struct {
	user   *os.File // the user namespace; nil: there is nobody to join
	whose  string   // the container that gave it
	mode   string   // of that user namespace
	names  []string // of files: see container.Process.Share
	files  []*os.File
	unlock func() // of the named network; nil
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

// sharing is a flag that says container:NAME, and what that container is to share.
type sharing struct {
	flag, word, name string
	wants            []string
}

// sharings are those of a container.
func (w *words) sharings() (all []sharing) {
	for _, s := range []sharing{
		{flag: "--network", word: w.Network, wants: []string{"net"}},
		{flag: "--pid", word: w.PID, wants: []string{"pid"}},
		{flag: "--ipc", word: w.IPC, wants: []string{"ipc", "shm"}},
		{flag: "--uts", word: w.UTS, wants: []string{"uts"}},
		{flag: "--cgroupns", word: w.Cgroupns, wants: []string{"cgroup"}},
		{flag: "--userns", word: w.Userns},
	} {
		var is bool
		if s.name, is = strings.CutPrefix(s.word, ofContainer); is {
			all = append(all, s)
		}
	}
	return all
}

// hasNeighbours tells whether the container may share something with others.
func (w *words) hasNeighbours() bool { return len(w.memberships()) > 0 || len(w.sharings()) > 0 }

// findNeighbours asks those that a container shares something with. For networks with names it keeps
// others from starting there, until close; and so that every container on one of them can come to
// another, all of a mode are in one user namespace.
func (w *words) findNeighbours(mode userns.Mode) (_ *neighbours, err error) {
	n := &neighbours{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for _, s := range w.sharings() {
		all, err := findContainers([]string{s.name})
		if err != nil {
			return n, err
		}
		if err := n.ask(all[0], s.wants...); err != nil {
			return n, fmt.Errorf("%s %s: %w", s.flag, s.word, err)
		}
	}
	wanted := w.memberships()
	if len(wanted) == 0 {
		return n, nil
	}
	s, err := openNetworks()
	if err == nil {
		n.unlock, err = s.lock()
	}
	if err != nil {
		return n, err
	}
	all, err := s.members()
	if err != nil {
		return n, err
	}
	for _, m := range wanted {
		if _, err := s.find(m.Network); err != nil {
			return n, fmt.Errorf("--network %w", err)
		}
		for _, v := range all {
			if !v.isOn(m.Network) {
				continue
			}
			err := n.ask(v.Container, "bridge:"+m.Network)
			if err == nil {
				break
			}
			if errors.Is(err, errStrangers) {
				return n, fmt.Errorf("--network %s: %w", m.Network, err)
			}
			// Else it is just ending.
		}
	}
	for _, v := range all {
		if n.user == nil && v.Mode == string(mode) {
			n.ask(v.Container)
		}
	}
	return n, nil
}

// errStrangers: the kernel lets nobody share with both.
var errStrangers = errors.New("not in one user namespace, and the kernel lets nobody share with both: start one of them with --userns container:NAME of the other")

// ask has a container's holder send its user namespace and what else is wanted of it.
func (n *neighbours) ask(c *container.Container, wants ...string) error {
	reply, files, err := c.Ask(container.Request{Op: "share", Streams: append([]string{"user"}, wants...)})
	if err != nil {
		return err
	}
	n.names, n.files = append(n.names, reply.Streams...), append(n.files, files...)
	if len(files) == 0 || len(files) != len(reply.Streams) {
		return fmt.Errorf("the holder of %s sent %d descriptors", c.Name, len(files))
	}
	user := files[0]
	at := len(n.files) - len(files)
	n.names, n.files = slices.Delete(n.names, at, at+1), slices.Delete(n.files, at, at+1)
	if n.user == nil {
		n.user, n.whose, n.mode = user, c.Name, c.Mode
		return nil
	}
	defer user.Close()
	var a, b unix.Stat_t
	if err := unix.Fstat(int(n.user.Fd()), &a); err != nil {
		return err
	}
	if err := unix.Fstat(int(user.Fd()), &b); err != nil {
		return err
	}
	if a.Ino != b.Ino || a.Dev != b.Dev {
		return fmt.Errorf("%s and %s are %w", n.whose, c.Name, errStrangers)
	}
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
			return nil, fmt.Errorf("containers that share something are of one mode, here %s: %w", n.mode, err)
		}
	}
	return userns.Join(choice, n.user, args, client)
}

// give sends the holder what it is to share.
func (n *neighbours) give(conn *container.Conn) error {
	return conn.Send(container.Request{Op: "given", Streams: n.names}, n.files...)
}

// takeGiven receives it there.
func takeGiven(conn *container.Conn) (map[string]*os.File, error) {
	var r container.Request
	files, err := conn.Receive(&r)
	if err != nil {
		return nil, fmt.Errorf("take what neighbours give: %w", err)
	}
	given := map[string]*os.File{}
	for i, name := range r.Streams {
		if i < len(files) {
			given[name] = files[i]
		}
	}
	return given, nil
}

// join makes a spec's namespaces those of the neighbours.
func (w *words) join(spec *container.Spec, given map[string]*os.File) error {
	for _, s := range w.sharings() {
		for _, name := range s.wants {
			if given[name] == nil {
				return fmt.Errorf("%s %s: nobody gave it", s.flag, s.word)
			}
		}
		kind := map[string]int{"--pid": unix.CLONE_NEWPID, "--ipc": unix.CLONE_NEWIPC, "--uts": unix.CLONE_NEWUTS, "--cgroupns": unix.CLONE_NEWCGROUP}[s.flag]
		if kind != 0 {
			spec.Namespaces.Shared = append(spec.Namespaces.Shared, container.SharedNamespace{Kind: kind, File: given[s.wants[0]]})
		}
	}
	if shm := given["shm"]; shm != nil {
		for i := range spec.Mounts {
			if m := &spec.Mounts[i]; m.Dest == "/dev/shm" {
				m.Type, m.File, m.Data = container.Attach, shm, ""
			}
		}
	}
	return nil
}
