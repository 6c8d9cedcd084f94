package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// member is one entry of an archive: "f name text", "d name", "l name target",
// "h name target", "p name".
func archiveOf(t testing.TB, members ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		f := append(strings.SplitN(m, " ", 3), "")
		hdr := &tar.Header{Name: f[1], Mode: 0o644, ModTime: time.Unix(1e9, 0), Uid: 100, Gid: 200}
		switch f[0] {
		case "f":
			hdr.Typeflag, hdr.Size = tar.TypeReg, int64(len(f[2]))
		case "d":
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o750
		case "l":
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, f[2]
		case "h":
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, f[2]
		case "p":
			hdr.Typeflag = tar.TypeFifo
		}
		must(t, w.WriteHeader(hdr))
		if hdr.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(f[2]))
			must(t, err)
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

// addTo performs ADD name of data to dest in the tree at dir.
func addTo(t testing.TB, dir, name, dest string, data []byte, owners *ownerList, owner *CopyOwner) error {
	t.Helper()
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, name), data, 0o644))
	sel := pick(t, &Files{Root: openRoot(t, src), Local: true}, name)
	in := CopyInto{Root: openRoot(t, dir), Dest: dest, Add: true, Owner: owner, Owners: owners, Remember: true}
	return sel.CopyTo(t.Context(), in)
}

