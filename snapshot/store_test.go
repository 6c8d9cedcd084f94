package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Everything a store can be asked on the host needs no namespace.
func TestStoreOnHost(t *testing.T) {
	s, err := Open(t.TempDir()+"/trees", true)
	must(t, err)
	for _, id := range []ID{"", "..", "0123", "../../etc/passwd", newID()} {
		if _, err := s.Get(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get %q: %v", id, err)
		}
	}
	for _, d := range []digest.Digest{"", "sha256:../../x", "sha256:abc", "sha512:" + digest.Digest(strings.Repeat("0", 128))} {
		if _, err := s.ByChain(d); err == nil {
			t.Errorf("by chain %q: no error", d)
		}
	}
	if _, err := s.ByDiffID(digest.FromString("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open("relative", false); err == nil {
		t.Error("a relative store")
	}
}

func TestDraftEnds(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		d, err := s.NewDraft(nil)
		must(t, err)
		snap := commit(t, d)
		if _, err := d.Commit(); err == nil {
			t.Error("committed twice")
		}
		must(t, d.Discard())
		if _, err := s.Get(snap.ID()); err != nil {
			t.Errorf("discarded after the commit: %v", err)
		}
		if n := len(snap.Layers()); n != 1 || snap.Parent() != nil {
			t.Errorf("%d layers of a base", n)
		}
		child := change(t, s, snap, func(string) {})
		got, err := s.Get(child.ID())
		must(t, err)
		if l := got.Layers(); len(l) != 2 || l[0].ID() != snap.ID() || got.Parent().ID() != snap.ID() {
			t.Errorf("layers %v", l)
		}
		fresh, err := Open(s.Dir(), s.remember)
		must(t, err)
		if l, err := fresh.Get(child.ID()); err != nil || len(l.Layers()) != 2 {
			t.Errorf("in another process: %v", err)
		}
		if _, err := s.NewDraft(&Snapshot{store: s, id: newID()}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("draft of nothing: %v", err)
		}
	})
}

// An applied layer is known by the image's digests, unread.
func TestSetLayer(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		ctx := context.Background()
		var snap *Snapshot
		chain := digest.Digest("")
		for i := range 3 {
			layer := tarOf(t, reg(fmt.Sprint("f", i), "x"), reg("a", ""))
			d, err := s.NewDraft(snap)
			must(t, err)
			must(t, d.Apply(ctx, bytes.NewReader(layer)))
			diffID := digest.FromBytes(layer)
			d.SetLayer(diffID)
			snap = commit(t, d)
			if chain == "" {
				chain = diffID
			} else {
				chain = digest.FromString(chain.String() + " " + diffID.String())
			}
			got, ok := snap.Recorded()
			if want := (Digests{Content: ContentOfChain(chain), DiffID: diffID, Size: int64(len(layer)), Chain: chain}); !ok || got != want {
				t.Errorf("recorded %+v %v, want %+v", got, ok, want)
			}
			if by, err := s.ByChain(chain); err != nil || by.ID() != snap.ID() {
				t.Error(err)
			}
			if _, err := s.ByDiffID(diffID); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("WriteLayer would not give these bytes: %v", err)
			}
		}
		checkClean(t, s)
	})
}

// The mount for old kernels is as good as the other.
func TestMountByOptions(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		var snap *Snapshot
		for i := range 130 { // more than the names of so many would fit in a page
			d, err := s.NewDraft(snap)
			must(t, err)
			must(t, os.WriteFile(fmt.Sprintf("%s/f%03d", d.Upper(), i), nil, 0o644))
			snap = commit(t, d)
		}
		before, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		for name, mount := range map[string]func(stack) (*os.File, error){"context": mountByContext, "options": mountByOptions} {
			d, err := s.NewDraft(snap)
			must(t, err)
			work := d.dir + "/work"
			must(t, os.Mkdir(work, 0o700))
			m, err := mount(stack{store: s, lower: snap, upper: d.Upper(), work: work})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			root := procPath(m)
			if entries, err := os.ReadDir(root); err != nil || len(entries) != 130 {
				t.Errorf("%s: %d entries: %v", name, len(entries), err)
			}
			must(t, os.Remove(root+"/f000"))
			must(t, os.WriteFile(root+"/new", nil, 0o644))
			m.Close()
			var st unix.Stat_t
			if must(t, unix.Lstat(d.Upper()+"/f000", &st)); !isWhiteout(&st) {
				t.Errorf("%s: no whiteout", name)
			}
			m, err = mount(stack{store: s, lower: snap})
			must(t, err)
			if err := os.WriteFile(procPath(m)+"/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: write to a snapshot: %v", name, err)
			}
			m.Close()
			must(t, d.Discard())
		}
		after, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if !bytes.Equal(before, after) {
			t.Errorf("mounts left:\n%s\nbefore\n%s", after, before)
		}
	})
}

