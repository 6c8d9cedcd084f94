package builder

import (
	"os"
	"strings"
	"testing"
	"time"
)

// What a listing has of a selection is found, whatever the names are and wherever the selection went.
func TestKeeperReadsListings(t *testing.T) {
	dir := tree(t, t.TempDir(), "a/x 0644 1", "a/y/z 0644 1", "a-b 0644 1", "a.d/f 0644 1", "b 0644 1", "c == b", "e/f 0644 1", "last/f 0644 1")
	must(t, os.MkdirAll(dir+"/with space/in\nit", 0o755))
	must(t, os.WriteFile(dir+"/with space/in\nit/é\"", nil, 0o644))
	must(t, os.WriteFile(dir+"/with spac", nil, 0o644))
	f := &Files{Root: openRoot(t, dir), Local: true}
	was := pick(t, f, ".").Listing()
	must(t, os.WriteFile(dir+"/a/x", []byte("22"), 0o644))
	must(t, os.WriteFile(dir+"/a/new", nil, 0o644))
	must(t, os.RemoveAll(dir+"/e"))
	must(t, os.Chmod(dir+"/a.d/f", 0o600))
	now := pick(t, f, ".")
	for _, top := range []string{"", "srv/files"} {
		k := &keeper{top: top, dirs: map[string]*keptDir{}}
		if !k.note(now, strings.NewReader(was), false) {
			t.Error("nothing may be kept of a listing of one directory")
		}
		for at, want := range map[string]bool{"a": true, "a/x": false, "a/new": false, "a/y": true, "a/y/z": true, "a-b": true, "a.d": true, "a.d/f": false,
			"b": false, "c": false, "last": true, "last/f": true, "with space": true, "with space/in\nit": true, "with space/in\nit/é\"": true, "with spac": true} {
			d, n := k.find(joinPath(top, at))
			if d == nil || d.files[n].listed != want {
				t.Errorf("in %q, %q: found %t, is listed as it was: want %t", top, at, d != nil, want)
			}
		}
		if d, _ := k.find(joinPath(top, "e/f")); d != nil {
			t.Errorf("in %q, a removed file is found", top)
		}
	}
	for _, bad := range []string{"", ". dir\n", ". dir\n\"unquoted\n", "\n\n\n"} {
		k := &keeper{dirs: map[string]*keptDir{}}
		k.note(now, strings.NewReader(bad), false)
		if d, n := k.find("last/f"); d == nil || d.files[n].listed {
			t.Errorf("%q lists a file", bad)
		}
	}
}

// A file that changed before and changed again ends the look at the context at once, whatever else is there.
func TestChangedAgain(t *testing.T) {
	dir := tree(t, t.TempDir(), "src/a 0644 1", "src/b 0644 1", "doc/c 0644 1")
	store, root := t.TempDir(), openRoot(t, dir)
	look := func(known bool, c CopySources, ignore ...string) (*Files, error) {
		f := &Files{Root: root, Local: true, Cache: OpenStatCache(store, dir), Ignore: ignore, knownOnly: known}
		_, err := f.Select(t.Context(), c)
		return f, err
	}
	time.Sleep(50 * time.Millisecond)
	f, err := look(false, CopySources{Words: []string{"."}})
	must(t, err)
	must(t, f.Cache.Save())
	must(t, os.WriteFile(dir+"/src/a", []byte("2"), 0o644))
	time.Sleep(50 * time.Millisecond)
	f, err = look(false, CopySources{Words: []string{"."}})
	must(t, err)
	must(t, f.Cache.Save())
	if last := OpenStatCache(store, dir).lastChanged(); last != "src/a" {
		t.Fatalf("changed last: %q", last)
	}
	again := func(want bool, c CopySources, ignore ...string) {
		t.Helper()
		set, err := newPatternSet(ignore)
		must(t, err)
		f := &Files{Root: root, Local: true, Cache: OpenStatCache(store, dir), Ignore: ignore}
		if got := f.changedAgain(c, set); got != want {
			t.Errorf("%v without %q: changed again: %t", c.Words, ignore, got)
		}
		_, err = look(true, c, ignore...)
		if (err == ErrNeedsInside) != want {
			t.Errorf("%v without %q: %v", c.Words, ignore, err)
		}
	}
	again(false, CopySources{Words: []string{"."}})
	must(t, os.WriteFile(dir+"/src/a", []byte("3"), 0o644))
	again(true, CopySources{Words: []string{"."}})
	again(true, CopySources{Words: []string{"doc", "src/"}})
	again(false, CopySources{Words: []string{"doc"}})
	again(false, CopySources{Words: []string{"."}}, "src/a")
	again(false, CopySources{Words: []string{"."}}, "src")
	must(t, os.Remove(dir+"/src/a"))
	again(false, CopySources{Words: []string{"."}})
}
