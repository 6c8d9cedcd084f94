package snapshot

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What amends a layer stands for the layer that has the same files of itself: one of the base's
// children, the same tar, the same content. The base and the layer before are kept with it.
func TestAmend(t *testing.T) {
	inside(t, func(t *testing.T, mode string) {
		s := openStore(t, mode)
		base := applyTar(t, s, nil, tarOf(t,
			entry(tar.TypeDir, "app/", "", owner(7, 7)), reg("app/of-base", "base"), reg("shown", "base"), entry(tar.TypeDir, "app/d/", "")))
		content := func(of map[string]string) func(string) string {
			return func(p string) string {
				if is, ok := of[p]; ok {
					return is
				}
				return "old"
			}
		}
		// The layer has files of other owners, which mode single keeps in the table.
		files := func(edit func(name string) string) (all []file) {
			all = append(all, entry(tar.TypeDir, "app/", "", owner(7, 7)))
			for i := range 40 {
				name := fmt.Sprintf("app/f%02d", i)
				if content := edit(name); content != "" {
					all = append(all, reg(name, content, owner(i, 7)))
				}
			}
			return append(all, entry(tar.TypeSymlink, "app/link", "", linkTo("f01")))
		}
		was := applyTar(t, s, base, tarOf(t, files(content(nil))...))
		before := layerOf(t, was)

		judge := func(changed ...string) Judge {
			return func(p string, st *unix.Stat_t, _ map[string]string) Verdict {
				switch {
				case slices.Contains(changed, "-"+p):
					return Gone
				case slices.Contains(changed, p) || isDir(st):
					return Anew
				}
				return Stays
			}
		}
		// amend changes the content of some files, and removes others.
		amend := func(last *Snapshot, changed ...string) *Snapshot {
			d, err := s.NewDraft(base)
			must(t, err)
			defer d.Discard()
			gone, ok, err := d.Amend(last, judge(changed...))
			must(t, err)
			if !ok {
				t.Fatalf("%s is not amended", last.ID())
			}
			m, err := d.Mount()
			must(t, err)
			for _, p := range gone {
				must(t, os.RemoveAll(filepath.Join(procPath(m), p)))
			}
			for _, p := range changed {
				if strings.HasPrefix(p, "-") {
					continue
				}
				p = filepath.Join(procPath(m), p)
				must(t, os.WriteFile(p, []byte("new"), 0o644))
				must(t, os.Chtimes(p, testTime, testTime))
			}
			must(t, os.Chtimes(filepath.Join(procPath(m), "app"), testTime, testTime))
			m.Close()
			return commit(t, d)
		}
		want := func(edit func(string) string) []byte {
			return layerOf(t, applyTar(t, s, base, tarOf(t, files(edit)...)))
		}

		one := amend(was, "app/f03", "-app/f04")
		two := amend(one, "app/f05", "-app/f03")
		for _, c := range []struct {
			snap *Snapshot
			edit func(string) string
		}{
			{one, content(map[string]string{"app/f03": "new", "app/f04": ""})},
			{two, content(map[string]string{"app/f05": "new", "app/f03": "", "app/f04": ""})},
		} {
			got, want := listTar(t, layerOf(t, c.snap)), listTar(t, want(c.edit))
			if got != want {
				t.Errorf("layer\n%swant\n%s", got, want)
			}
		}
		if string(layerOf(t, was)) != string(before) {
			t.Error("the layer before is another")
		}
		if l := two.Layers(); len(l) != 2 || l[0].ID() != base.ID() || l[1].ID() != two.ID() {
			t.Errorf("layers %v", l)
		}
		d := digestsOf(t, two)
		if below := digestsOf(t, base); d.Chain != chainID(&below, d.DiffID) {
			t.Errorf("digests %+v on %+v", d, below)
		}
		m, err := two.Mount()
		must(t, err)
		for p, want := range map[string]string{"app/f05": "new", "app/f06": "old", "app/of-base": "base", "shown": "base"} {
			if got, err := os.ReadFile(filepath.Join(procPath(m), p)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", p, got, err)
			}
		}
		m.Close()

		// What would have to show a file of the base again, is no gain, or is too often.
		refused := func(last *Snapshot, why string, changed ...string) {
			t.Helper()
			d, err := s.NewDraft(base)
			must(t, err)
			defer d.Discard()
			if _, ok, err := d.Amend(last, judge(changed...)); ok || err != nil {
				t.Errorf("%s: %t, %v", why, ok, err)
			}
			if p := d.Parent(); p.ID() != base.ID() {
				t.Errorf("%s: the draft is on %s", why, p.ID())
			}
		}
		refused(was, "a directory of the base", "-app")
		refused(was, "all", slices.Collect(func(yield func(string) bool) {
			for i := range 40 {
				if !yield(fmt.Sprintf("app/f%02d", i)) {
					return
				}
			}
		})...)
		for range maxAmends - 2 {
			two = amend(two, "app/f07")
		}
		refused(two, "again and again", "app/f07")
		other, err := s.NewDraft(was)
		must(t, err)
		if _, ok, err := other.Amend(was, judge()); ok || err == nil {
			t.Errorf("a draft on another base: %t", ok)
		}
		must(t, other.Discard())

		// Its files are linked, all directories put together, when it has been amended enough.
		linked, err := s.NewDraft(base)
		must(t, err)
		defer linked.Discard()
		must(t, linked.LinkFrom(two, func(p string, st *unix.Stat_t, _ map[string]string) Verdict { return Stays }))
		table, err := two.table()
		must(t, err)
		for _, p := range table.Paths() {
			o, _ := table.lookup(p)
			linked.owners.Set(p, o)
		}
		if got, want := listTar(t, layerOf(t, commit(t, linked))), listTar(t, layerOf(t, two)); got != want {
			t.Errorf("linked\n%swant\n%s", got, want)
		}

		_, _, err = s.Remove(func(id ID) bool { return id == two.ID() })
		must(t, err)
		for _, kept := range []*Snapshot{base, was, one, two} {
			if _, err := s.Get(kept.ID()); err != nil {
				t.Error(err)
			}
		}
		checkClean(t, s)
	})
}
