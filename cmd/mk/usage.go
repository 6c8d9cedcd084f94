package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

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
	ID, Kind, Text string   // Kind is buildx's: regular, exec.cachemount, source.http, source.git, internal
	bytes          int64    // on disk, without what is in links
	links          []*piece // files that other trees have too, by hard links
	images         int      // so many need it
	containers     bool     // one lies on it, or was made of an image that needs it
	cached         bool     // the step cache has a record that needs it
	made, used     time.Time
}

// size is what it takes on disk, with what others have too.
func (p *piece) size() int64 {
	n := p.bytes
	for _, l := range p.links {
		n += l.bytes
	}
	return n
}

// held tells that the step cache gives nothing back by forgetting it.
func (p *piece) held() bool { return p.images > 0 || p.containers }

// imageUse is an image and what it needs; several names may stand for it.
type imageUse struct {
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
	mode       string // of the trees and of the step cache
	images     []*imageUse
	containers []containerUse
	volumes    []volumeUse
	pieces     []*piece    // all of them
	cache      []cacheItem // the last used first
}

// usage looks at the whole store, as the files' owner: it takes as long as du(1). Without sizes, everything has a
// size of 1, and it is told by small files.
func (s *store) usage(ctx context.Context, sizes bool) (*usage, error) {
	u := &usage{mode: string(s.mode)}
	d := &disk{sizes: sizes, files: map[inode]*piece{}}
	blobs := map[digest.Digest]*piece{}
	err := s.images.EachBlob(func(d digest.Digest, size int64) error {
		p := &piece{ID: d.Encoded(), Kind: "source.image", bytes: size}
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
		p := &piece{ID: string(id), Kind: "regular"}
		p.bytes, p.links = d.use(snap.Dir())
		trees[id], u.pieces = p, append(u.pieces, p)
	}
	for _, p := range d.files {
		u.pieces = append(u.pieces, p)
	}
	containers, err := s.containers.List()
	if err != nil {
		return nil, err
	}
	if err := u.addContainers(s, d, containers, trees); err != nil {
		return nil, err
	}
	if err := u.addImages(ctx, s, blobs, trees); err != nil {
		return nil, err
	}
	if err := u.addVolumes(s, d); err != nil {
		return nil, err
	}
	return u, u.addCache(s, d, trees)
}

func (u *usage) addContainers(s *store, d *disk, all []*container.Container, trees map[snapshot.ID]*piece) error {
	for _, c := range all {
		v, err := look(c)
		if err != nil {
			return err
		}
		u.containers = append(u.containers, containerUse{v, d.whole(c.Path(""))})
	}
	used := map[snapshot.ID]bool{}
	if err := s.treesUnder(all, used); err != nil {
		return err
	}
	for id := range used {
		if p := trees[id]; p != nil {
			p.mark(func(p *piece) { p.containers = true })
		}
	}
	return nil
}

// mark says something of a piece and of what it has together with others.
func (p *piece) mark(say func(*piece)) {
	say(p)
	for _, l := range p.links {
		say(l)
	}
}

func (u *usage) addImages(ctx context.Context, s *store, blobs map[digest.Digest]*piece, trees map[snapshot.ID]*piece) error {
	list, err := s.images.Summaries(ctx)
	if err != nil {
		return err
	}
	containers := map[string]int{} // by the image that they were made of
	for _, c := range u.containers {
		for id := range c.seen.images() {
			containers[id]++
		}
	}
	known := map[digest.Digest]*imageUse{}
	for _, sum := range list {
		target := sum.Target.Digest
		if img := known[target]; img != nil {
			img.names = append(img.names, sum)
			continue
		}
		img := &imageUse{names: []image.Summary{sum}, containers: containers[target.String()]}
		known[target], u.images = img, append(u.images, img)
		live, err := s.images.Reachable(ctx, []ocispec.Descriptor{sum.Target})
		if err != nil {
			fmt.Fprintf(os.Stderr, "mk: image %s: %v\n", sum.Target.Digest, err)
		}
		for d := range live {
			if p := blobs[d]; p != nil {
				img.pieces = append(img.pieces, p)
			}
		}
		used := map[snapshot.ID]bool{}
		if err := s.treesOfImage(ctx, sum.Target, used); err != nil {
			fmt.Fprintf(os.Stderr, "mk: image %s: %v\n", sum.Target.Digest, err) // what can be read counts
		}
		for id := range used {
			if p := trees[id]; p != nil {
				img.pieces = append(img.pieces, p)
			}
		}
		for _, p := range img.pieces {
			p.mark(func(p *piece) {
				p.images++
				p.containers = p.containers || img.containers > 0
			})
		}
	}
	return nil
}

func (u *usage) addVolumes(s *store, d *disk) error {
	list, err := s.volumes()
	if err != nil {
		return err
	}
	for _, v := range list {
		use := volumeUse{volume: v, bytes: d.whole(s.volumePath(v.Name))}
		for _, c := range u.containers {
			if c.hasVolume(v.Name) {
				use.users++
			}
		}
		u.volumes = append(u.volumes, use)
	}
	return nil
}

func (u *usage) addCache(s *store, d *disk, trees map[snapshot.ID]*piece) error {
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
			p.mark(func(p *piece) {
				if !p.cached {
					p.cached, p.used = true, r.Used
				}
			})
			item.pieces = append(append(item.pieces, p), p.links...)
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
		if strings.ContainsFunc(p.Text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			p.Text = strconv.Quote(p.Text)
		}
		for _, dir := range m.Dirs {
			p.bytes += d.whole(dir)
		}
		u.pieces, u.cache = append(u.pieces, p), append(u.cache, cacheItem{used: m.Used, pieces: []*piece{p}, mount: &m})
	}
	files, err := s.fetched().List()
	if err != nil {
		return err
	}
	for _, f := range files {
		p := &piece{ID: f.Name, Kind: "source.http", cached: true, used: f.Used, bytes: d.whole(f.Path)}
		if f.Kind == "git" {
			p.Kind = "source.git"
		}
		u.pieces, u.cache = append(u.pieces, p), append(u.cache, cacheItem{used: f.Used, pieces: []*piece{p}, file: &f})
	}
	known := &piece{ID: "known", Kind: "internal", Text: "what is known of steps and of files", cached: true, bytes: d.whole(s.records.Dir()) + d.whole(s.path("stat"))}
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

// forget decides what the step cache forgets: what was used least lately, until all that it alone needs is within
// a number of bytes; with a time, only what was not used since.
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
		// To forget what costs nothing gives nothing back.
		full = full || more > 0 && kept+more > limit
		if full && more > 0 && (until.IsZero() || item.used.Before(until.Add(-builder.UsedGrain))) {
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

// free is what the step cache alone needs, and what nobody does, in bytes.
func (u *usage) free() (cache, unused int64) {
	for _, p := range u.pieces {
		switch {
		case p.held():
		case p.cached:
			cache += p.bytes
		default:
			unused += p.bytes
		}
	}
	return cache, unused
}

// disk measures what files take on disk, each file once.
type disk struct {
	sizes bool             // else everything takes 1
	files map[inode]*piece // of several names
}

type inode struct{ dev, ino uint64 }

// whole is what a directory takes that has no files of others.
func (d *disk) whole(path string) int64 {
	if !d.sizes {
		return 1
	}
	return diskUse(path)
}

// use is what a directory, or a file, takes on disk, as far as it can be read, and its files that may have names
// elsewhere too, which are not in bytes. Looking does not change when anything was read.
func (d *disk) use(path string) (bytes int64, links []*piece) {
	if !d.sizes {
		return 1, nil
	}
	seen := map[*piece]bool{}
	walkUse(path, func(st *unix.Stat_t) {
		if st.Nlink < 2 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			bytes += st.Blocks * 512
			return
		}
		at := inode{uint64(st.Dev), st.Ino}
		p := d.files[at]
		if p == nil {
			p = &piece{Kind: linkKind, bytes: st.Blocks * 512}
			d.files[at] = p
		}
		if !seen[p] {
			seen[p] = true
			links = append(links, p)
		}
	})
	return bytes, links
}

// linkKind is a piece that is a file of several trees.
const linkKind = "link"

// diskUse is the bytes on disk of a directory and of all below it, as far as it can be read; a file of several
// names counts once.
func diskUse(dir string) int64 {
	d := &disk{sizes: true, files: map[inode]*piece{}}
	bytes, links := d.use(dir)
	return bytes + (&piece{links: links}).size()
}

// walkUse visits a file and, if it is a directory, all below it.
func walkUse(path string, visit func(*unix.Stat_t)) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return
	}
	visit(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME, 0) // as the owner
	if err != nil {
		f, err = os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return
	}
	names, _ := f.Readdirnames(-1)
	f.Close()
	for _, name := range names {
		walkUse(path+"/"+name, visit)
	}
}

// otherModes says which modes' trees are in the store and not looked at.
func (s *store) otherModes() ([]string, error) {
	entries, err := os.ReadDir(s.path("trees"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for other modes' trees: %w", err)
	}
	var modes []string
	for _, e := range entries {
		snapshots, err := os.ReadDir(s.path("trees/" + e.Name() + "/snapshots"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for other modes' trees: %w", err)
		}
		if e.Name() != string(s.mode) && len(snapshots) > 0 {
			modes = append(modes, e.Name())
		}
	}
	return modes, nil
}
