package builder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mk/recipe"
)

// into is a CopyInto that an ordinary user may use.
func into(t testing.TB, dir string) CopyInto {
	return CopyInto{Root: openRoot(t, dir), Dest: "/", Owners: newOwnerList(), Remember: true}
}

func TestCopyKeepsWhatAFileHas(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	tree(t, src, "d/f 0640 text", "d/ 0750", "d/l -> f")
	mtime := time.Unix(1e9, 123456789)
	for _, name := range []string{"d/f", "d"} {
		must(t, os.Chtimes(src+"/"+name, time.Time{}, mtime))
	}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, src+"/d/l", []unix.Timespec{{}, unix.NsecToTimespec(mtime.UnixNano())}, unix.AT_SYMLINK_NOFOLLOW))
	sparse, err := os.Create(src + "/sparse")
	must(t, err)
	must(t, sparse.Truncate(64<<20))
	_, err = sparse.WriteAt([]byte("middle"), 32<<20)
	must(t, err)
	must(t, sparse.Close())
	attributes := unix.Setxattr(src+"/d/f", "user.mk", []byte("a\x00b"), 0)

	must(t, pick(t, &Files{Root: openRoot(t, src), Local: true}, ".").CopyTo(t.Context(), into(t, dst)))
	for _, name := range []string{"d/f", "d", "d/l"} {
		info, err := os.Lstat(dst + "/" + name)
		must(t, err)
		if !info.ModTime().Equal(mtime) {
			t.Errorf("%s: mtime %v", name, info.ModTime())
		}
	}
	var a, b unix.Stat_t
	must(t, unix.Stat(src+"/sparse", &a))
	must(t, unix.Stat(dst+"/sparse", &b))
	if a.Size != b.Size || b.Blocks > a.Blocks+1024 {
		t.Errorf("sparse file: %d bytes in %d blocks, was %d in %d", b.Size, b.Blocks, a.Size, a.Blocks)
	}
	if out, err := exec.Command("cmp", src+"/sparse", dst+"/sparse").CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
	if attributes != nil {
		t.Logf("no attributes here: %v", attributes)
		return
	}
	buf := make([]byte, 10)
	if n, err := unix.Getxattr(dst+"/d/f", "user.mk", buf); err != nil || string(buf[:n]) != "a\x00b" {
		t.Errorf("attribute %q, %v", buf[:max(n, 0)], err)
	}
}

