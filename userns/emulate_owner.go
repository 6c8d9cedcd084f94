package userns

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chown answers the chown calls. The kernel is made to do all that it does besides: copy up, look
// whether the file may be changed, take setuid bits and capabilities away, set the time.
func (t *tracer) chown(dirfd int32, addr uint64, uid, gid uint32, flags int) reply {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return failed(unix.EINVAL)
	}
	c, ok := t.who()
	if !ok {
		return failed(unix.ESRCH)
	}
	toRoot := c.uid[fsID] == 0 && (uid == 0 || uid == keep) && (gid == 0 || gid == keep)
	if fd := t.opened(dirfd, addr, flags); fd >= 0 {
		defer unix.Close(fd)
		if _, known := t.keeper.OwnerOf(fd); toRoot && !known && t.other.empty() {
			return native
		}
		return t.chownOpen(&c, fd, uid, gid, true)
	}
	if int(t.n.nr) == unix.SYS_FCHOWN && t.onlyPath(dirfd) {
		return failed(unix.EBADF)
	}
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 {
		return failed(e)
	}
	if toRoot && t.unknown(path, link) {
		return native
	}
	if !t.alive() {
		return failed(unix.ESRCH)
	}
	fd, e := openPath(path, link)
	if e != 0 {
		if e == unix.ENOENT && !t.isOpen(dirfd) {
			return native // which says EBADF, if it gets there
		}
		return failed(e)
	}
	defer unix.Close(fd)
	return t.chownOpen(&c, fd, uid, gid, false)
}

// chownOpen is chown of an open file; borrowed: it is the caller's own, and not O_PATH.
func (t *tracer) chownOpen(c *ids, fd int, uid, gid uint32, borrowed bool) reply {
	if !t.alive() {
		return failed(unix.ESRCH)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed(errnoOf(err))
	}
	kept := t.keeps(fd, &st)
	var o Owner
	switch {
	case !kept:
		o, _ = t.other.get(&st)
	case borrowed:
		o, _ = t.keeper.OwnerOf(fd)
	default:
		o, _ = t.keeper.Owner(byFD(fd), false)
	}
	if c.uid[fsID] != 0 && !c.capable(unix.CAP_CHOWN) && (uid != keep || gid != keep) {
		if c.uid[fsID] != o.UID || uid != keep && uid != o.UID || gid != keep && gid != o.GID && !c.inGroup(gid) {
			return failed(unix.EPERM)
		}
	}
	was := o
	if uid != keep {
		o.UID = uid
	}
	if gid != keep {
		o.GID = gid
	}
	// To keep another owner changes the file too, and the kernel copies it up for that and sets its time:
	// all that chown would do to one that has neither setuid bits nor capabilities.
	if !kept || !borrowed || o == was || o == (Owner{}) || !harmless(fd, &st) {
		asRoot := func(id uint32) int {
			if id == keep {
				return -1
			}
			return 0
		}
		if err := unix.Fchownat(fd, "", asRoot(uid), asRoot(gid), unix.AT_EMPTY_PATH); err != nil && (kept || err != unix.EPERM && err != unix.EINVAL) {
			return failed(errnoOf(err))
		}
	}
	switch {
	case !kept:
		return failed(errnoOf(t.other.set(&st, o)))
	case borrowed:
		return failed(kernels(t.keeper.SetOwnerOf(fd, o)))
	}
	return failed(kernels(t.keeper.SetOwner(byFD(fd), false, o)))
}

// harmless tells whether an open file has nothing that chown takes away.
func harmless(fd int, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true
	case unix.S_IFREG:
		_, err := unix.Fgetxattr(fd, "security.capability", nil)
		return st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 && err == unix.ENODATA
	}
	return false
}

// keep remembers the owner of a file open by O_PATH.
func (t *tracer) keep(fd int, st *unix.Stat_t, o Owner) unix.Errno {
	if !t.keeps(fd, st) {
		return errnoOf(t.other.set(st, o))
	}
	return kernels(t.keeper.SetOwner(byFD(fd), false, o))
}

