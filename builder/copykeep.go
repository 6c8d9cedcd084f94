package builder

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
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
func (c *copyStep) keepUnchanged(draft *snapshot.Draft) (kept func(path string) Kept, gone []string, err error) {
	sel, last, listing := c.lastLayer(draft)
	if last == nil {
		return nil, nil, nil
	}
	defer listing.Close()
	k := &keeper{top: strings.Trim(path.Clean(c.dest()), "/"), dirs: map[string]*keptDir{}}
	k.meta = &copier{sel: sel, into: CopyInto{Remember: c.Trees.Remembers()}}
	if c.step.Chmod != "" {
		if k.meta.chmod, err = recipe.ParseChmod(c.step.Chmod); err != nil {
			return nil, nil, err
		}
	}
	if !k.note(sel, listing, c.plan.Epoch != nil) {
		return nil, nil, nil
	}
	if c.step.Chown != "" && (k.has("etc/passwd") || k.has("etc/group")) {
		return nil, nil, nil // its names are those that the parent's tree has
	}
	gone, amends, err := draft.Amend(last, k.judge)
	switch {
	case err != nil:
		return nil, nil, err
	case amends:
		k.settle(gone)
		return k.below, gone, nil
	}
	if err := draft.LinkFrom(last, k.judge); err != nil {
		return nil, nil, err
	}
	return k.linked, nil, nil
}

// lastLayer finds the snapshot that the step made in the last build of its recipe, with the
// listing of the files in it, which the caller closes: nil if anything else than the files is not as it was.
func (c *copyStep) lastLayer(draft *snapshot.Draft) (*Selection, *snapshot.Snapshot, *os.File) {
	if c.node.NoCache || len(c.parts) != 1 || len(c.step.Inline) > 0 {
		return nil, nil, nil
	}
	p, ok := c.parts[0].(*treePart)
	if !ok || p.from.Files == nil || p.sel == nil || len(p.sel.roots) != 1 || p.sel.roots[0].entry.dir == nil {
		return nil, nil, nil
	}
	before, _ := c.last(c.node)
	rec, err := c.Records.Get(hashKey(before))
	if err != nil {
		return nil, nil, nil
	}
	last, err := c.Trees.Get(rec.Snapshot)
	if err != nil || last.Below() != draft.Parent() {
		return nil, nil, nil
	}
	now := newKeyText("", "")
	c.describe(now)
	now.addEpoch(c.plan.Epoch) // directories made under another one are older or newer than they would be now
	was, files := stepFacts(before)
	is, _ := stepFacts(now.String())
	if !slices.Equal(was, is) || len(files) != 1 {
		return nil, nil, nil
	}
	d, err := strconv.Unquote(files[0])
	if err != nil {
		return nil, nil, nil
	}
	listing, err := c.Records.OpenListing(digest.Digest(d))
	if err != nil {
		return nil, nil, nil // without it, all would be made anew
	}
	return p.sel, last, listing
}

