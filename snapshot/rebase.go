package snapshot

import (
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Rebase gives the layer of a snapshot that has no parent another one: nil for
// none, which is the snapshot itself. It is what COPY --link is made of: the
// files are copied once, whatever they then lie on.
//
// The new snapshot stands by itself: its directories are its own, its files are
// hardlinks to those of layer, so it costs a link a file and no bytes, and either
// may be removed first. Its tar, and so its DiffID, is the one that layer has;
// its Content comes from those of layer and parent, without reading a file. The
// root directory is the parent's: a layer without a parent has nothing to say
// about it.
//
// Two names of one file in the layer stay two names of one file. Beyond that,
// st_nlink of its files counts the snapshots too; no layer tells of it, since a
// name that is not in the tree is not written.
//
// A layer that was made on an outline is laid on the tree that the outline is of, if it removes
// nothing. It is the same layer there: else computing its digests, from the files, is an error.
func (s *Store) Rebase(layer, parent *Snapshot) (*Snapshot, error) {
	if layer.Below() != nil && !layer.Outline() {
		return nil, fmt.Errorf("rebase snapshot %s: it has a parent", layer.id)
	}
	if parent == nil {
		return layer, nil
	}
	snap, err := s.rebase(layer, parent)
	if err != nil {
		return nil, fmt.Errorf("rebase snapshot %s: %w", layer.id, err)
	}
	return snap, nil
}

func (s *Store) rebase(layer, parent *Snapshot) (*Snapshot, error) {
	d, err := s.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer d.Discard() // no-op after Commit
	d.meta.epoch = layer.meta.epoch
	owners, err := layer.table()
	if err != nil {
		return nil, err
	}
	for _, p := range owners.Paths() {
		o, _ := owners.lookup(p)
		d.owners.Set(p, o)
	}
	from, err := openDirs(layer.trees())
	if err != nil {
		return nil, err
	}
	defer from.close()
	to, err := openAt(unix.AT_FDCWD, d.Upper(), oDir, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.Upper(), Err: err}
	}
	defer unix.Close(to)
	if err := newLinker(nil).tree(from, to, ""); err != nil {
		return nil, err
	}
	d.alone = layer
	return d.Commit()
}

// contentOfRebased is the Content of a layer, known without a parent, on one.
func contentOfRebased(alone, parent digest.Digest) digest.Digest {
	return digest.FromString("mk content of rebased 1\n" + alone.String() + "\n" + parent.String() + "\n")
}

// On gives the digests of a layer, known without a parent, on a tree with that Content, but
// for the Chain, which Content does not tell.
func (d Digests) On(parent digest.Digest) Digests {
	return Digests{Alone: d.Content, Content: contentOfRebased(d.Content, parent), DiffID: d.DiffID, Size: d.Size}
}

// rebased gives the digests of a layer on another parent.
func rebased(alone Digests, parent *Digests) Digests {
	d := alone.On(parent.Content)
	d.Chain = chainID(parent, alone.DiffID)
	return d
}