// kernels is the kernel's errno in the error of a keeper.
func kernels(err error) unix.Errno {
	var e unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return unix.EIO
}

// place is where a file is about to be made, and whose it will be.
type place struct {
	dir    int // O_PATH; -1 where the kernel makes the file as it should be
	name   string
	owner  Owner
	denied bool   // the caller may make no file there
	list   []byte // the directory's default access list, if it is one that the kernel does not have
	raw    []byte // the path that the caller gave, until the next string is read
}

// newPlace finds the directory in which the caller makes a file and what the file's owner will be: the
// caller's, the group that of the directory if that is setgid. With dir -1 and no errno it is root's, or
// the call fails anyway: that the kernel can do. dir: it is a directory that is made, whose name may
// end in slashes. always: root's files too. The caller closes place.dir.
func (t *tracer) newPlace(dirfd int32, addr uint64, dir, always bool) (p place, e unix.Errno) {
	p.dir = -1
	raw, e := t.readString(addr, maxPath)
	if e != 0 {
		return p, 0
	}
	name := bytes.Clone(bytes.TrimRight(raw, "/"))
	if len(raw) == 0 || len(name) == 0 {
		return p, 0
	}
	parent := []byte(nil)
	if i := bytes.LastIndexByte(name, '/'); i >= 0 {
		parent, name = name[:i+1], name[i+1:]
	}
	if string(name) == "." || string(name) == ".." || raw[len(raw)-1] == '/' && !dir {
		return p, 0
	}
	p, e = t.placeIn(t.at(dirfd, parent), string(name), always)
	p.raw = raw
	return p, e
}

// placeIn is newPlace for a directory that has been located. always: root's files too.
func (t *tracer) placeIn(dir, name string, always bool) (p place, e unix.Errno) {
	p.dir = -1
	c, ok := t.who()
	if !ok {
		return p, unix.ESRCH
	}
	root := c.uid[fsID] == 0 && c.gid[fsID] == 0
	o, known := t.keeper.Owner(dir, false)
	if known {
		p.list = t.keeper.Attr(dir, aclDefault)
	}
	if root && p.list == nil && (!known || o.GID == 0) && !always {
		return p, 0
	}
	if !t.alive() {
		return p, unix.ESRCH
	}
	fd, e := openPath(dir, false)
	if e != 0 {
		return p, e
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || !t.keeps(fd, &st) || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		unix.Close(fd) // not ours, or no place for a file
		return p, 0
	}
	if !t.may(&c, fd, &st, 0o3) {
		p.denied = true
	}
	p.name, p.owner = name, Owner{UID: c.uid[fsID], GID: c.gid[fsID]}
	if st.Mode&unix.S_ISGID != 0 {
		o, _ := t.ownerOf(fd, &st)
		p.owner.GID = o.GID
	}
	if p.owner == (Owner{}) && p.list == nil && !always {
		unix.Close(fd)
		return p, 0
	}
	p.dir = fd
	return p, 0
}

