package snapshot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A mark is an owner kept with the file itself, in a store that remembers. Two forms, since the
// kernel allows attributes of the user only on regular files and directories:
//
//	user.mk.owner         "33:33", or for a device "0:6 b 8:0": of a regular file or a directory
//	security.capability   of a symlink or a fifo, where it means nothing to the kernel:
//	                      permitted is the uid and the gid, inheritable says that it is ours
//
// Overlay copies both when it copies a file up, whatever its type and however many names it has;
// they go where a rename takes the file, and end with it. A table of inode numbers would not do:
// overlay changes those of symlinks and of files with several names. Chown takes the second form
// away, so the mark is set after it.
//
// An access control list that names others than root is refused there too, and kept in
// user.mk.x.NAME beside it; its entries for owner, mask and others are those of the mode.
//
// Marks are in no layer. Commit makes the owners table of them, which everybody else reads, and
// marks of the table: what a layer or COPY brought is seen by the next step.
const (
	markAttrs = "user.mk."
	markAttr  = markAttrs + "owner"
	markExtra = markAttrs + "x."
	capAttr   = "security.capability"

	capV2     = 0x0200_0000 // VFS_CAP_REVISION_2
	markMagic = 0x6d6b_6f77 // "mkow": capabilities that no kernel has
)

// attributed is a file whose attributes are read and written: by path, or by descriptor where there
// is no path.
type attributed struct {
	path string
	link bool // of path: a symlink itself
	fd   int
}

func (f attributed) list(b []byte) (int, error) {
	switch {
	case f.path == "":
		return unix.Flistxattr(f.fd, b)
	case f.link:
		return unix.Llistxattr(f.path, b)
	}
	return unix.Listxattr(f.path, b)
}

func (f attributed) get(name string, b []byte) (int, error) {
	switch {
	case f.path == "":
		return unix.Fgetxattr(f.fd, name, b)
	case f.link:
		return unix.Lgetxattr(f.path, name, b)
	}
	return unix.Getxattr(f.path, name, b)
}

func (f attributed) set(name string, value []byte) error {
	switch {
	case f.path == "":
		return unix.Fsetxattr(f.fd, name, value, 0)
	case f.link:
		return unix.Lsetxattr(f.path, name, value, 0)
	}
	return unix.Setxattr(f.path, name, value, 0)
}

func (f attributed) remove(name string) error {
	switch {
	case f.path == "":
		return unix.Fremovexattr(f.fd, name)
	case f.link:
		return unix.Lremovexattr(f.path, name)
	}
	return unix.Removexattr(f.path, name)
}

func (f attributed) stat(st *unix.Stat_t) error {
	switch {
	case f.path == "":
		return unix.Fstat(f.fd, st)
	case f.link:
		return unix.Lstat(f.path, st)
	}
	return unix.Stat(f.path, st)
}

// Marks are what the names of a file's attributes tell of its mark, at the price of one listxattr.
// Most files have no attributes at all.
type Marks struct {
	Owner      bool // an owner is kept
	Default    bool // a default access list is kept
	Capability bool // there is a file capability: of a symlink or a fifo perhaps its owner
}

// Any tells whether the file may have a mark.
func (m Marks) Any() bool { return m.Owner || m.Default || m.Capability }

// LookMark looks at the file at path, as the calling thread sees path; link: not following a symlink at
// its end.
func LookMark(path string, link bool) Marks { return attributed{path: path, link: link}.look() }

// LookMarkOf is LookMark for an open file, which is not O_PATH.
func LookMarkOf(fd int) Marks { return attributed{fd: fd}.look() }

func (f attributed) look() Marks {
	var b [256]byte
	n, err := f.list(b[:])
	return marksIn(b[:max(n, 0)], err != unix.ERANGE)
}

// marksIn is what a list of attributes tells; whole: it has them all.
func marksIn(list []byte, whole bool) (m Marks) {
	if !whole {
		return Marks{Owner: true, Default: true, Capability: true} // too many to be listed: ask
	}
	return Marks{Owner: has(list, markAttr), Default: has(list, markExtra+aclDefault), Capability: has(list, capAttr)}
}

