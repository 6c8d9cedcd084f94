package container

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// CapSet is a set of capabilities, bit n being capability n.
type CapSet uint64

// Filter is a seccomp program: struct sock_filter in the byte order of this machine.
type Filter []byte

// DefaultCaps is docker's default set.
const DefaultCaps CapSet = 0xa80425fb

// ParseCaps applies docker's --cap-add and --cap-drop to the default set.
func ParseCaps(add, drop []string) (CapSet, error) { return 0, errors.ErrUnsupported }

// DefaultFilter compiles docker's default profile for a container with these capabilities. Once
// per process and set: it is remembered.
func DefaultFilter(caps CapSet) (Filter, error) { return nil, errors.ErrUnsupported }

// DefaultSpec is docker's container: mounts of /proc, /dev, /sys, masked paths, capabilities, filter.
func DefaultSpec(ns Namespaces) (*Spec, error) { return nil, errors.ErrUnsupported }

// Process is a started container.
type Process struct{}

// Start clones stage init into new namespaces and returns when the process has been exec'd. root
// is a detached mount (snapshot's Mount, open_tree) and is the caller's to close, at any time
// after Start. The end of ctx kills the container.
func Start(ctx context.Context, spec *Spec, root *os.File, io IO) (*Process, error) {
	return nil, errors.ErrUnsupported
}

// ExitStatus is how the container ended.
type ExitStatus struct {
	Code   int         // the command's own, or 128+n
	Signal unix.Signal // that ended it, when it was not the reaper that said so
}

// Wait waits for the end of the container and takes the mount points away that Start made.
func (p *Process) Wait() (ExitStatus, error) { return ExitStatus{}, errors.ErrUnsupported }

// Signal sends a signal to the container's process.
func (p *Process) Signal(sig unix.Signal) error { return errors.ErrUnsupported }

// Resize sets the size of the terminal.
func (p *Process) Resize(size Size) error { return errors.ErrUnsupported }

// Terminal is the master of the pty, or nil. Close it after Wait.
func (p *Process) Terminal() *os.File { return nil }

// Notices are what the machine did not allow and the container goes without, a sentence each.
func (p *Process) Notices() []string { return nil }

// Pid of the container's pid 1, as stage inside sees it.
func (p *Process) Pid() int { return 0 }

// StartError is the failure to become the container. Code is the exit status docker gives to it:
// 127 not found, 126 cannot be invoked, 125 anything else.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Init is stage init. It never returns.
func Init(args []string) { os.Exit(125) }

// LookupUser resolves "", "user", "uid", "user:group" … by the root's own /etc/passwd and
// /etc/group, by docker's rules. home is "/" where passwd does not know the user.
func LookupUser(root *os.File, user string) (_ User, home string, err error) {
	return User{}, "", errors.ErrUnsupported
}
