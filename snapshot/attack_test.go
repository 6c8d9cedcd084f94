package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// canary is a directory outside of the store that layers try to reach. Its path
// exists on the host, and inside a tree only if a layer makes it.
type canary struct {
	dir  string
	want string
}

func newCanary(t *testing.T) *canary {
	dir := t.TempDir() + "/outside"
	must(t, os.MkdirAll(dir+"/sub", 0o755))
	must(t, os.WriteFile(dir+"/victim", []byte("untouched"), 0o644))
	must(t, os.WriteFile(dir+"/sub/deep", []byte("untouched"), 0o600))
	c := &canary{dir: dir}
	c.want = listTree(t, dir, true)
	return c
}

func (c *canary) check(t *testing.T, what string) {
	t.Helper()
	if got := listTree(t, c.dir, true); got != c.want {
		t.Errorf("%s: outside is\n%s\nand was\n%s", what, got, c.want)
	}
}

// up climbs out of any tree.
const up = "../../../../../../../../../../../../../../.."

// attacks.md 1-6, 12: layers that reach out, by the kind of the attack.
func TestHostileLayers(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		c := newCanary(t)
		out := c.dir
		// through is the four ways to use a link of an earlier layer.
		through := func(dir string) []byte {
			return tarOf(t,
				reg(dir+"/new", "new"),
				reg(dir+"/.wh.victim", ""),
				entry(tar.TypeLink, "hard", "", linkTo(dir+"/new")),
				entry(tar.TypeDir, dir+"/sub", "", owner(5, 5), perm(0o777)),
				reg(dir+"/sub/.wh..wh..opq", ""),
				reg(dir+"/.wh..wh..opq", ""),
				entry(tar.TypeSymlink, dir+"/victim", "", linkTo("/etc/passwd")),
			)
		}
		sym := func(name, target string) file { return entry(tar.TypeSymlink, name, "", linkTo(target)) }
		chain := func(n int) []byte {
			files := []file{sym("l0", up+out)}
			for i := 1; i < n; i++ {
				files = append(files, sym(fmt.Sprint("l", i), fmt.Sprint("./l", i-1)))
			}
			return tarOf(t, files...)
		}
		anyError := errors.New("any error")
		for _, a := range []struct {
			name   string
			layers [][]byte
			err    error  // of the last layer
			has    string // in the tree afterwards
		}{
			// CVE-2026-28406 and its kind: names.
			{"dotdot", [][]byte{tarOf(t, reg(up+out+"/x", ""))}, errOutside, ""},
			{"dotdot inside", [][]byte{tarOf(t, reg("a/../../b", ""))}, errOutside, ""},
			{"dotdot is a name", [][]byte{tarOf(t, reg("..", ""))}, errOutside, ""},
			{"absolute", [][]byte{tarOf(t, reg(out+"/victim", "mine"))}, nil, out + "/victim"},
			{"root is a file", [][]byte{tarOf(t, reg(".", "x"))}, errName, ""},
			{"empty name", [][]byte{tarOf(t, sym("", "/"))}, errName, ""},
			{"10 kB name", [][]byte{tarOf(t, reg(strings.Repeat("n", 10_000), ""))}, unix.ENAMETOOLONG, ""},
			{"256 bytes", [][]byte{tarOf(t, reg(strings.Repeat("n", 256), ""))}, unix.ENAMETOOLONG, ""},
			{"deep", [][]byte{tarOf(t, reg(strings.Repeat("d/", 2040)+"x", ""))}, nil, "d/d/d"},
			{"too deep", [][]byte{tarOf(t, reg(strings.Repeat("d/", 5000)+"x", ""))}, unix.ENAMETOOLONG, ""},
			// CVE-2026-85731: chains of links.
			{"chain of 2", [][]byte{chain(2), through("l1")}, nil, out + "/new"},
			{"chain of 40", [][]byte{chain(40), through("l39")}, nil, out + "/new"},
			{"chain of 41", [][]byte{chain(41), through("l40")}, unix.ELOOP, ""},
			{"loop", [][]byte{tarOf(t, sym("a", "b"), sym("b", "a")), through("a")}, unix.ELOOP, ""},
			{"self", [][]byte{tarOf(t, sym("a", "a/a/a")), through("a/x")}, unix.ELOOP, ""},
			// CVE-2026-50163: hardlinks.
			{"hardlink up", [][]byte{tarOf(t, entry(tar.TypeLink, "h", "", linkTo(up+out+"/victim")))}, errOutside, ""},
			{"hardlink absolute", [][]byte{tarOf(t, entry(tar.TypeLink, "h", "", linkTo(out+"/victim")))}, unix.ENOENT, ""},
			{"hardlink to cwd", [][]byte{tarOf(t, entry(tar.TypeLink, "h", "", linkTo("victim")))}, unix.ENOENT, ""},
			{"hardlink via link", [][]byte{tarOf(t, sym("e", out)), tarOf(t, entry(tar.TypeLink, "h", "", linkTo("e/victim")))}, unix.ENOENT, ""},
			{"hardlink to symlink", [][]byte{tarOf(t, sym("e", out+"/victim"), entry(tar.TypeLink, "h", "", linkTo("e")), reg("h", "replaced"))}, nil, "h"},
			{"hardlink to itself", [][]byte{tarOf(t, reg("a", "a"), entry(tar.TypeLink, "a", "", linkTo("./a")))}, nil, "a"},
			{"hardlink to directory", [][]byte{tarOf(t, entry(tar.TypeDir, "d", ""), entry(tar.TypeLink, "h", "", linkTo("d")))}, unix.EISDIR, ""},
			// undock#460: an earlier layer's link as ancestor.
			{"absolute link", [][]byte{tarOf(t, sym("etc", out)), through("etc")}, nil, out + "/new"},
			{"relative link", [][]byte{tarOf(t, sym("a/b/etc", up+out)), through("a/b/etc")}, nil, out + "/new"},
			{"link in the same layer", [][]byte{append(tarOf(t, sym("etc", out))[:3*blockSize], through("etc")...)}, nil, out + "/new"},
			{"link of links", [][]byte{tarOf(t, sym("x", "/y/.."), sym("y", up), sym("etc", "x"+out)), through("etc")}, nil, out + "/new"},
			{"link to proc", [][]byte{tarOf(t, sym("p", "/proc/self/root"+out)), through("p")}, nil, "proc/self/root" + out + "/new"},
			{"link to cwd", [][]byte{tarOf(t, sym("p", "/proc/self/cwd")), through("p")}, nil, "proc/self/cwd/new"},
			{"directory over link", [][]byte{tarOf(t, sym("etc", out)), tarOf(t, entry(tar.TypeDir, "etc", "", perm(0o700)), reg("etc/new", ""))}, nil, "etc/new"},
			{"file over link", [][]byte{tarOf(t, sym("victim", out+"/victim")), tarOf(t, reg("victim", "mine"))}, nil, "victim"},
			{"file below file", [][]byte{tarOf(t, reg("f", "")), tarOf(t, reg("f/x", ""))}, unix.ENOTDIR, ""},
			// Whiteouts with names of their own.
			{"whiteout of dot", [][]byte{tarOf(t, reg("a", "")), tarOf(t, reg(".wh..", ""))}, errName, ""},
			{"whiteout of dotdot", [][]byte{tarOf(t, reg("a", "")), tarOf(t, reg("d/.wh...", ""))}, errName, ""},
			{"whiteout of nothing", [][]byte{tarOf(t, reg("a", "")), tarOf(t, reg(".wh.", ""))}, errName, ""},
			{"whiteout elsewhere", [][]byte{tarOf(t, reg("a", "")), tarOf(t, reg("no/such/.wh.dir", ""))}, nil, "a"},
			// Marks of overlay, forged.
			{"forged whiteout", [][]byte{tarOf(t, reg("d/a", "")), tarOf(t, entry(tar.TypeChar, "c", ""))}, nil, "c"},
			{"forged opaque", [][]byte{tarOf(t, reg("d/a", "")), tarOf(t, entry(tar.TypeDir, "d", "", xattr(opaqueAttr, "y"), xattr(overlayAttrs+"redirect", "/")))}, nil, "d/a"},
			{"forged redirect", [][]byte{tarOf(t, reg("d", "", xattr(overlayAttrs+"metacopy", ""), xattr(overlayAttrs+"redirect", out+"/victim")))}, nil, "d"},
			{"forged whiteout in a base", [][]byte{tarOf(t, reg("f", "", xattr(overlayAttrs+"whiteout", "y")), entry(tar.TypeChar, "g", ""))}, nil, "g"},
			// Broken tars.
			{"cut short", [][]byte{tarOf(t, reg("f", strings.Repeat("x", 5000)))[:2000]}, io.ErrUnexpectedEOF, ""},
			{"garbage", [][]byte{bytes.Repeat([]byte("garbage "), 1000)}, tar.ErrHeader, ""},
			{"unknown type", [][]byte{tarOf(t, entry('Z', "z", ""))}, anyError, ""},
			{"odd device", [][]byte{tarOf(t, entry(tar.TypeBlock, "z", "", dev(1<<20, 1)))}, unix.EINVAL, ""},
		} {
			t.Run(a.name, func(t *testing.T) {
				s := openStore(t, mode)
				wd, _ := os.Getwd()
				defer os.Chdir(wd)
				must(t, os.Chdir(c.dir))
				var snap *Snapshot
				var err error
				for _, layer := range a.layers {
					d, derr := s.NewDraft(snap)
					must(t, derr)
					if err = d.Apply(context.Background(), bytes.NewReader(layer)); err != nil {
						must(t, d.Discard())
						break
					}
					snap = commit(t, d)
					layerOf(t, snap)
				}
				c.check(t, a.name)
				switch {
				case a.err == anyError && err != nil:
				case !errors.Is(err, a.err):
					t.Errorf("error %v, want %v", err, a.err)
				}
				if err == nil {
					m, err := snap.Mount()
					must(t, err)
					if _, err := os.Lstat(procPath(m) + "/" + a.has); err != nil {
						t.Error(err)
					}
					m.Close()
				}
				if ids, err := listIDs(s.path("drafts")); len(ids) > 0 || err != nil {
					t.Errorf("left over: %v %v", ids, err)
				}
				checkClean(t, s)
			})
		}
	})
}

