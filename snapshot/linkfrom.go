package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// LinkFrom begins a draft with files of an earlier snapshot's layer: directories that are not gone
// are made again, with their metadata, and everything else that stays is linked, not copied. It
// is for a draft that is not mounted yet and whose changes are going to be mostly those of
// that snapshot; both must have the same parent, since what overlay marked for hiding there
// is not taken along.
//
// Sharing an inode with another snapshot is safe as sharing a directory is not: a snapshot's
// files are never written to, and a step that writes to one that lies in a lower layer, or in
// a layer of its own, gets a copy of its own (copy-up). It is not for a file that the draft
// itself is going to change.
func (d *Draft) LinkFrom(s *Snapshot, judge Judge) error {
	err := d.linkFrom(s, judge)
	if err != nil {
		return fmt.Errorf("link files of snapshot %s: %w", s.id, err)
	}
	return nil
}

func (d *Draft) linkFrom(s *Snapshot, judge Judge) error {
	if d.mounts > 0 {
		return fmt.Errorf("the draft has been mounted")
	}
	if p := s.Below(); (p == nil) != (d.meta.parent == "") || p != nil && p.id != d.meta.parent {
		return fmt.Errorf("it has another parent than the draft")
	}
	from, err := openDirs(s.trees())
	if err != nil {
		return err
	}
	defer from.close()
	to, err := openAt(unix.AT_FDCWD, d.Upper(), oDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Upper(), Err: err}
	}
	defer unix.Close(to)
	return newLinker(judge).tree(from, to, "")
}

// linker makes a tree again of hardlinks. Directories are its own, and are linked side by side:
// a link takes 10 to 18 µs of a processor on ext4.
type linker struct {
	judge Judge // nil: everything stays
	*sideBySide
}

func newLinker(judge Judge) *linker { return &linker{judge, newSideBySide()} }

// tree makes what is in the directory from, called prefix, also in to: all of it, or
// what stays, and directories that are not gone.
// Overlay's marks stay behind: in a tree without a parent they hide nothing, in
// the new one they would.
func (l *linker) tree(from dirs, to int, prefix string) error {
	names, err := from.names()
	if err != nil {
		return &fs.PathError{Op: "read directory", Path: prefix, Err: err}
	}
	var beside errgroup.Group
	for i := range names {
		n := &names[i]
		st, err := n.stat()
		switch {
		case err != nil:
		case isWhiteout(&st):
		case isDir(&st):
			err = l.aside(&beside, func() error { return l.dir(from, to, n.name, prefix+n.name, &st) })
		case l.judge == nil || l.judge(prefix+n.name, &st, nil) == Stays:
			err = unix.Linkat(n.dir, n.name, to, n.name, 0)
		}
		if err != nil {
			return errors.Join(&fs.PathError{Op: "link", Path: prefix + n.name, Err: err}, l.wait(&beside))
		}
	}
	return l.wait(&beside)
}

// dir makes the directory name of from in to: owner, attributes and mode, what
// is in it, and last its time.
func (l *linker) dir(from dirs, to int, name, p string, st *unix.Stat_t) error {
	src, err := from.open(name)
	if err != nil {
		return err
	}
	defer src.close()
	attrs, err := attrsAt(-1, "", src[0])
	if err != nil {
		return err
	}
	if l.judge != nil && l.judge(p, st, attrMap(attrs)) == Gone {
		return nil
	}
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	dst, err := openAt(to, name, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	for _, a := range attrs {
		if err := unix.Fsetxattr(dst, a.name, []byte(a.value), 0); err != nil {
			return fmt.Errorf("set %s: %w", a.name, err)
		}
	}
	if o, ok := ReadMarkOf(src[0]); ok {
		if err := WriteMark(procName(to, name), true, o); err != nil {
			return fmt.Errorf("mark: %w", err)
		}
	}
	if err := l.tree(src, dst, p+"/"); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	return setTime(to, name, st.Mtim)
}
