package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// What is changed on an outline is the layer that it is on the tree, has the digests that it has there, and
// is never taken for a tree itself.
func TestOutline(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		files := []file{
			entry(tar.TypeDir, "dir/", "", perm(0o2751), owner(0, 7)),
			entry(tar.TypeDir, "dir/sub/", "", owner(5, 6), xattr("user.a", "b")),
			entry(tar.TypeSymlink, "link", "", linkTo("dir/sub")),
			reg("dir/file", "content"),
			entry(tar.TypeLink, "linked", "", linkTo("dir/file")),
			reg("replaced", "content"),
		}
		layer := tarOf(t, files...)
		tree := applyLayer(t, s, nil, layer, false)
		empty := append(append([]file{}, files[:3]...), reg("dir/file", ""), entry(tar.TypeLink, "linked", "", linkTo("dir/file")), reg("replaced", ""))
		outline := applyLayer(t, s, nil, tarOf(t, empty...), true, digest.FromBytes(layer))
		edit := func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "dir/sub/new"), []byte("new"), 0o600))
			if err := os.Remove(filepath.Join(root, "replaced")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			must(t, os.WriteFile(filepath.Join(root, "replaced"), []byte("new"), 0o600))
		}
		on, is := change(t, s, outline, edit), change(t, s, tree, edit)
		still(t, on, is)
		a, b := digestsOf(t, on), digestsOf(t, is)
		if a != b {
			t.Errorf("on the outline %+v, on the tree %+v", a, b)
		}
		if !outline.Outline() || !on.Outline() || tree.Outline() || is.Outline() {
			t.Error("what is an outline?")
		}
		if found, err := s.ByChain(a.Chain); err != nil || found != is {
			t.Errorf("by its chain: %v, %v", found, err)
		}
		if found, err := s.OutlineByChain(a.Chain); err != nil || found != on {
			t.Errorf("by its chain: %v, %v", found, err)
		}

		// Laid on the tree, it is the tree's.
		laid, err := s.Rebase(on, tree)
		must(t, err)
		if d := digestsOf(t, laid); d.Content != b.Content || laid.Outline() {
			t.Errorf("laid: %+v", d)
		}
		checkClean(t, s)

		// What removes something does not become another layer in silence.
		removes := change(t, s, outline, func(root string) { must(t, os.Remove(filepath.Join(root, "link"))) })
		digestsOf(t, removes)
		other, err := s.Rebase(removes, tree)
		must(t, err)
		if _, err := other.Digests(t.Context()); err == nil || !strings.Contains(err.Error(), "is not the layer that it was") {
			t.Errorf("removes: %v", err)
		}

		// Records go with what they name, and to nobody of the other kind.
		_, _, err = s.Remove(func(id ID) bool { return id == on.ID() })
		must(t, err)
		if _, err := s.ByChain(a.Chain); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an outline stands for a tree: %v", err)
		}
		if _, err := s.OutlineByChain(a.Chain); err != nil {
			t.Error(err)
		}
		checkClean(t, s)
	})
}

// A file is made in an outline only where it hides something, and none becomes a directory: of those that a
// layer on another brought, and of those that it took away.
func TestOutlineFiles(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		lower := tarOf(t, entry(tar.TypeDir, "dir/", ""), entry(tar.TypeDir, "was/", ""), entry(tar.TypeSymlink, "link", "", linkTo("dir")),
			reg("file", ""), reg("gone", ""), entry(tar.TypeChar, "dev", "", dev(1, 3)))
		upper := tarOf(t, reg("was", ""), reg("link", ""), reg("dir/file", ""), reg(".wh.gone", ""), entry(tar.TypeLink, "dir/dev", "", linkTo("dev")))
		below := applyLayer(t, s, nil, lower, true, digest.FromBytes(lower))
		outline := applyLayer(t, s, below, upper, true, digest.FromBytes(upper))
		for name, want := range map[string]bool{"tree/was": true, "tree/link": true, "tree/dir/dev": true, "tree/dir/file": false, "tree/file": false} {
			if st, err := os.Lstat(filepath.Join(outline.Dir(), name)); (err == nil) != want || err == nil && st.IsDir() {
				t.Errorf("%s: %v, %v", name, st, err)
			}
		}
		for name, want := range map[string]error{"dir/file": errHidden, "file": errHidden, "gone": errHidden, "new": nil, "dir/new": nil} {
			d, err := s.NewDraft(outline)
			must(t, err)
			must(t, os.MkdirAll(filepath.Join(d.Upper(), name, "below"), 0o755))
			if _, err := d.Commit(); !errors.Is(err, want) {
				t.Errorf("%s made a directory: %v", name, err)
			}
			d.Discard()
		}

		// What an amendment takes away shows the base's file again.
		made := change(t, s, outline, func(root string) {
			for name, size := range map[string]int{"file": 1, "new": 1, "stays": 1 << 20} {
				must(t, os.WriteFile(filepath.Join(root, name), make([]byte, size), 0o600))
			}
		})
		for gone, want := range map[string]bool{"file": false, "new": true} {
			d, err := s.NewDraft(outline)
			must(t, err)
			_, ok, err := d.Amend(made, func(p string, _ *unix.Stat_t, _ map[string]string) Verdict {
				if p == gone {
					return Gone
				}
				return Stays
			})
			if err != nil || ok != want {
				t.Errorf("without %s: amended %v, %v", gone, ok, err)
			}
			d.Discard()
		}
		checkClean(t, s)
	})
}

