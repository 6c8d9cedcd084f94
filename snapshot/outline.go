package snapshot

import (
	"archive/tar"
	"bytes"
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

	"github.com/opencontainers/go-digest"
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

// An outline travels as a tar: its directories, links and devices as WriteLayer writes them, and before them a
// file that no layer can hold (its name would be a whiteout's), with the ChainID whose outline it is, in
// text on a line, and the names.
const (
	travelName  = whiteoutPrefix + whiteoutPrefix + "outline"
	travelHead  = "mk outline 1 "
	maxTravel   = 64 << 20 // bytes of names: eight million
	travelLimit = 4 << 20  // entries besides
	maxHidden   = 8 << 20  // names of all layers of an image, which are held in memory
)

// MakeOutline makes the outline of a layer on parent, the outline of what that lies on, nil
// for none. A layer that is an outline itself is returned.
func (s *Store) MakeOutline(ctx context.Context, layer, parent *Snapshot) (*Snapshot, error) {
	if layer.meta.outline {
		return layer, nil
	}
	sums, err := layer.Digests(ctx)
	if err != nil {
		return nil, err
	}
	d, err := s.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer d.Discard() // no-op after Commit
	r, w := io.Pipe()
	go func() { w.CloseWithError(layer.writeListing(ctx, w)) }()
	err = d.ApplyListing(ctx, r)
	r.CloseWithError(err) // the writer ends, too
	if err != nil {
		return nil, fmt.Errorf("outline of snapshot %s: %w", layer.id, err)
	}
	if sums.Content == ContentOfChain(sums.Chain) {
		sums.Content = ""
	}
	d.SetOutlineOf(sums.DiffID, sums.Content)
	return d.Commit()
}

// writeListing is WriteLayer with regular files that are empty, and nothing but their names.
func (s *Snapshot) writeListing(ctx context.Context, w io.Writer) error {
	out := streamTo(w)
	err := s.items(ctx, func(it *item) error {
		h := tarHeader(it, nil)
		if it.fd >= 0 {
			h = header{name: it.path, mode: 0o644, flag: tarFile}
		}
		return out.header(&h)
	})
	if err != nil {
		return err
	}
	return out.end()
}

// WriteOutline writes an outline that ApplyOutline makes again. The same outline gives the same bytes.
func (s *Snapshot) WriteOutline(ctx context.Context, w io.Writer) error {
	if err := s.writeOutline(ctx, w); err != nil {
		return fmt.Errorf("write outline %s: %w", s.id, err)
	}
	return nil
}

func (s *Snapshot) writeOutline(ctx context.Context, w io.Writer) error {
	sums, err := s.Digests(ctx)
	if err != nil {
		return err
	}
	names, err := os.ReadFile(filepath.Join(s.Dir(), "names"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	head := append([]byte(travelHead+sums.Chain.String()+"\n"), names...)
	if len(head) > maxTravel { // who reads it would refuse it
		return fmt.Errorf("more than %d bytes of names", maxTravel)
	}
	out := streamTo(w)
	h := header{name: travelName, mode: 0o644, size: int64(len(head)), flag: tarFile}
	err = errors.Join(out.header(&h), out.write(head), out.write(padding(h.size)))
	if err != nil {
		return err
	}
	return s.writeLayer(ctx, out)
}

// ApplyOutline is ApplyListing of what WriteOutline wrote for that chain, for SetOutline.
func (d *Draft) ApplyOutline(ctx context.Context, outline io.Reader, chain digest.Digest) error {
	d.names, d.travels = []uint64{}, chain
	if err := d.apply(ctx, outline, limits{entries: travelLimit}); err != nil {
		return err
	}
	if d.travels != "" {
		return fmt.Errorf("outline of %s: its names are missing", chain)
	}
	return nil
}

// travelled reads the first file of an outline that travelled.
func (a *applier) travelled(h *tar.Header, r io.Reader) error {
	if h.Size > maxTravel {
		return fmt.Errorf("more than %d bytes of names", maxTravel)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	line, names, _ := bytes.Cut(text, []byte("\n"))
	if is := travelHead + a.travels.String(); string(line) != is {
		return fmt.Errorf("begins with %.100q, not %q", line, is)
	}
	if a.names, err = appendHashes(a.names, names); err == nil {
		a.travels = ""
	}
	return err
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
		if names, err = appendHashes(names, text); err != nil {
			return nil, fmt.Errorf("names of snapshot %s: %w", s.id, err)
		}
		if len(names) > maxHidden {
			return nil, fmt.Errorf("an outline hides more than %d names", maxHidden)
		}
	}
	slices.Sort(names)
	return names, nil
}

// appendHashes adds what writeNames wrote.
func appendHashes(names []uint64, text []byte) ([]uint64, error) {
	for ; len(text) >= 8; text = text[8:] {
		names = append(names, binary.LittleEndian.Uint64(text))
	}
	if len(text) > 0 {
		return nil, io.ErrUnexpectedEOF
	}
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
