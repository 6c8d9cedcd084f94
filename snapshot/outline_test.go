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
			reg("replaced", "content"),
		}
		layer := tarOf(t, files...)
		tree := applyLayer(t, s, nil, layer, false)
		empty := append(append([]file{}, files[:3]...), reg("dir/file", ""), entry(tar.TypeLink, "replaced", "", linkTo("dir/file")))
		outline := applyLayer(t, s, nil, tarOf(t, empty...), true, digest.FromBytes(layer))
		edit := func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "dir/sub/new"), []byte("new"), 0o600))
			must(t, os.Remove(filepath.Join(root, "replaced")))
			must(t, os.Mkdir(filepath.Join(root, "replaced"), 0o700))
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
		removes := change(t, s, outline, func(root string) { must(t, os.Remove(filepath.Join(root, "dir/file"))) })
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

// applyLayer makes a snapshot of a layer, or of a listing of the layer with that DiffID.
func applyLayer(t *testing.T, s *Store, parent *Snapshot, layer []byte, listing bool, diffID ...digest.Digest) *Snapshot {
	t.Helper()
	d, err := s.NewDraft(parent)
	must(t, err)
	defer d.Discard()
	must(t, d.Apply(t.Context(), bytes.NewReader(layer)))
	if listing {
		d.SetOutline(diffID[0])
	} else {
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
