package snapshot

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kind says what an item of a layer is, beyond a file.
type kind byte

const (
	isFile  kind = iota // a file of any type, directories too
	gone                // a name of the parent that this layer removes
	emptied             // a directory of which this layer hides what the parent has in it
)

// item is one entry of a layer, as a tar holds it and as Content sees it. It is
// valid until the visit returns; of scanAhead, but for fd, it stays.
type item struct {
	kind     kind
	path     string // relative to the root, "." for the root itself
	mode     uint32 // type and permissions, as in stat(2)
	uid, gid uint32
	size     int64
	mtime    unix.Timespec
	rdev     uint64
	target   string // of a symlink
	linkTo   string // "" or the path of an earlier item that is the same file
	attrs    []attr // sorted by name
	fd       int    // the file, open for reading, when it is regular and not linkTo; see take
}

// take makes an item that outlives the visit, with the descriptor: its owner closes.
func (it *item) take() item {
	own := *it
	it.fd = -1
	return own
}

func (it *item) close() {
	if it.fd >= 0 {
		unix.Close(it.fd)
		it.fd = -1
	}
}

func (it *item) fileType() uint32 { return it.mode & unix.S_IFMT }

// scanner walks the changes that an upper directory holds and calls visit for
// each item of the layer: names of one directory in bytewise order, a directory
// before what is in it. Memory is bounded by the largest directory and by the
// hardlink groups that are not complete yet.
//
// The upper directory of an overlay says more than a layer should: overlay
// marks every directory it makes as opaque, whether or not there is anything
// below to hide. Since two ways to the same tree must give the same layer, the
// parent is asked: a mark that hides nothing is no item.
type scanner struct {
	ctx      context.Context
	visit    func(*item) error
	owners   *Owners
	remember bool // owners' UID and GID count
	parent   *Snapshot
	epoch    *time.Time // newer times are this one
	links    map[uint64]*linkGroup
	item     item
	// held are directories, each in the one before, of which nothing differs from
	// the parent's so far: see subdir.
	held []item
}

// linkGroup is a file with several names of which not all have been seen.
type linkGroup struct {
	first string
	left  uint64
}

// scan visits the items of the layer that trees, topmost first, make of parent.
func scan(ctx context.Context, store *Store, trees []string, parent *Snapshot, owners *Owners, epoch *time.Time, visit func(*item) error) error {
	s := &scanner{ctx: ctx, visit: visit, owners: owners, remember: store.remember, parent: parent, epoch: epoch, links: make(map[uint64]*linkGroup)}
	root, err := openDirs(trees)
	if err != nil {
		return err
	}
	defer root.close()
	lower := -1
	if parent != nil && asksParent(root) {
		m, err := parent.Mount()
		if err != nil {
			return err
		}
		defer m.Close()
		lower = int(m.Fd())
	}
	if err := s.root(root[0], parent); err != nil {
		return err
	}
	return s.dir(root, lower, "")
}

