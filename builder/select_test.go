package builder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pick(t testing.TB, f *Files, words ...string) *Selection {
	t.Helper()
	sel, err := f.Select(context.Background(), CopySources{Words: words})
	must(t, err)
	return sel
}

// TestDigest changes one thing after another: what must make COPY miss does,
// what must not does not, and the listing says what it was.
func TestDigest(t *testing.T) {
	dir := tree(t, t.TempDir(), "a 0644 1", "d/b 0644 2", "d/l -> b", "d/e/ 0755", "other 0644 x")
	local := &Files{Root: openRoot(t, dir), Local: true}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, test := range []struct {
		name   string
		words  string
		change func() error
		want   string // of CompareListings
	}{
		{"nothing", "a d", func() error { return nil }, ""},
		{"mtime", "a d", func() error { return os.Chtimes(in("d/b"), time.Time{}, time.Unix(1e9, 0)) }, ""},
		{"mtime of a directory", "a d", func() error { return os.Chtimes(in("d"), time.Time{}, time.Unix(1e9, 0)) }, ""},
		{"a file that is not copied", "a d", func() error { return os.WriteFile(in("other"), []byte("y"), 0o644) }, ""},
		{"content", "a d", func() error { return os.WriteFile(in("d/b"), []byte("3"), 0o644) }, "b content"},
		{"content of equal size", "a*", func() error { return os.WriteFile(in("a"), []byte("9"), 0o644) }, "a content"},
		{"exec bit", "a d", func() error { return os.Chmod(in("a"), 0o755) }, "a mode 0644->0755"},
		{"content and mode", ".", func() error { os.Chmod(in("a"), 0o600); return os.WriteFile(in("a"), []byte("8"), 0) }, "a content, mode 0755->0600"},
		{"link", "d", func() error { os.Remove(in("d/l")); return os.Symlink("a b", in("d/l")) }, `l target "b"->"a b"`},
		{"added", "d", func() error { return os.WriteFile(in("d/with space"), nil, 0o644) }, `"with space" added`},
		{"removed", "d", func() error { return os.Remove(in("d/with space")) }, `"with space" removed`},
		{"renamed match (moby/buildkit#2008)", "oth*", func() error { return os.Rename(in("other"), in("other2")) }, "other removed; other2 added"},
		{"file becomes a directory", ".", func() error { os.Remove(in("a")); return os.Mkdir(in("a"), 0o755) }, "a file->dir"},
		{"empty directory", ".", func() error { return os.Remove(in("d/e")) }, "d/e removed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			words := strings.Fields(test.words)
			before := pick(t, local, words...)
			must(t, test.change())
			after := pick(t, local, words...)
			var got []string
			for _, c := range CompareListings(before.Listing(), after.Listing()) {
				got = append(got, c.Path+" "+c.What)
			}
			if s := strings.Join(got, "; "); s != test.want {
				t.Errorf("listing tells %q, want %q", s, test.want)
			}
			if same := before.Digest() == after.Digest(); same != (test.want == "") {
				t.Errorf("same digest: %t", same)
			}
		})
	}
}

func TestDigestOfOwnersAndAttributes(t *testing.T) {
	dir := tree(t, t.TempDir(), "f 0644 1", "g == f")
	local, stage := &Files{Root: openRoot(t, dir), Local: true}, &Files{Root: openRoot(t, dir)}
	if l := pick(t, local, ".").Listing(); strings.Contains(l, "owner") || !strings.Contains(l, "g file 0644 1 ") || !strings.Contains(l, " hardlink f\n") {
		t.Errorf("local listing:\n%s", l)
	}
	want := fmt.Sprintf(" owner %d:%d", os.Getuid(), os.Getgid())
	if l := pick(t, stage, "f").Listing(); !strings.Contains(l, want) {
		t.Errorf("listing of a stage without%s:\n%s", want, l)
	}
	if err := unix.Setxattr(dir+"/f", "user.mk", []byte("v"), 0); err != nil {
		t.Skipf("set attribute: %v", err)
	}
	before := pick(t, local, "f")
	must(t, unix.Setxattr(dir+"/f", "user.mk", []byte("w"), 0))
	if c := CompareListings(before.Listing(), pick(t, local, "f").Listing()); len(c) != 1 || c[0] != (FileChange{"f", "xattr"}) {
		t.Errorf("changed attribute: %v", c)
	}
}