// TestCapabilityAndSetuid needs a kernel that lets us give capabilities.
func TestCapabilityAndSetuid(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	tree(t, src, "ping 4755 x")
	capNetRaw := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := unix.Setxattr(src+"/ping", "security.capability", []byte(capNetRaw), 0); err != nil {
		t.Skipf("give a capability: %v", err)
	}
	sel := pick(t, &Files{Root: openRoot(t, src), Local: true}, ".")
	must(t, sel.CopyTo(t.Context(), CopyInto{Root: openRoot(t, dst), Dest: "/", Owner: &CopyOwner{5, 6}}))
	buf := make([]byte, 64)
	n, err := unix.Getxattr(dst+"/ping", "security.capability", buf)
	if err != nil || string(buf[:n]) != capNetRaw {
		t.Errorf("capability %x, %v", buf[:max(n, 0)], err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(dst+"/ping", &st))
	if st.Mode&0o7777 != 0o4755 || st.Uid != 5 {
		t.Errorf("mode %o, owner %d", st.Mode, st.Uid)
	}
}

// TestChanged: what was hashed is what is copied, or COPY fails.
func TestChanged(t *testing.T) {
	for name, change := range map[string]func(f string) error{
		"content":           func(f string) error { return os.WriteFile(f, []byte("evil"), 0o644) },
		"size":              func(f string) error { return os.WriteFile(f, []byte("much longer"), 0o644) },
		"mode":              func(f string) error { return os.Chmod(f, 0o4755) },
		"becomes a symlink": func(f string) error { os.Remove(f); return os.Symlink("/etc/hostname", f) },
		"becomes a fifo":    func(f string) error { os.Remove(f); return unix.Mkfifo(f, 0o644) },
		"gone":              os.Remove,
		"directory becomes a symlink": func(f string) error {
			must(t, os.Rename(filepath.Dir(f), filepath.Dir(f)+"2"))
			return os.Symlink("/etc", filepath.Dir(f))
		},
		"content, times set back": func(f string) error {
			info, _ := os.Stat(f)
			if err := os.WriteFile(f, []byte("evil"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(f, time.Time{}, info.ModTime())
		},
	} {
		for _, wait := range []time.Duration{0, 50 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " after ", wait), func(t *testing.T) {
				src, dst := tree(t, t.TempDir(), "d/f 0644 good"), t.TempDir()
				time.Sleep(wait)
				sel := pick(t, &Files{Root: openRoot(t, src), Local: true}, ".")
				must(t, change(src+"/d/f"))
				if err := sel.CopyTo(t.Context(), into(t, dst)); !errors.Is(err, errChanged) {
					t.Errorf("got %v, want %v", err, errChanged)
				}
			})
		}
	}
	// Only touched: the same bytes, so there is nothing to complain about.
	src, dst := tree(t, t.TempDir(), "d/f 0644 good"), t.TempDir()
	time.Sleep(50 * time.Millisecond)
	sel := pick(t, &Files{Root: openRoot(t, src), Local: true}, ".")
	must(t, os.Chtimes(src+"/d/f", time.Time{}, time.Now()))
	must(t, sel.CopyTo(t.Context(), into(t, dst)))
}

// TestSwap swaps files and directories of the context for symlinks to a secret
// while it is selected and copied, over and over. Whatever comes of it, the
// secret never arrives.
func TestSwap(t *testing.T) {
	const secret = "SECRET"
	top := t.TempDir()
	tree(t, top, "out/f 0644 "+secret, "out/g/f 0644 "+secret, "in/f 0644 public", "in/d/f 0644 public", "in/d/g/f 0644 public", "in/x 0644 1")
	var stop atomic.Bool
	var wg sync.WaitGroup
	swap := func(name, target string) {
		wg.Go(func() {
			link := top + "/link-" + strings.ReplaceAll(name, "/", "-")
			must(t, os.Symlink(target, link))
			for !stop.Load() {
				unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, top+"/in/"+name, unix.RENAME_EXCHANGE)
				if rand.IntN(4) == 0 {
					time.Sleep(time.Microsecond * time.Duration(rand.IntN(300)))
				}
			}
		})
	}
	swap("f", top+"/out/f")
	swap("d/g", "../../out/g")
	swap("d/f", top+"/out/f")
	root := openRoot(t, top+"/in")
	copied := 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		dst := t.TempDir()
		sel, err := (&Files{Root: root, Local: true}).Select(context.Background(), CopySources{Words: [][]string{{"."}, {"d/g/f", "f"}, {"d/*"}}[rand.IntN(3)]})
		if err != nil {
			continue
		}
		if sel.CopyTo(context.Background(), into(t, dst)) == nil {
			copied++
		}
		filepath.WalkDir(dst, func(p string, d os.DirEntry, err error) error {
			if d.Type().IsRegular() {
				data, _ := os.ReadFile(p)
				if string(data) == secret {
					t.Fatalf("%s has the secret", p)
				}
			}
			return err
		})
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d copies succeeded", copied)
}

// TestHostileDestination: links of the image lead nowhere but into the image.
func TestHostileDestination(t *testing.T) {
	top := t.TempDir()
	tree(t, top, "src/t/f 0644 x", "src/f 0644 x", "src/abs/f 0644 x", "victim/ 0755", "img/up -> ../../../../victim", "img/abs -> "+top+"/victim", "img/a/b/rel -> ../../../../victim",
		"img/proc -> /proc/self/cwd", "img/chain1 -> chain2", "img/chain2 -> ../chain3", "img/chain3 -> "+top+"/victim/new")
	files := &Files{Root: openRoot(t, top+"/src"), Local: true}
	for _, dest := range []string{"/up/", "/up", "/abs/x/", "/a/b/rel/y", "/proc/z/", "/chain1/", "/chain1", "/up/../../..", "/../../" + top + "/victim/", "/"} {
		for _, words := range [][]string{{"t"}, {"f"}, {"."}} {
			in := into(t, top+"/img")
			in.Dest = dest
			pick(t, files, words...).CopyTo(t.Context(), in) // may fail; must not reach the victim
		}
	}
	if got := list(t, top+"/victim"); len(got) > 0 {
		t.Errorf("reached the victim: %q", got)
	}
}

