package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// capNetRaw is cap_net_raw+ep in the form that has no namespace in it.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// base fills a root with one of each.
func fillBase(t *testing.T, root string) {
	p := func(name string) string { return root + "/" + name }
	must(t, os.MkdirAll(p("usr/bin"), 0o755))
	must(t, os.MkdirAll(p("var/cache/apt/archives"), 0o755))
	must(t, os.WriteFile(p("usr/bin/tool"), []byte("#!/bin/sh\n"), 0o644))
	must(t, unix.Chmod(p("usr/bin/tool"), 0o4755))
	must(t, unix.Setxattr(p("usr/bin/tool"), "user.note", []byte("a\x00b"), 0))
	must(t, os.WriteFile(p("usr/bin/ping"), []byte("ping"), 0o755))
	must(t, unix.Setxattr(p("usr/bin/ping"), "security.capability", []byte(capNetRaw), 0))
	must(t, os.Symlink("usr/bin", p("bin")))
	must(t, os.Symlink("/usr/bin/tool", p("usr/bin/abs")))
	must(t, os.Link(p("usr/bin/tool"), p("usr/bin/zlink")))
	must(t, os.Link(p("usr/bin/tool"), p("alink")))
	must(t, unix.Mkfifo(p("fifo"), 0o600))
	must(t, os.Mkdir(p("tmp"), 0o755))
	must(t, unix.Chmod(p("tmp"), 0o1777))
	must(t, os.WriteFile(p("empty"), nil, 0o400))
	must(t, os.WriteFile(p("a-file"), []byte("sorts before a/"), 0o644))
	must(t, os.WriteFile(p("var/cache/apt/archives/x.deb"), []byte("deb"), 0o644))
	long := strings.Repeat("long", 50)
	must(t, os.Mkdir(p(long), 0o755))
	must(t, os.WriteFile(p(long+"/"+long), []byte("long"), 0o644))
	must(t, os.WriteFile(p("ünï\xff"), []byte("not UTF-8"), 0o644))
	sparse, err := os.Create(p("sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 3<<20)
	must(t, err)
	must(t, sparse.Truncate(4<<20))
	must(t, sparse.Close())
	must(t, os.Chtimes(p("usr/bin"), testTime, testTime))
	must(t, os.Chtimes(p("empty"), time.Unix(1, 1), time.Unix(86400*400, 500_000_000)))
}

func TestLayerRoundTrip(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := change(t, s, nil, func(root string) { fillBase(t, root) })
		upper := change(t, s, base, func(root string) {
			must(t, os.Remove(root+"/empty"))
			must(t, os.RemoveAll(root+"/var/cache"))
			must(t, os.Mkdir(root+"/var/cache", 0o700))
			must(t, os.WriteFile(root+"/var/cache/new", []byte("new"), 0o600))
			must(t, os.Link(root+"/usr/bin/ping", root+"/usr/bin/ping2"))
			must(t, os.Remove(root+"/bin"))
			must(t, os.Mkdir(root+"/bin", 0o755))
			must(t, os.RemoveAll(root+"/tmp"))
			must(t, os.WriteFile(root+"/tmp", []byte("file now"), 0o644))
			must(t, os.WriteFile(root+"/made-and-gone", nil, 0o644))
			must(t, os.Remove(root+"/made-and-gone"))
		})
		want := []string{"5 bin/ 755", "0 .wh.empty 0", "0 tmp 644", "0 usr/bin/ping 755", "1 usr/bin/ping2 755",
			"5 var/cache/ 700", "0 var/cache/.wh..wh..opq 0", "0 var/cache/new 600"}
		list := listTar(t, layerOf(t, upper))
		at := 0
		for _, w := range want {
			i := strings.Index(list[at:], w+" ")
			if i < 0 {
				t.Fatalf("no %q, or not in its place, in\n%s", w, list)
			}
			at += i
		}
		for _, w := range []string{"made-and-gone", "bin/.wh..wh..opq"} {
			if strings.Contains(list, w) {
				t.Errorf("%q in\n%s", w, list)
			}
		}
		base2 := applyTar(t, s, nil, layerOf(t, base))
		upper2 := applyTar(t, s, base2, layerOf(t, upper))
		for _, two := range [][2]*Snapshot{{base, base2}, {upper, upper2}} {
			a, b := layerOf(t, two[0]), layerOf(t, two[1])
			if !bytes.Equal(a, b) {
				t.Fatalf("the layer differs after unpacking:\n%s\n%s", listTar(t, a), listTar(t, b))
			}
			da, db := digestsOf(t, two[0]), digestsOf(t, two[1])
			if da != db {
				t.Errorf("digests %+v and %+v", da, db)
			}
			if da.DiffID != digest.FromBytes(a) || da.Size != int64(len(a)) {
				t.Errorf("DiffID %s %d of a layer of %d bytes", da.DiffID, da.Size, len(a))
			}
			if got, err := s.ByDiffID(da.DiffID); err != nil || digestsOf(t, got) != da {
				t.Errorf("by DiffID: %v", err)
			}
			if got, err := s.ByChain(da.Chain); err != nil || digestsOf(t, got) != da {
				t.Errorf("by chain: %v", err)
			}
		}
		compareTrees(t, upper, upper2)
		if n := blocksOf(t, base2, "sparse"); n*512 > 256<<10 {
			t.Errorf("the sparse file has %d bytes on disk", n*512)
		}
		checkClean(t, s)
	})
}

