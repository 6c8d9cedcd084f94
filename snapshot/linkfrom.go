package snapshot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// keeper picks what is linked of a tree, by its path in the root and its stat.
type keeper func(path string, st *unix.Stat_t) bool

// LinkFrom begins a draft with files of an earlier snapshot's layer: directories are made
// again, with their metadata, and everything else that keep wants is linked, not copied. It
// is for a draft that is not mounted yet and whose changes are going to be mostly those of
// that snapshot; both must have the same parent, since what overlay marked for hiding there
// is not taken along.
//
// Sharing an inode with another snapshot is safe as sharing a directory is not: a snapshot's
// files are never written to, and a step that writes to one that lies in a lower layer, or in
// a layer of its own, gets a copy of its own (copy-up). It is not for a file that the draft
// itself is going to change.
func (d *Draft) LinkFrom(s *Snapshot, keep func(path string, st *unix.Stat_t) bool) error {
	err := d.linkFrom(s, keep)
	if err != nil {
		return fmt.Errorf("link files of snapshot %s: %w", s.id, err)
	}
	return nil
}

func (d *Draft) linkFrom(s *Snapshot, keep keeper) error {
	if d.mounts > 0 {
		return fmt.Errorf("the draft has been mounted")
	}
	if p := s.parent; (p == nil) != (d.meta.parent == "") || p != nil && p.id != d.meta.parent {
		return fmt.Errorf("it has another parent than the draft")
	}
	from, err := openAt(unix.AT_FDCWD, s.tree(), oDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: s.tree(), Err: err}
	}
	defer unix.Close(from)
	to, err := openAt(unix.AT_FDCWD, d.Upper(), oDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Upper(), Err: err}
	}
	defer unix.Close(to)
	return linkTree(from, to, "", keep)
}
