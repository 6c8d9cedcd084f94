package builder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// CopySources is what one COPY or ADD takes from one tree, words expanded.
type CopySources struct {
	Words   []string // at least one; "../x" and "/x" mean x
	Parents bool     // --parents: keep the path, from "/./" on where there is one
	Exclude []string // --exclude, relative to each copied directory
	Literal bool     // words are names, not patterns
	Links   bool     // a symlink that a literal word names is copied as one
}

// Selection is the ordered list of files that one COPY takes, hashed. It does
// not change when the tree does; CopyTo finds out if that happened.
type Selection struct {
	files *Files // nil: the one root's bytes are in body
	roots []fileRoot
	body  *fileBody

	list   sync.Once // makes the digest
	digest digest.Digest
}

// fileRoot is one source: a file, or a directory whose contents are copied.
type fileRoot struct {
	base  string // the name that a file has in a directory it is copied into
	path  string // in the tree, without symlinks
	entry fileEntry
}

// fileEntry is one selected file. Directories have a dir, others never.
type fileEntry struct {
	name    string
	st      fileStat // uid, gid, mode and rdev as remembered, not as on disk
	sum     [32]byte // SHA-256 of a regular file's bytes
	dir     *fileDir
	rest    *fileRest
	recent  bool // written so shortly before it was hashed that its times prove nothing
	standIn bool // on disk a plain file stands in for this device
	hidden  bool // an ignored directory: there only for what is let in below it
	implied bool // a directory that --parents or --exclude did not want itself
}

// sums tells the digests of the regular files of the one directory that is selected, copied to top.
func (s *Selection) sums(top string) snapshot.Sums {
	return func(p string) *[sha256.Size]byte {
		rest, ok := p, true
		if top != "" {
			rest, ok = strings.CutPrefix(p, top+"/")
		}
		for d := s.roots[0].entry.dir; ok && d != nil; {
			var name string
			name, rest, _ = strings.Cut(rest, "/")
			i, found := d.find(name)
			if !found {
				return nil
			}
			e := &d.entries[i]
			if rest == "" && e.st.isRegular() {
				return &e.sum
			}
			d = e.dir
		}
		return nil
	}
}

// fileRest is what few files have.
type fileRest struct {
	link   string // of a symlink
	xattrs []fileXattr
}

func (e *fileEntry) link() string {
	if e.rest == nil {
		return ""
	}
	return e.rest.link
}

func (e *fileEntry) xattrs() []fileXattr {
	if e.rest == nil {
		return nil
	}
	return e.rest.xattrs
}

func (e *fileEntry) setXattrs(list []fileXattr) {
	if len(list) > 0 || e.rest != nil {
		e.rest = &fileRest{e.link(), list}
	}
}

type fileDir struct{ entries []fileEntry } // sorted by name

// find finds an entry, or where it would be.
func (d *fileDir) find(name string) (int, bool) {
	return sort.Find(len(d.entries), func(i int) int { return strings.Compare(name, d.entries[i].name) })
}

type fileXattr struct{ name, value string }