// scanAhead is scan by another goroutine, that looks up and opens files while the visit reads
// those before: half of the work with many small files each.
func scanAhead(ctx context.Context, store *Store, trees []string, parent *Snapshot, owners *Owners, epoch *time.Time, visit func(*item) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	found := make(chan []item, 2)
	scanned := make(chan error, 1)
	go func() {
		defer close(found)
		var some []item
		send := func() error {
			select {
			case found <- some:
				some = make([]item, 0, aheadItems)
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := scan(ctx, store, trees, parent, owners, epoch, func(it *item) error {
			some = append(some, it.take())
			if len(some) < aheadItems {
				return nil
			}
			return send()
		})
		if err == nil && len(some) > 0 {
			err = send()
		}
		for i := range some { // of an error
			some[i].close()
		}
		scanned <- err
	}()
	var failed error
	for some := range found {
		for i := range some {
			if failed == nil {
				if failed = visit(&some[i]); failed != nil {
					stop()
				}
			}
			some[i].close()
		}
	}
	if failed != nil {
		return failed
	}
	return <-scanned
}

// aheadItems go to the visit at once, so that a hand-over is not felt. Four times as many files may be open.
const aheadItems = 32

// asksParent tells whether the parent's tree has to be looked at: not for a step that changed
// nothing or only put files into the root, and then a mount is saved, of as many layers as
// there are below.
func asksParent(root dirs) bool {
	names, err := root.names()
	if err == nil {
		err = root.rewind() // the walk reads them again
	}
	if err != nil {
		return true // the walk will say so too
	}
	return slices.ContainsFunc(names, func(n named) bool {
		st, err := n.stat()
		return err != nil || isDir(&st) || isWhiteout(&st)
	})
}

// root visits the root directory only if it differs from the parent's, or from
// root's 0755 when there is none. Images rarely have the entry, and a step that
// leaves the root alone should not have one that changes with the machine.
func (s *scanner) root(fd int, parent *Snapshot) error {
	describe := func(it *item, fd int, t *Owners) (err error) {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if it.attrs, err = attrsAt(-1, "", fd); err != nil {
			return err
		}
		it.set(".", &st)
		it.own(t, s.remember)
		return nil
	}
	was := item{mode: unix.S_IFDIR | 0o755}
	if parent != nil {
		pfd, err := openAt(unix.AT_FDCWD, parent.tree(), oDir, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: parent.tree(), Err: err}
		}
		defer unix.Close(pfd)
		t, err := parent.table()
		if err != nil {
			return err
		}
		if err := describe(&was, pfd, t); err != nil {
			return fmt.Errorf("read root of parent: %w", err)
		}
	}
	s.item = item{fd: -1}
	if err := describe(&s.item, fd, s.owners); err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	is := &s.item
	if is.mode == was.mode && is.uid == was.uid && is.gid == was.gid && slices.Equal(is.attrs, was.attrs) {
		return nil
	}
	return s.visit(is)
}

// set fills in what stat knows.
func (it *item) set(path string, st *unix.Stat_t) {
	it.path, it.mode, it.uid, it.gid = path, st.Mode, st.Uid, st.Gid
	it.size, it.mtime, it.rdev = st.Size, st.Mtim, uint64(st.Rdev)
}

// own puts what was remembered over what the file says.
func (it *item) own(t *Owners, remember bool) {
	o, ok := t.lookup(it.path)
	if !ok {
		return
	}
	if remember {
		it.uid, it.gid = o.UID, o.GID
	}
	if o.Mode != 0 && it.fileType() == unix.S_IFREG {
		it.mode, it.rdev, it.size = o.Mode&unix.S_IFMT|it.mode&0o7777, o.Rdev, 0
	}
	if len(o.Xattrs) == 0 {
		return
	}
	it.attrs = slices.DeleteFunc(it.attrs, func(a attr) bool { _, has := o.Xattrs[a.name]; return has })
	for name, value := range o.Xattrs {
		it.attrs = append(it.attrs, attr{name, value})
	}
	sortAttrs(it.attrs)
}

// dir visits what is in the directory at, called prefix: "" or ending in a
// slash. lower is the parent's directory of that name, -1 where there is none.
func (s *scanner) dir(at dirs, lower int, prefix string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	names, err := at.names()
	if err != nil {
		return &fs.PathError{Op: "read directory", Path: prefix, Err: err}
	}
	for i := range names {
		if err := s.entry(at, lower, prefix, &names[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) entry(at dirs, lower int, prefix string, n *named) error {
	p, name := prefix+n.name, n.name
	fd, st, err := n.look()
	if err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	s.item = item{fd: fd}
	defer s.item.close()
	if strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("%q: a layer cannot hold a name that begins with %s: it would remove %q", p, whiteoutPrefix, path.Join(prefix, name[len(whiteoutPrefix):]))
	}
	if len(p) > maxPath {
		return fmt.Errorf("%q…: %w", p[:80], unix.ENAMETOOLONG)
	}
	if isWhiteout(&st) {
		if lower < 0 {
			return nil
		}
		if _, err := statAt(lower, name); err == unix.ENOENT {
			return nil
		} else if err != nil {
			return &fs.PathError{Op: "stat in parent", Path: p, Err: err}
		}
		s.item.kind, s.item.path = gone, p
		return s.emit(&s.item)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil // lives only as long as its listener; tar has no form for it
	case unix.S_IFDIR:
		return s.subdir(at, lower, p, name, &st)
	}
	s.item.set(p, &st)
	if err := s.file(n.dir, name, &st); err != nil {
		return &fs.PathError{Op: "read", Path: p, Err: err}
	}
	return s.emit(&s.item)
}

// look is lstat, and opens a regular file for reading: to ask the open file saves a walk to the name.
// fd is -1 for others, and where it could not be told beforehand what it is.
func (n *named) look() (fd int, st unix.Stat_t, err error) {
	if n.kind == unix.DT_REG {
		if fd, err = openAt(n.dir, n.name, oRead, 0); err == nil {
			if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
				return fd, st, nil
			}
			unix.Close(fd)
		}
	}
	st, err = n.stat()
	return -1, st, err
}

// file completes the item of a file that is no directory.
func (s *scanner) file(dir int, name string, st *unix.Stat_t) (err error) {
	it := &s.item
	if st.Nlink > 1 {
		if g := s.links[st.Ino]; g != nil {
			it.linkTo = g.first
			if g.left--; g.left == 0 {
				delete(s.links, st.Ino)
			}
		} else {
			s.links[st.Ino] = &linkGroup{first: it.path, left: uint64(st.Nlink) - 1}
		}
	}
	switch it.fileType() {
	case unix.S_IFLNK:
		it.size = 0
		if it.target, err = readlinkAt(dir, name); err != nil {
			return err
		}
	case unix.S_IFREG:
		if it.fd < 0 {
			if it.fd, err = openAt(dir, name, oRead, 0); err != nil {
				return err
			}
		}
		if it.attrs, err = attrsAt(dir, name, it.fd); err != nil {
			return err
		}
		it.own(s.owners, s.remember)
		if it.linkTo != "" || it.fileType() != unix.S_IFREG {
			it.close()
		}
		return nil
	default:
		it.size = 0
		if it.attrs, err = attrsAt(dir, name, -1); err != nil {
			return err
		}
	}
	it.own(s.owners, s.remember)
	return nil
}

func (s *scanner) subdir(at dirs, lower int, p, name string, st *unix.Stat_t) error {
	dir, err := at.open(name)
	if err != nil {
		return &fs.PathError{Op: "open", Path: p, Err: err}
	}
	defer dir.close()
	s.item.attrs, err = attrsAt(-1, "", dir[0])
	if err != nil {
		return &fs.PathError{Op: "read attributes of", Path: p, Err: err}
	}
	s.item.set(p, st)
	s.item.size = 0
	s.item.own(s.owners, s.remember)
	is := s.item
	below := -1
	if lower >= 0 {
		below, err = openAt(lower, name, oLook, 0)
		switch err {
		case nil:
			defer unix.Close(below)
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
			below = -1 // the parent has nothing there, or no directory
		default:
			return &fs.PathError{Op: "open in parent", Path: p, Err: err}
		}
	}
	opaque := below >= 0 && dir.isOpaque()
	if below >= 0 && !opaque {
		same, err := s.asBelow(&is, lower, name)
		if err != nil {
			return &fs.PathError{Op: "stat in parent", Path: p, Err: err}
		}
		if same {
			// Copied up for something that is gone again, a mount point say, the
			// directory is no change. It is one if anything in it is.
			s.held = append(s.held, is)
			depth := len(s.held)
			err := s.dir(dir, below, p+"/")
			if len(s.held) >= depth {
				s.held = s.held[:depth-1]
			}
			return err
		}
	}
	if err := s.emit(&is); err != nil {
		return err
	}
	if opaque {
		below = -1
		s.item = item{kind: emptied, path: p, fd: -1}
		if err := s.emit(&s.item); err != nil {
			return err
		}
	}
	return s.dir(dir, below, p+"/")
}

// asBelow tells whether a directory is, but for what is in it, the one that the
// parent has there.
func (s *scanner) asBelow(is *item, lower int, name string) (bool, error) {
	st, err := statAt(lower, name)
	if err != nil {
		return false, err
	}
	was := item{fd: -1}
	if was.attrs, err = attrsAt(lower, name, -1); err != nil {
		return false, err
	}
	was.set(is.path, &st)
	o, ok, err := s.parent.Owner(is.path)
	if err != nil {
		return false, err
	}
	if ok {
		one := NewOwners()
		one.Set(is.path, o)
		was.own(one, s.remember)
	}
	sameTime := is.mtime == was.mtime
	if !sameTime && s.epoch != nil {
		// By the times in the layers, too: whoever unpacks these finds no other.
		from, _, err := s.parent.source(is.path)
		if err != nil {
			return false, err
		}
		sameTime = from != nil && clamped(is.mtime, s.epoch) == clamped(was.mtime, from.meta.epoch)
	}
	return sameTime && is.mode == was.mode && is.uid == was.uid && is.gid == was.gid && slices.Equal(is.attrs, was.attrs), nil
}

// emit visits an item, and before it the directories held back above it.
func (s *scanner) emit(it *item) error {
	held := s.held
	s.held = nil
	for i := range held {
		if err := s.visit(&held[i]); err != nil {
			return err
		}
	}
	return s.visit(it)
}
