package builder

import (
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"mk/recipe"
	"mk/snapshot"
)

// A COPY of a large directory of which a few files changed makes nearly the layer that it made
// in the build before. Its unchanged files are linked from there, and only the others copied: of
// 10,000 files, one changed, a link each takes a tenth of the time of a copy, and no room.
//
// A file is unchanged if its line of the listing is in that build's listing, so that bytes, mode
// and attributes are those that were copied then, and if what was made of it has the metadata
// that it would get now. --no-cache copies all files.

// maxNames is how many snapshots one file may be in: file systems have limits (ext4 65,000),
// and where this one is met, a copy begins anew.
const maxNames = 1000

// keepUnchanged fills an empty draft with the unchanged files of the step's last layer, and
// returns their paths.
func (c *copyStep) keepUnchanged(draft *snapshot.Draft) (map[string]bool, error) {
	sel, last, listing := c.lastLayer(draft)
	if last == nil {
		return nil, nil
	}
	k := &copier{sel: sel, into: CopyInto{Remember: c.Trees.Remembers()}}
	if c.step.Chmod != "" {
		var err error
		if k.chmod, err = recipe.ParseChmod(c.step.Chmod); err != nil {
			return nil, err
		}
	}
	top := strings.Trim(path.Clean(c.dest()), "/")
	wanted := unchangedFiles(sel, listing, top)
	var mu sync.Mutex
	kept := map[string]bool{}
	err := draft.LinkFrom(last, func(at string, st *unix.Stat_t) bool {
		e, selected := wanted[at]
		above := at == top || strings.HasPrefix(top, at+"/")
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return above || selected && e.dir != nil
		case !selected || e.dir != nil || st.Nlink >= maxNames:
			return false
		}
		m := k.meta(e)
		// --chown names its owner in the step's text, which is the same: an owner that is
		// somebody's of this tree's passwd is known only when that is mounted.
		same := st.Mode == m.mode && st.Size == e.st.size && st.Mtim.Nano() == m.mtime
		mu.Lock()
		defer mu.Unlock()
		kept[at] = same
		return same
	})
	return kept, err
}

// lastLayer finds the snapshot that the step made in the last build of its recipe, with the
// listing of the files in it: nil if anything else than the files is not as it was.
func (c *copyStep) lastLayer(draft *snapshot.Draft) (*Selection, *snapshot.Snapshot, string) {
	if c.node.NoCache || len(c.parts) != 1 || len(c.step.Inline) > 0 {
		return nil, nil, ""
	}
	p, ok := c.parts[0].(*treePart)
	if !ok || p.from.Files == nil || p.sel == nil || len(p.sel.roots) != 1 || p.sel.roots[0].entry.dir == nil {
		return nil, nil, ""
	}
	before, _ := c.last(c.node)
	rec, err := c.Records.Get(hashKey(before))
	if err != nil {
		return nil, nil, ""
	}
	last, err := c.Trees.Get(rec.Snapshot)
	if err != nil || last.Parent() != draft.Parent() {
		return nil, nil, ""
	}
	now := newKeyText("", "")
	c.describe(now)
	was, files := stepFacts(before)
	is, _ := stepFacts(now.String())
	if !slices.Equal(was, is) || len(files) != 1 {
		return nil, nil, ""
	}
	return p.sel, last, listingOf(c.Records, files[0])
}

// stepFacts gives the lines of a key that say what a step does, and those of the files that it
// does it with.
func stepFacts(text string) (facts, files []string) {
	for l := range strings.Lines(text) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		switch kind {
		case "mk", "platform", "parent", "epoch":
		case "files":
			files = append(files, rest)
		default:
			facts = append(facts, l)
		}
	}
	return facts, files
}

// unchangedFiles maps where files go to those that a listing has too, and to all directories.
// Left out are those with several names, which are copied once for all of them, and with
// attributes.
func unchangedFiles(sel *Selection, listing, top string) map[string]*fileEntry {
	had := map[string]bool{}
	for l := range strings.Lines(listing) {
		had[l] = true
	}
	found := map[string]*fileEntry{}
	w := fileLister{links: map[[2]uint64]string{}, owners: sel.files != nil && !sel.files.Local}
	var walk func(d *fileDir, at string)
	walk = func(d *fileDir, at string) {
		for i := range d.entries {
			e := &d.entries[i]
			name := joinPath(at, e.name)
			if e.dir != nil {
				found[joinPath(top, name)] = e
				walk(e.dir, name)
				continue
			}
			if !e.st.isRegular() || e.st.nlink > 1 || len(e.xattrs()) > 0 {
				continue
			}
			w.text = w.text[:0]
			w.file([]byte(name), e)
			if had[string(w.text)] {
				found[joinPath(top, name)] = e
			}
		}
	}
	walk(sel.roots[0].entry.dir, "")
	return found
}
