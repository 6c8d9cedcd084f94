package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A COPY of many files of which few changed makes nearly the layer that it made before. Linking
// what stays is a link a file, 15 µs each on ext4, and 10,000 of them were most of the build. So a
// snapshot may amend its parent: its own directory, small, lies on that of the parent as always,
// but the layer that it stands for is both together, on what the parent lies on:
//
//	as trees:   amended tree/  →  parent's tree/  →  base's tree/
//	as layers:  (amended tree/ + parent's tree/)  →  base's tree/
//
// Whoever mounts, looks up owners or asks what must not be removed sees a parent as any other.
// Only who reads a layer asks for all its directories (trees) and for what is below (Below).

// maxAmends is how many snapshots may amend each other. Each is one more directory in every
// mount, and keeps the versions of what changed since on the disk.
const maxAmends = 8

// maxAmended: not more than this part of what stays is made anew, so that all amendments
// together waste no more than the layer's size.
const maxAmended = maxAmends

// maxStack is how many directories a mount may have for one of them to be an amendment: a
// recipe of many layers needs the kernel's limit for those.
const maxStack = maxLayers / 4

// Verdict is what becomes of a file of the snapshot that a draft is going to amend.
type Verdict byte

const (
	Stays Verdict = iota // it is as it has to be
	Anew                 // it is made again in its place; a directory stays, and only what it says of itself changes
	Gone                 // it is removed, a directory with all below it
)

// Judge tells what becomes of a file, by its path in the root and its stat. attrs are those of a
// directory, and the judge's to keep. What is in a directory that is gone is not asked about.
// Several goroutines ask.
type Judge func(path string, st *unix.Stat_t, attrs map[string]string) Verdict

// Below is the snapshot that the layer lies on: the parent, or where this snapshot amends it,
// what the parent lies on.
func (s *Snapshot) Below() *Snapshot {
	for s.meta.amends {
		s = s.parent
	}
	return s.parent
}

// trees are the directories whose files are the layer, topmost first.
func (s *Snapshot) trees() []string {
	dirs := []string{s.tree()}
	for s.meta.amends {
		s = s.parent
		dirs = append(dirs, s.tree())
	}
	return dirs
}

// amendedTable adds to the table of a snapshot that amends its parent what the parent's says of
// the files that are still its.
func (s *Snapshot) amendedTable(t *Owners) error {
	was, err := s.parent.table()
	if err != nil {
		return err
	}
	for _, p := range was.Paths() {
		if _, ok := t.lookup(p); ok {
			continue
		}
		says, err := look(s.tree(), p)
		if err != nil {
			return err
		}
		if o, ok := was.lookup(p); ok && says == nothing {
			t.Set(p, o)
		}
	}
	return nil
}

// Amend makes a draft that is new, of the same base as s, one that amends s: as if everything of
// s that is not gone had been put into it. It returns the paths that are gone, which the caller
// removes from the draft's mount, none below another; ok is false, and nothing has happened, where
// that would be no gain or could not be said in a layer.
//
// A name that is gone must not show one of the base: that no directory on top can bring about.
func (d *Draft) Amend(s *Snapshot, judge Judge) (gone []string, ok bool, err error) {
	fail := func(err error) ([]string, bool, error) {
		return nil, false, fmt.Errorf("amend snapshot %s: %w", s.id, err)
	}
	if d.mounts > 0 || d.meta.amends {
		return fail(errors.New("the draft is in use"))
	}
	if b := s.Below(); (b == nil) != (d.meta.parent == "") || b != nil && b.id != d.meta.parent {
		return fail(errors.New("it has another base than the draft"))
	}
	trees := s.trees()
	if len(trees) > maxAmends || len(s.stack()) > maxStack || s.meta.layer != "" {
		return nil, false, nil
	}
	r := review{judge: judge, sideBySide: newSideBySide()}
	top, err := openDirs(trees)
	if err != nil {
		return fail(err)
	}
	defer top.close()
	if err := r.dir(top, ""); err != nil {
		return fail(err)
	}
	if r.anew.Load()*maxAmended > r.stays.Load() {
		return nil, false, nil
	}
	unshown, err := s.Below().hidden()
	if err != nil {
		return fail(err)
	}
	for _, p := range r.gone {
		shown, err := s.Below().shows(p)
		if err != nil {
			return fail(err)
		}
		if _, named := slices.BinarySearch(unshown, hashName(p)); shown || named {
			return nil, false, nil
		}
	}
	if err := d.amend(s); err != nil {
		return fail(err)
	}
	return r.gone, true, nil
}

// amend gives the draft another parent. Its lock keeps that from then on.
func (d *Draft) amend(s *Snapshot) error {
	unlock, err := d.store.lock(unix.LOCK_SH) // as in NewDraft
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.store.Get(s.id); err != nil {
		return err
	}
	if err := copyRoot(s.tree(), d.Upper()); err != nil {
		return err
	}
	d.meta.parent, d.meta.amends = s.id, true
	d.written = d.meta.text()
	return writeAtomic(filepath.Join(d.dir, "meta"), d.written)
}

// stack lists the snapshot and its ancestors, topmost first, whatever is a layer of them.
func (s *Snapshot) stack() (all []*Snapshot) {
	for ; s != nil; s = s.parent {
		all = append(all, s)
	}
	return all
}

// shows tells whether the whole tree has a file at p, a path without symlinks in it.
func (s *Snapshot) shows(p string) (bool, error) {
	_, says, err := s.source(p)
	return says == present, err
}

// source is the topmost of s and what it lies on that has a say about p, and what it says; nil: none has.
func (s *Snapshot) source(p string) (*Snapshot, view, error) {
	for _, l := range s.stack() {
		if says, err := look(l.tree(), p); err != nil || says != nothing {
			return l, says, err
		}
	}
	return nil, nothing, nil
}

// review asks what becomes of each file of a layer.
type review struct {
	judge Judge
	*sideBySide
	stays, anew atomic.Int64 // bytes of disk, or what a directory entry is worth

	mu   sync.Mutex
	gone []string
}

func (r *review) dir(at dirs, prefix string) error {
	names, err := at.names()
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
			err = r.aside(&beside, func() error { return r.subdir(at, n.name, prefix+n.name, &st) })
		default:
			r.note(prefix+n.name, &st, nil)
		}
		if err != nil {
			return errors.Join(&fs.PathError{Op: "look at", Path: prefix + n.name, Err: err}, r.wait(&beside))
		}
	}
	return r.wait(&beside)
}

func (r *review) subdir(at dirs, name, p string, st *unix.Stat_t) error {
	dir, err := at.open(name)
	if err != nil {
		return err
	}
	defer dir.close()
	attrs, err := attrsAt(-1, "", dir[0])
	if err != nil || r.note(p, st, attrMap(attrs)) == Gone {
		return err
	}
	return r.dir(dir, p+"/")
}

// note asks what becomes of one file.
func (r *review) note(p string, st *unix.Stat_t, attrs map[string]string) Verdict {
	size := st.Blocks*512 + blockSize
	verdict := r.judge(p, st, attrs)
	if verdict == Stays {
		r.stays.Add(size)
		return verdict
	}
	r.anew.Add(size)
	if verdict == Gone {
		r.mu.Lock()
		r.gone = append(r.gone, p)
		r.mu.Unlock()
	}
	return verdict
}
