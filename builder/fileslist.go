package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// WriteListing writes the selection as text, a line a file, in the order of copying:
//
//	src/a.go file 0644 1234 <sha256> [owner 100:200] [xattr user.x=<sha256>] [hardlink src/b.go]
//	src dir 0755
//	src/l link "../b"
//	null char 0666 1:3
//
// Names are as they land in the destination directory, quoted where they have
// anything but plain characters. Owners are there unless the tree is local.
// Times are not: a fresh checkout is the same. The mode of a copied directory
// itself is not either, since nothing takes it over.
//
// Of 200,000 files it is 20 MB: nobody keeps it in memory.
func (s *Selection) WriteListing(out io.Writer) error {
	w := s.lister()
	for i := range s.roots {
		r := &s.roots[i]
		if r.entry.dir == nil {
			w.file([]byte(r.base), &r.entry)
		} else {
			w.text = append(w.text, listedTop...)
			if err := w.dir(r.entry.dir, out); err != nil {
				return err
			}
		}
	}
	_, err := out.Write(w.text)
	return err
}

// listedTop is the line of a copied directory itself.
const listedTop = ". dir\n"

// Digest is that of the listing: what a step's key takes for the files that it
// copies. Equal digests copy equal files.
func (s *Selection) Digest() digest.Digest {
	s.list.Do(func() {
		h := sha256.New()
		s.WriteListing(h) // which takes everything
		s.digest = digest.NewDigest(digest.SHA256, h)
	})
	return s.digest
}

func (s *Selection) lister() *fileLister {
	return &fileLister{links: map[[2]uint64]string{}, owners: s.files != nil && !s.files.Local}
}

// listedPiece is how much of a listing is gathered before it is written.
const listedPiece = 32 << 10

type fileLister struct {
	text   []byte
	path   []byte               // of the directory at hand, with a slash
	links  map[[2]uint64]string // the first name of each file that has several
	owners bool
}

func (w *fileLister) dir(d *fileDir, out io.Writer) error {
	for i := range d.entries {
		if len(w.text) >= listedPiece {
			if _, err := out.Write(w.text); err != nil {
				return err
			}
			w.text = w.text[:0]
		}
		e := &d.entries[i]
		at := len(w.path)
		w.path = append(w.path, e.name...)
		w.file(w.path, e)
		if e.dir != nil {
			w.path = append(w.path, '/')
			if err := w.dir(e.dir, out); err != nil {
				return err
			}
		}
		w.path = w.path[:at]
	}
	return nil
}

var fileKinds = map[uint32]string{unix.S_IFREG: " file ", unix.S_IFDIR: " dir ", unix.S_IFLNK: " link ",
	unix.S_IFIFO: " fifo ", unix.S_IFSOCK: " socket ", unix.S_IFCHR: " char ", unix.S_IFBLK: " block "}

func (w *fileLister) file(path []byte, e *fileEntry) {
	t := appendPath(w.text, path)
	kind := e.st.kind()
	t = append(t, fileKinds[kind]...)
	if kind == unix.S_IFLNK {
		t = strconv.AppendQuote(t, e.link())
	} else {
		const octal = "01234567"
		for shift := 9; shift >= 0; shift -= 3 {
			t = append(t, octal[e.st.mode>>shift&7])
		}
	}
	switch kind {
	case unix.S_IFREG:
		t = strconv.AppendInt(append(t, ' '), e.st.size, 10)
		t = hex.AppendEncode(append(t, ' '), e.sum[:])
	case unix.S_IFCHR, unix.S_IFBLK:
		t = strconv.AppendUint(append(t, ' '), uint64(unix.Major(e.st.rdev)), 10)
		t = strconv.AppendUint(append(t, ':'), uint64(unix.Minor(e.st.rdev)), 10)
	}
	if w.owners {
		t = strconv.AppendUint(append(t, " owner "...), uint64(e.st.uid), 10)
		t = strconv.AppendUint(append(t, ':'), uint64(e.st.gid), 10)
	}
	for _, x := range e.xattrs() {
		sum := sha256.Sum256([]byte(x.value))
		t = appendPath(append(t, " xattr "...), x.name+"="+hex.EncodeToString(sum[:]))
	}
	if kind == unix.S_IFREG && e.st.nlink > 1 {
		id := [2]uint64{e.st.dev, e.st.ino}
		if first, ok := w.links[id]; ok {
			t = appendPath(append(t, " hardlink "...), first)
		} else {
			w.links[id] = string(path)
		}
	}
	if e.implied {
		t = append(t, " implied"...)
	}
	w.text = append(t, '\n')
}

