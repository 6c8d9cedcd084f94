package snapshot

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Owner is what a file should have and could not be given: the kernel refused,
// so it is kept here and written to the layer instead.
type Owner struct {
	UID, GID uint32
	// Mode holds type bits when the file stands in for a device: S_IFCHR or
	// S_IFBLK. Permission bits are the file's own and not kept here.
	Mode uint32
	// Rdev is the device number that goes with Mode, as in stat(2).
	Rdev uint64
	// Xattrs are extended attributes, values raw. They win over those of the
	// file.
	Xattrs map[string]string
}

func (o Owner) equal(p Owner) bool {
	return o.UID == p.UID && o.GID == p.GID && o.Mode == p.Mode && o.Rdev == p.Rdev && maps.Equal(o.Xattrs, p.Xattrs)
}

func (o Owner) isZero() bool {
	return o.UID == 0 && o.GID == 0 && o.Mode == 0 && o.Rdev == 0 && len(o.Xattrs) == 0
}

// Owners is a table from paths in one layer to what was remembered for them.
// A path is relative to the root of the tree, clean, "." for the root itself.
// A file that is not in the table has the owner that the tree says. Hardlinks
// have an entry for each name. It may be used by several goroutines.
//
// In memory it costs about 150 bytes an entry; trees whose files mostly belong
// to root need few.
type Owners struct {
	mu    sync.Mutex
	table map[string]Owner
}

// NewOwners is an empty table.
func NewOwners() *Owners { return &Owners{table: make(map[string]Owner)} }

// cleanPath is the form in which paths are keys of the table.
func cleanPath(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

// Set remembers o for the file at p. The zero Owner is an entry too: it says
// that the file is root's although a parent's table may say otherwise.
func (t *Owners) Set(p string, o Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table[cleanPath(p)] = o
}

// Get returns what is remembered for p.
func (t *Owners) Get(p string) (Owner, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o, ok := t.table[cleanPath(p)]
	return o, ok
}

// lookup is Get for a path that is clean.
func (t *Owners) lookup(p string) (Owner, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o, ok := t.table[p]
	return o, ok
}

// forget is Delete for a clean path with nothing below it.
func (t *Owners) forget(p string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.table, p)
}

// Delete forgets p and everything below it.
func (t *Owners) Delete(p string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delete(cleanPath(p))
}

func (t *Owners) delete(p string) {
	for old := range t.table {
		if old == p || isBelow(old, p) {
			delete(t.table, old)
		}
	}
}

// isBelow tells whether p is in the directory dir or deeper. Asking it of the
// whole table is fast enough: the table is small where many directories go.
func isBelow(p, dir string) bool {
	if dir == "." {
		return p != "."
	}
	return len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir
}

// Rename moves what is remembered for from, and everything below it, to to.
func (t *Owners) Rename(from, to string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from, to = cleanPath(from), cleanPath(to)
	if from == to {
		return
	}
	t.delete(to)
	moved := make(map[string]Owner)
	for old, o := range t.table {
		if old == from || isBelow(old, from) {
			moved[to+strings.TrimPrefix(old, from)] = o
			delete(t.table, old)
		}
	}
	maps.Copy(t.table, moved)
}

// Len is the number of entries.
func (t *Owners) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.table)
}

// Paths lists the paths of the table in the order of a layer.
func (t *Owners) Paths() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	paths := slices.Collect(maps.Keys(t.table))
	slices.SortFunc(paths, comparePaths)
	return paths
}

// comparePaths orders paths as a layer does: names of one directory bytewise,
// a directory right before what is in it.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return -1
		}
		if b[i] == '/' {
			return 1
		}
		return int(a[i]) - int(b[i])
	}
	return len(a) - len(b)
}