// Select finds what c names, and hashes it: files known to the cache are only
// statted. A source without a wildcard that is missing or ignored gives an error
// that reads `"/x": not found` and is os.ErrNotExist; a wildcard that matches
// nothing gives nothing.
//
// What a source is: symlinks are followed when a word names or matches one (but see Links), and
// on the way to it, inside the root; below a copied directory they are kept.
// With Parents no link below the pivot is followed.
func (f *Files) Select(ctx context.Context, c CopySources) (*Selection, error) {
	ignore, err := newPatternSet(f.Ignore)
	if err != nil {
		return nil, err
	}
	exclude, err := newPatternSet(c.Exclude)
	if err != nil {
		return nil, fmt.Errorf("--exclude: %w", err)
	}
	if f.knownOnly && f.changedAgain(c, ignore) {
		return nil, ErrNeedsInside
	}
	w := newSelectWalk(ctx, f, ignore, exclude)
	defer w.stop()

	// Sources are collected first, so that one walk hashes them all: w keeps
	// pointers into found[i].root.
	type source struct {
		root *fileRoot
		must string // with Parents: the path that has to exist
	}
	var found []source
	for _, word := range c.Words {
		pattern, must := "", ""
		var include *patternSet
		if c.Parents {
			word, pattern = cutPivot(word)
			if pattern != "" {
				if include, err = newPatternSet([]string{pattern}); err != nil {
					return nil, err
				}
			}
			if !hasWildcard(word) && !hasWildcard(pattern) {
				must = path.Clean("/" + word + "/" + pattern)
			}
		}
		places, err := f.sources(word, c, ignore, exclude)
		if err != nil {
			return nil, err
		}
		for _, p := range places {
			root := &fileRoot{base: p.base, path: p.path}
			found = append(found, source{root, must})
			if c.Parents && !p.st.isDir() && pattern != "" {
				p.dir.release()
				root.entry.dir = &fileDir{}
				continue
			}
			w.add(p.filePlace, &root.entry, include)
		}
	}
	if err := w.run(); err != nil {
		return nil, err
	}

	sel := &Selection{files: f}
	for _, s := range found {
		e := &s.root.entry
		if e.dir != nil {
			dropEmptyImplied(e.dir)
			switch empty := len(e.dir.entries) == 0; {
			case s.must != "" && s.must != "/" && empty:
				return nil, errNotFound(s.must)
			case e.hidden && empty:
				return nil, errNotFound("/" + s.root.path)
			}
		}
		sel.roots = append(sel.roots, *s.root)
	}
	return sel, nil
}

// changedAgain tells whether the file that changed in an earlier build has changed once more, if it is
// one of those that c names as what is in a directory: the look at all others is saved then.
func (f *Files) changedAgain(c CopySources, ignore *patternSet) bool {
	last := f.Cache.lastChanged()
	within := func(word string) bool {
		dir := strings.Trim(path.Clean("/"+word), "/")
		return dir == "" || strings.HasPrefix(last, dir+"/")
	}
	if last == "" || c.Parents || len(c.Exclude) > 0 || !slices.ContainsFunc(c.Words, within) {
		return false
	}
	place, err := walkPath(f.Root, last, walkRules{ignore: ignore})
	if err != nil {
		return false // gone, say
	}
	defer place.dir.release()
	if place.path != last || place.hidden || !place.st.isRegular() {
		return false
	}
	var sum [sha256.Size]byte
	_, known := f.Cache.lookup(keyOfPath(last), &place.st, &sum)
	return !known
}

// cutPivot splits a --parents word at its first "/./": what is before is only
// the way, what is behind is copied with its directories.
func cutPivot(word string) (base, pattern string) {
	base, pattern, found := strings.Cut(word, "/./")
	if !found {
		base, pattern = "/", word
	}
	return base, strings.TrimPrefix(path.Clean("/"+pattern), "/")
}