// compareTrees compares what two snapshots show, file by file.
func compareTrees(t *testing.T, a, b *Snapshot) {
	t.Helper()
	la, lb := listMount(t, a), listMount(t, b)
	if la != lb {
		t.Errorf("the trees differ:\n%s\n%s", la, lb)
	}
}

func listMount(t *testing.T, s *Snapshot) string {
	t.Helper()
	m, err := s.Mount()
	must(t, err)
	defer m.Close()
	return listTree(t, procPath(m), true)
}

// listTree is a tree as text. Times of directories that overlay merges are
// whoever's is on top, so they can be left out.
func listTree(t *testing.T, root string, times bool) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	must(t, filepath.WalkDir(root+"/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, root)
		fmt.Fprintf(&b, "%q %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if times && rel != "/" {
			fmt.Fprintf(&b, " %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		if first, ok := inodes[st.Ino]; ok && !d.IsDir() {
			fmt.Fprintf(&b, " = %s", first)
		}
		inodes[st.Ino] = rel
		switch {
		case d.Type().IsRegular():
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %s", len(content), digest.FromBytes(content).Encoded()[:8])
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			fmt.Fprintf(&b, " -> %s", target)
		}
		attrs, err := attrsAt(unix.AT_FDCWD, p, -1)
		for _, a := range attrs {
			fmt.Fprintf(&b, " %s=%q", a.name, a.value)
		}
		fmt.Fprintln(&b)
		return nil
	}))
	return b.String()
}

func blocksOf(t *testing.T, s *Snapshot, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(s.tree(), name), &st))
	return st.Blocks
}

// GNU tar is the oracle: what it makes of our layer is the tree itself.
func TestGNUTarReadsLayer(t *testing.T) {
	gnu, err := exec.LookPath("tar")
	if err != nil {
		t.Skip(err)
	}
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := change(t, s, nil, func(root string) { fillBase(t, root) })
		dir := t.TempDir()
		cmd := exec.Command(gnu, "-x", "-p", "--xattrs", "--xattrs-include=*", "-C", dir, "-f", "-")
		cmd.Stdin = bytes.NewReader(layerOf(t, base))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v: %s", err, out)
		}
		m, err := base.Mount()
		must(t, err)
		defer m.Close()
		got, want := listTree(t, dir, true), listTree(t, procPath(m), true)
		_, got, _ = strings.Cut(got, "\n") // the root is the directory we made
		_, want, _ = strings.Cut(want, "\n")
		if got != want {
			t.Errorf("GNU tar made\n%s\nof\n%s", got, want)
		}
	})
}

