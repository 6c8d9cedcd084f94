package main

import (
	"errors"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"mk/container"
)

var errNotTerminal = errors.New("the input device is not a TTY")

// terminal connects mk's own terminal with a container's: raw mode here while
// it lasts, bytes both ways, and the size whenever it changes.
type terminal struct {
	old  *term.State
	stop chan struct{}
	out  chan struct{}
}

// terminalSize is the size of mk's terminal, 80 by 24 where it has none.
func terminalSize() container.Size {
	if w, h, err := term.GetSize(int(os.Stdin.Fd())); err == nil && w > 0 && h > 0 {
		return container.Size{Rows: uint16(h), Cols: uint16(w)}
	}
	return container.Size{Rows: 24, Cols: 80}
}

// openTerminal begins. Input is passed on only if interactive.
func openTerminal(p *container.Process, interactive bool) (*terminal, error) {
	t := &terminal{stop: make(chan struct{}), out: make(chan struct{})}
	master := p.Terminal()
	if interactive && term.IsTerminal(int(os.Stdin.Fd())) {
		var err error
		if t.old, err = term.MakeRaw(int(os.Stdin.Fd())); err != nil {
			return nil, err
		}
	}
	go func() {
		defer close(t.out)
		io.Copy(os.Stdout, master) // ends with EIO when the last process has closed the other side
	}()
	if interactive {
		go io.Copy(master, os.Stdin) // left behind when the container ends: a read cannot be taken back
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	go func() {
		defer signal.Stop(resized)
		for {
			select {
			case <-resized:
				p.Resize(terminalSize())
			case <-t.stop:
				return
			}
		}
	}()
	return t, nil
}

// close waits for the last output and gives the terminal back as it was.
func (t *terminal) close() {
	<-t.out
	close(t.stop)
	if t.old != nil {
		term.Restore(int(os.Stdin.Fd()), t.old)
	}
}
