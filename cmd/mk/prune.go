package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/container"
	"mk/image"
	"mk/snapshot"
)

const pruneHelp = `Remove what nothing uses: images without a name, blobs of no image, trees that
neither an image nor the step cache needs, and what killed processes left.

--all removes the step cache too, with the trees that only it needs, what
RUN --mount=type=cache kept, and what is known of the files of contexts.

With --filter until=24h the step cache forgets what no build wanted for so
long. With --max-used-space 10GB it forgets what was used least lately until
what it alone needs ('mk du') is no more; with --min-free-space, until so much
is free on the disk; and never goes below --reserved-space. With both, only
what is as old as the filter says goes.`

// pruning says what goes beyond what nothing uses.
type pruning struct {
	all    bool                     // the whole step cache
	images func(image.Summary) bool // of the images that have a name, and no container; nil: none
	none   func(image.Summary) bool // of those without a name; nil: all

	until                      time.Time // what the step cache has not used since then
	maxUsed, minFree, reserved bytesFlag // and while it has more
}

func newPrune(a *app) *cobra.Command {
	var p pruning
	var force bool
	var filters []string
	c := &cobra.Command{Use: "prune", Short: "Remove what nothing uses", Long: pruneHelp, Args: cobra.NoArgs}
	c.RunE = a.swept(a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		for _, f := range filters {
			if key, _, _ := strings.Cut(f, "="); key != "until" && key != "unused-for" {
				return fmt.Errorf("--filter %s: want until=TIME", f)
			}
		}
		var err error
		if p.until, err = untilOf(filters); err != nil {
			return err
		}
		if p.all && p.partly() {
			p.all = false // docker's word for the step cache, of which the rest says how much
		}
		return reclaimed(s.prune(c.Context(), &p))
	})))
	fl := c.Flags()
	fl.BoolVarP(&p.all, "all", "a", false, "remove the step cache too")
	fl.BoolVarP(&force, "force", "f", false, "as in docker; mk prune never asks")
	fl.Var((*list)(&filters), "filter", "until=TIME: of the step cache, what was not used since or, until=24h, for so long")
	fl.Var(&p.maxUsed, "max-used-space", "make the step cache no larger than this, as 10GB")
	fl.Var(&p.minFree, "min-free-space", "make the step cache smaller until so much is free on the disk")
	fl.Var(&p.reserved, "reserved-space", "leave the step cache so much in any case; alone, it leaves no more")
	fl.Var(&p.reserved, "keep-storage", "docker's older word for --reserved-space")
	a.usernsFlag(c)
	return c
}

// partly tells that some of the step cache is to go.
func (p *pruning) partly() bool {
	return !p.until.IsZero() || p.maxUsed.set || p.minFree.set || p.reserved.set
}

// limit is how much the step cache may have, by how much that and what is free on the disk are.
func (p *pruning) limit(has, free int64) int64 {
	if !p.maxUsed.set && !p.minFree.set {
		return p.reserved.n // 0, where only the time counts
	}
	limit := int64(math.MaxInt64)
	if p.maxUsed.set {
		limit = p.maxUsed.n
	}
	if short := p.minFree.n - free; p.minFree.set && short > 0 {
		limit = min(limit, max(has-short, 0))
	}
	return max(limit, p.reserved.n)
}

// reclaimed ends a prune as docker's end.
func reclaimed(freed int64, err error) error {
	if err == nil {
		_, err = fmt.Fprintf(&stdout, "Total reclaimed space: %s\n", size(freed))
	}
	return err
}