// TestWalkIsStable lists a deep and wide tree many times over, in parallel.
func TestWalkIsStable(t *testing.T) {
	dir := t.TempDir()
	for i := range 200 {
		tree(t, dir, fmt.Sprintf("d%d/%d/f%d 0644 %d", i%7, i%11, i, i), fmt.Sprintf("d%d/x%d 0644", i%13, i))
	}
	f := &Files{Root: openRoot(t, dir), Local: true}
	want := pick(t, f, ".").Listing()
	if n := strings.Count(want, " file "); n != 400 {
		t.Fatalf("%d files are listed", n)
	}
	for range 20 {
		if pick(t, f, ".").Listing() != want {
			t.Fatal("two walks, two listings")
		}
	}
}

func TestSelectFailsAsOne(t *testing.T) {
	dir := tree(t, t.TempDir(), "a 0644 1", "d/secret/x 0644 1", "d/b 0644 1")
	f := &Files{Root: openRoot(t, dir)}
	for _, words := range [][]string{{"a", "missing", "d"}, {"[a"}, {"d", "nothere/x"}} {
		if _, err := f.Select(context.Background(), CopySources{Words: words}); err == nil {
			t.Errorf("%q: no error", words)
		}
	}
	if _, err := f.Select(context.Background(), CopySources{Words: []string{"missing"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v is not os.ErrNotExist", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.Select(ctx, CopySources{Words: []string{"."}}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if os.Geteuid() != 0 {
		must(t, os.Chmod(dir+"/d/secret", 0))
		defer os.Chmod(dir+"/d/secret", 0o700)
		_, err := f.Select(context.Background(), CopySources{Words: []string{"."}})
		if err == nil || err.Error() != "open /d/secret: permission denied" {
			t.Errorf("unreadable directory: %v", err)
		}
		f.Ignore = []string{"d/secret"}
		pick(t, f, ".") // what is ignored is not even opened
	}
}

func TestSelectData(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", ".", "..", "a/b", "/x", "a\x00"} {
		if _, err := SelectData(name, 0o644, time.Time{}, nil); err == nil {
			t.Errorf("%q is accepted as a file name", name)
		}
	}
	sel, err := SelectData("EOF", 0o644, time.Time{}, []byte("hello"))
	must(t, err)
	root := openRoot(t, dir)
	must(t, sel.CopyTo(context.Background(), CopyInto{Root: root, Dest: "/bin/hi", Chmod: "755", Owners: newOwnerList(), Remember: true}))
	must(t, sel.CopyTo(context.Background(), CopyInto{Root: root, Dest: "/d/", Owners: newOwnerList(), Remember: true}))
	file, err := os.Open(dir + "/bin/hi")
	must(t, err)
	defer file.Close()
	mtime := time.Unix(1234567890, 0)
	url, err := SelectFile("index.html", 0o600, mtime, file)
	must(t, err)
	must(t, url.CopyTo(context.Background(), CopyInto{Root: root, Dest: "/u/", Owners: newOwnerList(), Remember: true, Add: true}))
	info, err := os.Stat(dir + "/u/index.html")
	must(t, err)
	if !info.ModTime().Equal(mtime) {
		t.Errorf("mtime %v", info.ModTime())
	}
	want := []string{"bin/ 0755", "bin/hi 0755 hello", "d/ 0755", "d/EOF 0644 hello", "u/ 0755", "u/index.html 0600 hello"}
	if got := list(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// FuzzSelect walks one small tree by any word and any pattern: no answer may
// lead outside, and the same question has the same answer.
func FuzzSelect(f *testing.F) {
	for _, s := range []string{".", "*", "a/*", "../x", "l/../..", "**", "a/./b", "[", `\`, "up/etc", "loop", "a\x00b", "*/*/*"} {
		f.Add(s, "", false)
		f.Add("a", s, true)
	}
	dir := tree(f, f.TempDir(), "in/a/b/c 0644 1", "in/a/d 0644 2", "in/up -> ../..", "in/abs -> /", "in/loop -> loop", "in/l -> a/b", "outside 0644 SECRET")
	files := &Files{Root: openRoot(f, dir+"/in"), Local: true}
	f.Fuzz(func(t *testing.T, word, pattern string, parents bool) {
		c := CopySources{Words: []string{word}, Exclude: []string{pattern}, Parents: parents}
		sel, err := files.Select(context.Background(), c)
		if err != nil {
			return
		}
		if strings.Contains(sel.Listing(), "outside") {
			t.Fatalf("outside:\n%s", sel.Listing())
		}
		again, err := files.Select(context.Background(), c)
		if err != nil || again.Digest() != sel.Digest() {
			t.Fatalf("again: %v", err)
		}
	})
}

// bigTree makes n files of size bytes, 25 in a directory.
func bigTree(tb testing.TB, n int, size int) string {
	dir := tb.TempDir()
	data := make([]byte, size)
	for i := range n {
		d := fmt.Sprintf("%s/d%d/e%d", dir, i/500, i/25)
		if i%25 == 0 {
			must(tb, os.MkdirAll(d, 0o755))
		}
		for j := range min(size, 64) {
			data[j] = byte(rand.Uint32())
		}
		must(tb, os.WriteFile(fmt.Sprintf("%s/file-%d.go", d, i), data, 0o644))
	}
	time.Sleep(30 * time.Millisecond) // so that none is recent
	return dir
}

// BenchmarkSelect is the re-check of an unchanged context; "stat" is its floor:
// one walk that stats every file, with the same calls and nothing else.
func BenchmarkSelect(b *testing.B) {
	for _, n := range []int{10_000, 200_000} {
		if testing.Short() && n > 10_000 {
			continue
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := bigTree(b, n, 100)
			root := openRoot(b, dir)
			b.Run("stat", func(b *testing.B) {
				for b.Loop() {
					if got := statWalk(b, unix.AT_FDCWD, dir); got < n {
						b.Fatal(got)
					}
				}
			})
			b.Run("find", func(b *testing.B) {
				for b.Loop() {
					must(b, exec.Command("find", dir, "-size", "+99999").Run())
				}
			})
			b.Run("cold", func(b *testing.B) {
				for b.Loop() {
					pick(b, &Files{Root: root, Local: true}, ".").Digest()
				}
			})
			store := b.TempDir()
			cache := OpenStatCache(store, dir)
			pick(b, &Files{Root: root, Local: true, Cache: cache}, ".")
			must(b, cache.Save())
			b.Run("warm", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() { // as a new process: the cache is read again
					pick(b, &Files{Root: root, Local: true, Cache: OpenStatCache(store, dir)}, ".").Digest()
				}
			})
			b.Run("warm-ignore", func(b *testing.B) {
				for b.Loop() {
					pick(b, &Files{Root: root, Local: true, Cache: OpenStatCache(store, dir), Ignore: []string{".git", "node_modules", "**/*.log", "*.md", "!README.md", "**/__pycache__"}}, ".").Digest()
				}
			})
		})
	}
}

func statWalk(tb testing.TB, at int, name string) int {
	fd, err := openAt(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(tb, err)
	defer unix.Close(fd)
	names, err := newDirReader().read(fd)
	must(tb, err)
	n := len(names)
	for _, d := range names {
		var st fileStat
		must(tb, statx(fd, d.cname(), unix.AT_SYMLINK_NOFOLLOW, &st))
		if st.isDir() {
			n += statWalk(tb, fd, d.name)
		}
	}
	return n
}

// BenchmarkHash reads 512 MiB; its floor is sha256sum.
func BenchmarkHash(b *testing.B) {
	for _, shape := range []struct{ files, size int }{{1, 512 << 20}, {8, 64 << 20}, {8192, 64 << 10}} {
		b.Run(fmt.Sprintf("%dx%d", shape.files, shape.size), func(b *testing.B) {
			dir := bigTree(b, shape.files, shape.size)
			root := openRoot(b, dir)
			b.Run("mk", func(b *testing.B) {
				b.SetBytes(512 << 20)
				for b.Loop() {
					pick(b, &Files{Root: root, Local: true}, ".")
				}
			})
			b.Run("sha256sum", func(b *testing.B) {
				b.SetBytes(512 << 20)
				for b.Loop() {
					must(b, exec.Command("sh", "-c", "find "+dir+" -type f -print0 | xargs -0 sha256sum >/dev/null").Run())
				}
			})
		})
	}
}

// Listing is what WriteListing writes.
func (s *Selection) Listing() string {
	var b strings.Builder
	s.WriteListing(&b)
	return b.String()
}
