package snapshot

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// One layer on two parents is the same tar, costs no bytes, hides nothing of what
// is below beside its own files, and outlives the one that it was made from.
func TestRebase(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		ctx := context.Background()
		alone := change(t, s, nil, func(root string) {
			must(t, os.MkdirAll(filepath.Join(root, "usr/share/doc"), 0o755))
			must(t, os.WriteFile(filepath.Join(root, "usr/one"), []byte("1"), 0o644))
			must(t, os.Link(filepath.Join(root, "usr/one"), filepath.Join(root, "usr/two")))
			must(t, os.Symlink("one", filepath.Join(root, "usr/link")))
			must(t, os.Chmod(filepath.Join(root, "usr/share"), 0o500))
			must(t, os.WriteFile(filepath.Join(root, "lib"), []byte("a file"), 0o644))
		})
		bases := []*Snapshot{
			change(t, s, nil, func(root string) {
				must(t, os.MkdirAll(filepath.Join(root, "usr/kept"), 0o755))
				must(t, os.Mkdir(filepath.Join(root, "lib"), 0o755))
				must(t, os.WriteFile(filepath.Join(root, "lib/hidden"), nil, 0o644))
			}),
			change(t, s, nil, func(root string) {
				must(t, os.Symlink("elsewhere", filepath.Join(root, "usr")))
				must(t, os.Chmod(root, 0o700))
			}),
		}
		was := digestsOf(t, alone)
		var moved []*Snapshot
		for _, base := range bases {
			on, err := s.Rebase(alone, base)
			must(t, err)
			d, err := on.Digests(ctx)
			must(t, err)
			below, err := base.Digests(ctx)
			must(t, err)
			if d.DiffID != was.DiffID || d.Size != was.Size {
				t.Errorf("DiffID %s of %d bytes, want %s of %d", d.DiffID, d.Size, was.DiffID, was.Size)
			}
			if d.Content == was.Content || d.Content == below.Content || d.Chain != chainID(&below, was.DiffID) {
				t.Errorf("digests %+v", d)
			}
			moved = append(moved, on)
		}
		if a, _ := moved[0].Recorded(); a.Content == digestsOf(t, moved[1]).Content {
			t.Error("two trees of one content")
		}
		same, err := s.Rebase(alone, nil)
		must(t, err)
		if same.ID() != alone.ID() {
			t.Error("on nothing it is another")
		}
		if _, err := s.Rebase(moved[0], bases[1]); err == nil {
			t.Error("a layer with a parent was moved")
		}

		_, _, err = s.Remove(func(id ID) bool { return id == moved[0].ID() || id == moved[1].ID() })
		must(t, err)
		var tars [2]bytes.Buffer
		for i, on := range moved {
			must(t, on.WriteLayer(ctx, &tars[i]))
		}
		if !bytes.Equal(tars[0].Bytes(), tars[1].Bytes()) {
			t.Error("two tars")
		}
		if by, err := s.ByDiffID(was.DiffID); err != nil || (by.ID() != moved[0].ID() && by.ID() != moved[1].ID()) {
			t.Errorf("by its DiffID: %v", err)
		}
		see := func(on *Snapshot, p string) error {
			m, err := on.Mount()
			must(t, err)
			defer m.Close()
			var st unix.Stat_t
			return unix.Fstatat(int(m.Fd()), p, &st, unix.AT_SYMLINK_NOFOLLOW)
		}
		for p, want := range map[string]error{"usr/kept": nil, "usr/one": nil, "lib/hidden": unix.ENOTDIR, "usr/share/doc": nil} {
			if err := see(moved[0], p); err != want {
				t.Errorf("%s: %v, want %v", p, err, want)
			}
		}
		if err := see(moved[1], "usr/one"); err != nil {
			t.Errorf("a symlink of the base was followed: %v", err)
		}
		checkClean(t, s)
	})
}
