package snapshot

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// tableOnce caches a snapshot's owners table.
type tableOnce struct {
	once sync.Once
	t    *Owners
	any  bool // it has entries, or an ancestor's has
	err  error
}

// table reads the owners table once.
func (s *Snapshot) table() (*Owners, error) {
	c := &s.owners
	c.once.Do(func() {
		if c.t, c.err = s.Owners(); c.err != nil {
			return
		}
		if c.any = c.t.Len() > 0; !c.any && s.parent != nil {
			c.any, c.err = s.parent.remembers()
		}
	})
	return c.t, c.err
}

// remembers tells whether the snapshot or an ancestor has an owners table with
// something in it.
func (s *Snapshot) remembers() (bool, error) {
	_, err := s.table()
	return s.owners.any, err
}

// Owner returns what is remembered for the file that the whole stack shows at p,
// a path without symlinks in it. ok is false when the file is what it says.
func (s *Snapshot) Owner(p string) (o Owner, ok bool, err error) {
	p = cleanPath(p)
	for l := s; l != nil; l = l.parent {
		t, err := l.table()
		if err != nil || !l.owners.any {
			return Owner{}, false, err
		}
		if o, ok := t.lookup(p); ok {
			return o, true, nil
		}
		// The topmost layer that has the file, or hides it, has the last word.
		says, err := look(l.tree(), p)
		if err != nil || says != nothing {
			return Owner{}, false, err
		}
	}
	return Owner{}, false, nil
}

// view is what an upper directory says of a path.
type view byte

const (
	nothing view = iota // what is below shines through
	present             // there it is
	hidden              // whatever is below is not to be seen
)

// look tells what the tree says of p, symlinks not followed.
func look(tree, p string) (view, error) {
	dir, err := openAt(unix.AT_FDCWD, tree, oDir, 0)
	if err != nil {
		return nothing, &os.PathError{Op: "open", Path: tree, Err: err}
	}
	defer func() { unix.Close(dir) }()
	missing := nothing
	for rest := p; ; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		st, err := statAt(dir, name)
		switch {
		case err == unix.ENOENT:
			return missing, nil
		case err != nil:
			return nothing, &fs.PathError{Op: "look up", Path: p, Err: err}
		case isWhiteout(&st):
			return hidden, nil
		case rest == "":
			return present, nil
		case !isDir(&st):
			return hidden, nil
		}
		next, err := openAt(dir, name, oDir, 0)
		if err != nil {
			return nothing, &fs.PathError{Op: "look up", Path: p, Err: err}
		}
		unix.Close(dir)
		if dir = next; isOpaque(dir) {
			missing = hidden
		}
	}
}

// pruneOwners removes from the table what the upper directory does not have.
func pruneOwners(upper string, t *Owners) error {
	if t.Len() == 0 {
		return nil
	}
	for _, p := range t.Paths() {
		if says, err := look(upper, p); err != nil {
			return err
		} else if says != present {
			t.forget(p)
		}
	}
	return nil
}

// inheritOwners completes the table of a draft: a file or directory that overlay
// copied up, because something changed in it or below it, keeps what the parent
// remembered for it, unless the table has an entry for it already.
//
// Overlay marks a copied file by its origin attribute. It does not mark one that
// had several names below, and a symlink cannot be marked: those are taken for
// new files. So is a file that was moved: whoever watches the step (see
// Draft.Owners) knows better.
func inheritOwners(upper string, parent *Snapshot, t *Owners) error {
	if parent == nil {
		return nil
	}
	if some, err := parent.remembers(); err != nil || !some {
		return err
	}
	root, err := openAt(unix.AT_FDCWD, upper, oDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: upper, Err: err}
	}
	defer unix.Close(root)
	h := heir{parent: parent, table: t}
	if err := h.take("."); err != nil {
		return err
	}
	return h.dir(root, "")
}

type heir struct {
	parent *Snapshot
	table  *Owners
}

func (h *heir) take(p string) error {
	if _, ok := h.table.lookup(p); ok {
		return nil
	}
	o, ok, err := h.parent.Owner(p)
	if err == nil && ok {
		h.table.Set(p, o)
	}
	return err
}

func (h *heir) dir(fd int, prefix string) error {
	names, err := readNames(fd)
	if err != nil {
		return &fs.PathError{Op: "read directory", Path: prefix, Err: err}
	}
	for _, name := range names {
		if err := h.entry(fd, prefix, name); err != nil {
			return err
		}
	}
	return nil
}

func (h *heir) entry(dir int, prefix, name string) error {
	p := prefix + name
	st, err := statAt(dir, name)
	if err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		copied, err := wasCopied(dir, name)
		if err != nil || !copied {
			return err
		}
		return h.take(p)
	case unix.S_IFDIR:
		fd, err := openAt(dir, name, oDir, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: p, Err: err}
		}
		defer unix.Close(fd)
		if isOpaque(fd) {
			return nil // new, and so is what is in it
		}
		if err := h.take(p); err != nil {
			return err
		}
		return h.dir(fd, p+"/")
	}
	return nil
}

// wasCopied tells whether overlay copied the regular file up from below.
func wasCopied(dir int, name string) (bool, error) {
	_, err := unix.Lgetxattr(procName(dir, name), originAttr, nil)
	switch err {
	case nil:
		return true, nil
	case unix.ENODATA, unix.ENOTSUP:
		return false, nil
	}
	return false, fmt.Errorf("read %s of %q: %w", originAttr, name, err)
}
