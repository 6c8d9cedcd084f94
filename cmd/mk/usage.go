package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/container"
	"mk/image"
	"mk/snapshot"
)

// piece is what is in the store or is not, as a whole: a blob, a tree, a directory.
type piece struct {
	ID, Kind, Text string // Kind is buildx's: regular, exec.cachemount, source.http, source.git, internal
	bytes          int64  // on disk
	images         int    // so many need it
	containers     bool   // one lies on it, or was made of an image that needs it
	cached         bool   // the step cache has a record that needs it
	made, used     time.Time
}

// held tells that the step cache gives nothing back by forgetting it.
func (p *piece) held() bool { return p.images > 0 || p.containers }

// imageUse is an image and what it needs; several names may stand for it.
type imageUse struct {
	target     digest.Digest
	names      []image.Summary
	pieces     []*piece
	containers int
}

// containerUse is a container and what it alone takes.
type containerUse struct {
	seen
	bytes int64
}

// volumeUse is a volume, and by how many containers it is used.
type volumeUse struct {
	volume
	bytes int64
	users int
}

// cacheItem is what the step cache can forget, and what goes by that unless somebody else needs it. One of
// record, mount and file is set.
type cacheItem struct {
	used   time.Time
	pieces []*piece
	record *builder.Record
	mount  *builder.CacheInfo
	file   *builder.FetchedFile
}

// usage is what a store takes on disk, and who needs it.
type usage struct {
	images     []*imageUse
	containers []containerUse
	volumes    []volumeUse
	pieces     []*piece    // all of them
	cache      []cacheItem // the last used first
}