// write writes the table as text, one line a path:
//
//	"var/lib/pg" 101 102
//	"dev/null" 0 0 c 1:3
//	"usr/bin/ping" 0 0 security.capability=AQAAAgAgAAAAAAAAAAAAAAAAAAA=
//
// The path is quoted as in Go, the values of xattrs are base64, and attribute
// names are quoted if they need it.
func (t *Owners) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, ownersHeader)
	for _, p := range t.Paths() {
		o, _ := t.lookup(p)
		if o.isZero() {
			continue // it has stopped a parent's entry from being inherited
		}
		fmt.Fprintf(b, "%s %d %d", strconv.Quote(p), o.UID, o.GID)
		if o.Mode != 0 {
			kind := "c"
			if o.Mode&unix.S_IFMT == unix.S_IFBLK {
				kind = "b"
			}
			fmt.Fprintf(b, " %s %d:%d", kind, unix.Major(o.Rdev), unix.Minor(o.Rdev))
		}
		for _, name := range slices.Sorted(maps.Keys(o.Xattrs)) {
			fmt.Fprintf(b, " %s=%s", strconv.Quote(name), base64.StdEncoding.EncodeToString([]byte(o.Xattrs[name])))
		}
		fmt.Fprintln(b)
	}
	return b.Flush()
}

// readOwners reads a table; a file that does not exist is an empty one.
func readOwners(file string) (*Owners, error) {
	t := NewOwners()
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		if err == io.EOF && line == "" {
			if n == 1 {
				return nil, fmt.Errorf("read %s: empty", file)
			}
			return t, nil
		} else if err != nil {
			return nil, fmt.Errorf("read %s:%d: %w", file, n, err)
		}
		line = strings.TrimSuffix(line, "\n")
		if n == 1 {
			if line != ownersHeader {
				return nil, fmt.Errorf("read %s: begins with %q, not %q", file, line, ownersHeader)
			}
			continue
		}
		p, o, err := parseOwner(line)
		if err != nil {
			return nil, fmt.Errorf("read %s:%d: %w", file, n, err)
		}
		t.table[p] = o
	}
}

func parseOwner(line string) (p string, o Owner, err error) {
	q, err := strconv.QuotedPrefix(line)
	if err != nil {
		return "", o, fmt.Errorf("path: %w", err)
	}
	if p, err = strconv.Unquote(q); err != nil {
		return "", o, fmt.Errorf("path: %w", err)
	}
	if p != cleanPath(p) {
		return "", o, fmt.Errorf("path %q is not clean", p)
	}
	bad := fmt.Errorf("line %q is not understood", line)
	rest := strings.TrimPrefix(line[len(q):], " ")
	word := func() (w string) { w, rest, _ = strings.Cut(rest, " "); return w }
	uid, err1 := strconv.ParseUint(word(), 10, 32)
	gid, err2 := strconv.ParseUint(word(), 10, 32)
	if err1 != nil || err2 != nil {
		return "", o, bad
	}
	o.UID, o.GID = uint32(uid), uint32(gid)
	if strings.HasPrefix(rest, "c ") || strings.HasPrefix(rest, "b ") {
		o.Mode = unix.S_IFCHR
		if word() == "b" {
			o.Mode = unix.S_IFBLK
		}
		maj, min, _ := strings.Cut(word(), ":")
		major, err1 := strconv.ParseUint(maj, 10, 32)
		minor, err2 := strconv.ParseUint(min, 10, 32)
		if err1 != nil || err2 != nil {
			return "", o, bad
		}
		o.Rdev = unix.Mkdev(uint32(major), uint32(minor))
	}
	for rest != "" {
		q, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return "", o, bad
		}
		name, err := strconv.Unquote(q)
		rest = rest[len(q):]
		if err != nil || !strings.HasPrefix(rest, "=") {
			return "", o, bad
		}
		value, err := base64.StdEncoding.DecodeString(word()[1:])
		if err != nil {
			return "", o, bad
		}
		if o.Xattrs == nil {
			o.Xattrs = make(map[string]string)
		}
		o.Xattrs[name] = string(value)
	}
	return p, o, nil
}