func TestCopyIsCanceled(t *testing.T) {
	src := tree(t, t.TempDir(), "a/b 0644 x", "c == a/b", "d 0644 y")
	sel := pick(t, &Files{Root: openRoot(t, src), Local: true}, ".")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := sel.CopyTo(ctx, into(t, t.TempDir())); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestNoDescriptorsLeft counts them after successes and failures of all kinds.
func TestNoDescriptorsLeft(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	src := tree(t, t.TempDir(), "d/a 0644 x", "d/e/b == d/a", "l -> d", "f 0644 y", "bad.tar 0644 z")
	root := openRoot(t, src)
	dst := openRoot(t, tree(t, t.TempDir(), "f/x 0644", "l -> a/b", "no 0644"))
	before := count()
	for _, words := range []string{". /n", "d f /x/", "f /", "f /l", "d /no", "missing /", "l/a d/* f /y/", "--parents d/./e /p", "--add bad.tar /q/", "d/*/* /no/"} {
		fields := strings.Fields(words)
		for _, local := range []bool{true, false} {
			c := CopySources{}
			in := CopyInto{Root: dst, Owners: newOwnerList(), Remember: true}
			for strings.HasPrefix(fields[0], "--") {
				c.Parents, in.Add = c.Parents || fields[0] == "--parents", in.Add || fields[0] == "--add"
				fields = fields[1:]
			}
			c.Words, in.Dest = fields[:len(fields)-1], fields[len(fields)-1]
			if sel, err := (&Files{Root: root, Local: local}).Select(t.Context(), c); err == nil {
				sel.CopyTo(t.Context(), in)
			}
		}
	}
	if after := count(); after != before {
		out, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", os.Getpid())).Output()
		t.Errorf("%d descriptors before, %d after\n%s", before, after, out)
	}
}

// TestSymbolicChmod compares COPY --chmod with chmod(1).
func TestSymbolicChmod(t *testing.T) {
	if _, err := exec.LookPath("chmod"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	words := func(set string, n int) string {
		var b strings.Builder
		for range rand.IntN(n + 1) {
			b.WriteByte(set[rand.IntN(len(set))])
		}
		return b.String()
	}
	cases := []string{"go-w", "u=rw,g=r,o=r", "a+X", "u+rw,g+r,o-x,o+w", "u=rwX,go=rX", "+x", "=", "g=u", "u+s", "g-s", "+t", "o=t", "a=", "u=g,g=o"}
	for range 300 {
		var clauses []string
		for range 1 + rand.IntN(2) {
			clause := words("ugoa", 2)
			for range 1 + rand.IntN(2) {
				perm := words("rwxXst", 4)
				if rand.IntN(5) == 0 {
					perm = string("ugo"[rand.IntN(3)])
				}
				clause += string("+-="[rand.IntN(3)]) + perm
			}
			clauses = append(clauses, clause)
		}
		cases = append(cases, strings.Join(clauses, ","))
	}
	differ := 0
	for _, text := range cases {
		change, err := recipe.ParseChmod(text)
		for _, isDir := range []bool{false, true} {
			mode := rand.Uint32() & 0o7777
			p := fmt.Sprintf("%s/%d", dir, rand.Uint64())
			if isDir {
				must(t, os.Mkdir(p, 0o700))
			} else {
				must(t, os.WriteFile(p, nil, 0o600))
			}
			must(t, unix.Chmod(p, mode))
			cmd := exec.Command("sh", "-c", `umask 0; exec chmod -- "$0" "$1"`, text, p)
			out, cerr := cmd.CombinedOutput()
			if (cerr != nil) != (err != nil) {
				t.Errorf("%q: %v, chmod says %v %s", text, err, cerr, out)
				continue
			}
			if err != nil {
				continue
			}
			var st unix.Stat_t
			must(t, unix.Lstat(p, &st))
			if got := change.Apply(mode, isDir); got != st.Mode&0o7777 {
				if differ++; differ < 20 {
					t.Errorf("chmod %q of %04o, directory %t: %04o, chmod says %04o", text, mode, isDir, got, st.Mode&0o7777)
				}
			}
		}
	}
}

// BenchmarkCopy copies 10,000 files and 500 MiB; its floor is cp -a.
func BenchmarkCopy(b *testing.B) {
	for _, shape := range []struct{ files, size int }{{10_000, 50 << 10}, {10_000, 200}, {5, 100 << 20}} {
		b.Run(fmt.Sprintf("%dx%d", shape.files, shape.size), func(b *testing.B) {
			dir := bigTree(b, shape.files, shape.size)
			top := b.TempDir()
			i := 0
			fresh := func() string {
				b.StopTimer()
				must(b, os.RemoveAll(fmt.Sprint(top, "/", i)))
				unix.Sync()
				i++
				d := fmt.Sprint(top, "/", i)
				must(b, os.Mkdir(d, 0o755))
				b.StartTimer()
				return d
			}
			root := openRoot(b, dir)
			b.Run("cp", func(b *testing.B) {
				for b.Loop() {
					must(b, exec.Command("cp", "-a", dir+"/.", fresh()).Run())
				}
			})
			b.Run("mk", func(b *testing.B) { // select, hash and copy
				for b.Loop() {
					must(b, pick(b, &Files{Root: root, Local: true}, ".").CopyTo(b.Context(), CopyInto{Root: openRoot(b, fresh()), Dest: "/"}))
				}
			})
			sel := pick(b, &Files{Root: root, Local: true}, ".")
			b.Run("mk-only-copy", func(b *testing.B) {
				for b.Loop() {
					must(b, sel.CopyTo(b.Context(), CopyInto{Root: openRoot(b, fresh()), Dest: "/"}))
				}
			})
		})
	}
}