// A layer's own files are not its whiteouts' to remove, in whichever order they
// come; the parent's are.
func TestWhiteoutOrder(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := applyTar(t, s, nil, tarOf(t, reg("d/old", "old"), reg("d/e/old", "old"), reg("f", "old"), reg("g", "old")))
		for name, c := range map[string]struct {
			layer []byte
			want  string
		}{
			"opaque last":       {tarOf(t, reg("d/new", "new"), reg("d/e/new", ""), reg("d/.wh..wh..opq", "")), "d d/e d/e/new d/new f g"},
			"opaque first":      {tarOf(t, reg("d/.wh..wh..opq", ""), reg("d/new", "new")), "d d/new f g"},
			"whiteout last":     {tarOf(t, reg("f", "new"), reg(".wh.f", "")), "d d/e d/e/old d/old f g"},
			"whiteout first":    {tarOf(t, reg(".wh.d", ""), reg("d/new", "")), "d d/new f g"},
			"directory, then":   {tarOf(t, reg("d/new", ""), reg(".wh.d", "")), "d d/new f g"},
			"in a removed one":  {tarOf(t, reg(".wh.d", ""), reg("d/.wh.old", "")), "f g"},
			"file to directory": {tarOf(t, reg("f/x", "")), ""},
			"directory to file": {tarOf(t, reg("d", "")), "d f g"},
			"and back":          {tarOf(t, reg("d", ""), entry(tar.TypeDir, "d", "")), "d f g"},
			"linked, then gone": {tarOf(t, entry(tar.TypeLink, "h", "", linkTo("d/old")), reg("d/.wh.old", "")), "d d/e d/e/old f g h"},
			"linked, emptied":   {tarOf(t, entry(tar.TypeLink, "h", "", linkTo("d/e/old")), reg("d/.wh..wh..opq", "")), "d d/e f g h"},
			"aufs":              {tarOf(t, reg(".wh..wh.plnk", ""), reg(".wh..wh.aufs", "")), "d d/e d/e/old d/old f g"},
		} {
			d, err := s.NewDraft(base)
			must(t, err)
			err = d.Apply(context.Background(), bytes.NewReader(c.layer))
			if c.want == "" {
				if !errors.Is(err, unix.ENOTDIR) {
					t.Errorf("%s: %v", name, err)
				}
				must(t, d.Discard())
				continue
			}
			must(t, err)
			snap := commit(t, d)
			if got := namesOf(t, snap); got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
			again := applyTar(t, s, base, layerOf(t, snap))
			if got := namesOf(t, again); got != c.want {
				t.Errorf("%s, again: %s, want %s", name, got, c.want)
			}
		}
	})
}

