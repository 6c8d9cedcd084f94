package userns

import (
	"os"
	"syscall"
)

// Child is a stage inside that may outlive the host.
type Child struct {
	proc     *os.Process
	lifeline *os.File
}

// Launch starts stage inside with these arguments and returns when it has its maps: it is Enter
// for a host that does something else meanwhile, or goes before inside does. The end of this
// process ends Inside.Context there; an inside that stays (see Inside.Context) does not care.
// No signals are passed on.
func Launch(choice Choice, args []string, files ...*os.File) (*Child, error) {
	proc, lifeline, err := admitAny(choice, args, files)
	if err != nil {
		return nil, err
	}
	return &Child{proc, lifeline}, nil
}

// Signal sends sig to inside.
func (c *Child) Signal(sig os.Signal) error { return c.proc.Signal(sig) }

// Wait waits for the end of inside; the exit code is 128+n when signal n ended it.
func (c *Child) Wait() (exitCode int, err error) {
	defer c.lifeline.Close()
	state, err := c.proc.Wait()
	if err != nil {
		return 125, err
	}
	if status := state.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}
