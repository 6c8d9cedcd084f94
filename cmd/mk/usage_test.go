package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// forget drops what was used least lately first, by what each costs beside the others.
func TestForget(t *testing.T) {
	now := time.Now()
	base := &piece{bytes: 100, cached: true}
	held := &piece{bytes: 1000, cached: true, images: 1}
	item := func(name string, ago time.Duration, bytes int64, more ...*piece) cacheItem {
		return cacheItem{used: now.Add(-ago), pieces: append([]*piece{{ID: name, bytes: bytes, cached: true}}, more...)}
	}
	u := &usage{pieces: []*piece{{Kind: "internal", bytes: 10, cached: true}}, cache: []cacheItem{
		item("young", time.Second, 50, base), item("middle", time.Hour, 30, base), {used: now.Add(-90 * time.Minute), pieces: []*piece{held}}, item("old", 2*time.Hour, 5),
	}}
	for _, c := range []struct {
		until time.Duration // ago; 0: none
		limit int64
		want  string
	}{
		{0, 1000, ""},
		{0, 195, ""},
		{0, 194, "old"},
		{0, 189, "middle old"}, // once it is too much, nothing older stays
		{0, 100, "young middle old"},
		{30 * time.Minute, 0, "middle old"},
		{30 * time.Minute, 194, "old"},
		{30 * time.Minute, 1000, ""},
		{3 * time.Hour, 0, ""},
		{time.Millisecond, 0, "middle old"}, // times of use are not that exact
	} {
		var until time.Time
		if c.until > 0 {
			until = now.Add(-c.until)
		}
		got := ""
		for _, i := range u.forget(until, c.limit) {
			if got != "" {
				got += " "
			}
			got += i.pieces[0].ID
		}
		if got != c.want {
			t.Errorf("until %s ago, limit %d: forgets %q, want %q", c.until, c.limit, got, c.want)
		}
	}
}

func TestPruneLimit(t *testing.T) {
	set := func(n int64) bytesFlag { return bytesFlag{n, n > 0} }
	for _, c := range []struct{ maxUsed, minFree, reserved, has, free, want int64 }{
		{0, 0, 0, 100, 100, 0},
		{0, 0, 7, 100, 100, 7},
		{50, 0, 0, 100, 100, 50},
		{50, 0, 60, 100, 100, 60},
		{50, 120, 0, 100, 100, 50},
		{90, 120, 0, 100, 100, 80},
		{0, 300, 0, 100, 100, 0},
		{0, 300, 5, 100, 100, 5},
	} {
		p := &pruning{maxUsed: set(c.maxUsed), minFree: set(c.minFree), reserved: set(c.reserved)}
		if got := p.limit(c.has, c.free); got != c.want {
			t.Errorf("%+v: limit %d", c, got)
		}
	}
}

// A file of two trees counts once, with whatever tree needs it; within one it is no other's.
func TestDiskCountsAFileOnce(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	large := filepath.Join(dir, "a/large")
	if err := os.WriteFile(large, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/again", "b/large"} {
		if err := os.Link(large, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	d := &disk{sizes: true, files: map[inode]*piece{}}
	var trees [2]piece
	for i, sub := range []string{"a", "b"} {
		trees[i].bytes, trees[i].links = d.use(filepath.Join(dir, sub))
	}
	if len(d.files) != 1 || len(trees[0].links) != 1 || len(trees[1].links) != 1 || trees[0].links[0] != trees[1].links[0] {
		t.Errorf("files %v, trees %+v: want one file that both have", d.files, trees)
	}
	whole := diskUse(dir)
	if whole < 1<<20 || whole > 1<<20+64<<10 || trees[1].size() < 1<<20 || trees[1].bytes > 64<<10 {
		t.Errorf("%d bytes in all, b has %d and alone %d", whole, trees[1].size(), trees[1].bytes)
	}
}