func namesOf(t *testing.T, s *Snapshot) string {
	t.Helper()
	m, err := s.Mount()
	must(t, err)
	defer m.Close()
	var names []string
	must(t, filepath.WalkDir(procPath(m)+"/", func(p string, _ os.DirEntry, err error) error {
		if rel := strings.TrimPrefix(p, procPath(m)+"/"); rel != "" {
			names = append(names, rel)
		}
		return err
	}))
	return strings.Join(names, " ")
}

// attacks.md 9: bombs.
func TestLimits(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		var bomb bytes.Buffer
		w := tar.NewWriter(&bomb)
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "terabyte", Size: 1 << 40}))
		for name, c := range map[string]struct {
			layer []byte
			max   limits
			want  string
		}{
			"entries":  {tarOf(t, reg("a", ""), reg("b", ""), reg("c", "")), limits{2, 1 << 30}, "more than 2 entries"},
			"bytes":    {tarOf(t, reg("a", "12345"), reg("b", "67890")), limits{100, 9}, "more than 9 bytes"},
			"terabyte": {bomb.Bytes(), layerLimits, "more than 549755813888 bytes"},
		} {
			d, err := s.NewDraft(nil)
			must(t, err)
			err = d.apply(context.Background(), bytes.NewReader(c.layer), c.max)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
			must(t, d.Discard())
		}
	})
}