func TestAdd(t *testing.T) {
	for _, test := range []struct {
		name    string
		image   []string
		members []string
		dest    string
		owner   *CopyOwner
		want    []string
		owned   []string
		err     string
	}{
		{name: "plain", members: []string{"f foo content0"}, dest: "/", want: []string{"foo 0644 content0"}, owned: []string{"foo 100:200"}},
		{name: "destination is made", members: []string{"f foo x"}, dest: "/out", want: []string{"out/ 0755", "out/foo 0644 x"}, owned: []string{"out 0:0", "out/foo 100:200"}},
		{name: "chown is for all", members: []string{"d a", "f a/foo x", "l a/l foo", "h a/h a/foo", "f imp/lied y"}, dest: "/out/", owner: &CopyOwner{5, 6},
			want:  []string{"out/ 0755", "out/a/ 0750", "out/a/foo 0644 x", "out/a/h == out/a/foo", "out/a/l -> foo", "out/imp/ 0755", "out/imp/lied 0644 y"},
			owned: []string{"out 5:6", "out/a 5:6", "out/a/foo 5:6", "out/a/h 5:6", "out/a/l 5:6", "out/imp 5:6", "out/imp/lied 5:6"}},
		{name: "implied parents", members: []string{"d etc/dnf/", "f etc/dnf/dnf.conf x"}, dest: "/", want: []string{"etc/ 0755", "etc/dnf/ 0750", "etc/dnf/dnf.conf 0644 x"},
			owned: []string{"etc 0:0", "etc/dnf 100:200", "etc/dnf/dnf.conf 100:200"}},
		{name: "through an absolute symlink of the image", image: []string{"run/ 0755", "var/run -> /run"},
			members: []string{"d var/run/act/", "f var/run/act/HEAD x", "h var/run/act/HEAD.link var/run/act/HEAD"}, dest: "/",
			want: []string{"run/ 0755", "run/act/ 0750", "run/act/HEAD 0644 x", "run/act/HEAD.link == run/act/HEAD", "var/ 0755", "var/run -> /run"}},
		{name: "directories that exist", image: []string{"d/ 0700", "d/old 0600 o"}, members: []string{"d ./", "d ./d/", "f ./d/new x"}, dest: "/", want: []string{"d/ 0750", "d/new 0644 x", "d/old 0600 o"}},
		{name: "what exists is replaced", image: []string{"f 0600 old", "d/x 0600 old", "l -> f", "m -> n"}, members: []string{"f f new", "f d file", "d l", "f m new"}, dest: "/",
			want: []string{"d 0644 file", "f 0644 new", "l/ 0750", "m 0644 new"}},
		{name: "no whiteouts", image: []string{"a 0644 x"}, members: []string{"f .wh.a ", "f .wh..wh..opq "}, dest: "/", want: []string{".wh..wh..opq 0644", ".wh.a 0644", "a 0644 x"}},
		{name: "one name twice", members: []string{"f a 1", "h b a", "f a 2", "d d", "f d/x 1", "d d"}, dest: "/", want: []string{"a 0644 2", "b 0644 1", "d/ 0750", "d/x 0644 1"}},
		{name: "link to itself", members: []string{"f a 1", "h a a"}, dest: "/", want: []string{"a 0644 1"}},
		{name: "fifo", members: []string{"p p"}, dest: "/", want: []string{"p fifo"}},
		{name: "onto a file", image: []string{"d 0644 x"}, members: []string{"f a 1"}, dest: "/d", err: "cannot copy to non-directory: /d"},

		// Attacks.
		{name: "absolute name", members: []string{"f /etc/x 1"}, dest: "/d/", want: []string{"d/ 0755", "d/etc/ 0755", "d/etc/x 0644 1"}},
		{name: "dot dot", members: []string{"f ../x 1"}, dest: "/d/", err: errEscapes.Error()},
		{name: "dot dot in the middle", members: []string{"f a/../../x 1"}, dest: "/d/", err: errEscapes.Error()},
		{name: "absolute dot dot", members: []string{"f /../x 1"}, dest: "/d/", err: errEscapes.Error()},
		{name: "through its own symlink", members: []string{"l l ../../../../victim", "f l/x 1"}, dest: "/", want: []string{"l -> ../../../../victim", "victim/ 0755", "victim/x 0644 1"}},
		{name: "through a chain", members: []string{"l a b", "l b c", "l c /victim", "f a/x 1"}, dest: "/", want: []string{"a -> b", "b -> c", "c -> /victim", "victim/ 0755", "victim/x 0644 1"}},
		{name: "directory becomes a link", members: []string{"d a", "f a/x 1", "l a /victim", "f a/y 2"}, dest: "/", want: []string{"a -> /victim", "victim/ 0755", "victim/y 0644 2"}},
		{name: "hardlink out", members: []string{"h x ../../etc/passwd"}, dest: "/", err: errEscapes.Error()},
		{name: "hardlink to what is outside", members: []string{"h x /etc/passwd"}, dest: "/", err: "no such file or directory"},
		{name: "hardlink through a link", members: []string{"l l /", "h x l/etc/passwd"}, dest: "/", err: "no such file or directory"},
		{name: "long name", members: []string{"f " + strings.Repeat("x", 10_000) + " 1"}, dest: "/", err: "file name too long"},
		{name: "deep", members: []string{"f " + strings.Repeat("a/", 300) + "f 1"}, dest: "/", want: nil},
		{name: "loop", members: []string{"l a b", "l b a", "f a/x 1"}, dest: "/", err: "too many levels of symbolic links"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := tree(t, t.TempDir(), test.image...)
			owners := newOwnerList()
			err := addTo(t, dir, "t.tar", test.dest, archiveOf(t, test.members...), owners, test.owner)
			if test.err != "" {
				if err == nil || !strings.HasSuffix(err.Error(), test.err) {
					t.Errorf("got %v, want %s", err, test.err)
				}
				return
			}
			must(t, err)
			if got := owners.lines(); test.owned != nil && !slices.Equal(got, test.owned) {
				t.Errorf("owners %q, want %q", got, test.owned)
			}
			if got := list(t, dir); test.want != nil && !slices.Equal(got, test.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// TestAddSniffs: what is an archive is told by its bytes.
func TestAddSniffs(t *testing.T) {
	plain := archiveOf(t, "d d", "f d/foo "+strings.Repeat("content", 5000))
	pack := map[string][]byte{"plain": plain}
	var gz, zs, xzb bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	must(t, g.Close())
	pack["gzip"] = gz.Bytes()
	z, err := zstd.NewWriter(&zs)
	must(t, err)
	z.Write(plain)
	must(t, z.Close())
	pack["zstd"] = zs.Bytes()
	x, err := xz.NewWriter(&xzb)
	must(t, err)
	x.Write(plain)
	must(t, x.Close())
	pack["xz"] = xzb.Bytes()
	if _, err := exec.LookPath("bzip2"); err == nil {
		cmd := exec.Command("bzip2")
		cmd.Stdin = bytes.NewReader(plain)
		pack["bzip2"], err = cmd.Output()
		must(t, err)
	}
	for name, data := range pack {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, addTo(t, dir, "image.jpg", "/d/", data, newOwnerList(), nil))
			if got := list(t, dir); len(got) != 3 || !strings.HasPrefix(got[2], "d/d/foo 0644 contentcontent") {
				t.Errorf("got %.100q", got)
			}
			// Torn or damaged in the middle: an error, and no guess.
			for what, bad := range map[string][]byte{"torn": data[:len(data)*2/3], "damaged": flip(data)} {
				if name == "plain" && what == "damaged" { // nothing can tell
					continue
				}
				dir := t.TempDir()
				err := addTo(t, dir, "image.jpg", "/d/", bad, newOwnerList(), nil)
				_, statErr := os.Stat(dir + "/d/image.jpg")
				if err == nil && statErr != nil {
					t.Errorf("%s: unpacked without an error", what)
				}
			}
		})
	}
	var gzText bytes.Buffer
	g = gzip.NewWriter(&gzText)
	g.Write([]byte("no tar"))
	must(t, g.Close())
	for name, data := range map[string][]byte{"t.tar.gz": {}, "a.tar": []byte("no tar"), "e.tar": make([]byte, 1024), "x.gz": gzText.Bytes(), "b": []byte("BZhistory"), "y.gz": {0x1f, 0x8b, 8}} {
		dir := t.TempDir()
		must(t, addTo(t, dir, name, "/d/", data, newOwnerList(), nil))
		if got, err := os.ReadFile(dir + "/d/" + name); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s was not just copied: %v", name, err)
		}
	}
	// --unpack decides.
	dir, no := t.TempDir(), false
	sel, err := SelectData("t.tar", 0o600, time.Time{}, plain)
	must(t, err)
	must(t, sel.CopyTo(t.Context(), CopyInto{Root: openRoot(t, dir), Dest: "/a/", Add: true, Unpack: &no, Owners: newOwnerList(), Remember: true}))
	yes := true
	must(t, sel.CopyTo(t.Context(), CopyInto{Root: openRoot(t, dir), Dest: "/b/", Unpack: &yes, Owners: newOwnerList(), Remember: true}))
	if _, err := os.Stat(dir + "/a/t.tar"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/b/d/foo"); err != nil {
		t.Error(err)
	}
}

