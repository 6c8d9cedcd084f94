package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/container"
	"mk/snapshot"
)

const pruneHelp = `Remove what nothing uses: images without a name, blobs of no image, trees that
neither an image nor the step cache needs, and what killed processes left.

--all removes the step cache too, with the trees that only it needs, what
RUN --mount=type=cache kept, and what is known of the files of contexts.`

func newPrune(a *app) *cobra.Command {
	var all, force bool
	c := &cobra.Command{Use: "prune", Short: "Remove what nothing uses", Long: pruneHelp, Args: cobra.NoArgs}
	c.RunE = a.swept(a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		return reclaimed(s.prune(c.Context(), all, false))
	})))
	c.Flags().BoolVarP(&all, "all", "a", false, "remove the step cache too")
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk prune never asks")
	a.usernsFlag(c)
	return c
}

// reclaimed ends a prune as docker's end.
func reclaimed(freed int64, err error) error {
	if err == nil {
		_, err = fmt.Fprintf(&stdout, "Total reclaimed space: %s\n", size(freed))
	}
	return err
}

// prune removes what nothing uses; with all, the step cache too, with named, also images that have a name and no
// container. It deletes under the exclusive lock: no other mk has the store open.
//
// Order: names, then records, then trees and blobs, so that killed at any point
// nothing is left that names what is gone.
func (s *store) prune(ctx context.Context, all, named bool) (int64, error) {
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return 0, errors.New("prune: another mk is using the store; try again when it has ended")
		}
		return 0, fmt.Errorf("prune: lock store: %w", err)
	}
	tagged, err := s.images.List()
	if err != nil {
		return 0, err
	}
	containers, err := s.containers.List()
	if err != nil {
		return 0, err
	}
	inUse := map[string]bool{} // what containers were made of, named or not
	for _, c := range containers {
		v, err := look(c)
		if err != nil {
			return 0, err
		}
		maps.Copy(inUse, v.images())
	}
	for _, t := range tagged {
		id := t.Descriptor.Digest.String()
		if (t.Name == "" || named) && !inUse[id] {
			inUse[id] = true // not once more by another of its names
			if _, err := s.images.Remove(t.Descriptor.Digest); err != nil {
				return 0, err
			}
		}
	}
	used, err := s.treesOfImages(ctx)
	if err != nil {
		return 0, err
	}
	if err := s.treesOfContainers(containers, used); err != nil {
		return 0, err
	}
	err = s.records.Prune(all, func(r *builder.Record) bool {
		_, err := s.trees.Get(r.Snapshot)
		if err == nil && !all {
			s.markTree(used, r.Snapshot)
		}
		return err == nil && !all
	})
	if err != nil {
		return 0, err
	}
	if err := builder.PruneStatCaches(s.path("stat"), all); err != nil {
		return 0, err
	}
	_, bytes, err := s.trees.Remove(func(id snapshot.ID) bool { return used[id] })
	if err != nil {
		return bytes, err
	}
	if all {
		freed, err := s.caches().RemoveAll()
		if bytes += freed; err != nil {
			return bytes, err
		}
	}
	halves, err := s.pruneVolumes()
	if bytes += halves; err != nil {
		return bytes, err
	}
	freed, err := s.images.GC(ctx, nil)
	bytes += freed.Bytes
	if err == nil && all {
		var fetched int64
		fetched, err = s.fetched().Prune()
		bytes += fetched
	}
	return bytes, err
}

// treesOfImages lists the trees that the store's images are made of.
func (s *store) treesOfImages(ctx context.Context) (map[snapshot.ID]bool, error) {
	used := map[snapshot.ID]bool{}
	tagged, err := s.images.List()
	if err != nil {
		return nil, err
	}
	for _, t := range tagged {
		img, err := s.images.Image(ctx, t.Descriptor, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err) // an image that cannot be read frees nothing
		}
		var ids []digest.Digest
		for _, l := range img.Layers() {
			ids = append(ids, l.DiffID)
			if snap, err := s.trees.ByDiffID(l.DiffID); err == nil {
				s.markTree(used, snap.ID())
			}
		}
		for _, chain := range identity.ChainIDs(ids) {
			if snap, err := s.trees.ByChain(chain); err == nil {
				s.markTree(used, snap.ID())
			}
		}
	}
	return used, nil
}

// treesOfContainers marks the trees that containers of this mode lie on, and removes what killed
// processes left of containers that never were.
func (s *store) treesOfContainers(all []*container.Container, used map[snapshot.ID]bool) error {
	for _, c := range all {
		if c.Mode != string(s.mode) {
			continue
		}
		id, err := snapshot.KeptParent(c.Path("layer"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being removed
		} else if err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		s.markTree(used, id)
	}
	if err := container.SweepCgroups(); err != nil {
		return err
	}
	litter, err := s.containers.Litter()
	if err != nil {
		return err
	}
	for _, dir := range litter {
		if err := snapshot.RemoveKept(filepath.Join(dir, "layer")); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// markTree marks a tree and those below it.
func (s *store) markTree(used map[snapshot.ID]bool, id snapshot.ID) {
	snap, err := s.trees.Get(id)
	for err == nil && snap != nil && !used[snap.ID()] {
		used[snap.ID()] = true
		snap = snap.Parent()
	}
}
