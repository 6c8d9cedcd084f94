package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Problem is something that should not be in a store.
type Problem struct {
	ID   ID // "" if it is about no snapshot in particular
	What string
	Err  error
}

func (p Problem) Error() string {
	if p.ID == "" {
		return fmt.Sprintf("%s: %v", p.What, p.Err)
	}
	return fmt.Sprintf("snapshot %s: %s: %v", p.ID, p.What, p.Err)
}

func (p Problem) Unwrap() error { return p.Err }

// errDiffers: what is recorded is not what is there.
var errDiffers = errors.New("differs from the record")

// Check verifies the invariants of the store (see the package doc). Recorded
// digests are computed again from the trees, which reads everything; those of
// a layer applied from an image are not in the tree and are checked for
// agreement only. Drafts are nobody's promise and are not looked at.
func (s *Store) Check(ctx context.Context) []Problem {
	var found []Problem
	add := func(id ID, what string, err error) {
		if err != nil && ctx.Err() == nil {
			found = append(found, Problem{id, what, err})
		}
	}
	ids, err := s.Snapshots()
	add("", "list", err)
	for _, id := range ids {
		snap, err := s.Get(id)
		if err != nil {
			add(id, "read", err)
			continue
		}
		if _, err := os.Stat(snap.tree()); err != nil {
			add(id, "tree", err)
			continue
		}
		add(id, "owners", snap.checkOwners())
		add(id, "digests", snap.checkDigests(ctx))
	}
	for _, kind := range []string{"chains", "outlines", "diffids"} {
		entries, err := os.ReadDir(s.path(kind, "sha256"))
		add("", kind, err)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), tempPrefix) {
				add("", kind+"/"+e.Name(), s.checkRecord(kind, e.Name()))
			}
		}
	}
	if err := ctx.Err(); err != nil {
		found = append(found, Problem{What: "check", Err: err})
	}
	return found
}

// checkOwners verifies that the table speaks of files that are there.
func (s *Snapshot) checkOwners() error {
	t, err := s.Owners()
	if err != nil {
		return err
	}
	for _, p := range t.Paths() {
		if says, err := look(s.tree(), p); err != nil {
			return err
		} else if says != present {
			return fmt.Errorf("%q: %w", p, fs.ErrNotExist)
		}
	}
	return nil
}

func (s *Snapshot) checkDigests(ctx context.Context) error {
	was, err := readDigests(filepath.Join(s.Dir(), "digests"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nobody has asked yet
	} else if err != nil {
		return err
	}
	var parent *Digests
	if below := s.Below(); below != nil {
		d, ok := below.Recorded()
		if !ok {
			return fmt.Errorf("parent %s has none", below.id)
		}
		parent = &d
	}
	is, err := s.recompute(ctx, parent, was.Alone != "")
	if err != nil {
		return err
	}
	if is != was {
		return fmt.Errorf("%w: computed %+v, recorded %+v", errDiffers, is, was)
	}
	return nil
}

// recompute finds the digests from the tree, again.
func (s *Snapshot) recompute(ctx context.Context, parent *Digests, isRebased bool) (Digests, error) {
	parent = s.seen(parent)
	switch {
	case s.meta.layer != "":
		return s.applied(parent), nil
	case !isRebased:
		return s.hashTree(ctx, parent, nil)
	}
	alone, err := s.hashTree(ctx, nil, nil)
	return rebased(alone, parent), err
}

// checkRecord verifies that a look-up record leads to what it is called.
func (s *Store) checkRecord(kind, name string) error {
	id, err := readRecord(s.path(kind, "sha256", name))
	if err != nil {
		return err
	}
	snap, err := s.Get(id)
	if err != nil {
		return err
	}
	d, ok := snap.Recorded()
	if !ok {
		return nil // written first, and then its process died
	}
	is := d.Chain
	if kind == "diffids" {
		is = d.DiffID
	}
	if is != digest.NewDigestFromEncoded(digest.SHA256, name) {
		return fmt.Errorf("%w: snapshot %s has %s", errDiffers, id, is)
	}
	return nil
}