// mark gives the file just made its owner. It was made in a directory of the container's root; what
// has been put in its place since gets the owner instead, if it is there too.
func (t *tracer) mark(p place, access []byte) unix.Errno {
	fd, err := unix.Openat(p.dir, p.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errnoOf(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || !t.keeps(fd, &st) {
		return errnoOf(err)
	}
	if access != nil {
		if e := t.inherit(fd, &st, access, p.list); e != 0 {
			return e
		}
	}
	return t.keep(fd, &st, p.owner)
}

// inherit gives a new file the lists that it has from its directory: a directory that one, too.
func (t *tracer) inherit(fd int, st *unix.Stat_t, access, def []byte) unix.Errno {
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return 0 // there is no place for it: its mode has been set
	}
	if e := kernels(t.keeper.SetAttr(byFD(fd), aclAccess, access)); e != 0 || kind == unix.S_IFREG {
		return e
	}
	return kernels(t.keeper.SetAttr(byFD(fd), aclDefault, def))
}

// modeIn is the mode with which a file is made at p, the umask with which that is done, and the
// access list that it gets: where the directory has a default one, umask means nothing.
func (t *tracer) modeIn(p place, mode uint32) (uint32, int, []byte) {
	if p.list == nil {
		return mode, t.umask(), nil
	}
	access, allowed := inheritACL(p.list, mode)
	return mode&^0o777 | allowed, 0, access
}

// making makes a file by make, as the caller would, and gives it its owner.
func (t *tracer) making(p place, mode uint32, make func(mode uint32) error) reply {
	if p.denied {
		var st unix.Stat_t
		if unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return failed(unix.EEXIST)
		}
		return failed(unix.EACCES)
	}
	mode, umask, access := t.modeIn(p, mode)
	old := unix.Umask(umask)
	err := make(mode)
	unix.Umask(old)
	if err != nil {
		return failed(errnoOf(err))
	}
	return failed(t.mark(p, access))
}

func (t *tracer) mkdir(dirfd int32, addr uint64, mode uint32) reply {
	p, e := t.newPlace(dirfd, addr, true, false)
	if e != 0 || p.dir < 0 {
		return orNative(e)
	}
	defer unix.Close(p.dir)
	return t.making(p, mode, func(mode uint32) error { return unix.Mkdirat(p.dir, p.name, mode) })
}

func (t *tracer) symlink(target uint64, dirfd int32, addr uint64) reply {
	p, e := t.newPlace(dirfd, addr, false, false)
	if e != 0 || p.dir < 0 {
		return orNative(e)
	}
	defer unix.Close(p.dir)
	text, e := t.readString(target, maxPath)
	if e != 0 {
		return failed(e)
	}
	to := string(text)
	if !t.alive() {
		return failed(unix.ESRCH)
	}
	p.list = nil // for files that have a mode
	return t.making(p, 0o777, func(uint32) error { return unix.Symlinkat(to, p.dir, p.name) })
}

// mknod makes the node, or a plain file that stands for a device.
func (t *tracer) mknod(dirfd int32, addr uint64, mode uint32, dev uint64) reply {
	kind := mode & unix.S_IFMT
	device := kind == unix.S_IFCHR || kind == unix.S_IFBLK
	if device {
		c, _ := t.who()
		if !c.capable(unix.CAP_MKNOD) || kind == unix.S_IFCHR && dev == 0 { // 0:0 is overlay's whiteout
			return failed(unix.EPERM)
		}
	}
	p, e := t.newPlace(dirfd, addr, false, device)
	if e != 0 || p.dir < 0 {
		return orNative(e)
	}
	defer unix.Close(p.dir)
	if device {
		// The kernel's own encoding of the number, as mknod takes it, is that of unix.Mkdev.
		p.owner.Mode, p.owner.Rdev = kind, dev&0xffffffff
		mode = mode&0o7777 | unix.S_IFREG
	}
	return t.making(p, mode, func(mode uint32) error { return unix.Mknodat(p.dir, p.name, mode, 0) })
}

func orNative(e unix.Errno) reply {
	if e != 0 {
		return failed(e)
	}
	return native
}

// maxLinks is how many symlinks open follows to the file that it makes: the kernel's number.
const maxLinks = 40

