package builder

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileStat is what mk takes from statx(2). Times are nanoseconds since 1970.
type fileStat struct {
	dev, ino, rdev uint64
	size, blocks   int64 // blocks of 512 bytes
	mtime, ctime   int64
	mode, nlink    uint32
	uid, gid       uint32
}

func (s *fileStat) kind() uint32    { return s.mode & unix.S_IFMT }
func (s *fileStat) isDir() bool     { return s.kind() == unix.S_IFDIR }
func (s *fileStat) isLink() bool    { return s.kind() == unix.S_IFLNK }
func (s *fileStat) isRegular() bool { return s.kind() == unix.S_IFREG }

// same tells whether nothing was written to the file between two stats.
func (s *fileStat) same(o *fileStat) bool {
	return s.ino == o.ino && s.dev == o.dev && s.size == o.size &&
		s.mtime == o.mtime && s.ctime == o.ctime && s.mode == o.mode
}

var emptyName = [1]byte{}

// statx fills st for the NUL-terminated name, itself and not what it links to.
// The pointer goes straight into a getdents buffer: a context of 200,000 files
// is statted without an allocation a file.
func statx(dir int, name *byte, flags int, st *fileStat) error {
	var x unix.Statx_t
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(name)),
			uintptr(flags), unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&x)), 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		break
	}
	*st = fileStat{
		dev: unix.Mkdev(x.Dev_major, x.Dev_minor), ino: x.Ino, rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor),
		size: int64(x.Size), blocks: int64(x.Blocks),
		mtime: x.Mtime.Sec*1e9 + int64(x.Mtime.Nsec), ctime: x.Ctime.Sec*1e9 + int64(x.Ctime.Nsec),
		mode: uint32(x.Mode), nlink: x.Nlink, uid: x.Uid, gid: x.Gid,
	}
	return nil
}

func statAt(dir int, name string, st *fileStat) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return statx(dir, p, unix.AT_SYMLINK_NOFOLLOW, st)
}

func statFd(fd int, st *fileStat) error {
	return statx(fd, &emptyName[0], unix.AT_EMPTY_PATH, st)
}

func openAt(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func readLinkAt(dir int, name string) (string, error) {
	var small [256]byte
	for buf := small[:]; ; buf = make([]byte, 2*len(buf)) {
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}

// dirHandle is an open directory shared by those who work in it: the last one
// to release it closes it. Without that a wide tree would need a descriptor for
// each of its directories at once.
type dirHandle struct {
	fd   int
	refs atomic.Int32
	keep bool   // somebody else's descriptor
	last func() // runs before closing
}

func newDir(fd int) *dirHandle {
	d := &dirHandle{fd: fd}
	d.refs.Store(1)
	return d
}

// borrowDir is a handle on a descriptor that is not ours to close.
func borrowDir(fd int) *dirHandle {
	d := newDir(fd)
	d.keep = true
	return d
}

func (d *dirHandle) ref() *dirHandle {
	d.refs.Add(1)
	return d
}

func (d *dirHandle) release() {
	if d == nil || d.refs.Add(-1) > 0 {
		return
	}
	if d.last != nil {
		d.last()
	}
	if !d.keep {
		unix.Close(d.fd)
	}
}

// dirName is one name in a directory. The string is followed by a NUL in
// memory, which is what cname relies on.
type dirName struct {
	name string
	kind uint8 // DT_DIR, …, DT_UNKNOWN
}

func (n dirName) cname() *byte { return unsafe.StringData(n.name) }

// dirReader lists directories. Its memory serves one after another: a walk over
// a big tree allocates the names themselves and nothing else.
type dirReader struct {
	buf   []byte // what getdents fills
	arena []byte
	spans []nameSpan
	names []dirName
}

type nameSpan struct {
	start, end int
	kind       uint8
}

func newDirReader() *dirReader { return &dirReader{buf: make([]byte, 64<<10)} }

// read lists the directory open at fd, sorted. The slice is good until the next
// call, its names for ever.
func (r *dirReader) read(fd int) ([]dirName, error) {
	r.arena, r.spans, r.names = r.arena[:0], r.spans[:0], r.names[:0]
	for {
		n, err := unix.Getdents(fd, r.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name NUL.
		for b := r.buf[:n]; len(b) > 0; {
			reclen := int(binary.NativeEndian.Uint16(b[16:]))
			kind, name := b[18], b[19:reclen]
			name = name[:bytes.IndexByte(name, 0)]
			b = b[reclen:]
			if string(name) == "." || string(name) == ".." {
				continue
			}
			r.spans = append(r.spans, nameSpan{len(r.arena), len(r.arena) + len(name), kind})
			r.arena = append(append(r.arena, name...), 0)
		}
	}
	all := string(r.arena)
	for _, s := range r.spans {
		r.names = append(r.names, dirName{all[s.start:s.end], s.kind})
	}
	slices.SortFunc(r.names, func(a, b dirName) int { return strings.Compare(a.name, b.name) })
	return r.names, nil
}
