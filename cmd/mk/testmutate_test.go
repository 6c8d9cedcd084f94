package main

// The cache's promise, tried by chance: whatever changes in a recipe and its context, a build
// that may take everything from the builds before gives the tree of one that may take nothing.

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// mutate SEED ROUNDS
// changes a random recipe and a random context ROUNDS times. After each change it builds with
// the cache in one store and with --no-cache in another, and wants the same layers, to the byte:
// types, modes, owners, links, attributes and bytes. Times are all SOURCE_DATE_EPOCH, since a
// cached step keeps the time at which it ran. Or both builds fail alike.
func cmdMutate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mutate SEED ROUNDS")
	}
	seed, err := strconv.ParseUint(args[0], 10, 64)
	ts.Check(err)
	rounds, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Setenv("SOURCE_DATE_EPOCH", strconv.Itoa(mutantEpoch))
	m := &mutant{ts: ts, dice: rand.New(rand.NewPCG(seed, 0)), dir: ts.MkAbs("context")}
	m.begin()
	built, failed := 0, false
	cached, fresh := ts.Getenv("MK_ROOT"), ts.MkAbs("fresh")
	for round := range rounds {
		m.did = nil
		for range m.dice.IntN(4) {
			m.changeContext()
		}
		if failed || m.dice.IntN(2) == 0 {
			m.changeRecipe()
		}
		ts.Check(os.WriteFile(filepath.Join(m.dir, "Recipe"), []byte(m.recipe()), 0o644))
		ts.Setenv("MK_ROOT", cached)
		if m.dice.IntN(4) == 0 { // a kill at any moment leaves nothing that a build takes for whole
			limit := strconv.FormatFloat(m.dice.Float64()/4, 'f', 3, 64)
			ts.Exec("timeout", "-s", "KILL", limit, theScript(ts).binary, "build", "-q", "-t", "x", "context")
			m.did = append(m.did, "a kill after "+limit+" s")
		}
		got := m.build()
		ts.Setenv("MK_ROOT", fresh)
		want := m.build("--no-cache")
		if got != want {
			ts.Fatalf("mutate %d: round %d: after %s of\n%s\nwith the cache:\n%s\nwithout:\n%s", seed, round, strings.Join(m.did, ", "), m.recipe(), got, want)
		}
		if failed = got == noImage; !failed {
			built++
		}
	}
	ts.Setenv("MK_ROOT", cached)
	metas, err := filepath.Glob(filepath.Join(cached, "trees/*/snapshots/*/meta"))
	ts.Check(err)
	amended := 0
	for _, meta := range metas {
		if strings.Contains(ts.ReadFile(meta), "\namends\n") {
			amended++
		}
	}
	if amended < rounds/4 {
		ts.Fatalf("mutate %d: %d layers of %d rounds were made of the one before", seed, amended, rounds)
	}
	if built < rounds/2 {
		ts.Fatalf("mutate %d: only %d of %d rounds made an image: that proves little", seed, built, rounds)
	}
}

const noImage = "no image"

// mutantEpoch is before every time that a file has.
const mutantEpoch = 1_000_000_000

type mutant struct {
	ts    *testscript.TestScript
	dice  *rand.Rand
	dir   string
	steps []string
	did   []string // since the last build, for the message
	made  int
}

// stepPool is what recipes are made of. All of it gives the same tree whenever it is run.
var stepPool = []string{
	"COPY . /app", "COPY . /app/", "COPY d0 /app/d1", "COPY d0/ /", "COPY --chown=7:8 . /owned", "COPY --chmod=0640 d1 /mode",
	"COPY --link . /linked", "COPY d2 /app/d2", "COPY d2/ /home/d2/", "COPY --chown=5 --chmod=u=rwX,go=rX d2 /app", "COPY . /", "COPY --exclude=d1 . /some", "COPY d0/f* /files/", "COPY --parents d1 /parents", "COPY --from=first /app /from", "ADD d1 /added",
	"WORKDIR /app/w", "ENV A=1", "USER 7",
	"RUN cp -a /app /copy || true", "RUN rm -rf /app/d0 || true", "RUN mkdir -p /app/d0 && echo made > /app/d0/f0 || true", "RUN rm -rf /linked && mkdir /linked && echo > /linked/f1 || true",
	"RUN chmod -R go-rwx /app || true", "RUN ln -s /app /way || true", "COPY . /way/in", "RUN cat /app/f* > /all || true", "RUN echo x >> /app/f0 || true", "RUN mv /owned /moved || true",
}

func (m *mutant) begin() {
	for _, d := range []string{"d0", "d1", "d1/deep", "d2/s0", "d2/s1"} {
		m.ts.Check(os.MkdirAll(filepath.Join(m.dir, d), 0o755))
	}
	for i := range 12 {
		m.write(m.place(), fmt.Sprintf("f%d", i%6))
	}
	// Most of d2 stays as it is, so that a COPY of it is made of the one before.
	for i := range 60 {
		dir := filepath.Join(m.dir, "d2", fmt.Sprintf("s%d", i%4))
		m.ts.Check(os.MkdirAll(dir, 0o755))
		m.write(dir, fmt.Sprintf("g%02d", i))
	}
	m.steps = append(m.steps, "COPY d2 /app/d2", "COPY . /whole")
	for range 6 {
		m.steps = append(m.steps, m.step())
	}
}

func (m *mutant) step() string { return stepPool[m.dice.IntN(len(stepPool))] }

