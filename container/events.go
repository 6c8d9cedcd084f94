package container

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Event is something that happened to a container, a network or a volume, in docker's form.
type Event struct {
	Type     string // container, network, volume
	Action   string // create, start, die, stop, kill, destroy, rename, restart, exec_create, health_status: healthy, …; connect, mount, …
	Actor    Actor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`             // seconds since 1970
	TimeNano int64  `json:"timeNano"`         // the same in nanoseconds
	Status   string `json:"status,omitempty"` // Action again, and what follows: docker's older names, for containers
	ID       string `json:"id,omitempty"`
	From     string `json:"from,omitempty"`
}

// Actor is whom it happened to.
type Actor struct {
	ID         string
	Attributes map[string]string // name, image, labels, and of some actions exitCode, signal, container, …
}

// maxEvents is the size, in bytes, at which the file of events begins anew; the one before is kept.
const maxEvents = 1 << 20

// There is no daemon to ask what happened: whoever does something appends a line to "events" in the
// store's directory, in one write, which O_APPEND keeps whole. It is told after it was done, so that
// a kill between the two loses a line and never tells a lie.
//
// tell is such a line. One that cannot be written is lost: nothing fails because of it.
func (c *Container) tell(action string, more map[string]string) {
	e := Event{Type: "container", Action: action, Status: action, ID: c.ID, From: c.Image,
		Actor: Actor{ID: c.ID, Attributes: map[string]string{"name": c.Name, "image": c.Image}}}
	for _, from := range []map[string]string{c.Labels, more} {
		for k, v := range from {
			e.Actor.Attributes[k] = v
		}
	}
	c.store.Tell(e)
}

// Tell writes down an event of anything, as of now. It is lost when it cannot be written.
func (s *Store) Tell(e Event) {
	now := time.Now()
	e.Scope, e.Time, e.TimeNano = "local", now.Unix(), now.UnixNano()
	text, err := json.Marshal(e)
	if err != nil {
		return
	}
	f, err := os.OpenFile(s.eventsFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	f.Write(append(text, '\n'))
	if st, err := f.Stat(); err == nil && st.Size() > maxEvents {
		s.turnEvents(st)
	}
}

// turnEvents begins a new file of events, unless another process has just done that.
func (s *Store) turnEvents(full os.FileInfo) {
	unlock, err := s.lock()
	if err != nil {
		return
	}
	defer unlock()
	if st, err := os.Stat(s.eventsFile()); err == nil && os.SameFile(st, full) {
		os.Rename(s.eventsFile(), s.oldEventsFile())
	}
}

func (s *Store) eventsFile() string    { return filepath.Join(s.dir, "events") }
func (s *Store) oldEventsFile() string { return filepath.Join(s.dir, "events.old") }

// Tell writes down that somebody did something that the container's own end does not show: stop,
// kill, restart and their like.
func (c *Container) Tell(action string, more map[string]string) { c.tell(action, more) }

// exitCode is the attribute of die.
func exitCode(code int) map[string]string {
	return map[string]string{"exitCode": strconv.Itoa(code)}
}

// Events calls f with everything that is still known to have happened, the oldest first, and then,
// if follow is set, with what happens until ctx ends. An error of f ends it.
func (s *Store) Events(ctx context.Context, follow bool, f func(Event) error) error {
	old, err := os.Open(s.oldEventsFile())
	if err == nil {
		err = readEvents(old, f)
		old.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var file *os.File
	defer func() { file.Close() }() // of nil, too
	for {
		if file == nil {
			if file, err = os.Open(s.eventsFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		// Asked before reading: what was written to a file that was full is read before it is left.
		turned := false
		if file != nil {
			have, err1 := file.Stat()
			now, err2 := os.Stat(s.eventsFile())
			turned = err1 == nil && err2 == nil && !os.SameFile(have, now)
			if err := readEvents(file, f); err != nil {
				return err
			}
		}
		if turned {
			file.Close()
			file = nil
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(eventsPause):
		}
	}
}

// eventsPause is how late an event may be seen.
const eventsPause = 50 * time.Millisecond

// readEvents reads whole lines from where the file stands; a line that is being written is left
// for the next time.
func readEvents(file *os.File, f func(Event) error) error {
	r := bufio.NewReader(file)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			_, err = file.Seek(-int64(len(line)), io.SeekCurrent)
			return err
		} else if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		var e Event
		if json.Unmarshal(line, &e) != nil {
			continue // a full disk cut it off
		}
		if err := f(e); err != nil {
			return err
		}
	}
}