// An outline is made of a tree, layer by layer, and is the same where it travelled to: what is made on it there is
// the layer that it is on the tree. What is none, or another's, is refused.
func TestOutlineTravels(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s, there := openStore(t, mode), openStore(t, mode)
		lower := tarOf(t, entry(tar.TypeDir, "dir/", "", perm(0o2751), owner(5, 7), xattr("user.a", "b")), entry(tar.TypeDir, "was/", ""), entry(tar.TypeSymlink, "link", "", linkTo("dir")),
			reg("file", "content"), reg("gone", "content"), reg("replaced", "content"), entry(tar.TypeChar, "dev", "", dev(1, 3)), entry(tar.TypeLink, "linked", "", linkTo("file")))
		upper := tarOf(t, reg("was", "content"), entry(tar.TypeDir, "dir/sub/", "", owner(5, 6)), reg("dir/sub/x", ""), reg(".wh.gone", ""), entry(tar.TypeLink, "dir/linked", "", linkTo("file")))
		below := applyLayer(t, s, nil, lower, false)
		tree := applyLayer(t, s, below, upper, false)
		var here, outline *Snapshot
		var texts [][]byte
		for _, of := range []*Snapshot{below, tree} {
			var err error
			here, err = s.MakeOutline(t.Context(), of, here)
			must(t, err)
			var b bytes.Buffer
			must(t, here.WriteOutline(t.Context(), &b))
			texts = append(texts, b.Bytes())
			d, err := there.NewDraft(outline)
			must(t, err)
			must(t, d.ApplyOutline(t.Context(), &b, digestsOf(t, of).Chain))
			d.SetOutline(digestsOf(t, of).DiffID)
			outline = commit(t, d)
			var again bytes.Buffer
			must(t, outline.WriteOutline(t.Context(), &again))
			if !bytes.Equal(again.Bytes(), texts[len(texts)-1]) {
				t.Error("another outline comes back")
			}
			if again, err := s.MakeOutline(t.Context(), here, nil); err != nil || again != here {
				t.Errorf("the outline of an outline: %v, %v", again, err)
			}
		}
		if bytes.Contains(bytes.Join(texts, nil), []byte("content")) || bytes.Contains(bytes.Join(texts, nil), []byte("replaced")) {
			t.Error("more travels than is needed")
		}
		edit := func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "dir/sub/new"), []byte("new"), 0o600))
			if err := os.Remove(filepath.Join(root, "replaced")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			must(t, os.WriteFile(filepath.Join(root, "replaced"), []byte("new"), 0o600))
		}
		on, is := change(t, there, outline, edit), change(t, s, tree, edit)
		still(t, on, is)
		if a, b := digestsOf(t, on), digestsOf(t, is); a != b {
			t.Errorf("on the outline %+v, on the tree %+v", a, b)
		}
		// Of what a step made, the Content is the record's.
		of, err := s.MakeOutline(t.Context(), is, here)
		must(t, err)
		if a, b := digestsOf(t, of), digestsOf(t, is); a.Content != b.Content || a.Chain != b.Chain {
			t.Errorf("the outline %+v of %+v", a, b)
		}
		checkClean(t, s)
		for _, name := range []string{"file", "dir/linked", "dir/sub/x"} {
			d, err := there.NewDraft(outline)
			must(t, err)
			must(t, os.MkdirAll(filepath.Join(d.Upper(), name), 0o755))
			if _, err := d.Commit(); !errors.Is(err, errHidden) {
				t.Errorf("%s made a directory: %v", name, err)
			}
			d.Discard()
		}
		checkClean(t, there)

		chain := digestsOf(t, below).Chain
		head := travelHead + chain.String() + "\n"
		for want, text := range map[string][]byte{
			"begins with":           texts[1],
			"unexpected EOF":        tarOf(t, reg(travelName, head+"1234567")),
			"not what an outline":   lower,
			"names are missing":     tarOf(t),
			"more than 0 bytes":     tarOf(t, reg(travelName, head), reg("file", "content")),
			"the name leads":        tarOf(t, reg(travelName, head), reg("../file", "")),
			"begins with \"\", not": tarOf(t, reg(travelName, "")),
		} {
			d, err := there.NewDraft(nil)
			must(t, err)
			if err := d.ApplyOutline(t.Context(), bytes.NewReader(text), chain); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", want, err)
			}
			d.Discard()
		}
	})
}

// applyLayer makes a snapshot of a layer, or of a listing of the layer with that DiffID.
func applyLayer(t *testing.T, s *Store, parent *Snapshot, layer []byte, listing bool, diffID ...digest.Digest) *Snapshot {
	t.Helper()
	d, err := s.NewDraft(parent)
	must(t, err)
	defer d.Discard()
	if listing {
		must(t, d.ApplyListing(t.Context(), bytes.NewReader(layer)))
		d.SetOutline(diffID[0])
	} else {
		must(t, d.Apply(t.Context(), bytes.NewReader(layer)))
		d.SetLayer(digest.FromBytes(layer))
	}
	return commit(t, d)
}

// still gives what edit made the same times.
func still(t *testing.T, snaps ...*Snapshot) {
	t.Helper()
	for _, s := range snaps {
		for _, name := range []string{"dir/sub/new", "dir/sub", "replaced"} {
			must(t, os.Chtimes(filepath.Join(s.tree(), name), testTime, testTime))
		}
	}
}
