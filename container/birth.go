package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// SharedNamespace is a namespace of another container that this one is born into.
type SharedNamespace struct {
	Kind int      // CLONE_NEWPID, CLONE_NEWIPC, CLONE_NEWUTS or CLONE_NEWCGROUP
	File *os.File `json:"-"` // the caller's, and open until after Wait
}

var kindNames = map[int]string{unix.CLONE_NEWPID: "pid", unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWCGROUP: "cgroup"}

// TimeOffsets are by how much a container's clocks differ from the machine's (time_namespaces(7)).
// The clock of the day has no namespace.
type TimeOffsets struct{ Monotonic, Boottime time.Duration }

// birthplace is the thread that a container's processes are born of when not all of its namespaces
// are made by clone(2): a pid namespace that is joined, and a time namespace, are had by the
// children of a thread, and never by itself. Nil for other containers. There is one a container, of
// its own or its network's, and exec'd commands are born of it, too: no process with threads can
// join a time namespace, and their children enter it by execve(2), since Linux 6.3.
type birthplace struct {
	work chan func()
	own  bool // and not the network's
}

func (s *Spec) birthplace() (*birthplace, error) {
	ns := &s.Namespaces
	if len(ns.Shared) == 0 && ns.Time == nil {
		return nil, nil
	}
	b := &birthplace{}
	if ns.Net && s.Network != nil {
		b.work = s.Network.work
	} else {
		b.own, b.work = true, newThread()
	}
	err := b.within(func() error {
		for _, n := range ns.Shared {
			if err := unix.Setns(int(n.File.Fd()), n.Kind); err != nil {
				return fmt.Errorf("join the %s namespace of a container: %w", kindNames[n.Kind], err)
			}
		}
		if ns.Time != nil {
			return ns.Time.unshare()
		}
		return nil
	})
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// newThread starts a thread that ends when the channel is closed.
func newThread() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is good for nothing else
		for f := range work {
			f()
		}
	}()
	return work
}

func (b *birthplace) within(f func() error) error {
	done := make(chan error)
	b.work <- func() { done <- f() }
	return <-done
}

func (b *birthplace) spawn(start func() (*os.Process, error)) (proc *os.Process, err error) {
	err = b.within(func() error {
		proc, err = start()
		return err
	})
	return proc, err
}

func (b *birthplace) close() {
	if b != nil && b.own {
		close(b.work)
	}
}

// enteredTime tells whether the execve(2) of this process has entered the time namespace that its
// parent's thread made for its children: before Linux 6.3 the clone is refused, or it stays outside.
func enteredTime() error {
	in, err := os.Readlink("/proc/self/ns/time")
	if err != nil {
		return fmt.Errorf("look at the time namespace: %w", err)
	}
	children, err := os.Readlink("/proc/self/ns/time_for_children")
	if err == nil && in != children {
		err = errOldTime
	}
	return err
}

var errOldTime = errors.New("enter a time namespace: it takes Linux 6.3")

// unshare makes a time namespace for the children of this thread.
func (t *TimeOffsets) unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("make a time namespace: %w", err)
	}
	// In /proc a thread has a directory of its own like this one, though none lists it.
	file := fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid())
	var text string
	for _, c := range []struct {
		clock string
		by    time.Duration
	}{{"monotonic", t.Monotonic}, {"boottime", t.Boottime}} {
		sec, nsec := c.by/time.Second, c.by%time.Second
		if nsec < 0 {
			sec, nsec = sec-1, nsec+time.Second
		}
		text += fmt.Sprintf("%s %d %d\n", c.clock, sec, nsec)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set the clocks of a time namespace: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("set the clocks of a time namespace: none can be before the machine's start: %w", err)
	} else if err != nil {
		return fmt.Errorf("set the clocks of a time namespace: %w", err)
	}
	return nil
}