// open makes the file that open would make, if it would be somebody else's than root's, and hands
// it to the caller. In all other cases the kernel opens.
func (t *tracer) open(dirfd int32, addr uint64, flags int, mode uint32) reply {
	if flags&creates == 0 {
		return t.openToWrite(dirfd, addr, flags)
	}
	if flags&unix.O_TMPFILE == unix.O_TMPFILE {
		return t.tmpfile(dirfd, addr, flags, mode)
	}
	p, e := t.newPlace(dirfd, addr, false, false)
	always := false
	if e == 0 && p.dir < 0 && flags&(unix.O_EXCL|unix.O_NOFOLLOW) == 0 && len(p.raw) > 0 {
		// Root may make its file elsewhere, by a symlink that leads to nothing yet.
		if n, _ := unix.Readlink(t.at(dirfd, p.raw), make([]byte, 1)); n > 0 {
			always = true
			p, e = t.newPlace(dirfd, addr, false, true)
		}
	}
	for range maxLinks {
		if e != 0 || p.dir < 0 {
			return native
		}
		var st unix.Stat_t
		err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT {
			r := t.create(p, flags, mode)
			unix.Close(p.dir)
			return r
		}
		if kind := st.Mode & unix.S_IFMT; err == nil && kind != unix.S_IFLNK && kind != unix.S_IFDIR && flags&unix.O_EXCL == 0 && !t.mayOpen(p, flags) {
			unix.Close(p.dir)
			return failed(unix.EACCES)
		}
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK || flags&(unix.O_EXCL|unix.O_NOFOLLOW) != 0 {
			break // it is there, or the kernel knows why not
		}
		// A symlink that leads to nothing yet.
		n, err := unix.Readlinkat(p.dir, p.name, t.text[:])
		if err != nil || n == 0 || n == len(t.text) {
			break
		}
		dir, name := byFD(p.dir)+"/", string(t.text[:n])
		for i := n - 1; i >= 0; i-- {
			if name[i] == '/' {
				if name[0] == '/' {
					dir = ""
				}
				dir, name = dir+name[:i+1], name[i+1:]
				break
			}
		}
		old := p.dir
		if name == "" || name == "." || name == ".." {
			break
		}
		p, e = t.placeIn(dir, name, always)
		unix.Close(old)
	}
	if p.dir >= 0 {
		unix.Close(p.dir)
	}
	return native
}

// openKept opens (O_PATH) the file that a call names, if its owner is kept with it; else there is
// nothing to close, and the kernel may answer.
func (t *tracer) openKept(dirfd int32, addr uint64, flags int) (fd int, _ *unix.Stat_t, ok bool) {
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 {
		return -1, nil, false
	}
	if fd, e = openPath(path, link); e != 0 {
		return -1, nil, false
	}
	st := new(unix.Stat_t)
	if unix.Fstat(fd, st) != nil || !t.keeps(fd, st) {
		unix.Close(fd)
		return -1, nil, false
	}
	return fd, st, true
}