// A store may lie deeper than a string of fsconfig is long.
func TestDeepStore(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s, err := Open(t.TempDir()+strings.Repeat("/"+strings.Repeat("d", 100), 5)+"/a:b,c\\d", false)
		must(t, err)
		base := change(t, s, nil, func(root string) { must(t, os.WriteFile(root+"/f", nil, 0o644)) })
		if got := namesOf(t, change(t, s, base, func(string) {})); got != "f" {
			t.Error(got)
		}
	})
}

func TestOwnersTable(t *testing.T) {
	table := NewOwners()
	table.Set("/a/b/", Owner{UID: 1, GID: 4294967294})
	table.Set("a/b/c d\n\xff", Owner{Mode: unix.S_IFBLK, Rdev: unix.Mkdev(259, 70000)})
	table.Set("a.b", Owner{Xattrs: map[string]string{"user.x y=": "\x00\xff", "security.ima": ""}})
	table.Set(".", Owner{UID: 7})
	table.Set("zero", Owner{})
	if got := strings.Join(table.Paths(), "|"); got != ".|a/b|a/b/c d\n\xff|a.b|zero" {
		t.Errorf("order %q", got)
	}
	file := t.TempDir() + "/owners"
	write := func() string {
		var b bytes.Buffer
		must(t, table.write(&b))
		must(t, os.WriteFile(file, b.Bytes(), 0o600))
		return b.String()
	}
	text := write()
	want := `mk owners 1
"." 7 0
"a/b" 1 4294967294
"a/b/c d\n\xff" 0 0 b 259:70000
"a.b" 0 0 "security.ima"= "user.x y="=AP8=
`
	if text != want {
		t.Errorf("text\n%s\nwant\n%s", text, want)
	}
	var err error
	table, err = readOwners(file)
	must(t, err)
	if again := write(); again != want {
		t.Errorf("again\n%s", again)
	}
	table.Rename("a", "x/y")
	if got := strings.Join(table.Paths(), "|"); got != ".|a.b|x/y/b|x/y/b/c d\n\xff" {
		t.Errorf("after rename %q", got)
	}
	table.Delete("x")
	if got := strings.Join(table.Paths(), "|"); got != ".|a.b" {
		t.Errorf("after delete %q", got)
	}
	for _, bad := range []string{"", "mk owners 2\n", ownersHeader + "\n\"a\" 1\n", ownersHeader + "\n\"../a\" 1 1\n", ownersHeader + "\n\"a\" 1 1 c 1\n", ownersHeader + "\na 1 1\n", ownersHeader + "\n\"a\" 1 1 \"x\"=?\n", ownersHeader + "\n\"a\" 99999999999 1\n"} {
		must(t, os.WriteFile(file, []byte(bad), 0o600))
		if _, err := readOwners(file); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

// What overlay copies up keeps what was remembered for it; what is new does not.
func TestInheritedOwners(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := applyTar(t, s, nil, tarOf(t,
			entry(tar.TypeDir, "d", "", owner(7, 7)), reg("d/changed", "x", owner(8, 8)), reg("d/replaced", "x", owner(8, 8)),
			reg("d/kept", "x", owner(8, 8)), entry(tar.TypeDir, "opaque", "", owner(9, 9)), entry(tar.TypeChar, "null", "", dev(1, 3))))
		snap := change(t, s, base, func(root string) {
			f, err := os.OpenFile(root+"/d/changed", os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			f.WriteString("more")
			f.Close()
			must(t, os.Remove(root+"/d/replaced"))
			must(t, os.WriteFile(root+"/d/replaced", []byte("mine"), 0o644))
			must(t, os.Remove(root+"/opaque"))
			must(t, os.Mkdir(root+"/opaque", 0o755))
			must(t, os.WriteFile(root+"/opaque/x", nil, 0o644))
			must(t, os.Chmod(root+"/null", 0o600))
		})
		list := listTar(t, layerOf(t, snap))
		for _, want := range []string{"5 d/ 755 7:7", "0 d/changed 644 8:8 \"xmore\"", "0 d/replaced 644 0:0", "5 opaque/ 755 0:0", "3 null 600 0:0 1,3"} {
			if !strings.Contains(list, want) {
				t.Errorf("no %q in\n%s", want, list)
			}
		}
		if mode == "single" {
			for p, uid := range map[string]uint32{"d": 7, "d/changed": 8, "/d/kept": 8, "d/replaced": 0, "none": 0} {
				if o, ok, err := snap.Owner(p); err != nil || ok != (uid != 0) || o.UID != uid {
					t.Errorf("owner of %s: %+v %v %v", p, o, ok, err)
				}
			}
		}
		checkClean(t, s)
	})
}

func TestRemove(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		file := func(name string) func(string) {
			return func(root string) { must(t, os.WriteFile(root+"/"+name, make([]byte, 10_000), 0o644)) }
		}
		a := change(t, s, nil, file("a"))
		b := change(t, s, a, file("b"))
		c := change(t, s, b, file("c"))
		twin := applyTar(t, s, b, layerOf(t, c))
		e := change(t, s, a, file("e"))
		f := change(t, s, e, file("f"))
		digestsOf(t, c)
		digestsOf(t, f)
		digestsOf(t, twin) // the last word about its chain
		g := change(t, s, nil, file("g"))
		living, err := s.NewDraft(g)
		must(t, err)
		defer living.Discard()
		dead, err := s.NewDraft(a)
		must(t, err)
		must(t, os.MkdirAll(dead.Upper()+strings.Repeat("/d", 600), 0)) // closed to everybody but root
		dead.locked.Close()                                             // as if its process had died
		removed, freed, err := s.Remove(func(id ID) bool { return id == c.ID() || id == e.ID() })
		must(t, err)
		if removed != 3 || freed < 20_000 { // f, twin and the dead draft
			t.Errorf("removed %d, %d bytes", removed, freed)
		}
		ids, err := s.Snapshots()
		must(t, err)
		want := []ID{a.ID(), b.ID(), c.ID(), e.ID(), g.ID()}
		slices.Sort(want)
		if !slices.Equal(ids, want) {
			t.Errorf("left %v, want %v", ids, want)
		}
		if by, err := s.ByChain(digestsOf(t, c).Chain); err != nil || by.ID() != c.ID() {
			t.Errorf("the twin's record: %v", err)
		}
		if _, err := s.Get(f.ID()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removed, and still there: %v", err)
		}
		if drafts, err := listIDs(s.path("drafts")); err != nil || len(drafts) != 1 {
			t.Errorf("drafts %v %v", drafts, err)
		}
		checkClean(t, s)
		must(t, living.Discard())
		if removed, _, err = s.Remove(func(ID) bool { return false }); err != nil || removed != 5 {
			t.Errorf("removed %d, %v", removed, err)
		}
		for _, dir := range []string{"snapshots", "drafts", "chains/sha256", "diffids/sha256"} {
			if entries, err := os.ReadDir(s.path(dir)); err != nil || len(entries) > 0 {
				t.Errorf("%s: %v %v", dir, entries, err)
			}
		}
	})
}

