package userns

import (
	"bytes"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// The tags of the entries of an access control list.
const (
	tagUserObj  = 0x01
	tagUser     = 0x02
	tagGroupObj = 0x04
	tagGroup    = 0x08
	tagMask     = 0x10
	tagOther    = 0x20
)

// KeeperAttrs is the beginning of the names of attributes in which a Keeper may keep owners. To a
// container they do not exist.
const KeeperAttrs = "user.mk."

// The access control lists. The kernel refuses one that names a user or a group that is not mapped;
// such a one is remembered, and inherited from a directory by what is made in it.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// attrName reads the name of the attribute that a call is about, and tells whether it may be one that is
// remembered.
func (t *tracer) attrName() (name string, acl bool) {
	b, e := t.readString(t.n.args[1], 256)
	if e != 0 {
		return "", false
	}
	return string(b), string(b) == aclAccess || string(b) == aclDefault
}

func isKeepers(name []byte) bool { return bytes.HasPrefix(name, []byte(KeeperAttrs)) }

// openForAttr opens the file of such a call, if it is one whose attributes are remembered and the caller
// may change them. fd -1 and no errno: let the kernel.
func (t *tracer) openForAttr(dirfd int32, addr uint64, flags int) (fd int, st unix.Stat_t, e unix.Errno) {
	c, ok := t.who()
	if !ok || flags&unix.AT_EMPTY_PATH != 0 && t.onlyPath(dirfd) {
		return -1, st, 0
	}
	f, e := t.findCall(&c, dirfd, addr, flags)
	if f.file < 0 {
		f.close()
		return -1, st, refusal(e)
	}
	fd, st, f.file = f.file, f.st, -1
	f.close()
	kind := st.Mode & unix.S_IFMT
	if !t.keeps(fd, &st) || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		unix.Close(fd)
		return -1, st, 0
	}
	if !t.owns(&c, fd, &st) {
		unix.Close(fd)
		return -1, st, unix.EPERM
	}
	return fd, st, 0
}

// setAttr answers the calls that set an attribute: name, value, size and flags are its arguments.
func (t *tracer) setAttr(dirfd int32, addr uint64, flags int) reply {
	name, acl := t.attrName()
	if isKeepers([]byte(name)) {
		return failed(unix.EPERM)
	}
	size := t.n.args[3]
	if !acl || size > 64<<10 {
		return t.mayAttr(name, dirfd, addr, flags, mayWrite)
	}
	list := make([]byte, size)
	if !t.read(t.n.args[2], list) {
		return native
	}
	mode, foreign, ok := parseACL(list)
	if !ok {
		return native
	}
	fd, st, e := t.openForAttr(dirfd, addr, flags)
	if fd < 0 {
		return orNative(e)
	}
	defer unix.Close(fd)
	file := byFD(fd)
	if c, _ := t.who(); name == aclAccess && st.Mode&unix.S_ISGID != 0 {
		if o, _ := t.ownerOf(fd, &st); !c.maySetgid(o) {
			st.Mode &^= unix.S_ISGID
			if err := unix.Chmod(file, st.Mode&0o7777); err != nil {
				return failed(errnoOf(err))
			}
		}
	}
	if !foreign {
		t.keeper.SetAttr(file, name, nil)
		return native
	}
	if name == aclDefault && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return native
	}
	unix.Removexattr(file, name) // one that the kernel has is replaced
	if name == aclAccess {
		if err := unix.Chmod(file, st.Mode&0o7000|mode); err != nil {
			return failed(errnoOf(err))
		}
	}
	return failed(errnoOf(t.keeper.SetAttr(file, name, list)))
}

// mayAttr lets the kernel set or get an attribute, if the caller may: xattr(7).
func (t *tracer) mayAttr(name string, dirfd int32, addr uint64, flags int, need uint32) reply {
	c, ok := t.who()
	if !ok || c.isRoot() {
		return native
	}
	f, e := t.findCall(&c, dirfd, addr, flags)
	defer f.close()
	if e != 0 || f.file < 0 || !t.keeps(f.file, &f.st) {
		return orNative(refusal(e))
	}
	dir := isDir(&f.st)
	switch {
	case strings.HasPrefix(name, "user.") && (dir || f.st.Mode&unix.S_IFMT == unix.S_IFREG):
		if need == mayWrite && dir && f.st.Mode&unix.S_ISVTX != 0 && !t.owns(&c, f.file, &f.st) {
			return refused(f.file, unix.EPERM)
		}
		if !t.may(&c, f.file, &f.st, need) {
			return refused(f.file, unix.EACCES)
		}
	case strings.HasPrefix(name, "security.") && need == mayWrite && !c.has(unix.CAP_SETFCAP):
		return refused(f.file, unix.EPERM)
	}
	return native
}

func (t *tracer) removeAttr(dirfd int32, addr uint64, flags int) reply {
	name, acl := t.attrName()
	if isKeepers([]byte(name)) {
		return failed(unix.ENODATA)
	}
	if !acl {
		return t.mayAttr(name, dirfd, addr, flags, mayWrite)
	}
	fd, _, e := t.openForAttr(dirfd, addr, flags)
	if fd < 0 {
		return orNative(e)
	}
	defer unix.Close(fd)
	if t.keeper.Attr(byFD(fd), name) == nil {
		return native
	}
	return failed(errnoOf(t.keeper.SetAttr(byFD(fd), name, nil)))
}

