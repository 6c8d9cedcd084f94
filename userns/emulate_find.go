package userns

import (
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// found is where a path of the caller leads. Who acts on it acts on what was looked at.
type found struct {
	dir  int         // the last directory, O_PATH; -1 where the path has no last name: "/", "a/.."
	name string      // there, with the slashes after it
	file int         // what is there, O_PATH; -1: nothing
	at   unix.Stat_t // of dir
	st   unix.Stat_t // of file
}

func (f *found) close() {
	for _, fd := range [2]int{f.dir, f.file} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// ending is what a symlink at the end of a path means.
type ending byte

const (
	followed ending = iota // what it leads to
	looked                 // itself, unless slashes come after: to lstat
	named                  // itself: to unlink
)

// endingOf is what the flags of a call ask for.
func endingOf(flags int) ending {
	if flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		return looked
	}
	return followed
}

// maxLinks is how many symlinks a path may lead through: the kernel's number.
const maxLinks = 40

// find looks a path up as the kernel does for a caller, path_resolution(7), and says EACCES where the
// caller may not search. Any other errno only says that the kernel should answer, which knows better
// why. dirfd is what path is relative to; an empty path is that itself. The caller closes.
//
// Where no owners are kept, and by links of /proc, the kernel looks up, and nothing is refused.
func (t *tracer) find(c *ids, dirfd int32, path []byte, end ending) (f found, e unix.Errno) {
	f.dir, f.file = -1, -1
	base, rest := "/", string(path)
	if len(path) == 0 || path[0] != '/' {
		base = t.at(dirfd, nil)
	} else if own := t.at(dirfd, path); own != rest {
		base, rest = own, ""
	}
	here, e := openPath(base, false)
	if e != 0 {
		return f, unix.ENOENT
	}
	defer func() { // the directory that we are in then, unless it was found
		if here >= 0 {
			unix.Close(here)
		}
	}()
	if !t.alive() {
		return f, unix.ESRCH
	}
	for links := 0; ; {
		var at unix.Stat_t
		if unix.Fstat(here, &at) != nil {
			return f, unix.ENOENT
		}
		if rest = strings.TrimLeft(rest, "/"); rest == "" {
			f.file, f.st, here = here, at, -1
			return f, 0
		}
		if isDir(&at) && !t.may(c, here, &at, mayExec) {
			return f, unix.EACCES
		}
		name, tail := rest, ""
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, tail = rest[:i], rest[i:]
		}
		last := strings.Trim(tail, "/") == ""
		follow := !last || end == followed || end == looked && tail != ""
		next, st, e := lookup(here, name, follow && !t.keeps(here, &at))
		switch {
		case e == unix.ENOENT && last:
			f.dir, f.name, f.at, here = here, name+tail, at, -1
			return f, 0
		case e != 0:
			return f, unix.ENOENT
		case follow && st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, e := readlink(next)
			unix.Close(next)
			if links++; e != 0 || links > maxLinks {
				return f, unix.ENOENT
			}
			if rest = target + tail; target[0] == '/' {
				unix.Close(here)
				here, _ = openPath("/", false)
			}
		case last && name != "." && name != "..":
			f = found{dir: here, name: name + tail, file: next, at: at, st: st}
			here = -1
			return f, 0
		default:
			unix.Close(here)
			here, rest = next, tail
		}
	}
}

// findCall finds what a call names that takes these flags.
func (t *tracer) findCall(c *ids, dirfd int32, addr uint64, flags int) (found, unix.Errno) {
	var path []byte
	if addr != 0 {
		var e unix.Errno
		if path, e = t.readString(addr, maxPath); e != 0 {
			return found{dir: -1, file: -1}, unix.ENOENT
		}
	}
	if len(path) == 0 && flags&unix.AT_EMPTY_PATH == 0 {
		return found{dir: -1, file: -1}, unix.ENOENT
	}
	return t.find(c, dirfd, path, endingOf(flags))
}

// lookup opens a name in a directory; follow: what it leads to, if it is a symlink.
func lookup(dir int, name string, follow bool) (fd int, st unix.Stat_t, e unix.Errno) {
	flags := unix.O_PATH | unix.O_CLOEXEC
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat(dir, name, flags, 0)
	if err == nil {
		if err = unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
		}
	}
	return fd, st, errnoOf(err)
}

// readlink reads a symlink open by O_PATH.
func readlink(fd int) (string, unix.Errno) {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", b[:])
	if err == nil && n == 0 {
		err = unix.ENOENT
	}
	return string(b[:max(n, 0)]), errnoOf(err)
}

// isOpenTo tells whether path, as locate gives it, leads where it does by directories that everybody may
// search, to nothing, or to what everybody may do with what the bits of need say. That is most paths, and
// a look at each name, which opens nothing, takes a third of find's time. False says nothing.
func (t *tracer) isOpenTo(dirfd int32, path string, need uint32) bool {
	start := "/"
	if path[0] != '/' {
		start = t.at(dirfd, nil)
	}
	var b [maxPath + 64]byte
	if len(path) >= len(b) || !strings.HasPrefix(path, start) || len(path) == len(start) {
		return false
	}
	copy(b[:], path)
	var st unix.Stat_t
	passes := func(end int, flags uintptr) bool {
		was := b[end]
		b[end] = 0
		e := glance(&b, flags, &st)
		b[end] = was
		return e == 0 && isDir(&st) && st.Mode&0o111 == 0o111
	}
	if !passes(len(start), 0) {
		return false
	}
	for i := len(start) + 1; i < len(path); i++ {
		if path[i] == '/' && path[i-1] != '/' && !passes(i, unix.AT_SYMLINK_NOFOLLOW) {
			return false
		}
	}
	everybody := need<<6 | need<<3 | need
	switch glance(&b, unix.AT_SYMLINK_NOFOLLOW, &st) {
	case unix.ENOENT:
		return true
	case 0:
		return st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode&everybody == everybody &&
			(need == 0 || t.keeper.Attr(path, aclAccess) == nil)
	}
	return false
}

// glance is stat of a path that ends with NUL. It may take its time, on a file system that the container serves.
func glance(path *[maxPath + 64]byte, flags uintptr, st *unix.Stat_t) unix.Errno {
	_, _, e := unix.Syscall6(sysFstatat, ^uintptr(99), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(st)), flags, 0, 0)
	return e
}