// And the other way: what GNU tar packs, Apply unpacks, sparse files included.
func TestApplyReadsGNUTar(t *testing.T) {
	gnu, err := exec.LookPath("tar")
	if err != nil {
		t.Skip(err)
	}
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		for _, format := range []string{"gnu", "posix", "oldgnu"} {
			dir := t.TempDir()
			fillBase(t, dir)
			must(t, os.Chtimes(dir+"/empty", testTime, testTime)) // gnu cannot say 1969
			args := []string{"-c", "-S", "--format=" + format, "-C", dir, "-f", "-", "."}
			if format == "posix" {
				args = append([]string{"--xattrs", "--xattrs-include=*"}, args...)
			}
			layer, err := exec.Command(gnu, args...).Output()
			must(t, err)
			snap := applyTar(t, s, nil, layer)
			got, want := listTree(t, snap.tree(), format == "posix"), listTree(t, dir, format == "posix")
			if format != "posix" {
				want = stripXattrs(want)
			}
			if got != want {
				t.Errorf("%s: unpacked\n%s\nof\n%s", format, got, want)
			}
			if n := blocksOf(t, snap, "sparse"); n*512 > 256<<10 {
				t.Errorf("%s: the sparse file has %d bytes on disk", format, n*512)
			}
		}
	})
}

