package snapshot

import (
	"fmt"
	"io/fs"
	"maps"
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
		if s.meta.amends {
			if c.err = s.amendedTable(c.t); c.err != nil {
				return
			}
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
// remembered for it, unless the table has an entry for it already. In a store that
// remembers, marks tell the owners, of new files too.
//
// Overlay marks a copied file by its origin attribute. It does not mark one that
// had several names below, and a symlink cannot be marked: those are taken for
// new files, as is one that was moved; they lose the attributes that only the
// table has.
func inheritOwners(upper string, parent *Snapshot, t *Owners, remember bool) error {
	h := heir{table: t, marks: remember}
	if parent != nil {
		some, err := parent.remembers()
		if err != nil {
			return err
		}
		if some {
			h.parent = parent
		}
	}
	if h.parent == nil && !h.marks {
		return nil
	}
	root, err := openAt(unix.AT_FDCWD, upper, oDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: upper, Err: err}
	}
	defer unix.Close(root)
	if err := h.take(root, ".", ".", unix.S_IFDIR, true); err != nil {
		return err
	}
	return h.dir(root, "", true)
}

type heir struct {
	parent *Snapshot // nil: nothing to inherit
	table  *Owners
	marks  bool
}

// take enters the file called p, name in dir, of that kind; copied: it is the parent's, or of a regular
// file, it is if overlay copied it.
func (h *heir) take(dir int, name, p string, kind uint32, copied bool) error {
	path := procName(dir, name)
	var list []byte
	whole := true
	if h.marks {
		list, whole = attrs(path)
	}
	if copied && kind == unix.S_IFREG {
		if h.marks && whole && !has(list, originAttr) {
			copied = false
		} else {
			var err error
			if copied, err = wasCopied(path); err != nil {
				return fmt.Errorf("read %s of %q: %w", originAttr, p, err)
			}
		}
	}
	if !copied && !h.marks {
		return nil
	}
	if _, ok := h.table.lookup(p); ok {
		return nil
	}
	var o Owner
	ok := false
	if copied && h.parent != nil {
		var err error
		if o, ok, err = h.parent.Owner(p); err != nil {
			return err
		}
	}
	if h.marks {
		mark, marked := Owner{}, false
		if m := marksIn(list, whole); m.Any() {
			mark, marked = ReadMarkAt(path, true, m)
		}
		mark.Xattrs = maps.Clone(o.Xattrs)
		for _, a := range markedAttrs {
			delete(mark.Xattrs, a)
			if kind == unix.S_IFLNK || whole && !has(list, markExtra+a) {
				continue
			}
			if value := ReadMarkedAttr(path, a); value != nil {
				if mark.Xattrs == nil {
					mark.Xattrs = make(map[string]string)
				}
				mark.Xattrs[a], marked = string(value), true
			}
		}
		o, ok = mark, ok || marked
	}
	if ok {
		h.table.Set(p, o)
	}
	return nil
}

func (h *heir) dir(fd int, prefix string, copied bool) error {
	names, err := readNames(fd)
	if err != nil {
		return &fs.PathError{Op: "read directory", Path: prefix, Err: err}
	}
	for _, name := range names {
		if err := h.entry(fd, prefix, name, copied); err != nil {
			return err
		}
	}
	return nil
}

func (h *heir) entry(dir int, prefix, name string, copied bool) error {
	p := prefix + name
	st, err := statAt(dir, name)
	if err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	switch {
	case isWhiteout(&st):
		return nil
	case isDir(&st):
		fd, err := openAt(dir, name, oDir, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: p, Err: err}
		}
		defer unix.Close(fd)
		copied = copied && !isOpaque(fd) // else it is new, and so is what is in it
		if !copied && !h.marks {
			return nil
		}
		if err := h.take(dir, name, p, unix.S_IFDIR, copied); err != nil {
			return err
		}
		return h.dir(fd, p+"/", copied)
	}
	kind := st.Mode & unix.S_IFMT
	return h.take(dir, name, p, kind, copied && kind == unix.S_IFREG)
}

// wasCopied tells whether overlay copied the regular file up from below.
func wasCopied(path string) (bool, error) {
	_, err := unix.Lgetxattr(path, originAttr, nil)
	switch err {
	case nil:
		return true, nil
	case unix.ENODATA, unix.ENOTSUP:
		return false, nil
	}
	return false, err
}