func (t *tracer) getAttr(dirfd int32, addr uint64, flags int) reply {
	name, acl := t.attrName()
	if isKeepers([]byte(name)) {
		return failed(unix.ENODATA)
	}
	if !acl {
		return t.mayAttr(name, dirfd, addr, flags, mayRead)
	}
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 || link {
		return native
	}
	list := t.keeper.Attr(path, name)
	if list == nil {
		return native
	}
	return t.giveBytes(list, t.n.args[2], t.n.args[3])
}

// giveBytes answers a call that fills a buffer of the caller, or with size 0 tells how much there is.
func (t *tracer) giveBytes(b []byte, addr, size uint64) reply {
	switch {
	case size == 0 || len(b) == 0:
	case size < uint64(len(b)):
		return failed(unix.ERANGE)
	default:
		if e := t.write(addr, b); e != 0 {
			return failed(e)
		}
	}
	return value(int64(len(b)))
}

// listAttrs answers the calls that list attributes, where the keeper's would be among them.
func (t *tracer) listAttrs(dirfd int32, addr, buf, size uint64, flags int) reply {
	fd, st, ok := t.openKept(dirfd, addr, flags)
	if !ok {
		return native
	}
	defer unix.Close(fd)
	all := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(byFD(fd), all)
	if err != nil || n == 0 {
		return native
	}
	var list []byte
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFREG || kind == unix.S_IFDIR {
		for name := range bytes.SplitAfterSeq(all[:n], []byte{0}) {
			if !isKeepers(name) {
				list = append(list, name...)
			}
		}
		for _, name := range []string{aclAccess, aclDefault} {
			if t.keeper.Attr(byFD(fd), name) != nil {
				list = append(append(list, name...), 0)
			}
		}
	}
	return t.giveBytes(list, buf, size)
}

// parseACL reads an access control list as setxattr takes it: version 2, then entries of tag,
// permissions and ID. It gives the permissions that the file will have, and tells whether an entry
// names anybody but root.
func parseACL(list []byte) (mode uint32, foreign, ok bool) {
	if len(list) < 4 || (len(list)-4)%8 != 0 || binary.LittleEndian.Uint32(list) != 2 {
		return 0, false, false
	}
	masked := false
	for e := list[4:]; len(e) > 0; e = e[8:] {
		perm := uint32(binary.LittleEndian.Uint16(e[2:]))
		switch tag := binary.LittleEndian.Uint16(e); tag {
		case tagUserObj:
			mode |= perm << 6
		case tagGroupObj:
			if !masked {
				mode |= perm << 3
			}
		case tagMask:
			masked = true
			mode = mode&^0o070 | perm<<3
		case tagOther:
			mode |= perm
		case tagUser, tagGroup:
			foreign = foreign || binary.LittleEndian.Uint32(e[4:]) != 0
		default:
			return 0, false, false
		}
		if perm > 7 {
			return 0, false, false
		}
	}
	return mode, foreign, true
}

// inheritACL makes of a directory's default list the access list of a file made in it with mode, and
// tells the permissions that the file gets: acl(5), OBJECT CREATION AND DEFAULT ACLs.
func inheritACL(list []byte, mode uint32) (access []byte, perm uint32) {
	access = bytes.Clone(list)
	var group []byte // the entry that the group's bits of the mode stand for: the mask, if there is one
	limit := func(e []byte, shift uint) {
		allowed := uint32(binary.LittleEndian.Uint16(e[2:])) & (mode >> shift)
		binary.LittleEndian.PutUint16(e[2:], uint16(allowed))
		perm |= allowed << shift
	}
	for e := access[4:]; len(e) >= 8; e = e[8:] {
		switch binary.LittleEndian.Uint16(e) {
		case tagUserObj:
			limit(e, 6)
		case tagOther:
			limit(e, 0)
		case tagGroupObj:
			if group == nil {
				group = e
			}
		case tagMask:
			group = e
		}
	}
	if group != nil {
		limit(group, 3)
	}
	return access, perm
}

// allowed tells whether an access list, of a file of o's, lets the identity do what the bits of need
// say: acl(5), ACCESS CHECK ALGORITHM.
func (c *ids) allowed(list []byte, o Owner, need uint32) bool {
	masked := uint32(7)
	for e := list[4:]; len(e) >= 8; e = e[8:] {
		if binary.LittleEndian.Uint16(e) == tagMask {
			masked = uint32(binary.LittleEndian.Uint16(e[2:]))
		}
	}
	member := false
	for e := list[4:]; len(e) >= 8; e = e[8:] { // in the order of the algorithm: the kernel sorts them
		perm, id := uint32(binary.LittleEndian.Uint16(e[2:])), binary.LittleEndian.Uint32(e[4:])
		switch binary.LittleEndian.Uint16(e) {
		case tagUserObj:
			if c.uid[fsID] == o.UID {
				return perm&need == need
			}
		case tagUser:
			if c.uid[fsID] == id {
				return perm&masked&need == need
			}
		case tagGroupObj, tagGroup:
			if binary.LittleEndian.Uint16(e) == tagGroupObj {
				id = o.GID
			}
			if c.inGroup(id) {
				if member = true; perm&masked&need == need {
					return true
				}
			}
		case tagOther:
			return !member && perm&need == need
		}
	}
	return false
}