func stripXattrs(list string) string {
	var b strings.Builder
	for line := range strings.Lines(list) {
		for _, name := range []string{" user.", " security."} {
			line, _, _ = strings.Cut(strings.TrimSuffix(line, "\n"), name)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// modeLayers are layers whose owners, devices and attributes one mode can set
// and another must remember.
func modeLayers(t *testing.T) [][]byte {
	return [][]byte{
		tarOf(t,
			entry(tar.TypeDir, "./", "", owner(0, 0)),
			entry(tar.TypeDir, "var/lib/pg", "", owner(101, 102), perm(0o2750)),
			reg("var/lib/pg/data", "data", owner(101, 102), perm(0o600)),
			entry(tar.TypeLink, "var/lib/pg/link", "", linkTo("var/lib/pg/data"), owner(101, 102), perm(0o600)),
			entry(tar.TypeSymlink, "var/lib/pg/sym", "", linkTo("data"), owner(101, 102), perm(0o777)),
			reg("var/lib/pg/root", "root's in a setgid directory"),
			entry(tar.TypeFifo, "var/lib/pg/fifo", "", owner(33, 0)),
			reg("usr/bin/sudo", "sudo", owner(0, 5), perm(0o6755)),
			reg("usr/bin/ping", "ping", xattr("security.capability", capNetRaw), owner(0, 7)),
			reg("acl", "acl", xattr("system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x21\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"), perm(0o640)),
			entry(tar.TypeChar, "dev/null", "", dev(1, 3), perm(0o666)),
			entry(tar.TypeBlock, "dev/sda", "", dev(8, 0), perm(0o660), owner(0, 6)),
			entry(tar.TypeChar, "dev/zerozero", "", perm(0o600)),
			entry(tar.TypeChar, "dev/tty0", "", dev(4, 0), owner(0, 5)),
			reg("labelled", "x", xattr("security.selinux", "u:r:t"), xattr("trusted.secret", "1"), xattr("trusted.overlay.opaque", "y"), xattr("user.overlay.opaque", "y")),
		),
		tarOf(t,
			reg("var/lib/pg/more", "more", owner(101, 102)), // its directory is copied up
			entry(tar.TypeLink, "ping", "", linkTo("usr/bin/ping"), owner(0, 7)),
			entry(tar.TypeDir, "dev", "", owner(1, 1)),
			reg("dev/null", "a file now"),
		),
		tarOf(t,
			entry(tar.TypeDir, "var/lib/pg", "", owner(0, 0), perm(0o755)), // root's again
			entry(tar.TypeDir, "dev", "", owner(0, 0)),
			reg("var/lib/pg/.wh.more", ""),
		),
		tarOf(t, reg("var/lib/pg/last", "")),
	}
}

// The same layers must come out of every mode: this is what the owners table is
// for.
func TestSameLayersInAllModes(t *testing.T) {
	if mode := os.Getenv(modeEnv); mode != "" {
		inside(t, func(t *testing.T, mode string) {
			s := openStore(t, mode)
			var parent *Snapshot
			for i, layer := range modeLayers(t) {
				parent = applyTar(t, s, parent, layer)
				out := layerOf(t, parent)
				d := digestsOf(t, parent)
				fmt.Printf("RESULT %d %s %s\n", i, d.DiffID, d.Content)
				for line := range strings.Lines(listTar(t, out)) {
					fmt.Print("RESULT ", line)
				}
			}
			checkClean(t, s)
		})
		return
	}
	results := map[string]string{}
	for _, mode := range testModes() {
		t.Run(mode, func(t *testing.T) {
			out, err := insideCommand(t, mode, "-test.run=^TestSameLayersInAllModes$", "-test.v").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var b strings.Builder
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "RESULT") {
					b.WriteString(line)
				}
			}
			results[mode] = b.String()
		})
	}
	for mode, got := range results {
		if want := results["single"]; got != want {
			t.Errorf("%s:\n%s\nsingle:\n%s", mode, got, want)
		}
	}
	list := results["single"]
	for _, want := range []string{
		"5 var/lib/pg/ 2750 101:102", "2 var/lib/pg/sym 777 101:102 -> data", "0 usr/bin/sudo 6755 0:5", "0 var/lib/pg/root 644 0:0",
		"3 dev/null 666 0:0 1,3", "4 dev/sda 660 0:6 8,0", "3 dev/zerozero 600 0:0", `trusted.secret="1"`, `security.selinux="u:r:t"`,
		"1 usr/bin/ping 644 0:7 -> ping", "0 dev/null 644 0:0 \"a file now\"", "5 var/lib/pg/ 755 0:0",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	if strings.Contains(list, "overlay") {
		t.Errorf("overlay's attributes in\n%s", list)
	}
}

func TestEpochClamps(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		d, err := s.NewDraft(nil)
		must(t, err)
		must(t, os.WriteFile(d.Upper()+"/new", nil, 0o644))
		must(t, os.WriteFile(d.Upper()+"/old", nil, 0o644))
		must(t, os.Chtimes(d.Upper()+"/old", testTime, testTime))
		epoch := time.Unix(1_700_000_000, 0)
		d.SetEpoch(&epoch)
		snap, err := s.Get(commit(t, d).ID())
		must(t, err)
		r := tar.NewReader(bytes.NewReader(layerOf(t, snap)))
		for _, want := range []time.Time{epoch, testTime} {
			h, err := r.Next()
			must(t, err)
			if !h.ModTime.Equal(want) {
				t.Errorf("%s: %v, want %v", h.Name, h.ModTime, want)
			}
		}
	})
}

func TestRootEntry(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := change(t, s, nil, func(string) {})
		if l := listTar(t, layerOf(t, base)); l != "" {
			t.Errorf("an empty layer has %s", l)
		}
		odd := applyTar(t, s, base, tarOf(t, entry(tar.TypeDir, "./", "", perm(0o700), owner(0, 9))))
		if l := listTar(t, layerOf(t, odd)); l != "5 ./ 700 0:9\n" {
			t.Errorf("a changed root has %s", l)
		}
		same := change(t, s, odd, func(string) {})
		if l := listTar(t, layerOf(t, same)); l != "" {
			t.Errorf("an unchanged root has %s", l)
		}
		if a, b := digestsOf(t, odd), digestsOf(t, same); a.Content != b.Content || a.Chain == b.Chain {
			t.Errorf("a step that changed nothing: %+v after %+v", b, a)
		}
	})
}

