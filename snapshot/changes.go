package snapshot

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Change is one line of a listing as docker diff prints it.
type Change struct {
	Kind byte   // 'A' added, 'C' changed, 'D' deleted
	Path string // absolute in the tree
}

// Changes calls f for each path by which the snapshot differs from its parent,
// in the order of a layer: a directory before what is in it. A directory that
// overlay copied up, and in which nothing is changed, is no change; nor are
// stubs, which are there only as long as a View is in use.
func (s *Snapshot) Changes(ctx context.Context, stubs []string, f func(Change) error) error {
	c := &changer{ctx: ctx, f: f, stubs: stubs}
	lower := -1
	if s.parent != nil {
		m, err := s.parent.Mount()
		if err != nil {
			return fmt.Errorf("list changes: %w", err)
		}
		defer m.Close()
		if lower, err = openAt(int(m.Fd()), ".", oDir, 0); err != nil {
			return fmt.Errorf("list changes: %w", err)
		}
		defer unix.Close(lower)
	}
	root, err := openAt(unix.AT_FDCWD, s.tree(), oDir, 0)
	if err != nil {
		return fmt.Errorf("list changes: %w", &os.PathError{Op: "open", Path: s.tree(), Err: err})
	}
	defer unix.Close(root)
	return c.dir(root, lower, "/", false)
}

type changer struct {
	ctx context.Context
	f   func(Change) error

	stubs []string
	held  []string // directories, each in the one before, that are as the parent's so far
}

// tell calls f for the directories that something was changed in, and for what was.
func (c *changer) tell(kind byte, path string) error {
	for _, dir := range c.held {
		if err := c.f(Change{'C', dir}); err != nil {
			return err
		}
	}
	c.held = nil
	return c.f(Change{kind, path})
}

// dir lists the changes in a directory of upper; lower is the parent's, or -1.
// With replaced, all that the parent has there and upper has not is deleted.
func (c *changer) dir(fd, lower int, prefix string, replaced bool) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(fd)
	if err != nil {
		return &fs.PathError{Op: "read directory", Path: prefix, Err: err}
	}
	if replaced {
		below, err := readNames(lower)
		if err != nil {
			return &fs.PathError{Op: "read directory of parent", Path: prefix, Err: err}
		}
		names = append(names, below...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err := c.entry(fd, lower, prefix, name, replaced); err != nil {
			return err
		}
	}
	return nil
}

func (c *changer) entry(dir, lower int, prefix, name string, replaced bool) error {
	p := prefix + name
	st, err := statAt(dir, name)
	missing := err == unix.ENOENT || err == nil && isWhiteout(&st)
	if err != nil && !missing {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	var was unix.Stat_t
	had := false
	if lower >= 0 {
		if was, err = statAt(lower, name); err == nil {
			had = true
		} else if err != unix.ENOENT {
			return &fs.PathError{Op: "stat in parent", Path: p, Err: err}
		}
	}
	switch {
	case missing && had:
		return c.tell('D', p)
	case missing:
		return nil
	case !had && slices.Contains(c.stubs, p):
		return nil
	case !had:
		err = c.tell('A', p)
	case !isDir(&st) || !isDir(&was):
		err = c.tell('C', p)
	}
	if err != nil || !isDir(&st) {
		return err
	}
	fd, err := openAt(dir, name, oDir, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: p, Err: err}
	}
	defer unix.Close(fd)
	below := -1
	if had && isDir(&was) {
		if below, err = openAt(lower, name, oDir, 0); err != nil {
			return &fs.PathError{Op: "open in parent", Path: p, Err: err}
		}
		defer unix.Close(below)
		same, err := sameDirectory(fd, below, &st, &was)
		if err != nil {
			return &fs.PathError{Op: "compare with parent", Path: p, Err: err}
		}
		if same {
			c.held = append(c.held, p)
		} else if err := c.tell('C', p); err != nil {
			return err
		}
		replaced = replaced || isOpaque(fd)
	}
	err = c.dir(fd, below, p+"/", replaced && below >= 0)
	if n := len(c.held); n > 0 && c.held[n-1] == p {
		c.held = c.held[:n-1]
	}
	return err
}

// sameDirectory tells whether a directory of upper is as the parent's, but for what is in it.
func sameDirectory(fd, lower int, is, was *unix.Stat_t) (bool, error) {
	if is.Mode != was.Mode || is.Uid != was.Uid || is.Gid != was.Gid || is.Mtim != was.Mtim {
		return false, nil
	}
	mine, marked := ReadMarkOf(fd)
	theirs, wasMarked := ReadMarkOf(lower)
	if marked != wasMarked || !mine.equal(theirs) {
		return false, nil
	}
	attrs, err := attrsAt(-1, "", fd)
	if err != nil {
		return false, err
	}
	before, err := attrsAt(-1, "", lower)
	return slices.Equal(attrs, before), err
}
