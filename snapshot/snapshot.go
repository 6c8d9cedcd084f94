package snapshot

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Snapshot is an immutable file tree: a parent, or none, and one directory of
// changes, which with some is only part of its layer (see Amend). Its ID never changes.
type Snapshot struct {
	store  *Store
	id     ID
	parent *Snapshot
	meta   meta
	alone  *Snapshot     // made by Rebase in this process: the same layer without a parent
	sums   Sums          // of a snapshot that this process made: see Draft.Hashed
	as     digest.Digest // "" or the Content that it has to what is made on it: see AsImage

	kept     string // see View: the directory, which is not the store's
	owners   tableOnce
	recorded recorded
}

// ID is the snapshot's name in its store.
func (s *Snapshot) ID() ID { return s.id }

// Parent is the snapshot that this one's directory lies on; nil for a base. What its layer
// lies on may be another: see Below.
func (s *Snapshot) Parent() *Snapshot { return s.parent }

// Outline tells whether the tree shows no more than directories and links of what there is, since it is made
// of a listing or lies on one: its digests and its own layer are right, but files below are missing.
// Rebase lays its layer on the tree itself.
func (s *Snapshot) Outline() bool {
	for ; s != nil; s = s.parent {
		if s.meta.outline {
			return true
		}
	}
	return false
}

// chains is where the snapshot is looked up by its chain.
func (s *Snapshot) chains() string {
	if s.Outline() {
		return "outlines"
	}
	return "chains"
}

// Layers lists the snapshot and those that its layer lies on, base first. It is empty for nil.
func (s *Snapshot) Layers() []*Snapshot {
	var layers []*Snapshot
	for ; s != nil; s = s.Below() {
		layers = append(layers, s)
	}
	slices.Reverse(layers)
	return layers
}

// Dir is the directory of the snapshot; its tree is below, see the package doc.
func (s *Snapshot) Dir() string {
	if s.kept != "" {
		return s.kept
	}
	return s.store.path("snapshots", string(s.id))
}

func (s *Snapshot) tree() string { return filepath.Join(s.Dir(), "tree") }

// Owners reads the table of what this layer's files could not be given.
func (s *Snapshot) Owners() (*Owners, error) {
	return readOwners(filepath.Join(s.Dir(), "owners"))
}

// Mount returns a detached, read-only mount of the whole tree. The caller
// closes it, which unmounts it unless it was moved somewhere.
func (s *Snapshot) Mount() (*os.File, error) {
	return mountStack(stack{store: s.store, lower: s})
}