func TestChanges(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := change(t, s, nil, func(root string) { fillBase(t, root) })
		d, err := s.NewDraft(base)
		must(t, err)
		defer d.Discard()
		m, err := d.Mount()
		must(t, err)
		root := procPath(m)
		must(t, os.Remove(root+"/empty"))
		must(t, os.RemoveAll(root+"/var/cache"))
		must(t, os.MkdirAll(root+"/var/cache/apt", 0o700))
		must(t, os.WriteFile(root+"/usr/new", nil, 0o600))
		// Copied up, each for a moment or for a stub: no changes.
		must(t, os.WriteFile(root+"/usr/bin/gone", nil, 0o644))
		must(t, os.Remove(root+"/usr/bin/gone"))
		must(t, os.WriteFile(root+"/usr/bin/stub", nil, 0o644))
		must(t, os.Chtimes(root+"/usr/bin", testTime, testTime))
		m.Close()
		var got []string
		list := func(c Change) error { got = append(got, string(c.Kind)+" "+c.Path); return nil }
		must(t, commit(t, d).Changes(context.Background(), []string{"/usr/bin/stub"}, list))
		want := "D /empty|C /usr|A /usr/new|C /var|C /var/cache|C /var/cache/apt|D /var/cache/apt/archives"
		if g := strings.Join(got, "|"); g != want {
			t.Errorf("got  %s\nwant %s", g, want)
		}
	})
}

func TestReservedNames(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		snap := change(t, s, nil, func(root string) { must(t, os.WriteFile(root+"/.wh.passwd", nil, 0o644)) })
		err := snap.WriteLayer(context.Background(), io.Discard)
		if err == nil || !strings.Contains(err.Error(), `would remove "passwd"`) {
			t.Error(err)
		}
	})
}

// TestStreamHasRoom puts headers of all lengths near the end of the buffer: what follows is whole.
func TestStreamHasRoom(t *testing.T) {
	const text = "hello"
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte(text), 0o644))
	for left := range 12 {
		for _, length := range []int{10, 200, 480, 500, 700, 979, 1000, 1023, 1500} {
			h := header{name: strings.Repeat("n", length), mode: 0o644, size: int64(len(text)), flag: tarFile}
			var got bytes.Buffer
			out := streamTo(&got)
			const room = 16 * blockSize
			out.buf = make([]byte, room-left*blockSize, room)
			want := slices.Concat(out.buf, h.append(nil), []byte(text), padding(h.size), zeros[:2*blockSize])
			if left == 0 {
				must(t, out.flushAll())
			}
			f, err := os.Open(path)
			must(t, err)
			must(t, out.header(&h))
			if err := out.copyFile(context.Background(), int(f.Fd()), h.size); err != nil {
				t.Errorf("a name of %d bytes, %d blocks left: %v", length, left, err)
			}
			f.Close()
			must(t, out.end())
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("a name of %d bytes, %d blocks left: other bytes", length, left)
			}
		}
	}
}

// TestAsImage: what is made on a tree of an image counts it by its layers, what is made on the snapshot does not.
func TestAsImage(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := change(t, s, nil, func(root string) { must(t, os.WriteFile(root+"/f", nil, 0o644)) })
		d, err := base.Digests(context.Background())
		must(t, err)
		on := func(parent *Snapshot) Digests {
			made, err := change(t, s, parent, func(root string) { must(t, os.WriteFile(root+"/g", nil, 0o644)) }).Digests(context.Background())
			must(t, err)
			return made
		}
		plain := on(base)
		image := on(base.AsImage(d.Chain))
		if again := on(base); again.Content != plain.Content || image.Content == plain.Content {
			t.Errorf("made on the snapshot %+v, then %+v, on the image %+v", plain, again, image)
		}
		must(t, errors.Join(problems(s.Check(context.Background()))...))
	})
}

func problems(list []Problem) (errs []error) {
	for _, p := range list {
		errs = append(errs, p)
	}
	return errs
}
