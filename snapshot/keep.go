package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A kept draft lives in a directory of somebody else's, a container's, and not in
// the store: it survives its process, is opened and mounted again, and Remove never
// looks at it. Whoever keeps it sees to it that Remove keeps its parent (KeptParent).
//
//	d, err := store.NewKept(dir, parent)    or   store.OpenKept(dir)
//	root, err := d.Mount()                  as of any draft
//	err = d.Close()                         the tree stays; or Discard
//
// The directory has the files of a draft: see the package doc.

// ErrInUse is OpenKept's: another process has it open.
var ErrInUse = errors.New("in use by another process")

// NewKept is NewDraft in the directory dir, which must not exist. The caller holds
// off Remove by other means until dir can be found by who calls Remove.
func (s *Store) NewKept(dir string, parent *Snapshot) (*Draft, error) {
	d := &Draft{store: s, id: newID(), dir: dir, owners: NewOwners()}
	if parent != nil {
		d.meta.parent = parent.id
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("new kept draft: %w", err)
	}
	if err := d.fill(parent); err != nil {
		d.Discard()
		return nil, fmt.Errorf("new kept draft: %w", err)
	}
	return d, nil
}

// OpenKept opens a kept draft again; ErrInUse while another process has it open. A
// process that died with it open has left the files as they were.
func (s *Store) OpenKept(dir string) (*Draft, error) {
	d := &Draft{store: s, id: newID(), dir: dir}
	fail := func(err error) (*Draft, error) {
		if d.locked != nil {
			d.locked.Close()
		}
		return nil, fmt.Errorf("open kept draft %s: %w", dir, err)
	}
	var err error
	if d.locked, err = os.Open(dir); err != nil {
		return fail(err)
	}
	if err := lockKept(d.locked); err != nil {
		return fail(err)
	}
	if d.meta, err = readMeta(filepath.Join(dir, "meta")); err != nil {
		return fail(err)
	}
	if d.meta.parent != "" {
		if _, err := s.Get(d.meta.parent); err != nil {
			return fail(err)
		}
	}
	if d.owners, err = readOwners(filepath.Join(dir, "owners")); err != nil {
		return fail(err)
	}
	// Work directories of mounts that are gone; a volatile one cannot be used twice.
	if err := d.dropWork(); err != nil {
		return fail(err)
	}
	return d, nil
}

// Close ends the use of a kept draft, whose mounts must be gone; the tree stays. After
// Discard it does nothing.
func (d *Draft) Close() error {
	if d.ended {
		return nil
	}
	d.ended = true
	defer d.locked.Close()
	return d.dropWork()
}

// Remount is Mount after a mount that is gone: its work directory goes first.
func (d *Draft) Remount() (*os.File, error) {
	if err := d.dropWork(); err != nil {
		return nil, err
	}
	return d.Mount()
}

func (d *Draft) dropWork() error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "work") {
			if err := removeTree(filepath.Join(d.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveKept removes a kept draft that no process has open, whatever is left of it.
func RemoveKept(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := lockKept(f); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return removeTree(dir)
}

// lockKept locks a kept draft. Who has it may be dying: of a process that is killed, one lock is gone
// before the other, and the caller may have come by the first.
func lockKept(dir *os.File) error {
	for end := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := flock(dir, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK {
			return err
		}
		if time.Now().After(end) {
			return ErrInUse
		}
	}
}

// KeptParent is the snapshot that a kept draft changes, "" for none.
func KeptParent(dir string) (ID, error) {
	m, err := readMeta(filepath.Join(dir, "meta"))
	return m.parent, err
}

// View shows a kept draft as if it had been committed, for Changes, Mount, WriteLayer
// and WriteTree. It may be in use by a container meanwhile: what is read is then some
// state of each file.
func (s *Store) View(dir string) (*Snapshot, error) {
	m, err := readMeta(filepath.Join(dir, "meta"))
	if err != nil {
		return nil, err
	}
	v := &Snapshot{store: s, id: ID(filepath.Base(dir)), meta: m, kept: dir}
	if m.parent != "" {
		if v.parent, err = s.Get(m.parent); err != nil {
			return nil, err
		}
	}
	if s.remember { // the marks of the files are the table, until a commit writes one
		c := &v.owners
		c.once.Do(func() {
			if c.t, c.err = readOwners(filepath.Join(dir, "owners")); c.err == nil {
				c.err = inheritOwners(v.tree(), v.parent, c.t, true)
			}
			c.any = c.t.Len() > 0
			if c.err == nil && !c.any && v.parent != nil {
				c.any, c.err = v.parent.remembers()
			}
		})
		if c.err != nil {
			return nil, c.err
		}
	}
	return v, nil
}
