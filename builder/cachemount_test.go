package builder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func number(n uint64) *uint64 { return &n }

func TestCacheInfo(t *testing.T) {
	names := map[string]CacheMount{}
	for _, m := range []CacheMount{
		{ID: "/root/.cache"},
		{ID: "../../.."},
		{ID: "a\nfrom sha256:1"},
		{ID: "a", From: "sha256:1"},
		{ID: "a", Mode: number(0o751), UID: number(1001), GID: number(0)},
		{ID: "a", UID: number(1001)},
		{ID: "a", GID: number(1001)},
		{ID: ""},
	} {
		got, err := parseCacheInfo(m.info())
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%q read back as %+v: %v", m.info(), got, err)
		}
		name := m.Name()
		if len(name) != 32 || strings.Trim(name, "0123456789abcdef") != "" {
			t.Errorf("the name of %+v is %q", m, name)
		}
		if other, ok := names[name]; ok {
			t.Errorf("%+v and %+v are one cache", m, other)
		}
		names[name] = m
	}
	for _, text := range []string{"", "mk cache 2\nid \"x\"\n", "mk cache 1\nid x\n", "mk cache 1\nmode x\n", "mk cache 1\nfuture x\n"} {
		if _, err := parseCacheInfo(text); err == nil {
			t.Errorf("%q was understood", text)
		}
	}
}

func fillMark(dir *os.File) error {
	return os.WriteFile(filepath.Join(dir.Name(), "filled"), nil, 0o644)
}

// Steps that lock a cache are never in it together; those that share it are; it is
// made once.
func TestCacheSharing(t *testing.T) {
	caches := OpenCacheMounts(t.TempDir())
	for _, sharing := range []string{"locked", "shared", "private"} {
		var inside, most, fills atomic.Int32
		var dirs sync.Map
		var steps sync.WaitGroup
		var meet sync.WaitGroup // all are inside at once, or the test hangs
		meet.Add(4)
		for range 4 {
			steps.Go(func() {
				dir, release, err := caches.take(t.Context(), CacheMount{ID: sharing}, cacheUse{
					sharing: sharing,
					fill:    func(dir *os.File) error { fills.Add(1); return fillMark(dir) },
				})
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), inside.Add(1)))
				if sharing == "locked" {
					time.Sleep(5 * time.Millisecond)
				} else {
					meet.Done()
					meet.Wait()
				}
				if _, err := os.Stat(filepath.Join(dir.Name(), "filled")); err != nil {
					t.Error(err)
				}
				dirs.Store(dir.Name(), true)
				inside.Add(-1)
				if err := release(); err != nil {
					t.Error(err)
				}
			})
		}
		steps.Wait()
		count := 0
		dirs.Range(func(any, any) bool { count++; return true })
		want := map[string][3]int32{"locked": {1, 1, 1}, "shared": {4, 1, 1}, "private": {4, 4, 4}}[sharing]
		if got := [3]int32{most.Load(), int32(count), fills.Load()}; got != want {
			t.Errorf("%s: at most %d at once in %d directories, filled %d times; want %v", sharing, got[0], got[1], got[2], want)
		}
	}
}

func TestCacheTakeEndsWithTheBuild(t *testing.T) {
	caches := OpenCacheMounts(t.TempDir())
	use := cacheUse{sharing: "locked", fill: fillMark}
	_, release, err := caches.take(t.Context(), CacheMount{ID: "x"}, use)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := caches.take(ctx, CacheMount{ID: "x"}, use); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the lock ended with %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

// What a killed mk left on its way is not seen, and goes; a failed fill leaves no cache.
func TestCacheIsWholeOrNotThere(t *testing.T) {
	caches := OpenCacheMounts(t.TempDir())
	m := CacheMount{ID: "x"}
	broken := cacheUse{sharing: "shared", fill: func(*os.File) error { return errors.New("full") }}
	if _, _, err := caches.take(t.Context(), m, broken); err == nil {
		t.Fatal("a cache that could not be filled was taken")
	}
	left := filepath.Join(caches.dir, m.Name(), "0.new", "half")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, renew := range []bool{false, false, true} {
		dir, release, err := caches.take(t.Context(), m, cacheUse{sharing: "shared", renew: renew, fill: fillMark})
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir.Name())
		if err != nil || len(entries) != 1 || entries[0].Name() != "filled" {
			t.Errorf("renew %t: %v, %v", renew, entries, err)
		}
		if renew {
			continue // others may share it at once
		}
		if err := release(); err != nil {
			t.Fatal(err)
		}
	}
	dir, release, err := caches.take(t.Context(), m, cacheUse{sharing: "shared", fill: fillMark})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir.Name(), "more"), []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	release()
	list, err := caches.List()
	if err != nil || len(list) != 1 || list[0].ID != "x" || list[0].Name != m.Name() || len(list[0].Dirs) != 1 || time.Since(list[0].Used) > time.Minute {
		t.Errorf("listed %+v: %v", list, err)
	}
	if bytes, err := caches.RemoveAll(); err != nil || bytes < 5 {
		t.Errorf("removed %d bytes: %v", bytes, err)
	}
	if list, err := caches.List(); err != nil || len(list) != 0 {
		t.Errorf("after removing: %+v, %v", list, err)
	}
}

func TestLiteralWord(t *testing.T) {
	dir := t.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"plain", "a*b", "a?b", "a[b]", `a\b`, `a\*b`, `d\x/e*/f[]\`, "[]", "a xb"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files := &Files{Root: root, Local: true}
	for _, name := range []string{"plain", "a*b", "a?b", "a[b]", `a\b`, `a\*b`, `d\x/e*/f[]\`, "[]"} {
		sel, err := files.Select(t.Context(), CopySources{Words: []string{literalWord("/" + name)}})
		if err != nil || len(sel.roots) != 1 || sel.roots[0].path != name {
			t.Errorf("%q as %q selects %+v: %v", name, literalWord("/"+name), sel, err)
		}
	}
}
