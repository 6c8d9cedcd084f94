package snapshot

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// WriteTree writes the whole tree that the snapshot and its parents show as one
// tar, in the order and form of WriteLayer. It holds no whiteouts: it is what
// tar(1) would make of the mounted tree as root.
func (s *Snapshot) WriteTree(ctx context.Context, w io.Writer) error {
	owners, err := s.ownersOfTree()
	if err != nil {
		return err
	}
	m, err := s.Mount()
	if err != nil {
		return err
	}
	defer m.Close()
	root, err := openAt(int(m.Fd()), ".", oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)

	out := streamTo(w)
	walk := &scanner{ctx: ctx, owners: owners, remember: s.store.remember, links: make(map[uint64]*linkGroup)}
	walk.visit = func(it *item) error { return out.item(ctx, it, s.meta.epoch) }
	if err := walk.dir(dirs{root}, -1, ""); err != nil {
		return fmt.Errorf("write tree of %s: %w", s.id, err)
	}
	return out.end()
}

// ownersOfTree puts the tables of all layers together, each path with what the
// topmost layer that has it says.
func (s *Snapshot) ownersOfTree() (*Owners, error) {
	all := NewOwners()
	for _, layer := range s.Layers() {
		t, err := layer.table()
		if err != nil {
			return nil, err
		}
		for _, p := range t.Paths() {
			o, ok, err := s.Owner(p)
			if err != nil {
				return nil, err
			}
			if ok {
				all.Set(p, o)
			}
		}
	}
	return all, nil
}
