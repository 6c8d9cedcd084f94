package builder

import (
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"mk/recipe"
	"mk/snapshot"
)

// A COPY of a large directory of which a few files changed makes nearly the layer that it made
// in the build before. So the draft amends that layer (snapshot.Draft.Amend): only what changed
// is copied, and all else is neither touched nor looked at twice. Where much changed, or the
// layer has been amended often, unchanged files are linked from it (LinkFrom): a tenth of the time
// of a copy, and no room.
//
// A file is unchanged if its line of the listing is in that build's listing, so that bytes, mode
// and attributes are those that were copied then, and if what was made of it has the metadata
// that it would get now. --no-cache copies all files.

// maxNames is how many snapshots one file may be linked into: file systems have limits (ext4
// 65,000), and where this one is met, a copy begins anew.
const maxNames = 1000

// Kept says why a file is not copied.
type Kept byte

const (
	KeptLinked Kept = 1 + iota // it is a link to that of the layer before
	KeptBelow                  // the draft amends the layer that has it; of a directory, and all that is in it
)

// keepUnchanged begins an empty draft with what did not change since the step's last layer:
// kept, by path. What is gone has to be removed from the draft's mount.
func (c *copyStep) keepUnchanged(draft *snapshot.Draft) (kept map[string]Kept, gone []string, err error) {
	sel, last, listing := c.lastLayer(draft)
	if last == nil {
		return nil, nil, nil
	}
	k := &keeper{top: strings.Trim(path.Clean(c.dest()), "/"), files: map[string]*keptFile{}}
	k.meta = &copier{sel: sel, into: CopyInto{Remember: c.Trees.Remembers()}}
	if c.step.Chmod != "" {
		if k.meta.chmod, err = recipe.ParseChmod(c.step.Chmod); err != nil {
			return nil, nil, err
		}
	}
	k.note(sel, listing)
	if c.step.Chown != "" && (k.files["etc/passwd"] != nil || k.files["etc/group"] != nil) {
		return nil, nil, nil // its names are those that the parent's tree has
	}
	gone, amends, err := draft.Amend(last, k.judge)
	switch {
	case err != nil:
		return nil, nil, err
	case amends:
		return k.below(sel.roots[0].entry.dir, gone), gone, nil
	}
	if err := draft.LinkFrom(last, k.judge); err != nil {
		return nil, nil, err
	}
	return k.linked(), nil, nil
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
	if err != nil || last.Below() != draft.Parent() {
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

// keeper finds out what of a layer is unchanged.
type keeper struct {
	top   string // where the files are in the tree
	meta  *copier
	files map[string]*keptFile // of the selection, by path in the tree
}

type keptFile struct {
	e      *fileEntry
	listed bool // the layer was made of the same
	stays  bool // and has it, as it would be made now
}

// note notes the selected files, and which of them are in a listing too. Those with several
// names here are copied once for all of them, and so count as changed; so do those with attributes.
func (k *keeper) note(sel *Selection, listing string) {
	had := make(map[string]bool, len(listing)/64)
	for l := range strings.Lines(listing) {
		had[l] = true
	}
	w := fileLister{links: map[[2]uint64]string{}, owners: sel.files != nil && !sel.files.Local}
	first := map[[2]uint64]*keptFile{} // of those with more names, which may be elsewhere
	var walk func(d *fileDir, at string)
	walk = func(d *fileDir, at string) {
		for i := range d.entries {
			e := &d.entries[i]
			f := &keptFile{e: e}
			name := joinPath(at, e.name)
			k.files[joinPath(k.top, name)] = f
			if e.dir == nil && e.st.nlink > 1 {
				id := [2]uint64{e.st.dev, e.st.ino}
				if other := first[id]; other != nil {
					other.listed = false
					continue
				}
				first[id] = f
			}
			if e.dir != nil || (e.st.isRegular() || e.st.isLink()) && len(e.xattrs()) == 0 {
				w.text = w.text[:0]
				w.file([]byte(name), e)
				f.listed = had[string(w.text)]
			}
			if e.dir != nil {
				walk(e.dir, name)
			}
		}
	}
	walk(sel.roots[0].entry.dir, "")
}

// judge is asked of each file of the layer, by several goroutines.
func (k *keeper) judge(at string, st *unix.Stat_t, attrs map[string]string) snapshot.Verdict {
	f := k.files[at]
	if f == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && (at == k.top || strings.HasPrefix(k.top, at+"/")) {
			return snapshot.Anew // the destination, or above it
		}
		return snapshot.Gone
	}
	if st.Mode&unix.S_IFMT != f.e.st.kind() {
		return snapshot.Gone
	}
	m := k.meta.meta(f.e)
	// --chown names its owner in the step's text, which is the same: an owner that is
	// somebody's of this tree's passwd is known only when that is mounted.
	f.stays = f.listed && st.Mode == m.mode && st.Mtim.Nano() == m.mtime
	if f.e.dir != nil {
		for _, x := range m.xattrs {
			f.stays = f.stays && attrs[x.name] == x.value
			delete(attrs, x.name)
		}
		if len(attrs) > 0 {
			return snapshot.Gone // it has lost one
		}
	} else if st.Size != f.e.st.size || st.Nlink >= maxNames {
		f.stays = false
	}
	if f.stays {
		return snapshot.Stays
	}
	return snapshot.Anew
}

// linked are the files that stay in a draft of links.
func (k *keeper) linked() map[string]Kept {
	kept := map[string]Kept{}
	for at, f := range k.files {
		if f.stays && f.e.dir == nil {
			kept[at] = KeptLinked
		}
	}
	return kept
}

// below are the files that stay in a draft that amends, and the directories in which everything does.
func (k *keeper) below(d *fileDir, gone []string) map[string]Kept {
	for _, at := range gone {
		if f := k.files[path.Dir(at)]; f != nil {
			f.stays = false // the removal sets its time
		}
	}
	kept := map[string]Kept{}
	var walk func(d *fileDir, at string) bool
	walk = func(d *fileDir, at string) bool {
		all := true
		for i := range d.entries {
			e := &d.entries[i]
			name := joinPath(at, e.name)
			f := k.files[name]
			stays := f.stays
			if e.dir != nil {
				stays = walk(e.dir, name) && stays
			}
			if stays {
				kept[name] = KeptBelow
			}
			all = all && stays
		}
		return all
	}
	walk(d, k.top)
	return kept
}

// removeGone removes files of a tree, and what is below them.
func removeGone(root *os.File, gone []string) error {
	for _, at := range gone {
		place, err := walkPath(root, at, walkRules{})
		if err != nil {
			return err
		}
		err = removeAt(place.dir.fd, place.name)
		place.dir.release()
		if err != nil {
			return &os.PathError{Op: "remove", Path: "/" + at, Err: err}
		}
	}
	return nil
}
