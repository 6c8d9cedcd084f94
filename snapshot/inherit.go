package snapshot

import (
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// tableOnce caches a snapshot's owners table.
type tableOnce struct {
	once sync.Once
	t    *Owners
	err  error
}

// table reads the owners table once.
func (s *Snapshot) table() (*Owners, error) {
	s.owners.once.Do(func() { s.owners.t, s.owners.err = s.Owners() })
	return s.owners.t, s.owners.err
}

// Owner returns what is remembered for the file that the whole stack shows at p,
// a path without symlinks in it. ok is false when the file is what it says.
func (s *Snapshot) Owner(p string) (o Owner, ok bool, err error) {
	p = cleanPath(p)
	for l := s; l != nil; l = l.parent {
		t, err := l.table()
		if err != nil {
			return Owner{}, false, err
		}
		if o, ok := t.lookup(p); ok {
			return o, true, nil
		}
		// The topmost layer that has the file is the one whose word counts.
		has, err := hasPath(l.tree(), p)
		if err != nil || has {
			return Owner{}, false, err
		}
	}
	return Owner{}, false, nil
}

// hasPath tells whether the tree has something at p, symlinks not followed.
func hasPath(tree, p string) (bool, error) {
	root, err := openAt(unix.AT_FDCWD, tree, oLook, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: tree, Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch err {
	case nil:
		unix.Close(fd)
		return true, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return false, nil
	}
	return false, &fs.PathError{Op: "look up", Path: p, Err: err}
}

// remembers tells whether the snapshot or an ancestor has an owners table with
// something in it.
func (s *Snapshot) remembers() (bool, error) {
	for l := s; l != nil; l = l.parent {
		t, err := l.table()
		if err != nil {
			return false, err
		}
		if t.Len() > 0 {
			return true, nil
		}
	}
	return false, nil
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