func (m *mutant) recipe() string {
	return "FROM busybox AS first\nCOPY . /app\nFROM busybox\n" + strings.Join(m.steps, "\n") + "\n"
}

// place picks a directory that is always there.
func (m *mutant) place() string {
	return filepath.Join(m.dir, []string{".", "d0", "d1", "d1/deep", "d2", "d2/s0", "d2/s1"}[m.dice.IntN(7)])
}

func (m *mutant) write(dir, name string) {
	m.made++
	path := filepath.Join(dir, name)
	os.RemoveAll(path)
	m.ts.Check(os.WriteFile(path, []byte(fmt.Sprintf("%06d", m.made)), 0o644))
}

func (m *mutant) changeRecipe() {
	i := m.dice.IntN(len(m.steps))
	switch m.dice.IntN(3) {
	case 0:
		m.steps = slices.Insert(m.steps, i, m.step())
	case 1:
		m.steps[i] = m.step()
	default:
		if len(m.steps) > 2 {
			m.steps = slices.Delete(m.steps, i, i+1)
		}
	}
	m.did = append(m.did, "a change of the recipe")
}

// changeContext changes one file, in one of the ways that a cache could miss.
func (m *mutant) changeContext() {
	dir := m.place()
	name := fmt.Sprintf("f%d", m.dice.IntN(6))
	path := filepath.Join(dir, name)
	st, err := os.Lstat(path)
	what := "another content"
	switch n := m.dice.IntN(11); {
	case err != nil || n == 0:
		m.write(dir, name)
	case n == 1 && st.Mode().IsRegular(): // the same size and time: only ctime tells
		what = "another content at the same time"
		m.write(dir, name)
		m.ts.Check(os.Chtimes(path, time.Time{}, st.ModTime()))
	case n == 2 && st.Mode().IsRegular():
		what = "another mode"
		m.ts.Check(os.Chmod(path, []os.FileMode{0o600, 0o644, 0o755}[m.dice.IntN(3)]))
	case n == 3:
		what = "its removal"
		m.ts.Check(os.RemoveAll(path))
	case n == 4:
		what = "a directory in its place"
		m.ts.Check(os.RemoveAll(path))
		m.ts.Check(os.Mkdir(path, 0o755))
		m.write(path, "inner")
	case n == 5:
		what = "a symlink in its place"
		m.ts.Check(os.RemoveAll(path))
		m.ts.Check(os.Symlink("f0", path))
	case n == 6:
		what = "another name"
		other := filepath.Join(dir, fmt.Sprintf("f%d", m.dice.IntN(6)))
		if other != path {
			m.ts.Check(os.RemoveAll(other))
			m.ts.Check(os.Rename(path, other))
		}
	case n == 8:
		what = "an attribute"
		name := []string{"user.a", "user.b"}[m.dice.IntN(2)]
		if st.Mode()&os.ModeSymlink != 0 || m.dice.IntN(2) == 0 {
			path = dir
		}
		if err := unix.Removexattr(path, name); errors.Is(err, unix.ENODATA) {
			m.ts.Check(unix.Setxattr(path, name, []byte(strconv.Itoa(m.dice.IntN(3))), 0))
		} else if err != nil && !errors.Is(err, unix.ENOTSUP) {
			m.ts.Check(err)
		}
	case n == 9:
		what, path = "another mode", dir
		m.ts.Check(os.Chmod(path, []os.FileMode{0o700, 0o755, 0o775}[m.dice.IntN(3)]))
	case n == 7 && st.Mode().IsRegular():
		what = "a second name"
		other := filepath.Join(m.place(), fmt.Sprintf("f%d", m.dice.IntN(6)))
		if other != path {
			m.ts.Check(os.RemoveAll(other))
			m.ts.Check(os.Link(path, other))
		}
	default:
		what = "another time"
		now := time.Unix(mutantEpoch+int64(m.dice.IntN(1000)), 0)
		m.ts.Check(unix.Lutimes(path, []unix.Timeval{unix.NsecToTimeval(now.UnixNano()), unix.NsecToTimeval(now.UnixNano())}))
	}
	rel, err := filepath.Rel(m.dir, path)
	m.ts.Check(err)
	m.did = append(m.did, what+" of "+rel)
}

// build gives a text of the image's layers, or that there is none.
func (m *mutant) build(flags ...string) string {
	s := theScript(m.ts)
	if err := m.ts.Exec(s.binary, append([]string{"build", "-q", "-t", "x", "context"}, flags...)...); err != nil {
		return noImage
	}
	layers, err := openImage(m.ts, "x").Layers()
	m.ts.Check(err)
	var out strings.Builder
	for _, layer := range layers {
		r, err := layer.Uncompressed()
		m.ts.Check(err)
		var text bytes.Buffer
		sums, copied := tarSums(m.ts, io.TeeReader(r, &text))
		m.ts.Check(copied)
		r.Close()
		m.ts.Check(listTar(&out, &text, false))
		id, err := layer.DiffID()
		m.ts.Check(err)
		fmt.Fprintf(&out, "%s%s\n", sums, id)
	}
	return out.String()
}

// tarSums gives a line for the bytes of each file, and reads the archive to its end.
func tarSums(ts *testscript.TestScript, r io.Reader) (string, error) {
	var out strings.Builder
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return out.String(), err
		}
		ts.Check(err)
		sum := sha256.New()
		_, err = io.Copy(sum, tr)
		ts.Check(err)
		if h.Typeflag == tar.TypeReg {
			fmt.Fprintf(&out, "%s %x\n", h.Name, sum.Sum(nil)[:8])
		}
	}
}
