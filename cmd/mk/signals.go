package main

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// parseSignal reads a signal as users write it: 9, KILL, SIGKILL, RTMIN+3.
func parseSignal(text string) (unix.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("there is no signal %d", n)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	const first, last = 34, 64 // of the real-time signals, as libcs count them
	if offset, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if n, err := strconv.Atoi(offset); err == nil && n >= 0 && first+n <= last {
			return unix.Signal(first + n), nil
		}
	}
	if offset, ok := strings.CutPrefix(name, "SIGRTMAX-"); ok {
		if n, err := strconv.Atoi(offset); err == nil && n >= 0 && last-n >= first {
			return unix.Signal(last - n), nil
		}
	}
	return 0, fmt.Errorf("there is no signal %q", text)
}
