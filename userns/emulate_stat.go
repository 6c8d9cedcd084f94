package userns

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxPath is PATH_MAX, the NUL with it.
const maxPath = unix.PathMax

// locate makes t.path a path that leads this thread where the caller's own leads it; link tells
// whether the caller means a symlink itself. An errno is the kernel's for such arguments.
func (t *tracer) locate(dirfd int32, addr uint64, flags int) (path string, link bool, e unix.Errno) {
	var name []byte
	if addr != 0 {
		if name, e = t.readString(addr, maxPath); e != 0 {
			return "", false, e
		}
	}
	if len(name) == 0 {
		switch {
		case flags&unix.AT_EMPTY_PATH != 0:
		case addr == 0:
			return "", false, unix.EFAULT
		default:
			return "", false, unix.ENOENT
		}
		return t.at(dirfd, nil), false, 0 // a magic link, which is followed to exactly what is open
	}
	return t.at(dirfd, name), flags&unix.AT_SYMLINK_NOFOLLOW != 0, 0
}

// at is a path to name, relative to a directory of the caller.
func (t *tracer) at(dirfd int32, name []byte) string {
	p := t.path[:0]
	if len(name) > 0 && name[0] == '/' {
		// The container's /proc/self is the caller for the caller only.
		for _, self := range []string{"/proc/self/", "/proc/thread-self/", "/dev/fd/"} {
			if rest, ok := bytes.CutPrefix(name, []byte(self)); ok {
				p = strconv.AppendInt(p, int64(t.n.pid), 10)
				p = append(p, '/')
				if self == "/dev/fd/" {
					p = append(p, "fd/"...)
				}
				p = append(p, rest...)
				t.path = p
				return string(p)
			}
		}
		return string(name)
	}
	p = strconv.AppendInt(p, int64(t.n.pid), 10)
	if dirfd == unix.AT_FDCWD {
		p = append(p, "/cwd"...)
	} else {
		p = append(p, "/fd/"...)
		p = strconv.AppendInt(p, int64(dirfd), 10)
	}
	if len(name) > 0 {
		p = append(p, '/')
		p = append(p, name...)
	}
	t.path = p
	return string(p)
}

// openPath opens what locate found. The caller closes.
func openPath(path string, link bool) (int, unix.Errno) {
	flags := unix.O_PATH | unix.O_CLOEXEC
	if link {
		flags |= unix.O_NOFOLLOW
	}
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, errnoOf(err)
		}
	}
}

// byFD is a path to what is open here.
func byFD(fd int) string { return "self/fd/" + strconv.Itoa(fd) }

// ownerOf tells what is remembered of a file open by O_PATH.
func (t *tracer) ownerOf(fd int, st *unix.Stat_t) (Owner, bool) {
	if t.keeps(fd, st) {
		signs := t.keeper.Look(byFD(fd), false)
		if !signs.Any() {
			return Owner{}, false
		}
		return t.keeper.Owner(byFD(fd), false, signs)
	}
	return t.other.get(st)
}

// opened borrows the descriptor that a call is about if that is all it names: by fstat, fchown, or
// AT_EMPTY_PATH with an empty path. It is -1 where it names a path, or the descriptor is O_PATH.
func (t *tracer) opened(dirfd int32, addr uint64, flags int) int {
	if flags&unix.AT_EMPTY_PATH == 0 || dirfd < 0 {
		return -1
	}
	var first [1]byte
	if addr != 0 && (!t.read(addr, first[:]) || first[0] != 0) {
		return -1
	}
	fd := t.borrow(dirfd)
	if fd < 0 {
		return -1
	}
	if mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || mode&unix.O_PATH != 0 {
		unix.Close(fd)
		return -1
	}
	return fd
}

// onlyPath tells whether a descriptor of the caller is O_PATH: good for little more than a path.
func (t *tracer) onlyPath(fd int32) bool {
	own := t.borrow(fd)
	if own < 0 {
		return false
	}
	defer unix.Close(own)
	mode, err := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0)
	return err == nil && mode&unix.O_PATH != 0
}

// isOpen tells whether the caller has the descriptor that a path may be relative to.
func (t *tracer) isOpen(dirfd int32) bool {
	var st unix.Stat_t
	return dirfd == unix.AT_FDCWD || unix.Lstat(t.at(dirfd, nil), &st) == nil
}

// unknown tells that nothing is remembered of a file, without opening it.
func (t *tracer) unknown(path string, link bool) bool {
	if !t.other.empty() {
		return false
	}
	return !t.keeper.Look(path, link).Any()
}