// stepFacts gives the lines of a key that say what a step does, and those of the files that it
// does it with.
func stepFacts(text string) (facts, files []string) {
	for l := range strings.Lines(text) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		switch kind {
		case "mk", "platform", "parent":
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
	top  string // where the files are in the tree
	meta *copier
	dirs map[string]*keptDir // of the selection, by path in the tree
}

// keptDir is a directory of the selection, and what becomes of its entries, in their order.
type keptDir struct {
	*fileDir
	files []keptFile
}

type keptFile struct {
	listed bool // the layer was made of the same
	stays  bool // and has it, as it would be made now
}

// find finds a file of the selection by its path in the tree: its directory, and its place there.
func (k *keeper) find(at string) (*keptDir, int) {
	i := strings.LastIndexByte(at, '/')
	d := k.dirs[at[:max(i, 0)]]
	if d == nil {
		return nil, 0
	}
	n, ok := d.find(at[i+1:])
	if !ok {
		return nil, 0
	}
	return d, n
}

func (k *keeper) has(at string) bool {
	d, _ := k.find(at)
	return d != nil
}

// note notes the selected files, and which of them are in a listing too. Those with several
// names here are copied once for all of them, and so count as changed; so do those with attributes.
//
// It is false if nothing may be kept: the listing cannot be read; it is of several sources, of which one may
// lie over another; or it has a name at its top that is gone, and dated: each file made now has one time, so
// that a directory of the parent, in which nothing is made any more, would keep that one and not its own.
func (k *keeper) note(sel *Selection, listing io.Reader, dated bool) bool {
	was, w := readListing(listing), sel.lister()
	first := map[[2]uint64]*keptFile{} // of those with more names, which may be elsewhere
	var walk func(d *fileDir, at string)
	walk = func(d *fileDir, at string) {
		kept := &keptDir{d, make([]keptFile, len(d.entries))}
		k.dirs[at] = kept
		for i := range d.entries {
			e, f := &d.entries[i], &kept.files[i]
			if e.dir == nil && e.st.nlink > 1 {
				id := [2]uint64{e.st.dev, e.st.ino}
				if other := first[id]; other != nil {
					other.listed = false
					continue
				}
				first[id] = f
			}
			end := len(w.path)
			w.path = append(w.path, e.name...)
			if e.dir != nil || (e.st.isRegular() || e.st.isLink()) && len(e.xattrs()) == 0 {
				w.text = w.text[:0]
				w.file(w.path, e)
				f.listed = was.has(w.path, w.text)
			}
			if e.dir != nil {
				w.path = append(w.path, '/')
				walk(e.dir, joinPath(at, e.name))
			}
			w.path = w.path[:end]
		}
	}
	walk(sel.roots[0].entry.dir, k.top)
	for !was.ended {
		was.next()
	}
	return was.lines.Err() == nil && !was.mixed && !(dated && was.lost)
}

// listingReader reads a listing of one directory beside the walk that makes another.
type listingReader struct {
	lines *bufio.Scanner
	path  []byte // of the line at hand
	ended bool
	begun int    // lines
	prev  []byte // the path before
	met   bool   // the line at hand has been asked for
	mixed bool   // a path came twice, or out of order: it is of several sources
	lost  bool   // a path of one name was not asked for
}

func readListing(r io.Reader) *listingReader {
	l := &listingReader{lines: bufio.NewScanner(r)}
	l.lines.Buffer(make([]byte, 64<<10), 16<<20) // a file may have many attributes
	l.next()                                     // the directory itself
	l.next()
	return l
}

func (l *listingReader) next() {
	if l.begun > 1 && !l.ended && !l.met && bytes.IndexByte(l.path, '/') < 0 {
		l.lost = true
	}
	l.met = false
	l.prev = append(l.prev[:0], l.path...) // which the next line may overwrite
	if l.ended = l.ended || !l.lines.Scan(); l.ended {
		return
	}
	line := l.lines.Bytes()
	end := bytes.IndexByte(line, ' ')
	if l.path = line[:max(end, 0)]; len(line) > 0 && line[0] == '"' {
		word, _ := cutWord(string(line))
		path, err := strconv.Unquote(word)
		if err != nil {
			l.ended = true // no listing of ours
		}
		l.path = []byte(path)
	}
	if l.begun++; l.begun > 2 && compareListed(l.prev, l.path) >= 0 || l.begun == 1 && string(line)+"\n" != listedTop {
		l.mixed = true
	}
}

// has tells whether the listing has that line, of that path. The paths that it is asked for come in the
// listing's order.
func (l *listingReader) has(path, line []byte) bool {
	for !l.ended {
		switch order := compareListed(l.path, path); {
		case order > 0:
			return false
		case order == 0:
			l.met = true
			return bytes.Equal(l.lines.Bytes(), line[:len(line)-1])
		}
		l.next()
	}
	return false
}

// compareListed compares paths as listings are sorted: what is in a directory comes right behind it.
func compareListed(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		default:
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

// judge is asked of each file of the layer, by several goroutines.
func (k *keeper) judge(at string, st *unix.Stat_t, attrs map[string]string) snapshot.Verdict {
	d, n := k.find(at)
	if d == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && (at == k.top || strings.HasPrefix(k.top, at+"/")) {
			return snapshot.Anew // the destination, or above it
		}
		return snapshot.Gone
	}
	e, f := &d.entries[n], &d.files[n]
	if st.Mode&unix.S_IFMT != e.st.kind() {
		return snapshot.Gone
	}
	m := k.meta.meta(e)
	// --chown names its owner in the step's text, which is the same: an owner that is
	// somebody's of this tree's passwd is known only when that is mounted.
	f.stays = f.listed && st.Mode == m.mode && st.Mtim.Nano() == m.mtime
	if e.dir != nil {
		for _, x := range m.xattrs {
			f.stays = f.stays && attrs[x.name] == x.value
			delete(attrs, x.name)
		}
		if len(attrs) > 0 {
			return snapshot.Gone // it has lost one
		}
	} else if st.Size != e.st.size || st.Nlink >= maxNames {
		f.stays = false
	}
	if f.stays {
		return snapshot.Stays
	}
	return snapshot.Anew
}

// linked tells of the files that stay in a draft of links.
func (k *keeper) linked(at string) Kept {
	if d, n := k.find(at); d != nil && d.files[n].stays && d.entries[n].dir == nil {
		return KeptLinked
	}
	return 0
}

// below tells of the files that stay in a draft that amends, and after settle of the directories in which everything does.
func (k *keeper) below(at string) Kept {
	if d, n := k.find(at); d != nil && d.files[n].stays {
		return KeptBelow
	}
	return 0
}

// settle has a directory stay only if everything in it does.
func (k *keeper) settle(gone []string) {
	for _, at := range gone {
		if d, n := k.find(path.Dir(at)); d != nil {
			d.files[n].stays = false // the removal sets its time
		}
	}
	var walk func(at string) bool
	walk = func(at string) bool {
		all, d := true, k.dirs[at]
		for i := range d.entries {
			if e := &d.entries[i]; e.dir != nil {
				d.files[i].stays = walk(joinPath(at, e.name)) && d.files[i].stays
			}
			all = all && d.files[i].stays
		}
		return all
	}
	walk(k.top)
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
