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
)

// A kept draft is mounted again and again, what was changed stays, and it is read as a
// layer with the owners that its parent remembers.
func TestKept(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := applyTar(t, s, nil, tarOf(t, entry(tar.TypeDir, "d", "", owner(7, 7)), reg("d/f", "x", owner(8, 8))))
		dir := filepath.Join(t.TempDir(), "layer")
		d, err := s.NewKept(dir, base)
		must(t, err)
		for _, text := range []string{"one", "two", "three"} {
			root, err := d.Remount()
			must(t, err)
			f, err := os.OpenFile(procPath(root)+"/d/f", os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			f.WriteString(text)
			f.Close()
			root.Close()
			if _, err := s.OpenKept(dir); !errors.Is(err, ErrInUse) {
				t.Errorf("opened twice: %v", err)
			}
			if err := RemoveKept(dir); !errors.Is(err, ErrInUse) {
				t.Errorf("removed in use: %v", err)
			}
			must(t, d.Close())
			d, err = s.OpenKept(dir)
			must(t, err)
		}
		if id, err := KeptParent(dir); err != nil || id != base.ID() {
			t.Errorf("parent %q, %v", id, err)
		}
		view, err := s.View(dir)
		must(t, err)
		var layer bytes.Buffer
		must(t, view.WriteLayer(t.Context(), &layer))
		if list := listTar(t, layer.Bytes()); !strings.Contains(list, `0 d/f 644 8:8 "xonetwothree"`) {
			t.Errorf("layer:\n%s", list)
		}
		// Remove knows nothing of it, and its keeper says what its parent is.
		_, _, err = s.Remove(func(id ID) bool { return id == base.ID() })
		must(t, err)
		must(t, d.Close())
		must(t, d.Close())
		must(t, RemoveKept(dir))
		must(t, RemoveKept(dir))
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after RemoveKept: %v", err)
		}
		checkClean(t, s)
	})
}