// appendPath writes a path so that it is one word.
func appendPath[S string | []byte](t []byte, path S) []byte {
	for i := 0; i < len(path); i++ {
		if c := path[i]; c <= ' ' || c == '"' || c == '\\' || c >= 0x7f {
			return strconv.AppendQuote(t, string(path))
		}
	}
	return append(t, path...)
}

// FileChange is a difference between two listings.
type FileChange struct {
	Path string // quoted as in the listing
	What string // "added", "removed", "content", "mode 0644->0755", …, joined by ", "
}

// CompareListings tells what became of the files of one listing in another, by
// path: what `mk build --explain` says of a COPY that missed.
func CompareListings(before, after string) []FileChange {
	old, now := listingFiles(before), listingFiles(after)
	var changes []FileChange
	for path, o := range old {
		n, ok := now[path]
		if !ok {
			changes = append(changes, FileChange{path, "removed"})
		} else if what := o.compare(n); what != "" {
			changes = append(changes, FileChange{path, what})
		}
	}
	for path := range now {
		if _, ok := old[path]; !ok {
			changes = append(changes, FileChange{path, "added"})
		}
	}
	sort.Slice(changes, func(i, j int) bool { return changes[i].Path < changes[j].Path })
	return changes
}

// listedFile is a parsed line: its kind, mode, content and the words behind.
type listedFile struct{ kind, mode, data, rest string }

func listingFiles(text string) map[string]listedFile {
	files := make(map[string]listedFile)
	for line := range strings.Lines(text) {
		path, rest := cutWord(strings.TrimSuffix(line, "\n"))
		if path == "." {
			continue
		}
		var f listedFile
		f.kind, rest = cutWord(rest)
		switch f.kind {
		case "link":
			f.data, f.rest = cutWord(rest)
		case "file":
			var size, sum string
			f.mode, rest = cutWord(rest)
			size, rest = cutWord(rest)
			sum, f.rest = cutWord(rest)
			f.data = size + " " + sum
		case "char", "block":
			f.mode, rest = cutWord(rest)
			f.data, f.rest = cutWord(rest)
		default:
			f.mode, f.rest = cutWord(rest)
		}
		for files[path].kind != "" { // from a second source, over the first
			path += "'"
		}
		files[path] = f
	}
	return files
}

// cutWord splits off the first word, which may be quoted.
func cutWord(s string) (word, rest string) {
	if quoted, err := strconv.QuotedPrefix(s); err == nil {
		return quoted, strings.TrimPrefix(s[len(quoted):], " ")
	}
	word, rest, _ = strings.Cut(s, " ")
	return word, rest
}

func (f listedFile) compare(n listedFile) string {
	var what []string
	switch {
	case f.kind != n.kind:
		return f.kind + "->" + n.kind
	case f.data != n.data && f.kind == "link":
		what = append(what, "target "+f.data+"->"+n.data)
	case f.data != n.data && f.kind == "file":
		what = append(what, "content")
	case f.data != n.data:
		what = append(what, "device "+f.data+"->"+n.data)
	}
	if f.mode != n.mode {
		what = append(what, "mode "+f.mode+"->"+n.mode)
	}
	if f.rest != n.rest {
		what = append(what, restChange(f.rest, n.rest))
	}
	return strings.Join(what, ", ")
}

// restChange names what differs among "owner 0:0 xattr a=… hardlink b".
func restChange(before, after string) string {
	var names []string
	for _, name := range []string{"owner", "xattr", "hardlink", "implied"} {
		if strings.Join(wordsAfter(before, name), " ") != strings.Join(wordsAfter(after, name), " ") {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

func wordsAfter(s, name string) (values []string) {
	for s != "" {
		var word string
		if word, s = cutWord(s); word != name {
			continue
		}
		if name == "implied" {
			values = append(values, name)
			continue
		}
		word, s = cutWord(s)
		values = append(values, word)
	}
	return values
}