// openToWrite is open of a file that must be there: the kernel opens, if the caller may.
func (t *tracer) openToWrite(dirfd int32, addr uint64, flags int) reply {
	c, ok := t.who()
	if !ok || c.uid[fsID] == 0 || flags&writes == 0 || flags&unix.O_PATH != 0 {
		return native
	}
	look := 0
	if flags&unix.O_NOFOLLOW != 0 {
		look = unix.AT_SYMLINK_NOFOLLOW
	}
	fd, st, ok := t.openKept(dirfd, addr, look)
	if !ok {
		return native
	}
	defer unix.Close(fd)
	if t.may(&c, fd, st, needed(flags)) {
		return native
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFLNK || kind == unix.S_IFDIR {
		return native // ELOOP, EISDIR
	}
	return failed(unix.EACCES)
}

// needed is what the flags of open ask of a file's mode.
func needed(flags int) uint32 {
	need := map[int]uint32{unix.O_RDONLY: 0o4, unix.O_WRONLY: 0o2, unix.O_RDWR: 0o6}[flags&unix.O_ACCMODE]
	if flags&unix.O_TRUNC != 0 {
		need |= 0o2
	}
	return need
}

// create makes the new file at p and hands it over.
func (t *tracer) create(p place, flags int, mode uint32) reply {
	if p.denied {
		return failed(unix.EACCES)
	}
	mode, umask, access := t.modeIn(p, mode&0o7777)
	old := unix.Umask(umask)
	fd, err := unix.Openat(p.dir, p.name, flags&^unix.O_TRUNC|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	unix.Umask(old)
	if err == unix.EEXIST && flags&unix.O_EXCL == 0 {
		return native // somebody was faster
	}
	if err != nil {
		return failed(errnoOf(err))
	}
	return t.handOver(fd, p, access, flags)
}

func (t *tracer) tmpfile(dirfd int32, addr uint64, flags int, mode uint32) reply {
	name, e := t.readString(addr, maxPath)
	if e != 0 || len(name) == 0 {
		return native
	}
	p, e := t.placeIn(t.at(dirfd, name), "", false)
	if e != 0 || p.dir < 0 {
		return native
	}
	defer unix.Close(p.dir)
	mode, umask, access := t.modeIn(p, mode&0o7777)
	old := unix.Umask(umask)
	fd, err := unix.Open(byFD(p.dir), flags|unix.O_CLOEXEC, mode)
	unix.Umask(old)
	if err != nil {
		return failed(errnoOf(err))
	}
	return t.handOver(fd, p, access, flags)
}

// handOver gives the open file its owner and makes it a descriptor of the caller, which answers the
// call. It closes fd.
func (t *tracer) handOver(fd int, p place, access []byte, flags int) reply {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed(errnoOf(err))
	}
	if !t.keeps(fd, &st) {
		return failed(unix.EXDEV) // the directory was, a moment ago
	}
	if access != nil {
		if e := t.inherit(fd, &st, access, nil); e != 0 {
			return failed(e)
		}
	}
	if e := kernels(t.keeper.SetOwnerOf(fd, p.owner)); e != 0 {
		return failed(e)
	}
	a := addFD{id: t.n.id, flags: addFDSend, srcFD: uint32(fd), newFDFlags: uint32(flags & unix.O_CLOEXEC)}
	if _, e := ioctl(t.fd, notifAddFD, unsafe.Pointer(&a)); e != 0 {
		return failed(e)
	}
	return reply{how: replySent}
}

// openat2 is open with its flags in memory. Only what open could do is taken over.
func (t *tracer) openat2(dirfd int32, addr, howAddr, size uint64) reply {
	var how unix.OpenHow
	if size < uint64(unsafe.Sizeof(how)) || !t.read(howAddr, unsafe.Slice((*byte)(unsafe.Pointer(&how)), unsafe.Sizeof(how))) {
		return native
	}
	if how.Resolve != 0 || how.Flags>>32 != 0 || how.Mode&^0o7777 != 0 {
		return native
	}
	return t.open(dirfd, addr, int(how.Flags), uint32(how.Mode))
}

// pidInside is the number of a process in its own innermost PID namespace.
func (t *tracer) pidInside(pid int32) uint32 {
	numbers := strings.Fields(statusOf(int(pid), "NSpid"))
	if len(numbers) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(numbers[len(numbers)-1])
	return uint32(n)
}

// may tells whether the caller may do with the file what the bits of need say, read 4, write 2, and
// execute or look up 1, as far as owner, group and mode say. The kernel would allow it: to it all
// files are the caller's. It is asked where a call is seen anyway.
func (t *tracer) may(c *ids, fd int, st *unix.Stat_t, need uint32) bool {
	if c.uid[fsID] == 0 || c.caps.effective>>unix.CAP_DAC_OVERRIDE&1 != 0 {
		return true
	}
	o, _ := t.ownerOf(fd, st)
	if list := t.keeper.Attr(byFD(fd), aclAccess); list != nil && t.keeps(fd, st) {
		return c.allowed(list, o, need)
	}
	switch {
	case c.uid[fsID] == o.UID:
		need <<= 6
	case c.inGroup(o.GID):
		need <<= 3
	}
	return st.Mode&need == need
}

// mayOpen is may for the file at p, as it would be opened.
func (t *tracer) mayOpen(p place, flags int) bool {
	c, ok := t.who()
	fd, err := unix.Openat(p.dir, p.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if !ok || err != nil {
		return true
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) != nil || t.may(&c, fd, &st, needed(flags))
}
