package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// An outline has the directories of its layer, its links and devices, but of a regular file
// a hash of its name alone: a file is 20 µs, and a base has a hundred thousand. What is made on an
// outline does not depend on them, but for one thing: a directory where there is a file is an
// error. So Commit looks for the directories of a draft among the names, and refuses one that is there;
// one that looks so for its hash is refused too. A file that a later layer removed is still among them:
// who is refused makes the layer on the tree.
//
// names is their FNV-1a hashes of 64 bits, sorted, little-endian.

// errHidden is of a draft that makes a directory of what may be a file that the outline does not show.
var errHidden = errors.New("a directory, where the layers below may have a file")

// ApplyListing is Apply of a tar that has all names of a layer and the bytes of no file, for SetOutline.
// A regular file of it is made only where its name hides another of the tree.
func (d *Draft) ApplyListing(ctx context.Context, listing io.Reader) error {
	d.names = []uint64{}
	return d.apply(ctx, listing, layerLimits)
}

// onlyNamed tells whether a file need not be made, but be remembered by its name.
func (a *applier) onlyNamed(at *place, name string) bool {
	if a.names == nil {
		return false
	}
	if _, err := statAt(at.upper, name); err != unix.ENOENT {
		return false
	}
	if _, err := at.lowerStat(name); err != unix.ENOENT {
		return false
	}
	a.names = append(a.names, hashName(at.join(name)))
	return true
}

func hashName(path string) uint64 {
	h := fnv.New64a()
	io.WriteString(h, path)
	return h.Sum64()
}

// writeNames saves the names of a draft that a listing was applied to.
func (d *Draft) writeNames() error {
	if len(d.names) == 0 {
		return nil
	}
	slices.Sort(d.names)
	text := make([]byte, 0, 8*len(d.names))
	for _, n := range d.names {
		text = binary.LittleEndian.AppendUint64(text, n)
	}
	return os.WriteFile(filepath.Join(d.dir, "names"), text, 0o600)
}

// hidden gives the hashes of the files that the trees of s do not show.
func (s *Snapshot) hidden() ([]uint64, error) {
	var names []uint64
	for ; s != nil; s = s.parent {
		if !s.meta.outline {
			continue
		}
		text, err := os.ReadFile(filepath.Join(s.Dir(), "names"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for ; len(text) >= 8; text = text[8:] {
			names = append(names, binary.LittleEndian.Uint64(text))
		}
		if len(text) > 0 {
			return nil, fmt.Errorf("names of snapshot %s: %w", s.id, io.ErrUnexpectedEOF)
		}
	}
	slices.Sort(names)
	return names, nil
}

// checkHidden refuses a draft with a directory that may be a file on the tree that parent is the outline of.
func (d *Draft) checkHidden(parent *Snapshot) error {
	if d.meta.layer != "" { // not made, but applied: it says what is what
		return nil
	}
	names, err := parent.hidden()
	if err != nil || len(names) == 0 {
		return err
	}
	upper := d.Upper()
	return filepath.WalkDir(upper, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() || path == upper {
			return err
		}
		if _, found := slices.BinarySearch(names, hashName(path[len(upper)+1:])); found {
			return fmt.Errorf("%q: %w", path[len(upper)+1:], errHidden)
		}
		return nil
	})
}