// remembered opens the file that a stat is about (O_PATH) if it has an owner that only the keeper
// knows. Most files are root's: for them, and for what cannot be opened, fd is -1, and the kernel answers,
// unless the errno is that the caller may not search there.
func (t *tracer) remembered(dirfd int32, addr uint64, flags int) (fd int, st unix.Stat_t, o Owner, e unix.Errno) {
	if fd = t.opened(dirfd, addr, flags); fd >= 0 {
		known := false
		if signs := t.keeper.LookOf(fd); (signs.Any() || !t.other.empty()) && unix.Fstat(fd, &st) == nil {
			if t.keeps(fd, &st) {
				o, known = t.keeper.OwnerOf(fd, signs)
			} else {
				o, known = t.other.get(&st)
			}
		}
		if !known {
			unix.Close(fd)
			fd = -1
		}
		return fd, st, o, 0
	}
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 {
		return -1, st, o, 0
	}
	if o, ok := t.ownerInProc(path); ok {
		if fd, e = openPath(path, link); e == 0 && isProc(fd) && unix.Fstat(fd, &st) == nil {
			return fd, st, o, 0
		} else if e == 0 {
			unix.Close(fd)
		}
	}
	var signs Signs
	if c, ok := t.who(); ok && !c.isRoot() && !t.isOpenTo(dirfd, path, 0) {
		f, e := t.findCall(&c, dirfd, addr, flags)
		if f.file < 0 {
			f.close()
			return -1, st, o, refusal(e)
		}
		fd, st, f.file = f.file, f.st, -1
		f.close()
		signs = t.keeper.Look(byFD(fd), false)
	} else {
		if signs = t.keeper.Look(path, link); !signs.Any() && t.other.empty() {
			return -1, st, o, 0
		}
		if fd, e = openPath(path, link); e != 0 {
			return -1, st, o, 0
		}
		unix.Fstat(fd, &st)
	}
	known := false
	if t.keeps(fd, &st) {
		// What was looked at may have made room for another file: it is asked whatever it can be.
		signs.Owner = true
		if o, known = t.keeper.Owner(byFD(fd), false, signs); !known {
			o, known = t.ownerOf(fd, &st)
		}
	} else {
		o, known = t.other.get(&st)
	}
	if !known {
		unix.Close(fd)
		return -1, st, o, 0
	}
	return fd, st, o, 0
}

// stat answers stat, lstat, fstat and newfstatat.
func (t *tracer) stat(dirfd int32, addr, buf uint64, flags int) reply {
	fd, st, o, e := t.remembered(dirfd, addr, flags)
	if e != 0 || fd < 0 {
		return orNative(e)
	}
	unix.Close(fd)
	st.Uid, st.Gid = o.UID, o.GID
	if o.Mode != 0 {
		st.Mode = o.Mode | st.Mode&0o7777
		st.Rdev = o.Rdev
	}
	if t.n.arch == compatArch {
		return failed(t.write(buf, stat64(&st)))
	}
	return failed(t.write(buf, unsafe.Slice((*byte)(unsafe.Pointer(&st)), unsafe.Sizeof(st))))
}

// stat64 is st as 32-bit programs on x86 take it: struct stat64, 96 bytes without padding.
func stat64(st *unix.Stat_t) []byte {
	b := make([]byte, 0, 96)
	word := func(v uint64) { b = binary.LittleEndian.AppendUint32(b, uint32(v)) }
	long := func(v uint64) { b = binary.LittleEndian.AppendUint64(b, v) }
	long(st.Dev)
	word(0)
	word(st.Ino) // the lower half, as before there were others
	word(uint64(st.Mode))
	word(uint64(st.Nlink))
	word(uint64(st.Uid))
	word(uint64(st.Gid))
	long(st.Rdev)
	word(0)
	long(uint64(st.Size))
	word(uint64(st.Blksize))
	long(uint64(st.Blocks))
	for _, t := range []unix.Timespec{st.Atim, st.Mtim, st.Ctim} {
		word(uint64(t.Sec))
		word(uint64(t.Nsec))
	}
	long(st.Ino)
	return b
}

const statxSync = 0x6000 // AT_STATX_SYNC_TYPE

func (t *tracer) statx(dirfd int32, addr uint64, flags int, mask uint32, buf uint64) reply {
	fd, _, o, e := t.remembered(dirfd, addr, flags)
	if e != 0 || fd < 0 {
		return orNative(e)
	}
	defer unix.Close(fd)
	var stx unix.Statx_t
	if unix.Statx(fd, "", flags&statxSync|unix.AT_EMPTY_PATH, int(mask), &stx) != nil {
		return native
	}
	stx.Uid, stx.Gid = o.UID, o.GID
	if o.Mode != 0 {
		stx.Mode = uint16(o.Mode) | stx.Mode&0o7777
		stx.Rdev_major, stx.Rdev_minor = unix.Major(o.Rdev), unix.Minor(o.Rdev)
	}
	return failed(t.write(buf, unsafe.Slice((*byte)(unsafe.Pointer(&stx)), unsafe.Sizeof(stx))))
}

// others are owners of files that are not on the container's root: of a tmpfs, a terminal, the
// caller's directory. They are true for the container while it runs, and in no layer.
type others struct {
	mu    sync.RWMutex
	table map[fileID]Owner
}

type fileID struct{ dev, ino uint64 }

// maxOthers bounds what one container can make us keep, to some megabytes.
const maxOthers = 1 << 16

func (o *others) empty() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return len(o.table) == 0
}

func (o *others) get(st *unix.Stat_t) (Owner, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	owner, ok := o.table[fileID{st.Dev, st.Ino}]
	return owner, ok
}

func (o *others) set(st *unix.Stat_t, owner Owner) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := fileID{st.Dev, st.Ino}
	if owner == (Owner{}) {
		delete(o.table, id)
		return nil
	}
	if _, ok := o.table[id]; !ok && len(o.table) == maxOthers {
		return unix.ENOSPC
	}
	if o.table == nil {
		o.table = map[fileID]Owner{}
	}
	o.table[id] = owner
	return nil
}