// prune removes what nothing uses, and what p says. It deletes under the exclusive lock: no other mk has the
// store open.
//
// Order: names, then records, then trees and blobs, so that killed at any point
// nothing is left that names what is gone.
func (s *store) prune(ctx context.Context, p *pruning) (int64, error) {
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return 0, errors.New("prune: another mk is using the store; try again when it has ended")
		}
		return 0, fmt.Errorf("prune: lock store: %w", err)
	}
	containers, err := s.containers.List()
	if err != nil {
		return 0, err
	}
	if err := s.pruneImages(ctx, containers, p); err != nil {
		return 0, err
	}
	used, err := s.treesOfImages(ctx) // before anything that is not a name goes: it fails on an image that cannot be read
	if err != nil {
		return 0, err
	}
	if err := s.treesOfContainers(containers, used); err != nil {
		return 0, err
	}
	forgotten, bytes, err := s.forget(ctx, p)
	if err != nil {
		return bytes, err
	}
	err = s.records.Prune(p.all, func(r *builder.Record) bool {
		_, err := s.trees.Get(r.Snapshot)
		keep := err == nil && !forgotten[r.Key]
		if keep {
			s.markTree(used, r.Snapshot)
		}
		return keep
	})
	if err != nil {
		return bytes, err
	}
	if err := builder.PruneStatCaches(s.path("stat"), p.all); err != nil {
		return bytes, err
	}
	_, freed, err := s.trees.Remove(func(id snapshot.ID) bool { return used[id] })
	bytes += freed
	if err != nil {
		return bytes, err
	}
	if p.all {
		freed, err := s.caches().RemoveAll()
		if bytes += freed; err != nil {
			return bytes, err
		}
	}
	for _, sweep := range []func() (int64, error){s.caches().Sweep, s.fetched().Sweep, s.pruneVolumes} {
		freed, err := sweep()
		if bytes += freed; err != nil {
			return bytes, err
		}
	}
	blobs, err := s.images.GC(ctx, nil)
	bytes += blobs.Bytes
	if err == nil && p.all {
		freed, err = s.fetched().Prune()
		bytes += freed
	}
	return bytes, err
}

// pruneImages forgets images that none of the containers was made of.
func (s *store) pruneImages(ctx context.Context, containers []*container.Container, p *pruning) error {
	list, err := s.images.Summaries(ctx)
	if err != nil {
		return err
	}
	inUse := map[string]bool{} // what containers were made of, named or not
	for _, c := range containers {
		v, err := look(c)
		if err != nil {
			return err
		}
		maps.Copy(inUse, v.images())
	}
	for _, sum := range list {
		goes := p.none == nil || sum.Err == nil && p.none(sum)
		if !sum.Reference.IsZero() {
			goes = p.images != nil && p.images(sum)
		}
		if id := sum.Target.Digest.String(); goes && !inUse[id] {
			inUse[id] = true // not once more by another of its names
			if _, err := s.images.Remove(sum.Target.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget decides of the step cache, and removes of it what is no tree.
func (s *store) forget(ctx context.Context, p *pruning) (records map[builder.Key]bool, bytes int64, err error) {
	if p.all || !p.partly() {
		return nil, 0, nil
	}
	bySize := p.maxUsed.set || p.minFree.set || p.reserved.set
	u, err := s.usage(ctx, bySize)
	if err != nil {
		return nil, 0, err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.root, &disk); err != nil {
		return nil, 0, fmt.Errorf("prune: look at what is free on the disk: %w", err)
	}
	records = map[builder.Key]bool{}
	cache, unused := u.free()
	for _, item := range u.forget(p.until, p.limit(cache, int64(disk.Bavail)*disk.Bsize+unused)) {
		switch {
		case item.record != nil:
			records[item.record.Key] = true
		case item.mount != nil:
			for _, dir := range item.mount.Dirs {
				bytes += diskUse(dir)
			}
			err = s.caches().Forget(item.mount.CacheMount)
		default:
			bytes += diskUse(item.file.Path)
			err = os.RemoveAll(item.file.Path)
		}
		if err != nil {
			return nil, bytes, fmt.Errorf("prune: %w", err)
		}
	}
	return records, bytes, nil
}

// treesOfImages lists the trees that the store's images are made of.
func (s *store) treesOfImages(ctx context.Context) (map[snapshot.ID]bool, error) {
	used := map[snapshot.ID]bool{}
	tagged, err := s.images.List()
	if err != nil {
		return nil, err
	}
	for _, t := range tagged {
		if err := s.treesOfImage(ctx, t.Descriptor, used); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err) // an image that cannot be read frees nothing
		}
	}
	return used, nil
}

// treesOfImage marks the trees that an image is made of, or the images of a list that are here.
func (s *store) treesOfImage(ctx context.Context, d ocispec.Descriptor, used map[snapshot.ID]bool) error {
	all, err := s.images.Images(ctx, d)
	for _, img := range all {
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
	return err
}

// treesOfContainers marks the trees that containers of this mode lie on, and removes what killed
// processes left of containers that never were.
func (s *store) treesOfContainers(all []*container.Container, used map[snapshot.ID]bool) error {
	if err := s.treesUnder(all, used); err != nil {
		return err
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

// treesUnder marks the trees that containers of this mode lie on.
func (s *store) treesUnder(all []*container.Container, used map[snapshot.ID]bool) error {
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