func flip(data []byte) []byte {
	bad := bytes.Clone(data)
	for i := len(bad) / 2; i < len(bad)/2+8; i++ {
		bad[i] ^= 0xff
	}
	return bad
}

func TestAddSeveral(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(src+"/t.tar", archiveOf(t, "f foo 0"), 0o644))
	must(t, os.WriteFile(src+"/b.tar", archiveOf(t, "f bar 1"), 0o644))
	must(t, pick(t, &Files{Root: openRoot(t, src), Local: true}, "*.tar").CopyTo(t.Context(), CopyInto{Root: openRoot(t, dir), Dest: "/dest", Add: true, Owners: newOwnerList(), Remember: true}))
	want := []string{"dest/ 0755", "dest/bar 0644 1", "dest/foo 0644 0"}
	if got := list(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestAddAsTar unpacks archives that tar(1) made of a lively tree, in each of
// its formats, and compares with what tar(1) unpacks.
func TestAddAsTar(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip(err)
	}
	src := t.TempDir()
	deep := strings.Repeat("long-directory-name/", 8)
	tree(t, src, "a/f 0640 text", "a/s 4755 setuid", "a/ro/x 0444 y", "a/ro/ 0555", "a/h == a/f", "a/l -> ../nowhere", "p fifo", deep+"file 0600 z", "ö/ü 0644 utf8", "empty/ 1777")
	defer os.Chmod(src+"/a/ro", 0o755)
	sparse, err := os.Create(src + "/sparse")
	must(t, err)
	must(t, sparse.Truncate(1<<20))
	_, err = sparse.WriteAt([]byte("x"), 512<<10)
	must(t, err)
	must(t, sparse.Close())
	for _, format := range []string{"gnu", "pax", "ustar", "oldgnu"} {
		for _, option := range []string{"--sparse", "--xattrs", "--gzip", "--numeric-owner"} {
			data, err := exec.Command("tar", "-C", src, "--format="+format, option, "-cf", "-", ".").Output()
			if err != nil {
				t.Logf("tar --format=%s %s: %v", format, option, err)
				continue
			}
			ours, theirs := t.TempDir(), t.TempDir()
			must(t, addTo(t, ours, "x", "/", data, newOwnerList(), nil))
			cmd := exec.Command("tar", "-C", theirs, "-xpf", "-", "--no-same-owner")
			if option == "--gzip" {
				cmd.Args = append(cmd.Args, "-z")
			}
			cmd.Stdin = bytes.NewReader(data)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v %s", err, out)
			}
			os.Chmod(theirs, 0o755)
			times := func(dir string) (out []string) {
				filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
					if p != dir {
						var st unix.Stat_t
						must(t, unix.Lstat(p, &st))
						out = append(out, fmt.Sprint(strings.TrimPrefix(p, dir), " ", st.Mtim))
					}
					return err
				})
				return out
			}
			if a, b := times(ours), times(theirs); !slices.Equal(a, b) {
				t.Errorf("%s %s: times\n%q\n%q", format, option, a, b)
			}
			if a, b := list(t, ours), list(t, theirs); !slices.Equal(a, b) {
				t.Errorf("%s %s:\n%.300q\n%.300q", format, option, a, b)
			}
			os.Chmod(ours+"/a/ro", 0o755)
			os.Chmod(theirs+"/a/ro", 0o755)
		}
	}
}

// FuzzAdd feeds archives to ADD: it never panics and never leaves the root.
func FuzzAdd(f *testing.F) {
	f.Add(archiveOf(f, "f foo x", "d d", "l d/l ../../x", "h h foo"))
	f.Add(archiveOf(f, "f ../foo x"))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0})
	f.Add([]byte("BZh91AY&SY"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		top := tree(t, t.TempDir(), "victim/f 0644 x", "img/ 0755", "img/l -> ../victim")
		addTo(t, top+"/img", fmt.Sprint(rand.IntN(9)), "/l/", data, newOwnerList(), nil)
		if got := list(t, top+"/victim"); len(got) != 1 {
			t.Fatalf("victim: %q", got)
		}
	})
}
