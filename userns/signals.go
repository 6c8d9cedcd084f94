package userns

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// catch delivers every signal that may be passed on, until stop. Left to the kernel are: faults,
// those that cannot be caught, SIGCHLD and SIGPIPE (about this process alone), SIGURG (the Go
// scheduler's), job control (stops this process and inside alike), and those that the caller
// ignores (nohup).
func catch() (_ <-chan os.Signal, stop func()) {
	var list []os.Signal
	for n := unix.Signal(1); n <= 64; n++ {
		switch n {
		case unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS,
			unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG,
			unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT, 32, 33:
			continue
		}
		if !signal.Ignored(n) {
			list = append(list, n)
		}
	}
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs, list...)
	return sigs, func() { signal.Stop(sigs) }
}

// fromTerminal reports whether sig is one that a terminal sends to its whole foreground group, and
// we are in it: then inside, which is in the same group, has it already, and a second SIGINT means
// "at once" to many programs. A kill -INT from elsewhere at a foreground process cannot be told
// apart and is not passed on; SIGTERM always is.
func fromTerminal(sig os.Signal) bool {
	switch sig {
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGWINCH:
	default:
		return false
	}
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // no controlling terminal
	}
	defer unix.Close(tty)
	foreground, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}