// usage looks at the whole store, as the files' owner: it takes as long as du(1).
func (s *store) usage(ctx context.Context) (*usage, error) {
	u := &usage{}
	blobs := map[digest.Digest]*piece{}
	err := s.images.EachBlob(func(d digest.Digest, _ int64) error {
		p := &piece{ID: d.Encoded(), Kind: "source.image", bytes: fileUse(s.images.Dir() + "/blobs/" + d.Algorithm().String() + "/" + d.Encoded())}
		blobs[d], u.pieces = p, append(u.pieces, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	ids, err := s.trees.Snapshots()
	if err != nil {
		return nil, err
	}
	trees := map[snapshot.ID]*piece{}
	for _, id := range ids {
		snap, err := s.trees.Get(id)
		if err != nil {
			continue // mk check says what is wrong with it
		}
		p := &piece{ID: string(id), Kind: "regular", bytes: diskUse(snap.Dir())}
		trees[id], u.pieces = p, append(u.pieces, p)
	}
	containers, err := s.containers.List()
	if err != nil {
		return nil, err
	}
	if err := u.addContainers(s, containers, trees); err != nil {
		return nil, err
	}
	if err := u.addImages(ctx, s, blobs, trees); err != nil {
		return nil, err
	}
	if err := u.addVolumes(s); err != nil {
		return nil, err
	}
	return u, u.addCache(s, trees)
}

func (u *usage) addContainers(s *store, all []*container.Container, trees map[snapshot.ID]*piece) error {
	for _, c := range all {
		v, err := look(c)
		if err != nil {
			return err
		}
		u.containers = append(u.containers, containerUse{v, diskUse(c.Path(""))})
	}
	used := map[snapshot.ID]bool{}
	if err := s.treesUnder(all, used); err != nil {
		return err
	}
	for id := range used {
		if p := trees[id]; p != nil {
			p.containers = true
		}
	}
	return nil
}

func (u *usage) addImages(ctx context.Context, s *store, blobs map[digest.Digest]*piece, trees map[snapshot.ID]*piece) error {
	list, err := s.images.Summaries(ctx)
	if err != nil {
		return err
	}
	for _, sum := range list {
		at := slices.IndexFunc(u.images, func(i *imageUse) bool { return i.target == sum.Target.Digest })
		if at >= 0 {
			u.images[at].names = append(u.images[at].names, sum)
			continue
		}
		img := &imageUse{target: sum.Target.Digest, names: []image.Summary{sum}}
		u.images = append(u.images, img)
		for _, c := range u.containers {
			if c.seen.images()[img.target.String()] {
				img.containers++
			}
		}
		live, err := s.images.Reachable(ctx, []ocispec.Descriptor{sum.Target})
		if err != nil {
			return err
		}
		for d := range live {
			if p := blobs[d]; p != nil {
				img.pieces = append(img.pieces, p)
			}
		}
		used := map[snapshot.ID]bool{}
		if err := s.treesOfImage(ctx, sum.Target, used); err != nil {
			return err
		}
		for id := range used {
			if p := trees[id]; p != nil {
				img.pieces = append(img.pieces, p)
			}
		}
		for _, p := range img.pieces {
			p.images++
			p.containers = p.containers || img.containers > 0
		}
	}
	return nil
}

func (u *usage) addVolumes(s *store) error {
	list, err := s.volumes()
	if err != nil {
		return err
	}
	for _, v := range list {
		use := volumeUse{volume: v, bytes: diskUse(s.volumePath(v.Name))}
		for _, c := range u.containers {
			if slices.ContainsFunc(c.words.Places, func(p place) bool { return p.Type == "volume" && p.Source == v.Name }) {
				use.users++
			}
		}
		u.volumes = append(u.volumes, use)
	}
	return nil
}

func (u *usage) addCache(s *store, trees map[snapshot.ID]*piece) error {
	records, err := s.records.All()
	if err != nil {
		return err
	}
	for _, r := range records {
		snap, err := s.trees.Get(r.Snapshot)
		if err != nil {
			continue // as good as no record
		}
		item := cacheItem{used: r.Used, record: r}
		for ; snap != nil; snap = snap.Parent() {
			p := trees[snap.ID()]
			if p == nil {
				break // made meanwhile
			}
			if snap.ID() == r.Snapshot && p.Text == "" {
				p.Text, p.made = stepText(r.Text), r.Made
			}
			if !p.cached {
				p.cached, p.used = true, r.Used
			}
			item.pieces = append(item.pieces, p)
		}
		if len(item.pieces) > 0 {
			item.used = item.pieces[0].used // by a later step's record: who needs that needs this
		}
		u.cache = append(u.cache, item)
	}
	mounts, err := s.caches().List()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		p := &piece{ID: m.Name, Kind: "exec.cachemount", Text: m.ID, cached: true, used: m.Used}
		for _, dir := range m.Dirs {
			p.bytes += diskUse(dir)
		}
		u.pieces, u.cache = append(u.pieces, p), append(u.cache, cacheItem{used: m.Used, pieces: []*piece{p}, mount: &m})
	}
	files, err := s.fetched().List()
	if err != nil {
		return err
	}
	for _, f := range files {
		p := &piece{ID: f.Name, Kind: map[string]string{"git": "source.git"}[f.Kind], cached: true, used: f.Used, bytes: fileUse(f.Path) + diskUse(f.Path)}
		if p.Kind == "" {
			p.Kind = "source.http"
		}
		u.pieces, u.cache = append(u.pieces, p), append(u.cache, cacheItem{used: f.Used, pieces: []*piece{p}, file: &f})
	}
	known := &piece{ID: "known", Kind: "internal", Text: "what is known of steps and of files", cached: true, bytes: diskUse(s.path("keys")) + diskUse(s.path("stat"))}
	u.pieces = append(u.pieces, known)
	slices.SortStableFunc(u.cache, func(a, b cacheItem) int { return b.used.Compare(a.used) })
	return nil
}

// stepText is a record's step in words: of its key the line that says what is done.
func stepText(key string) string {
	lines := strings.SplitN(key, "\n", 5)
	if len(lines) < 4 {
		return ""
	}
	return lines[3]
}

// forget decides what the step cache forgets: what was not used since a time, and of the rest what was used least
// lately, until all that it alone needs is within a number of bytes; -1: however much that is.
func (u *usage) forget(until time.Time, limit int64) (drop []cacheItem) {
	var kept int64
	counted := map[*piece]bool{}
	for _, p := range u.pieces {
		if p.Kind == "internal" {
			kept += p.bytes
		}
	}
	full := false
	for _, item := range u.cache {
		var more int64
		for _, p := range item.pieces {
			if !p.held() && !counted[p] {
				more += p.bytes
			}
		}
		full = full || limit >= 0 && more > 0 && kept+more > limit
		if full && more > 0 || item.used.Before(until) {
			drop = append(drop, item)
			continue
		}
		for _, p := range item.pieces {
			counted[p] = true
		}
		kept += more
	}
	return drop
}

// cacheSize is what the step cache alone needs.
func (u *usage) cacheSize() (bytes int64) {
	for _, p := range u.pieces {
		if p.cached && !p.held() {
			bytes += p.bytes
		}
	}
	return bytes
}

// fileUse is what a file takes on disk, without what is in it if it is a directory.
func fileUse(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// diskUse is the bytes on disk below a directory, as far as it can be read; a file of several names counts once.
func diskUse(dir string) int64 {
	linked := map[uint64]bool{}
	var below func(dir string) int64
	below = func(dir string) (bytes int64) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return 0
		}
		for _, e := range entries {
			var st unix.Stat_t
			path := dir + "/" + e.Name()
			if unix.Lstat(path, &st) != nil {
				continue
			}
			if st.Nlink > 1 && !e.IsDir() {
				if linked[st.Ino] {
					continue
				}
				linked[st.Ino] = true
			}
			bytes += st.Blocks * 512
			if e.IsDir() {
				bytes += below(path)
			}
		}
		return bytes
	}
	return below(dir)
}

// otherModes says which modes' trees are in the store and not looked at.
func (s *store) otherModes() ([]string, error) {
	entries, err := os.ReadDir(s.path("trees"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for other modes' trees: %w", err)
	}
	var modes []string
	for _, e := range entries {
		if e.Name() != string(s.mode) {
			modes = append(modes, e.Name())
		}
	}
	return modes, nil
}