// attrs lists the attributes of the file at path, a symlink itself; nil, false: they are too many. Most
// files have none, which is soon told.
func attrs(path string) (list []byte, whole bool) {
	var b [512]byte
	n, err := unix.Llistxattr(path, b[:])
	if err == unix.ERANGE {
		return nil, false
	}
	return b[:max(n, 0)], true
}

// has tells whether a list of attributes, each ended by NUL, has that one.
func has(list []byte, name string) bool {
	for len(list) > 0 {
		one, rest, _ := bytes.Cut(list, []byte{0})
		if string(one) == name {
			return true
		}
		list = rest
	}
	return false
}

// ReadMark reads the owner kept with the file at path, as the calling thread sees path; link: not
// following a symlink at its end. A directory with a default access list kept is told of, too.
func ReadMark(path string, link bool) (o Owner, ok bool) {
	return attributed{path: path, link: link}.mark()
}

// ReadMarkOf is ReadMark for an open file, which is not O_PATH.
func ReadMarkOf(fd int) (o Owner, ok bool) { return attributed{fd: fd}.mark() }

func (f attributed) mark() (o Owner, ok bool) {
	if m := f.look(); m.Any() {
		return f.marked(m)
	}
	return o, false
}

// ReadMarkAt is ReadMark of a file whose Marks have been looked at: of an owner, one getxattr.
func ReadMarkAt(path string, link bool, m Marks) (o Owner, ok bool) {
	return attributed{path: path, link: link}.marked(m)
}

// ReadMarkAtOf is ReadMarkAt for an open file, which is not O_PATH.
func ReadMarkAtOf(fd int, m Marks) (o Owner, ok bool) { return attributed{fd: fd}.marked(m) }

func (f attributed) marked(m Marks) (o Owner, ok bool) {
	var b [256]byte
	if m.Owner {
		if n, err := f.get(markAttr, b[:]); err == nil {
			return parseMark(string(b[:n]))
		} else if err != unix.ENODATA {
			return o, false
		}
	}
	if m.Default {
		return o, true // root's, but what is made in it is not as the kernel would have it
	}
	var st unix.Stat_t
	if !m.Capability || f.stat(&st) != nil || !isCapMarked(&st) {
		return o, false
	}
	if n, err := f.get(capAttr, b[:]); err != nil || !isCapMark(string(b[:n])) {
		return o, false
	}
	return Owner{UID: binary.LittleEndian.Uint32(b[4:]), GID: binary.LittleEndian.Uint32(b[12:])}, true
}

// markedAttrs are the attributes that a mark may hold.
var markedAttrs = []string{aclAccess, aclDefault}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// ReadMarkedAttr reads such an attribute kept with the file at path, symlinks followed; nil is none.
func ReadMarkedAttr(path, name string) []byte {
	var small [512]byte
	n, err := unix.Getxattr(path, markExtra+name, small[:])
	if err == unix.ERANGE {
		big := make([]byte, 64<<10) // XATTR_SIZE_MAX
		if n, err = unix.Getxattr(path, markExtra+name, big); err == nil {
			return big[:n]
		}
	}
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	value := append([]byte{}, small[:n]...)
	if name == markedAttrs[0] && unix.Stat(path, &st) == nil {
		aclOfMode(value, st.Mode)
	}
	return value
}

// WriteMarkedAttr keeps it; nil removes it.
func WriteMarkedAttr(path, name string, value []byte) error {
	if value != nil {
		return unix.Setxattr(path, markExtra+name, value, 0)
	}
	if err := unix.Removexattr(path, markExtra+name); err != nil && err != unix.ENODATA {
		return err
	}
	return nil
}

// aclOfMode puts the permissions of mode into an access list, as chmod does with one that the
// kernel has: owner, mask and others; the group's own where there is no mask.
func aclOfMode(list []byte, mode uint32) {
	const userObj, groupObj, mask, other = 0x01, 0x04, 0x10, 0x20
	if len(list) < 4 {
		return
	}
	set := func(tag uint16, perm uint32) (found bool) {
		for e := list[4:]; len(e) >= 8; e = e[8:] {
			if binary.LittleEndian.Uint16(e) == tag {
				binary.LittleEndian.PutUint16(e[2:], uint16(perm&7))
				found = true
			}
		}
		return found
	}
	set(userObj, mode>>6)
	set(other, mode)
	if !set(mask, mode>>3) {
		set(groupObj, mode>>3)
	}
}

