package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mk/container"
	"mk/snapshot"
)

// holding is all that this process needs to become a container's holder.
type holding struct {
	store   *store
	c       *container.Container
	layer   *snapshot.Draft
	attach  bool          // the process outside is to have the streams
	stdin   bool          // it wants to write, too
	direct  *container.IO // it has them already
	settled func() error  // gives the container's change lock back
}

// hold starts a container, tells the process outside, lets go of the caller's terminal and of the
// store, and stays until the container has ended. It is in the stage inside.
// The end of ctx before there is a container ends it all; afterwards signals are the container's.
func (a *app) hold(ctx context.Context, h holding) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	if len(a.in.Files) == 0 {
		return errors.New("hold a container: there is nobody to tell")
	}
	client, err := container.NewConn(a.in.Files[0])
	if err != nil {
		return err
	}
	var w words
	if err := json.Unmarshal(h.c.Words, &w); err != nil {
		return fmt.Errorf("container %s: %w", h.c.Name, err)
	}
	s, c, layer := h.store, h.c, h.layer
	at := &socket{}
	if w.hasNeighbours() {
		if at.given, err = takeGiven(client); err != nil {
			return err
		}
	}
	ready := false
	stop := func() {} // what goes on beside a run
	run := container.Run{
		Signals: signals,
		Client:  client, Attach: h.attach, Stdin: h.stdin, Direct: h.direct, Log: true,
		Start: func(ctx context.Context, stdio container.IO) (p *container.Process, err error) {
			if now, err := s.containers.Find(c.ID); err == nil && ready { // mk update may have been there
				var said words
				if err := json.Unmarshal(now.Words, &said); err != nil {
					return nil, err
				}
				w.Limits, w.networking = said.Limits, said.networking
			}
			p, stop, err = s.start(ctx, c, &w, layer, at, stdio)
			return p, err
		},
		After: func() { stop() },
		Last: func() error {
			if !c.AutoRemove {
				return layer.Close()
			}
			return s.removeContainer(c, layer, &w)
		},
		Bridge: at.bridge,
		Rewire: func(r container.Request, files []*os.File) ([]string, error) { return s.rewire(c, at, r, files) },
		Ready: func(notices []string) {
			ready = true
			for _, n := range notices {
				fmt.Fprintln(os.Stderr, "mk:", n)
			}
			h.settled()
			s.Close()
			letGo()
		},
	}
	if err = ctx.Err(); err == nil { // nobody has asked mk to end before signals were heard
		err = c.Hold(context.Background(), run)
	}
	if ready {
		return nil // it was written down; nobody is there to read it
	}
	if c.AutoRemove {
		s.removeContainer(c, layer, &w)
	} else {
		layer.Close()
	}
	h.settled()
	var start *container.StartError
	if errors.As(err, &start) {
		return &exitError{status: start.Code, err: err}
	}
	return err
}

// letGo leaves the caller's session, terminal, directory, and the memory that starting took.
func letGo() {
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			unix.Dup3(int(null.Fd()), fd, 0)
		}
		null.Close()
	}
	unix.Setsid()
	os.Chdir("/")
	time.AfterFunc(settling, func() {
		debug.SetGCPercent(25) // it has next to nothing to do
		debug.FreeOSMemory()
		forgetProgram()
	})
}

// settling is how long a container must run before its holder makes itself small: for one that ends
// at once, giving pages back and taking them again would be a good part of the time it takes.
const settling = 500 * time.Millisecond

// forgetProgram gives back the pages of mk's own program that starting has read: 10 MB, of which
// a holder that waits needs a few hundred kB. They come again from the file when they are needed.
func forgetProgram() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var rights string
		if !strings.HasSuffix(strings.TrimSpace(line), " "+exe) {
			continue
		}
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); n == 3 && rights[1] == '-' { // never written to
			unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}

// removeContainer removes a container that is not running, whose layer is open or whose change
// lock is held.
func (s *store) removeContainer(c *container.Container, layer *snapshot.Draft, w *words) error {
	err := c.Remove(func() error {
		if layer != nil {
			return layer.Discard()
		}
		return snapshot.RemoveKept(c.Path("layer"))
	})
	if err != nil {
		return err
	}
	for _, p := range w.Places {
		if p.Type == "volume" && p.Own {
			if err := s.removeVolume(p.Source); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// openLayer opens what a container changed. The caller has its change lock, and found it not running.
func (s *store) openLayer(c *container.Container) (*snapshot.Draft, error) {
	layer, err := s.trees.OpenKept(c.Path("layer"))
	switch {
	case errors.Is(err, fs.ErrNotExist): // it was one of --rm, and has just ended
		return nil, fmt.Errorf("%s: %w", c.Name, container.ErrNotFound)
	case errors.Is(err, snapshot.ErrInUse):
		return nil, fmt.Errorf("%s is between two runs of its restart policy: try again, or stop it first", c.Name)
	}
	return layer, err
}

// writeEtc makes the directory of the files of /etc that are a container's own and never part of an
// image; hosts and resolv.conf are written anew by every start (writeNames).
func writeEtc(dir, hostname string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "hostname"), hostname+"\n")
}

// writeFile writes a file that everybody may read, whatever the umask.
func writeFile(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