// What random layers do, they do inside, and what they make can be written,
// hashed and unpacked again.
func TestRandomLayers(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		rounds := 25
		if testing.Short() {
			rounds = 10
		}
		c := newCanary(t)
		seed := rand.Uint64()
		for i := range rounds {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			s := openStore(t, mode)
			var snap, copied *Snapshot
			for range 3 {
				d, err := s.NewDraft(snap)
				must(t, err)
				err = d.Apply(context.Background(), bytes.NewReader(tarOf(t, randomFiles(r, c.dir)...)))
				if err != nil {
					must(t, d.Discard())
					continue
				}
				snap = commit(t, d)
				layer := layerOf(t, snap)
				copied = applyTar(t, s, copied, layer)
				if again := layerOf(t, copied); !bytes.Equal(layer, again) {
					t.Fatalf("seed %d round %d:\n%s\n%s", seed, i, listTar(t, layer), listTar(t, again))
				}
				if digestsOf(t, snap) != digestsOf(t, copied) {
					t.Fatalf("seed %d round %d: digests", seed, i)
				}
			}
			if snap != nil {
				if a, b := listMount(t, snap), listMount(t, copied); a != b {
					t.Fatalf("seed %d round %d:\n%s\n%s", seed, i, a, b)
				}
			}
			c.check(t, fmt.Sprintf("seed %d round %d", seed, i))
			checkClean(t, s)
		}
	})
}

// randomFiles is a layer over few names, so that they meet.
func randomFiles(r *rand.Rand, outside string) []file {
	name := func() string {
		names := []string{"a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", "é"}
		parts := make([]string, 1+r.IntN(3))
		for i := range parts {
			parts[i] = names[r.IntN(3)]
		}
		parts[len(parts)-1] = names[r.IntN(len(names))]
		return strings.Join(parts, "/")
	}
	target := func() string {
		return []string{"a", "/b", "../c", "/", "..", up + outside, outside, "/a/b", "b/../a"}[r.IntN(9)]
	}
	var files []file
	for range 1 + r.IntN(12) {
		o := owner(r.IntN(3), r.IntN(3))
		p := perm(int64(r.IntN(0o10000)) | 0o700)
		switch r.IntN(9) {
		case 0, 1:
			files = append(files, reg(name(), strings.Repeat("x", r.IntN(3)), o, p))
		case 2, 3:
			files = append(files, entry(tar.TypeDir, name(), "", o, p))
		case 4:
			files = append(files, entry(tar.TypeSymlink, name(), "", linkTo(target()), o))
		case 5:
			files = append(files, entry(tar.TypeLink, name(), "", linkTo(name()), o))
		case 6:
			files = append(files, entry(tar.TypeChar, name(), "", dev(int64(r.IntN(2)), int64(r.IntN(4))), o))
		case 7:
			files = append(files, entry(tar.TypeFifo, name(), "", o, p))
		case 8:
			files = append(files, reg(name(), "", xattr("user.x", "1"), xattr(opaqueAttr, "y"), o))
		}
	}
	return files
}

// FuzzApply feeds bytes that are no honest tar to a draft without a parent, which
// needs no namespace.
func FuzzApply(f *testing.F) {
	f.Add(tarOf(f, reg("a/b", "x"), entry(tar.TypeSymlink, "a/c", "", linkTo("/")), reg("a/c/d", "")))
	f.Add(tarOf(f, entry(tar.TypeLink, "h", "", linkTo("../x")), reg(".wh.a", ""), reg("e", "", xattr("user.a", "b"))))
	f.Fuzz(func(t *testing.T, layer []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(dir+"/canary", nil, 0o400))
		want := listTree(t, dir, false)
		s, err := Open(dir+"/trees", true)
		must(t, err)
		d, err := s.NewDraft(nil)
		must(t, err)
		d.apply(context.Background(), bytes.NewReader(layer), limits{entries: 100, bytes: 1 << 20})
		must(t, d.Discard())
		must(t, removeTree(s.Dir()))
		if got := listTree(t, dir, false); got != want {
			t.Errorf("outside:\n%s\nwas\n%s", got, want)
		}
	})
}
