package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// stdin is what commands read that take standard input to its end: a Ctrl-C ends a read that waits,
// whoever is to write, and whether or not they ever will.
var stdin = typed{life: context.Background()}

type typed struct{ life context.Context }

// Read reads standard input. When mk is to end, the error is context.Canceled.
func (t *typed) Read(p []byte) (int, error) {
	const look = 100 // milliseconds between looks at life
	for {
		if err := t.life.Err(); err != nil {
			return 0, err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: 0, Events: unix.POLLIN}}, look)
		switch {
		case n > 0: // or an error of it, which Read tells
			return os.Stdin.Read(p)
		case err != nil && err != unix.EINTR:
			return 0, os.NewSyscallError("poll", err)
		}
	}
}