// hasWildcard tells whether BuildKit would look for matches of p.
func hasWildcard(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// sourcePlace is a place and the name under which it was found: a symlink lends
// its name to the file it leads to.
type sourcePlace struct {
	filePlace
	base string
}

// sources resolves one word to the files and directories it stands for, sorted
// as a walk meets them.
func (f *Files) sources(word string, c CopySources, ignore, exclude *patternSet) ([]sourcePlace, error) {
	word = path.Clean("/" + word)
	if c.Literal || !hasWildcard(word) {
		place, err := f.find(word, !c.Links, ignore)
		if err != nil {
			return nil, err
		}
		return []sourcePlace{{place, path.Base(word)}}, nil
	}
	if _, err := path.Match(word, ""); err != nil {
		return nil, fmt.Errorf("%q: %w", word, err)
	}
	parts := strings.Split(word[1:], "/")
	first := 0
	for !hasWildcard(parts[first]) {
		first++
	}
	top, err := f.find(strings.Join(parts[:first], "/"), true, ignore)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer top.dir.release()
	if !top.st.isDir() {
		return nil, nil
	}
	dir, err := top.open(unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	var out []sourcePlace
	err = f.glob(dir, top.path, top.ignored, parts[first:], ignore, exclude, newDirReader(), &out)
	if err != nil {
		for _, p := range out {
			p.dir.release()
		}
		return nil, err
	}
	return out, nil
}

// glob adds the matches of pattern below dir, which it releases.
func (f *Files) glob(dir *dirHandle, at string, parent matchState, pattern []string, ignore, exclude *patternSet, reader *dirReader, out *[]sourcePlace) error {
	defer dir.release()
	names, err := reader.read(dir.fd)
	if err != nil {
		return &os.PathError{Op: "read", Path: "/" + at, Err: err}
	}
	for _, n := range slices.Clone(names) { // the reader goes on below
		if ok, _ := path.Match(pattern[0], n.name); !ok {
			continue
		}
		p := filePlace{dir: dir, name: n.name, path: joinPath(at, n.name)}
		p.hidden, p.ignored = ignore.match(p.path, parent)
		if err := statx(dir.fd, n.cname(), unix.AT_SYMLINK_NOFOLLOW, &p.st); err == unix.ENOENT {
			continue
		} else if err != nil {
			return &os.PathError{Op: "stat", Path: "/" + p.path, Err: err}
		}
		if p.hidden && !(p.st.isDir() && ignore.mayMatchBelow(p.path)) {
			continue
		}
		if len(pattern) > 1 {
			if !p.st.isDir() {
				continue
			}
			below, err := p.open(unix.O_RDONLY)
			if err != nil {
				return err
			}
			if err := f.glob(below, p.path, p.ignored, pattern[1:], ignore, exclude, reader, out); err != nil {
				return err
			}
			continue
		}
		base := n.name
		if p.st.isLink() {
			if p, err = f.find(p.path, true, ignore); err != nil {
				return err
			}
		} else {
			dir.ref()
		}
		// As documented for --exclude; BuildKit itself forgets this case
		// (moby/buildkit#5489).
		if !p.st.isDir() && exclude.matches(base, exclude.start()) {
			p.dir.release()
			continue
		}
		*out = append(*out, sourcePlace{p, base})
	}
	return nil
}

// dropEmptyImplied removes the directories that only something below them could
// have brought in, where nothing did.
func dropEmptyImplied(d *fileDir) {
	kept := d.entries[:0]
	for _, e := range d.entries {
		if e.dir != nil {
			dropEmptyImplied(e.dir)
			if (e.hidden || e.implied) && len(e.dir.entries) == 0 {
				continue
			}
		}
		kept = append(kept, e)
	}
	clear(d.entries[len(kept):])
	d.entries = kept
}

// fileBody is the content of a Selection that comes from no tree.
type fileBody struct {
	io.ReaderAt
	size int64
}

// SelectData is the Selection of one file that is in memory: a here-document
// (mode 0644). The name must be a single path component; a zero mtime is now.
func SelectData(name string, mode uint32, mtime time.Time, data []byte) (*Selection, error) {
	return selectBody(name, mode, mtime, &fileBody{bytes.NewReader(data), int64(len(data))})
}

// SelectFile is the Selection of one open file under another name: what ADD
// fetched from a URL (mode 0600, the mtime of its Last-Modified). file stays the
// caller's, and open and unchanged until the Selection is used up.
func SelectFile(name string, mode uint32, mtime time.Time, file *os.File) (*Selection, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return selectBody(name, mode, mtime, &fileBody{file, info.Size()})
}

func selectBody(name string, mode uint32, mtime time.Time, body *fileBody) (*Selection, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("%q is not a file name", name)
	}
	if mtime.IsZero() {
		mtime = time.Now()
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(body, 0, body.size)); err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	e := fileEntry{name: name, st: fileStat{mode: unix.S_IFREG | mode&0o7777, nlink: 1, size: body.size, mtime: mtime.UnixNano()}}
	h.Sum(e.sum[:0])
	return &Selection{body: body, roots: []fileRoot{{base: name, path: name, entry: e}}}, nil
}
