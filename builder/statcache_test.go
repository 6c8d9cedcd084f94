package builder

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestStatCache follows one file: hashed once, then found, until it changes.
func TestStatCache(t *testing.T) {
	dir := tree(t, t.TempDir(), "f 0644 one", "g 0644 two")
	store := t.TempDir()
	look := func(want string) (known bool) {
		t.Helper()
		cache := OpenStatCache(store, dir)
		var st fileStat
		root := openRoot(t, dir)
		must(t, statAt(int(root.Fd()), "f", &st))
		var got [32]byte
		_, known = cache.lookup(keyOfPath("f"), &st, &got)
		sel := pick(t, &Files{Root: root, Local: true, Cache: cache}, "f")
		if sel.roots[0].entry.sum != sha256.Sum256([]byte(want)) {
			t.Errorf("wrong digest, want that of %q", want)
		}
		must(t, cache.Save())
		return known
	}
	sum := func(want string, known bool) {
		t.Helper()
		if is := look(want); is != known {
			t.Errorf("%s is known: %t", want, is)
		}
	}
	// What is hashed too soon after it was written is not kept, unless this machine took long for it.
	soon := func(want string, write func()) {
		t.Helper()
		begun := time.Now()
		write()
		sum(want, false)
		quick := time.Since(begun) < 15*time.Millisecond
		time.Sleep(50 * time.Millisecond)
		if known := look(want); known && quick {
			t.Errorf("%s was kept at once", want)
		}
	}
	write := func(text string) func() { return func() { must(t, os.WriteFile(dir+"/f", []byte(text), 0o644)) } }
	soon("one", write("one"))
	sum("one", true)
	soon("two", write("two"))
	sum("two", true)
	// The same size and mtime: only ctime tells.
	info, err := os.Stat(dir + "/f")
	must(t, err)
	soon("six", func() {
		write("six")()
		must(t, os.Chtimes(dir+"/f", time.Time{}, info.ModTime()))
	})
	// An mtime in the future is no reason to hash again and again.
	must(t, os.Chtimes(dir+"/f", time.Time{}, time.Now().Add(1e6*time.Second)))
	time.Sleep(50 * time.Millisecond)
	sum("six", false)
	sum("six", true)
	// Another file of the same content and size under the name: another inode.
	must(t, os.Rename(dir+"/g", dir+"/f"))
	sum("two", false)
}

// TestStatCacheRacy writes files right before and after they are hashed, with
// equal sizes: no stale digest may ever come out.
func TestStatCacheRacy(t *testing.T) {
	dir, store := t.TempDir(), t.TempDir()
	root := openRoot(t, dir)
	for i := range 300 {
		text := fmt.Sprintf("%06d", i)
		must(t, os.WriteFile(dir+"/f", []byte(text), 0o644))
		cache := OpenStatCache(store, dir)
		for range 2 {
			sel := pick(t, &Files{Root: root, Local: true, Cache: cache}, "f")
			if sel.roots[0].entry.sum != sha256.Sum256([]byte(text)) {
				t.Fatalf("stale digest after %d writes", i)
			}
		}
		must(t, cache.Save())
	}
}

func TestStatCacheFile(t *testing.T) {
	dir, store := t.TempDir(), t.TempDir()
	for i := range 3000 {
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", dir, i), []byte{byte(i)}, 0o644))
	}
	time.Sleep(50 * time.Millisecond)
	root := openRoot(t, dir)
	warm := func() *StatCache {
		c := OpenStatCache(store, dir)
		pick(t, &Files{Root: root, Local: true, Cache: c}, ".")
		return c
	}
	c := warm()
	if len(c.index) != 3000 {
		t.Fatalf("%d of 3000 files are new", len(c.index))
	}
	must(t, c.Save())
	files, err := filepath.Glob(store + "/*")
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("files of the cache: %q", files)
	}
	good, err := os.ReadFile(files[0])
	must(t, err)
	c = warm()
	if len(c.index) != 0 {
		t.Errorf("%d files were forgotten", len(c.index))
	}
	must(t, os.Remove(files[0]))
	must(t, c.Save())
	if _, err := os.Stat(files[0]); err == nil {
		t.Error("saved although nothing was learned")
	}

	// Damage is an empty cache, whatever it is.
	for name, bad := range map[string][]byte{"empty": {}, "short": good[:100], "torn": good[:len(good)-statSize], "magic": append([]byte("mkstat1\n"), good[8:]...),
		"flipped": slices.Concat(good[:2000], []byte("xxxxxxxx"), good[2008:]), "zeros": make([]byte, len(good))} {
		must(t, os.WriteFile(files[0], bad, 0o600))
		c := OpenStatCache(store, dir)
		c.load.Do(c.read)
		if len(c.used) != 0 {
			t.Errorf("%s: the cache is believed", name)
		}
	}

	// Many writers: the file is always one of theirs.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3 {
				c := OpenStatCache(store, dir)
				sel, err := (&Files{Root: root, Local: true, Cache: c}).Select(t.Context(), CopySources{Words: []string{"."}})
				if err != nil || len(sel.roots[0].entry.dir.entries) != 3000 {
					t.Error(err)
				}
				c.dirty = true
				if err := c.Save(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if c = warm(); len(c.index) != 0 {
		t.Errorf("after many writers %d files are unknown", len(c.index))
	}
}

// TestStatCacheDrops: what was not met is dropped when it is much more than what was, and what is met
// later, in the same build, comes back.
func TestStatCacheDrops(t *testing.T) {
	dir := tree(t, t.TempDir(), "b/y 0644 2")
	must(t, os.Mkdir(dir+"/a", 0o755))
	for i := range 10010 {
		must(t, os.WriteFile(fmt.Sprintf("%s/a/%d", dir, i), nil, 0o644))
	}
	store := t.TempDir()
	time.Sleep(50 * time.Millisecond)
	root := openRoot(t, dir)
	build := func(words ...string) *StatCache {
		c := OpenStatCache(store, dir)
		for _, word := range words {
			pick(t, &Files{Root: root, Local: true, Cache: c}, word)
			must(t, c.Save())
		}
		return c
	}
	build("a")
	build("b", "a")
	if c := build("."); len(c.index) != 0 {
		t.Errorf("dropped although met: %d", len(c.index))
	} else if c.lastChanged() != "b/y" {
		t.Errorf("changed last: %q", c.lastChanged())
	}
	must(t, os.WriteFile(dir+"/b/y", []byte("3"), 0o644))
	time.Sleep(50 * time.Millisecond)
	build("b")
	if c := build("a"); len(c.index) != 10010 {
		t.Errorf("kept although not met: %d", 10010-len(c.index))
	}
}

// TestStatCachePartial: a build that looks at one directory keeps what is known
// of the others.
func TestStatCachePartial(t *testing.T) {
	dir := tree(t, t.TempDir(), "a/x 0644 1", "b/y 0644 2")
	store := t.TempDir()
	time.Sleep(50 * time.Millisecond)
	root := openRoot(t, dir)
	for _, word := range []string{"a", "b"} {
		c := OpenStatCache(store, dir)
		pick(t, &Files{Root: root, Local: true, Cache: c}, word)
		must(t, c.Save())
	}
	c := OpenStatCache(store, dir)
	pick(t, &Files{Root: root, Local: true, Cache: c}, ".")
	if len(c.index) != 0 {
		t.Errorf("forgotten: %d", len(c.index))
	}
}