// A tree deeper than there are descriptors can be removed, on every day.
func TestRemoveDeepTree(t *testing.T) {
	dir := t.TempDir() + "/x"
	must(t, os.Mkdir(dir, 0o755))
	fd, err := openAt(unix.AT_FDCWD, dir, oDir, 0)
	must(t, err)
	for range 2000 {
		must(t, unix.Mkdirat(fd, "deeper", 0o755))
		next, err := openAt(fd, "deeper", oDir, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	must(t, removeTree(dir))
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestCheckFinds(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		for name, harm := range map[string]func(s *Store, a, b *Snapshot) error{
			"a changed file": func(_ *Store, a, _ *Snapshot) error { return os.WriteFile(a.tree()+"/f", []byte("y"), 0o644) },
			"a lost tree":    func(_ *Store, _, b *Snapshot) error { return os.RemoveAll(b.tree()) },
			"a lost parent":  func(_ *Store, a, _ *Snapshot) error { return os.RemoveAll(a.Dir()) },
			"a lost meta":    func(_ *Store, a, _ *Snapshot) error { return os.Remove(a.Dir() + "/meta") },
			"a newer format": func(_ *Store, a, _ *Snapshot) error {
				return os.WriteFile(a.Dir()+"/meta", []byte("mk snapshot 2\n"), 0o600)
			},
			"broken digests": func(_ *Store, a, _ *Snapshot) error {
				return os.WriteFile(a.Dir()+"/digests", []byte(digestsHeader+"\n"), 0o600)
			},
			"a false owner": func(_ *Store, a, _ *Snapshot) error {
				return os.WriteFile(a.Dir()+"/owners", []byte(ownersHeader+"\n\"none\" 1 1\n"), 0o600)
			},
			"a wrong record": func(s *Store, a, b *Snapshot) error {
				d, _ := b.Recorded()
				return s.writeRecord("chains", d.Chain, a.ID())
			},
			"a stray record":  func(s *Store, _, b *Snapshot) error { return s.writeRecord("diffids", digest.FromString("x"), newID()) },
			"a swapped layer": func(_ *Store, a, b *Snapshot) error { return os.Rename(b.tree()+"/f", b.tree()+"/g") },
		} {
			s := openStore(t, mode)
			a := change(t, s, nil, func(root string) { must(t, os.WriteFile(root+"/f", []byte("x"), 0o644)) })
			b := change(t, s, a, func(root string) { must(t, os.WriteFile(root+"/f", []byte("z"), 0o644)) })
			digestsOf(t, b)
			checkClean(t, s)
			must(t, harm(s, a, b))
			fresh, err := Open(s.Dir(), s.remember)
			must(t, err)
			if found := fresh.Check(context.Background()); len(found) == 0 {
				t.Errorf("%s is not found", name)
			}
		}
	})
}

// Of many who want the same digests one computes, and all get the same.
func TestDigestsTogether(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		snap := change(t, s, nil, func(root string) { must(t, os.WriteFile(root+"/f", make([]byte, 1<<20), 0o644)) })
		var group sync.WaitGroup
		got := make([]Digests, 8)
		for i := range got {
			group.Go(func() {
				other, err := Open(s.Dir(), s.remember) // as another process would
				must(t, err)
				same, err := other.Get(snap.ID())
				must(t, err)
				got[i], err = same.Digests(context.Background())
				must(t, err)
			})
		}
		group.Wait()
		for _, d := range got {
			if d != got[0] || d.DiffID == "" {
				t.Errorf("%+v and %+v", d, got[0])
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		late := change(t, s, snap, func(string) {})
		if _, err := late.Digests(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

// runJob is what the processes do that the next test kills: builds, one step on
// the other, for as long as they live.
func runJob(dir string) {
	s, err := Open(dir, os.Getenv(modeEnv) == "single")
	for i := 0; err == nil; i++ {
		err = buildSome(s, i)
	}
	fmt.Println("job:", err)
	os.Exit(1)
}

func buildSome(s *Store, i int) error {
	ctx := context.Background()
	var parent *Snapshot
	if ids, err := s.Snapshots(); err != nil {
		return err
	} else if len(ids) > 0 && i%3 > 0 {
		if parent, err = s.Get(ids[rand.IntN(len(ids))]); err != nil {
			return err
		}
	}
	d, err := s.NewDraft(parent)
	if err != nil {
		return err
	}
	defer d.Discard()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n := range 30 {
		h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/%d", n%3, rand.IntN(50)), Mode: 0o644, Uid: n % 2, ModTime: time.Now()}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
	}
	w.Close()
	if err := d.Apply(ctx, &b); err != nil {
		return err
	}
	m, err := d.Mount()
	if err != nil {
		return err
	}
	err = os.RemoveAll(procPath(m) + "/d1")
	m.Close()
	if err != nil {
		return err
	}
	snap, err := d.Commit()
	if err != nil {
		return err
	}
	_, err = snap.Digests(ctx)
	return err
}

// Processes die at any instant; nothing is lost but what they were at, and the
// next Remove finds all they left.
func TestKilled(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		rounds := 12
		if testing.Short() {
			rounds = 4
		}
		var last []ID
		for range rounds {
			var jobs []*os.Process
			for range 2 {
				p, err := os.StartProcess("/proc/self/exe", os.Args[:1], &os.ProcAttr{
					Env: append(os.Environ(), jobEnv+"="+s.Dir()), Files: []*os.File{nil, os.Stdout, os.Stderr}})
				must(t, err)
				jobs = append(jobs, p)
			}
			time.Sleep(time.Duration(20+rand.IntN(120)) * time.Millisecond)
			for _, p := range jobs {
				p.Kill()
				if st, err := p.Wait(); err != nil || st.Exited() {
					t.Fatalf("the job ended by itself: %v %v", st, err)
				}
			}
			ids, err := s.Snapshots()
			must(t, err)
			for _, id := range last {
				if !slices.Contains(ids, id) {
					t.Errorf("%s was lost", id)
				}
			}
			last = ids
			checkClean(t, s)
			kept := 0
			_, _, err = s.Remove(func(ID) bool { kept++; return kept%2 == 0 })
			must(t, err)
			if drafts, err := listIDs(s.path("drafts")); err != nil || len(drafts) > 0 {
				t.Errorf("drafts left: %v %v", drafts, err)
			}
			checkClean(t, s)
			if last, err = s.Snapshots(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d snapshots at the end", len(last))
	})
}

// Leaked descriptors would end a long build.
func TestNoDescriptorsLeak(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		open := func() int {
			entries, err := os.ReadDir("/proc/self/fd")
			must(t, err)
			return len(entries)
		}
		var n int
		for i := range 6 {
			if i == 1 {
				n = open()
			}
			must(t, buildSome(s, i))
			d, err := s.NewDraft(nil)
			must(t, err)
			if err := d.Apply(context.Background(), bytes.NewReader(tarOf(t, reg("a/b/c", ""), entry(tar.TypeLink, "a/l", "", linkTo("none"))))); err == nil {
				t.Error("no error")
			}
			must(t, d.Discard())
		}
		if m := open(); m != n {
			links, _ := filepath.Glob("/proc/self/fd/*")
			t.Errorf("%d descriptors, and %d were: %v", m, n, links)
		}
	})
}
