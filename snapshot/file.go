package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Short system calls on (directory descriptor, name), the only way in which
// this package touches what is inside a tree: a name never holds a slash, so
// nothing in the tree can lead a call elsewhere.

const (
	oDir  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	oRead = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	// oLook opens a directory only to look up names in it.
	oLook = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// openAt opens name in dir, again if a signal came between. The caller closes.
func openAt(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// statAt is lstat of name in dir.
func statAt(dir int, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// isWhiteout tells whether a file of an upper directory is overlay's sign that
// the name is gone.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// readNames lists the directory, unsorted.
func readNames(fd int) (names []string, err error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := readDirents(fd, buf)
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// readDirents reads more entries of a directory; at its end it is 0.
func readDirents(fd int, buf []byte) (n int, err error) {
	for {
		if n, err = unix.ReadDirent(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// readlinkAt reads the symlink called name.
func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// attr is one extended attribute, its value raw.
type attr struct{ name, value string }

// sortAttrs sorts by name what is mostly nothing or one, and stays on its caller's stack. slices.SortFunc was 12 KB of mk.
func sortAttrs(list []attr) {
	if len(list) < 2 {
		return
	}
	sorted := slices.Clone(list)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].name < sorted[j].name })
	copy(list, sorted)
}

// listAttrs lists names of attributes. list is one of the list calls.
func listAttrs(list func([]byte) (int, error), buf []byte) ([]string, error) {
	for {
		n, err := list(buf)
		switch {
		case err == unix.ENOTSUP:
			return nil, nil // this file system has none
		case err == unix.ERANGE:
			buf = make([]byte, 64<<10) // XATTR_LIST_MAX
			continue
		case err != nil || n == 0:
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

// getAttr reads one attribute. get is one of the get calls.
func getAttr(get func([]byte) (int, error), buf []byte) (string, error) {
	n, err := get(buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = get(buf)
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

const (
	overlayAttrs = "user.overlay."
	opaqueAttr   = overlayAttrs + "opaque"
	originAttr   = overlayAttrs + "origin"
)

// settable tells whether an attribute found in a layer is set on the file. The
// others are data: kept in the owners table, written again, never given to the
// kernel. They mean something to some security module, to some privileged
// program, or to the host.
func settable(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !overlaysOwn(name)
}

// overlaysOwn tells whether an attribute is a mark of overlay, or one of ours: in a
// layer it would be a forged one, and in a tree it is said in the layer's own way.
func overlaysOwn(name string) bool {
	return strings.HasPrefix(name, overlayAttrs) || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, markAttrs)
}

// attrsAt returns the attributes of a file that belong into a layer, sorted. fd
// is the file when it is a directory or a regular file, else -1: then it is
// asked by name.
func attrsAt(dir int, name string, fd int) ([]attr, error) {
	list := func(b []byte) (int, error) { return unix.Flistxattr(fd, b) }
	get := func(n string) func([]byte) (int, error) {
		return func(b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) }
	}
	if fd < 0 {
		p := procName(dir, name)
		list = func(b []byte) (int, error) { return unix.Llistxattr(p, b) }
		get = func(n string) func([]byte) (int, error) {
			return func(b []byte) (int, error) { return unix.Lgetxattr(p, n, b) }
		}
	}
	var room [1024]byte
	names, err := listAttrs(list, room[:])
	if err != nil {
		return nil, err
	}
	var attrs []attr
	for _, n := range names {
		if !settable(n) {
			continue
		}
		value, err := getAttr(get(n), room[:])
		if err != nil {
			return nil, err
		}
		if n == capAttr && isCapMark(value) {
			continue
		}
		attrs = append(attrs, attr{n, value})
	}
	sortAttrs(attrs)
	return attrs, nil
}

// attrMap is a list of attributes by their names.
func attrMap(list []attr) map[string]string {
	m := make(map[string]string, len(list))
	for _, a := range list {
		m[a.name] = a.value
	}
	return m
}

// isOpaque tells whether an upper directory hides what the parent has there.
func isOpaque(fd int) bool {
	var b [2]byte
	n, err := unix.Fgetxattr(fd, opaqueAttr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// setOpaque makes an upper directory hide what the parent has there.
func setOpaque(fd int) error {
	if err := unix.Fsetxattr(fd, opaqueAttr, []byte("y"), 0); err != nil {
		return fmt.Errorf("make opaque: %w", err)
	}
	return nil
}

// procName is a path to name in dir, for the calls on attributes, which have no
// form with a directory descriptor on older kernels.
func procName(dir int, name string) string {
	return "/proc/self/fd/" + itoa(dir) + "/" + name
}

// copyRoot gives the directory to the owner, mode and attributes of from; ""
// stands for root's 0755.
func copyRoot(from, to string) error {
	if from == "" {
		return os.Chmod(to, 0o755) // whatever the umask
	}
	src, err := openAt(unix.AT_FDCWD, from, oDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: from, Err: err}
	}
	defer unix.Close(src)
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	attrs, err := attrsAt(-1, "", src)
	if err != nil {
		return err
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	for _, a := range attrs {
		if err := unix.Setxattr(to, a.name, []byte(a.value), 0); err != nil {
			return &os.PathError{Op: "set " + a.name + " of", Path: to, Err: err}
		}
	}
	if o, ok := ReadMark(from, true); ok {
		if err := WriteMark(to, true, o); err != nil {
			return &os.PathError{Op: "mark", Path: to, Err: err}
		}
	}
	return unix.Chmod(to, st.Mode&0o7777)
}

// maxOpenDepth is how many directories a remover has open at once.
const maxOpenDepth = 256

// remover removes directory trees, however deep a RUN step made them.
type remover struct {
	top   int   // where directories too deep are moved to; -1 to go on instead
	moved int   // how many were
	freed int64 // bytes of disk
}

// removeTree removes dir and everything below.
func removeTree(dir string) error {
	_, err := removeCounting(dir)
	return err
}

// removeCounting is removeTree that tells the bytes of disk it gave back.
func removeCounting(dir string) (int64, error) {
	parent, err := openAt(unix.AT_FDCWD, filepath.Dir(dir), oDir, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: filepath.Dir(dir), Err: err}
	}
	defer unix.Close(parent)
	top, err := openAt(parent, filepath.Base(dir), oDir, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	} else if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(top)
	r := remover{top: top}
	for more := true; more; { // again for what was moved to the top
		moved := r.moved
		if err := r.children(top, 0); err != nil {
			return r.freed, &os.PathError{Op: "remove below", Path: dir, Err: err}
		}
		more = r.moved > moved
	}
	if err := unix.Unlinkat(parent, filepath.Base(dir), unix.AT_REMOVEDIR); err != nil {
		return r.freed, &os.PathError{Op: "remove", Path: dir, Err: err}
	}
	return r.freed, nil
}

// remove removes name in dir, and everything below it.
func (r *remover) remove(dir int, name string, depth int) error {
	st, err := statAt(dir, name)
	if err != nil {
		return err
	}
	if !isDir(&st) {
		if st.Nlink == 1 {
			r.freed += st.Blocks * 512
		}
		return unix.Unlinkat(dir, name, 0)
	}
	r.freed += st.Blocks * 512
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	if depth >= maxOpenDepth && r.top >= 0 {
		r.moved++
		return unix.Renameat(dir, name, r.top, "deep-"+itoa(r.moved))
	}
	fd, err := openAt(dir, name, oDir, 0)
	if err != nil {
		return err
	}
	err = r.children(fd, depth+1)
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func (r *remover) children(fd, depth int) error {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return err
	}
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.remove(fd, name, depth); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}