// isCapMarked tells whether marks of files of this type are of the second form.
func isCapMarked(st *unix.Stat_t) bool {
	kind := st.Mode & unix.S_IFMT
	return kind != unix.S_IFREG && kind != unix.S_IFDIR
}

// WriteMark keeps the owner with the file; that of root is kept by keeping nothing. Xattrs are not
// kept. The error is the kernel's.
func WriteMark(path string, link bool, o Owner) error {
	return attributed{path: path, link: link}.keep(o)
}

// WriteMarkOf is WriteMark for an open file, which is not O_PATH.
func WriteMarkOf(fd int, o Owner) error { return attributed{fd: fd}.keep(o) }

func (f attributed) keep(o Owner) error {
	if o.UID == 0 && o.GID == 0 && o.Mode == 0 {
		err := f.remove(markAttr)
		if err == unix.EPERM { // neither regular nor a directory
			if _, marked := f.mark(); marked {
				return f.remove(capAttr)
			}
			return nil
		}
		if err == unix.ENODATA {
			return nil
		}
		return err
	}
	var b [64]byte
	value := fmt.Appendf(b[:0], "%d:%d", o.UID, o.GID)
	switch o.Mode {
	case unix.S_IFCHR:
		value = fmt.Appendf(value, " c %d:%d", unix.Major(o.Rdev), unix.Minor(o.Rdev))
	case unix.S_IFBLK:
		value = fmt.Appendf(value, " b %d:%d", unix.Major(o.Rdev), unix.Minor(o.Rdev))
	}
	err := f.set(markAttr, value)
	if err != unix.EPERM { // else it is neither regular nor a directory: xattr(7)
		return err
	}
	var st unix.Stat_t
	if f.stat(&st) != nil || !isCapMarked(&st) {
		return err
	}
	value = b[:0]
	for _, w := range []uint32{capV2, o.UID, markMagic, o.GID, markMagic} {
		value = binary.LittleEndian.AppendUint32(value, w)
	}
	return f.set(capAttr, value)
}

func parseMark(s string) (o Owner, ok bool) {
	ids, device, isDevice := strings.Cut(s, " ")
	if o.UID, o.GID, ok = parsePair(ids); !ok || !isDevice {
		return o, ok
	}
	kind, number, _ := strings.Cut(device, " ")
	major, minor, ok := parsePair(number)
	switch kind {
	case "c":
		o.Mode = unix.S_IFCHR
	case "b":
		o.Mode = unix.S_IFBLK
	default:
		return Owner{}, false
	}
	o.Rdev = unix.Mkdev(major, minor)
	return o, ok
}

func parsePair(s string) (a, b uint32, ok bool) {
	x, y, _ := strings.Cut(s, ":")
	m, err1 := strconv.ParseUint(x, 10, 32)
	n, err2 := strconv.ParseUint(y, 10, 32)
	return uint32(m), uint32(n), err1 == nil && err2 == nil
}

// isCapMark tells whether a file capability is a mark.
func isCapMark(value string) bool {
	word := func(i int) uint32 { return binary.LittleEndian.Uint32([]byte(value[4*i:])) }
	return len(value) == 20 && word(2) == markMagic && word(4) == markMagic
}

// MarkOwners marks the files below the directory upper that the table says something of.
func MarkOwners(upper string, t *Owners) error { return markPaths(upper, t, t.Paths()) }

func markPaths(upper string, t *Owners, paths []string) error {
	root, err := openAt(unix.AT_FDCWD, upper, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, p := range paths {
		o, _ := t.lookup(p)
		dir, name := splitPath(p)
		fd := root
		if dir != "" && dir != "." {
			if fd, err = openBeneath(root, dir); err != nil {
				return fmt.Errorf("mark %q: %w", p, err)
			}
		}
		err := WriteMark(procName(fd, name), true, o)
		for _, a := range markedAttrs {
			if value, ok := o.Xattrs[a]; ok && err == nil {
				err = WriteMarkedAttr(procName(fd, name), a, []byte(value))
			}
		}
		if fd != root {
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("mark %q: %w", p, err)
		}
	}
	return nil
}

// openBeneath opens a directory of an upper tree. No symlink is on the way to what is in a table.
func openBeneath(root int, dir string) (int, error) {
	how := unix.OpenHow{Flags: oLook, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(root, dir, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}
