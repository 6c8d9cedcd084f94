package userns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
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
		signs := t.keeper.LookOf(fd)
		if toRoot && !signs.Any() && t.other.empty() {
			return native
		}
		return t.chownOpen(&c, fd, uid, gid, true, signs)
	}
	if int(t.n.nr) == unix.SYS_FCHOWN && t.onlyPath(dirfd) {
		return failed(unix.EBADF)
	}
	if !c.isRoot() {
		f, e := t.findCall(&c, dirfd, addr, flags)
		defer f.close()
		if e = refusal(e); e != 0 {
			return failed(e)
		}
		if f.file >= 0 {
			return t.chownOpen(&c, f.file, uid, gid, false, t.keeper.Look(byFD(f.file), false))
		}
	}
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 {
		return failed(e)
	}
	if toRoot && t.unknown(path, link) {
		return native
	}
	fd, e := openPath(path, link)
	if e != 0 {
		if e == unix.ENOENT && !t.isOpen(dirfd) {
			return native // which says EBADF, if it gets there
		}
		return failed(e)
	}
	defer unix.Close(fd)
	return t.chownOpen(&c, fd, uid, gid, false, t.keeper.Look(byFD(fd), false))
}

// chownOpen is chown of an open file that has been looked at; borrowed: it is the caller's own, and not
// O_PATH.
func (t *tracer) chownOpen(c *ids, fd int, uid, gid uint32, borrowed bool, signs Signs) reply {
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
	case !signs.Any():
	case borrowed:
		o, _ = t.keeper.OwnerOf(fd, signs)
	default:
		o, _ = t.keeper.Owner(byFD(fd), false, signs)
	}
	if !c.has(unix.CAP_CHOWN) && (uid != keep || gid != keep || c.sheds(o, &st)) {
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
	if !kept || o == was || o == (Owner{}) || !harmless(&st, signs) {
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

// harmless tells whether a file has nothing that chown takes away.
func harmless(st *unix.Stat_t, signs Signs) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true
	case unix.S_IFREG:
		return st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 && !signs.Capability
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
	path, e := t.readString(addr, maxPath)
	if e != 0 || len(path) == 0 || !dir && path[len(path)-1] == '/' {
		return place{dir: -1}, 0
	}
	return t.placeAt(dirfd, path, always)
}

// placeAt is newPlace for a path that has been read.
func (t *tracer) placeAt(dirfd int32, path []byte, always bool) (p place, e unix.Errno) {
	p.dir = -1
	c, ok := t.who()
	if !ok {
		return p, unix.ESRCH
	}
	if c.isRoot() && !always && t.plain(dirfd, path) {
		return p, 0
	}
	f, e := t.find(&c, dirfd, path, named)
	if e != 0 {
		return p, refusal(e)
	}
	defer f.close()
	if f.dir < 0 || f.file >= 0 {
		return p, 0
	}
	p, e = t.placeIn(&c, f.dir, &f.at, strings.TrimRight(f.name, "/"), always)
	f.dir = -1
	return p, e
}

// plain tells whether what root makes at path is as the kernel makes it: its directory gives it neither
// a group nor an access list that the kernel does not know of.
func (t *tracer) plain(dirfd int32, path []byte) bool {
	parent := bytes.TrimRight(path, "/")
	parent = parent[:bytes.LastIndexByte(parent, '/')+1]
	dir := t.at(dirfd, parent)
	signs := t.keeper.Look(dir, false)
	if !signs.Owner || signs.Default {
		return !signs.Default
	}
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && st.Mode&unix.S_ISGID == 0
}

// placeIn is newPlace for a directory that is open, which it takes over.
func (t *tracer) placeIn(c *ids, dir int, st *unix.Stat_t, name string, always bool) (p place, e unix.Errno) {
	p = place{dir: dir, name: name, owner: Owner{UID: c.uid[fsID], GID: c.gid[fsID]}}
	if !t.keeps(dir, st) || st.Mode&unix.S_IFMT != unix.S_IFDIR { // not ours, or no place for a file
		unix.Close(dir)
		return place{dir: -1}, 0
	}
	p.denied = !t.may(c, dir, st, mayWrite|mayExec)
	if o, known := t.ownerOf(dir, st); known {
		p.list = t.keeper.Attr(byFD(dir), aclDefault)
		if st.Mode&unix.S_ISGID != 0 {
			p.owner.GID = o.GID
		}
	} else if st.Mode&unix.S_ISGID != 0 {
		p.owner.GID = 0
	}
	if p.owner == (Owner{}) && p.list == nil && !p.denied && !always {
		unix.Close(dir)
		return place{dir: -1}, 0
	}
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
		return refused(p.dir, unix.EACCES)
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

// bind gives a socket its name, as a user who has the file then. The caller's address is used as it is,
// since that is what the others see.
func (t *tracer) bind(fd int32, addr, size uint64) reply {
	if c, ok := t.who(); !ok || c.isRoot() || size <= 2 || size > unix.SizeofSockaddrUnix {
		return native
	}
	name := make([]byte, size) // struct sockaddr_un
	if !t.read(addr, name) || binary.NativeEndian.Uint16(name) != unix.AF_UNIX || name[2] == 0 {
		return native
	}
	path, _, _ := bytes.Cut(name[2:], []byte{0})
	p, e := t.placeAt(unix.AT_FDCWD, path, false)
	if e != 0 || p.dir < 0 {
		return orNative(e)
	}
	defer unix.Close(p.dir)
	sock := t.borrow(fd)
	here, e := openPath(t.at(unix.AT_FDCWD, nil), false)
	if sock < 0 || e != 0 || !t.alive() {
		unix.Close(sock)
		unix.Close(here)
		return native
	}
	defer unix.Close(sock)
	defer unix.Close(here)
	p.list = nil // for files that have another mode
	return t.making(p, 0, func(uint32) error {
		if err := unix.Fchdir(here); err != nil {
			return err
		}
		defer unix.Fchdir(t.proc)
		_, _, e := unix.Syscall(unix.SYS_BIND, uintptr(sock), uintptr(unsafe.Pointer(&name[0])), uintptr(size))
		if e != 0 {
			return e
		}
		return nil
	})
}

func orNative(e unix.Errno) reply {
	if e != 0 {
		return failed(e)
	}
	return native
}

// open makes the file that open would make, if it would be somebody else's than root's, and hands
// it to the caller. In all other cases the kernel opens, if the caller may.
func (t *tracer) open(dirfd int32, addr uint64, flags int, mode uint32) reply {
	c, ok := t.who()
	path, e := t.readString(addr, maxPath)
	if !ok || e != 0 || len(path) == 0 {
		return native
	}
	makes := flags&unix.O_CREAT != 0 && flags&unix.O_PATH == 0
	temporary := flags&unix.O_TMPFILE == unix.O_TMPFILE && !makes
	if c.isRoot() {
		if !makes && !temporary {
			return native
		}
		dir := path
		if temporary {
			dir = slices.Concat(path, []byte("/x"))
		}
		// It may make the file elsewhere, by a symlink that leads to nothing yet.
		n := 0
		if makes && flags&(unix.O_EXCL|unix.O_NOFOLLOW) == 0 {
			n, _ = unix.Readlink(t.at(dirfd, path), make([]byte, 1))
		}
		if n <= 0 && t.plain(dirfd, dir) {
			return native
		}
	}
	if !makes && !temporary && flags&unix.O_NOATIME == 0 && t.isOpenTo(dirfd, t.at(dirfd, path), neededTo(flags)) {
		return native
	}
	end := followed
	if flags&unix.O_NOFOLLOW != 0 || makes && flags&unix.O_EXCL != 0 {
		end = looked
	}
	f, e := t.find(&c, dirfd, path, end)
	if e != 0 {
		return orNative(refusal(e))
	}
	defer f.close()
	switch {
	case temporary && f.file >= 0:
		p, e := t.placeIn(&c, f.file, &f.st, "", false)
		f.file = -1
		if e != 0 || p.dir < 0 {
			return orNative(e)
		}
		defer unix.Close(p.dir)
		return t.tmpfile(p, flags, mode)
	case makes && f.file < 0 && f.dir >= 0 && !strings.HasSuffix(f.name, "/"):
		p, e := t.placeIn(&c, f.dir, &f.at, f.name, false)
		f.dir = -1
		if e != 0 || p.dir < 0 {
			return orNative(e)
		}
		defer unix.Close(p.dir)
		return t.create(p, flags, mode)
	case f.file < 0 || makes && flags&unix.O_EXCL != 0:
		return native // which says so
	}
	return t.mayOpen(&c, &f, flags)
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

// create makes the new file at p and hands it over.
func (t *tracer) create(p place, flags int, mode uint32) reply {
	if p.denied {
		return refused(p.dir, unix.EACCES)
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

func (t *tracer) tmpfile(p place, flags int, mode uint32) reply {
	if p.denied {
		return refused(p.dir, unix.EACCES)
	}
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
	if e := handOverFD(t.fd, &a); e != 0 {
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
