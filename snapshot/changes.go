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
// in the order of a layer: a directory before what is in it.
func (s *Snapshot) Changes(ctx context.Context, f func(Change) error) error {
	return changes(ctx, s.tree(), s.parent, f)
}

// Changes is Snapshot.Changes of what was done so far. The draft may be in use.
func (d *Draft) Changes(ctx context.Context, f func(Change) error) error {
	return changes(ctx, d.Upper(), d.Parent(), f)
}

func changes(ctx context.Context, upper string, parent *Snapshot, f func(Change) error) error {
	c := &changer{ctx: ctx, f: f}
	lower := -1
	if parent != nil {
		m, err := parent.Mount()
		if err != nil {
			return fmt.Errorf("list changes: %w", err)
		}
		defer m.Close()
		if lower, err = openAt(int(m.Fd()), ".", oDir, 0); err != nil {
			return fmt.Errorf("list changes: %w", err)
		}
		defer unix.Close(lower)
	}
	root, err := openAt(unix.AT_FDCWD, upper, oDir, 0)
	if err != nil {
		return fmt.Errorf("list changes: %w", &os.PathError{Op: "open", Path: upper, Err: err})
	}
	defer unix.Close(root)
	return c.dir(root, lower, "/", false)
}

type changer struct {
	ctx context.Context
	f   func(Change) error
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
		return c.f(Change{'D', p})
	case missing:
		return nil
	case had:
		err = c.f(Change{'C', p})
	default:
		err = c.f(Change{'A', p})
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
		replaced = replaced || isOpaque(fd)
	}
	return c.dir(fd, below, p+"/", replaced && below >= 0)
}
