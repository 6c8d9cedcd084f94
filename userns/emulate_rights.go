package userns

import (
	"strings"

	"golang.org/x/sys/unix"
)

// To the kernel all files are the caller's, and it refuses nothing. So who is not root is refused here
// what owner, group, access list and capabilities refuse: path_resolution(7), and for each call its own
// page. Only where owners are kept. What changes a directory or a mode is then done here, by the
// descriptors that were looked at; the rest the kernel does, and a program that changes the path
// meanwhile, by another thread, gets what it would have got without us: it is no wall between users.

const (
	mayExec  = 1 // or search
	mayWrite = 2
	mayRead  = 4
)

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

func (c *ids) isRoot() bool { return c.uid[fsID] == 0 }

// has tells whether a capability of the caller counts for files.
func (c *ids) has(capability uint) bool {
	return c.isRoot() || c.caps.effective>>capability&1 != 0
}

// may tells whether the caller may do with the file what the bits of need say, as far as owner, group
// and mode say.
func (t *tracer) may(c *ids, fd int, st *unix.Stat_t, need uint32) bool {
	dir := isDir(st)
	switch {
	case c.has(unix.CAP_DAC_OVERRIDE):
		return true
	case c.has(unix.CAP_DAC_READ_SEARCH) && (need == mayRead || dir && need&mayWrite == 0):
		return true
	case dir && need == mayExec && st.Mode&0o111 == 0o111:
		return true // most are so; that a list excludes one by name is not looked at
	case !t.keeps(fd, st):
		return true
	}
	o, _ := t.ownerOf(fd, st)
	if list := t.keeper.Attr(byFD(fd), aclAccess); list != nil {
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

// owns tells whether the caller may do what a file's owner may.
func (t *tracer) owns(c *ids, fd int, st *unix.Stat_t) bool {
	if c.has(unix.CAP_FOWNER) || !t.keeps(fd, st) {
		return true
	}
	o, _ := t.ownerOf(fd, st)
	return c.uid[fsID] == o.UID
}

// sheds tells whether chown takes bits from the mode of a file of o's, which only its owner may.
func (c *ids) sheds(o Owner, st *unix.Stat_t) bool {
	switch {
	case isDir(st):
		return false
	case st.Mode&unix.S_ISGID != 0 && (st.Mode&unix.S_IXGRP != 0 || !c.maySetgid(o)):
		return true
	}
	return st.Mode&unix.S_ISUID != 0
}

// maySetgid tells whether the setgid bit of a file of o's stays when the caller sets its mode.
func (c *ids) maySetgid(o Owner) bool { return c.inGroup(o.GID) || c.has(unix.CAP_FSETID) }

// mayRemove is what unlink, rmdir and rename ask before a name goes.
func (t *tracer) mayRemove(c *ids, f *found) unix.Errno {
	switch {
	case !t.may(c, f.dir, &f.at, mayWrite|mayExec):
		return unix.EACCES
	case f.at.Mode&unix.S_ISVTX != 0 && !t.owns(c, f.dir, &f.at) && !t.owns(c, f.file, &f.st):
		return unix.EPERM
	}
	return 0
}

// refusal is what find's errno means to a call: that it is refused, or 0.
func refusal(e unix.Errno) unix.Errno {
	if e == unix.EACCES || e == unix.ESRCH {
		return e
	}
	return 0
}

// refused is the answer where the caller may not change the file at fd, unless nobody may.
func refused(fd int, e unix.Errno) reply {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return native
	}
	return failed(e)
}

// user is the caller, if it is not root, and the path that it names. Else the kernel may answer.
func (t *tracer) user(addr uint64) (c ids, path []byte, ok bool) {
	c, ok = t.who()
	if !ok || c.isRoot() {
		return c, nil, false
	}
	path, e := t.readString(addr, maxPath)
	return c, path, e == 0 && len(path) > 0
}

// unlink answers unlink, rmdir and unlinkat.
func (t *tracer) unlink(dirfd int32, addr uint64, flags int) reply {
	c, path, ok := t.user(addr)
	if !ok {
		return native
	}
	f, e := t.find(&c, dirfd, path, named)
	defer f.close()
	if e != 0 || f.dir < 0 || f.file < 0 || !t.keeps(f.dir, &f.at) {
		return orNative(refusal(e))
	}
	if e := t.mayRemove(&c, &f); e != 0 {
		return refused(f.dir, e)
	}
	return failed(errnoOf(unix.Unlinkat(f.dir, f.name, flags)))
}

func (t *tracer) rename(oldDir int32, oldAddr uint64, newDir int32, newAddr uint64, flags uint) reply {
	c, path, ok := t.user(oldAddr)
	if !ok {
		return native
	}
	from, e := t.find(&c, oldDir, path, named)
	defer from.close()
	if e != 0 || from.dir < 0 {
		return orNative(refusal(e))
	}
	if _, path, ok = t.user(newAddr); !ok {
		return native
	}
	to, e := t.find(&c, newDir, path, named)
	defer to.close()
	same := from.st.Dev == to.st.Dev && from.st.Ino == to.st.Ino
	exists := to.file >= 0
	switch {
	case e != 0 || from.file < 0 || to.dir < 0 || !t.keeps(from.dir, &from.at) || !t.keeps(to.dir, &to.at):
		return orNative(refusal(e))
	case exists && (same || flags&unix.RENAME_NOREPLACE != 0), !exists && flags&unix.RENAME_EXCHANGE != 0:
		return native
	case flags&unix.RENAME_WHITEOUT != 0 && !c.has(unix.CAP_MKNOD):
		return failed(unix.EPERM)
	}
	if e = t.mayRemove(&c, &from); e == 0 {
		if exists {
			e = t.mayRemove(&c, &to)
		} else if !t.may(&c, to.dir, &to.at, mayWrite|mayExec) {
			e = unix.EACCES
		}
	}
	swap := flags&unix.RENAME_EXCHANGE != 0
	if e == 0 && exists && !swap && (from.st.Mode^to.st.Mode)&unix.S_IFMT != 0 && (isDir(&from.st) || isDir(&to.st)) {
		return native // ENOTDIR, EISDIR
	}
	if e == 0 && from.at.Ino != to.at.Ino && (!t.mayMove(&c, &from) || swap && !t.mayMove(&c, &to)) {
		e = unix.EACCES
	}
	if e != 0 {
		if isBelow(to.dir, &from.st) || exists && isBelow(from.dir, &to.st) {
			return native // EINVAL, ENOTEMPTY
		}
		return refused(from.dir, e)
	}
	return failed(errnoOf(unix.Renameat2(from.dir, from.name, to.dir, to.name, flags)))
}

// isBelow tells whether a directory is top, or below it.
func isBelow(dir int, top *unix.Stat_t) bool {
	here, _ := unix.Dup(dir)
	for {
		var st, up unix.Stat_t
		if unix.Fstat(here, &st) != nil {
			return false
		}
		if st.Dev == top.Dev && st.Ino == top.Ino {
			unix.Close(here)
			return true
		}
		parent, err := unix.Openat(here, "..", unix.O_PATH|unix.O_CLOEXEC, 0)
		unix.Close(here)
		if here = parent; err != nil || unix.Fstat(here, &up) != nil || up.Dev == st.Dev && up.Ino == st.Ino {
			unix.Close(here)
			return false
		}
	}
}

// mayMove tells whether a directory's ".." may become another.
func (t *tracer) mayMove(c *ids, f *found) bool {
	return !isDir(&f.st) || t.may(c, f.file, &f.st, mayWrite)
}

func (t *tracer) link(oldDir int32, oldAddr uint64, newDir int32, newAddr uint64, flags int) reply {
	c, path, ok := t.user(oldAddr)
	if !ok || flags&^unix.AT_SYMLINK_FOLLOW != 0 {
		return native
	}
	end := looked
	if flags&unix.AT_SYMLINK_FOLLOW != 0 {
		end = followed
	}
	from, e := t.find(&c, oldDir, path, end)
	defer from.close()
	if e != 0 || from.file < 0 {
		return orNative(refusal(e))
	}
	if _, path, ok = t.user(newAddr); !ok {
		return native
	}
	to, e := t.find(&c, newDir, path, named)
	defer to.close()
	switch {
	case e != 0 || to.dir < 0 || to.file >= 0 || !t.keeps(to.dir, &to.at) || !t.keeps(from.file, &from.st):
		return orNative(refusal(e))
	case !t.mayLink(&c, &from):
		return refused(to.dir, unix.EPERM)
	case !t.may(&c, to.dir, &to.at, mayWrite|mayExec):
		return refused(to.dir, unix.EACCES)
	}
	return failed(errnoOf(unix.Linkat(unix.AT_FDCWD, byFD(from.file), to.dir, to.name, unix.AT_SYMLINK_FOLLOW)))
}

// mayLink tells whether the caller may give a file another name: proc_sys_fs(5), protected_hardlinks.
func (t *tracer) mayLink(c *ids, f *found) bool {
	const setgid = unix.S_ISGID | unix.S_IXGRP
	if t.owns(c, f.file, &f.st) || !t.protectedLinks() {
		return true
	}
	return f.st.Mode&unix.S_IFMT == unix.S_IFREG && f.st.Mode&unix.S_ISUID == 0 && f.st.Mode&setgid != setgid &&
		t.may(c, f.file, &f.st, mayRead|mayWrite)
}

// protectedLinks reads what the machine says.
func (t *tracer) protectedLinks() bool {
	fd, err := unix.Open("sys/fs/protected_hardlinks", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var b [1]byte
	n, _ := unix.Read(fd, b[:])
	return n == 1 && b[0] == '1'
}

// chmod answers chmod, fchmodat and fchmodat2.
func (t *tracer) chmod(dirfd int32, addr uint64, mode uint32, flags int) reply {
	c, ok := t.who()
	if !ok || c.isRoot() || flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return native
	}
	f, e := t.findCall(&c, dirfd, addr, flags)
	defer f.close()
	if e != 0 || f.file < 0 || f.st.Mode&unix.S_IFMT == unix.S_IFLNK || strings.HasSuffix(f.name, "/") && !isDir(&f.st) {
		return orNative(refusal(e))
	}
	return t.chmodOpen(&c, f.file, &f.st, mode)
}

func (t *tracer) fchmod(fd int32, mode uint32) reply {
	c, ok := t.who()
	if !ok || c.isRoot() {
		return native
	}
	own := t.opened(fd, 0, unix.AT_EMPTY_PATH)
	if own < 0 {
		return native
	}
	defer unix.Close(own)
	var st unix.Stat_t
	if unix.Fstat(own, &st) != nil || !t.alive() {
		return native
	}
	return t.chmodOpen(&c, own, &st, mode)
}

func (t *tracer) chmodOpen(c *ids, fd int, st *unix.Stat_t, mode uint32) reply {
	if !t.keeps(fd, st) {
		return native
	}
	if !t.owns(c, fd, st) {
		return refused(fd, unix.EPERM)
	}
	if o, _ := t.ownerOf(fd, st); !c.maySetgid(o) {
		mode &^= unix.S_ISGID
	}
	return failed(errnoOf(unix.Chmod(byFD(fd), mode&0o7777)))
}

// utimes answers the calls that set times. To utimensat the second number of each pair may say "now" or
// "leave it": size is that of one number, else 0.
func (t *tracer) utimes(dirfd int32, addr, times uint64, flags int, size int) reply {
	c, ok := t.who()
	if !ok || c.isRoot() {
		return native
	}
	if addr == 0 {
		flags |= unix.AT_EMPTY_PATH // it is dirfd's
	}
	f, e := t.findCall(&c, dirfd, addr, flags)
	defer f.close()
	if e != 0 || f.file < 0 || !t.keeps(f.file, &f.st) {
		return orNative(refusal(e))
	}
	now := times == 0
	if size > 0 && !now {
		const utimeNow, utimeOmit = 1<<30 - 1, 1<<30 - 2
		var b [32]byte
		if !t.read(times, b[:4*size]) {
			return native
		}
		a, m := word32(b[:], size), word32(b[:], 3*size) // little-endian: the lower half of each
		if a == utimeOmit && m == utimeOmit {
			return native
		}
		now = a == utimeNow && m == utimeNow
	}
	switch {
	case t.owns(&c, f.file, &f.st):
		return native
	case !now:
		return refused(f.file, unix.EPERM)
	case !t.may(&c, f.file, &f.st, mayWrite):
		return refused(f.file, unix.EACCES)
	}
	return native
}

// ask answers a call that the kernel does if the caller may do with the file what need says. kind, unless
// 0, is the only one of which it is asked.
func (t *tracer) ask(dirfd int32, addr uint64, flags int, kind, need uint32) reply {
	c, ok := t.who()
	if !ok || c.isRoot() {
		return native
	}
	if path, _, e := t.locate(dirfd, addr, flags); e == 0 && kind == 0 && t.isOpenTo(dirfd, path, need) {
		return native
	}
	f, e := t.findCall(&c, dirfd, addr, flags)
	defer f.close()
	if e == 0 && f.file >= 0 && (kind == 0 || f.st.Mode&unix.S_IFMT == kind) && !t.may(&c, f.file, &f.st, need) {
		e = unix.EACCES
	}
	return orNative(refusal(e))
}

// access answers what the real user may do, or with AT_EACCESS the effective one.
func (t *tracer) access(dirfd int32, addr uint64, mode uint32, flags int) reply {
	c, ok := t.who()
	if !ok || mode > 7 {
		return native
	}
	if flags&unix.AT_EACCESS == 0 {
		c.uid[fsID], c.gid[fsID] = c.uid[real], c.gid[real]
		if c.caps.effective = 0; c.uid[real] == 0 {
			c.caps.effective = c.permitted()
		}
	}
	if c.isRoot() {
		return native
	}
	if path, _, e := t.locate(dirfd, addr, flags); e == 0 && t.isOpenTo(dirfd, path, mode) {
		return native
	}
	f, e := t.findCall(&c, dirfd, addr, flags)
	defer f.close()
	switch {
	case e != 0 || f.file < 0 || t.may(&c, f.file, &f.st, mode):
		return orNative(refusal(e))
	case mode&mayWrite != 0:
		return refused(f.file, unix.EACCES)
	}
	return failed(unix.EACCES)
}

// neededTo is what the flags of open ask of a file.
func neededTo(flags int) uint32 {
	switch flags & (unix.O_ACCMODE | unix.O_TRUNC | unix.O_PATH) {
	case unix.O_RDONLY:
		return mayRead
	case unix.O_WRONLY, unix.O_WRONLY | unix.O_TRUNC:
		return mayWrite
	}
	if flags&unix.O_PATH != 0 {
		return 0
	}
	return mayRead | mayWrite
}

// mayOpen lets the kernel open what is there, if the caller may.
func (t *tracer) mayOpen(c *ids, f *found, flags int) reply {
	kind := f.st.Mode & unix.S_IFMT
	need := neededTo(flags)
	switch {
	case flags&unix.O_PATH != 0 || kind == unix.S_IFLNK || kind == unix.S_IFDIR && need&mayWrite != 0:
		return native // ELOOP, EISDIR
	case !t.may(c, f.file, &f.st, need):
		return failed(unix.EACCES)
	case flags&unix.O_NOATIME != 0 && !t.owns(c, f.file, &f.st):
		return failed(unix.EPERM)
	}
	return native
}
