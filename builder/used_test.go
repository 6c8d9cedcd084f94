package builder

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"mk/snapshot"
)

// age gives a file a time of use.
func age(t *testing.T, path string, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// Getting a record is using it; looking at all of them is not.
func TestRecordsKnowWhenTheyWereUsed(t *testing.T) {
	r := OpenRecords(t.TempDir())
	sum := digest.FromString("x")
	text := func(files string) *KeyText {
		k := newKeyText("linux/amd64", "scratch")
		k.Add("files", digest.FromString(files).String())
		return k
	}
	for _, name := range []string{"a", "b"} {
		if err := r.Put(text(name), snapshot.ID(name), snapshot.Digests{Content: sum, DiffID: sum, Chain: sum}, time.Now()); err != nil {
			t.Fatal(err)
		}
		err := r.write("f", digest.FromString(name).Encoded(), []byte("a listing"))
		if err != nil {
			t.Fatal(err)
		}
		age(t, filepath.Join(r.dir, "k", string(text(name).Key())), time.Hour)
	}
	all, err := r.All()
	if err != nil || len(all) != 2 || time.Since(all[0].Used) < 50*time.Minute {
		t.Fatalf("all %v %v, want two of an hour ago", all, err)
	}
	if _, err := r.Get(text("b").Key()); err != nil {
		t.Fatal(err)
	}
	if all, err = r.All(); err != nil || all[0].Snapshot != "b" || time.Since(all[0].Used) > time.Minute || time.Since(all[1].Used) < 50*time.Minute {
		t.Fatalf("all %+v %v, want b first, used now, and a as it was", all, err)
	}

	// What only a forgotten record led to goes with it.
	if err := r.Prune(false, func(rec *Record) bool { return rec.Snapshot == "b" }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"a": false, "b": true} {
		_, err := r.OpenListing(digest.FromString(name))
		if keys := r.StepKeys(text(name).Step()); (err == nil) != want || (len(keys) == 1) != want {
			t.Errorf("%s: listing %v, keys %v, want them: %v", name, err, keys, want)
		}
	}
}

// A checkout's time of use is its stamp's; wanting a file again makes it young; what is left of a killed fetch,
// of bytes and of checkouts that are gone, is swept, and nothing else.
func TestFetchedKnowsWhenItWasUsed(t *testing.T) {
	f := OpenFetched(t.TempDir())
	d, err := f.keep(strings.NewReader("bytes"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.remember("http://here/file", fetchedFile{File: File{Digest: d}}); err != nil {
		t.Fatal(err)
	}
	if err := f.remember("http://here/gone", fetchedFile{File: File{Digest: digest.FromString("gone")}}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"git/kept", ".tmp-git-1/x"} {
		if err := os.MkdirAll(f.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(f.path(".tmp-git-1", "x", "half"), []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path("git", "lost"+usedStamp), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	touchCheckout(f.path("git", "kept"))
	age(t, f.path("git", "kept"+usedStamp), time.Hour)
	age(t, f.path("sha256", d.Encoded()), time.Hour)
	used := func() map[string]time.Duration {
		list, err := f.List()
		if err != nil || len(list) != 2 {
			t.Fatalf("list %v %v, want a file and a checkout", list, err)
		}
		ages := map[string]time.Duration{}
		for _, file := range list {
			ages[file.Kind] = time.Since(file.Used)
		}
		return ages
	}
	if ages := used(); ages["git"] < 50*time.Minute || ages["sha256"] < 50*time.Minute {
		t.Errorf("ages %v, want an hour", ages)
	}
	if f.bytes(d) == "" {
		t.Fatal("the bytes are not found")
	}
	touchCheckout(f.path("git", "kept"))
	if ages := used(); ages["git"] > time.Minute || ages["sha256"] > time.Minute {
		t.Errorf("ages %v after both were wanted again, want none", ages)
	}

	freed, err := f.Sweep()
	if err != nil || freed < 5 {
		t.Fatalf("swept %d bytes, %v", freed, err)
	}
	for path, want := range map[string]bool{
		".tmp-git-1": false, "git/lost" + usedStamp: false, "url/" + hashName("http://here/gone"): false,
		"git/kept": true, "git/kept" + usedStamp: true, "url/" + hashName("http://here/file"): true, "sha256/" + d.Encoded(): true,
	} {
		if _, err := os.Lstat(f.path(path)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", path, err, want)
		}
	}
}

// A cache whose first directory is gone, as a killed Remove leaves it, is listed and removed with the others; sweeping
// takes what has no name, and halves.
func TestCacheMountsLeftByTheKilled(t *testing.T) {
	c := OpenCacheMounts(t.TempDir())
	m := CacheMount{ID: "gap"}
	top := filepath.Join(c.dir, m.Name())
	for _, dir := range []string{top + "/1", top + "/0.new", c.dir + "/dead/0"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.begin(top, m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(top+"/1/f", []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Sweep(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{top + "/1/f": true, top + "/info": true, top + "/0.new": false, c.dir + "/dead": false} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", path, err, want)
		}
	}
	list, err := c.List()
	if err != nil || len(list) != 1 || len(list[0].Dirs) != 1 {
		t.Fatalf("list %+v %v, want one cache with one directory", list, err)
	}
	if n, err := c.Remove(m); err != nil || n != 5 {
		t.Errorf("removed %d bytes, %v, want 5", n, err)
	}
	if err := c.Forget(m); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); err == nil {
		t.Error("a forgotten cache is there still")
	}
}
