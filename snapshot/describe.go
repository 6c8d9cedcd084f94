package snapshot

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

const paxAttr = "SCHILY.xattr."

// refused tells whether err is the kernel saying that we may not, or that it
// has no way to: an owner outside of the map, an attribute a file system does
// not know. Anything else, a full disk above all, is never only remembered.
func refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP)
}

// describe gives the file called name in at what its header says. fd is the file
// if it is a directory or a regular file, else -1.
//
// The order is the kernel's: a change of owner clears setuid bits and file
// capabilities, so it is first; the time is last, since all the rest moves it.
func (a *applier) describe(at *place, name string, fd int, h *tar.Header) error {
	p := at.join(name)
	var keep Owner // what had to be remembered
	owned, err := a.chown(at, name, fd, h)
	if err != nil {
		return err
	}
	must := !owned // remember
	if at.acl && h.Typeflag != tar.TypeDir && fd >= 0 {
		// Inherited from the directory; the header knows nothing of it.
		if err := unix.Fremovexattr(fd, "system.posix_acl_access"); err != nil && err != unix.ENODATA {
			return fmt.Errorf("remove inherited ACL: %w", err)
		}
	}
	for key, value := range h.PAXRecords {
		n, ok := strings.CutPrefix(key, paxAttr)
		if !ok || overlaysOwn(n) {
			continue // a mark of overlay in a layer is forged
		}
		err := errors.ErrUnsupported
		if settable(n) {
			err = setAttr(at.upper, name, fd, n, value)
		}
		if err == nil {
			continue
		}
		if settable(n) && !(a.remember && refused(err)) {
			return fmt.Errorf("set %s: %w", n, err)
		}
		if keep.Xattrs == nil {
			keep.Xattrs = make(map[string]string)
		}
		keep.Xattrs[n], must = value, true
	}
	if h.Typeflag != tar.TypeSymlink {
		mode := uint32(h.Mode) & 0o7777
		if fd >= 0 {
			err = unix.Fchmod(fd, mode)
		} else {
			err = unix.Fchmodat(at.upper, name, mode, 0) // ours, made just now: no symlink
		}
		if err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if must {
		keep.UID, keep.GID = uint32(h.Uid), uint32(h.Gid)
		a.owners.Set(p, keep)
	} else if a.inherits && h.Typeflag == tar.TypeDir {
		// A directory that stays would inherit what the parent's table says of
		// it; the header has the word now.
		a.owners.Set(p, Owner{UID: uint32(h.Uid), GID: uint32(h.Gid)})
	} else {
		a.owners.forget(p)
	}
	if err := setTime(at.upper, name, timespec(h.ModTime)); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// chown sets the owner. It tells whether the file has it; if not, it must be
// remembered.
func (a *applier) chown(at *place, name string, fd int, h *tar.Header) (bool, error) {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return false, fmt.Errorf("set owner %d:%d: %w", h.Uid, h.Gid, unix.EINVAL)
	}
	if h.Uid == 0 && h.Gid == 0 && a.uid == 0 && !at.setgid && h.Typeflag != tar.TypeDir {
		return true, nil // made just now by us
	}
	var err error
	if fd >= 0 {
		err = unix.Fchown(fd, h.Uid, h.Gid)
	} else {
		err = unix.Fchownat(at.upper, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		return true, nil
	}
	if a.remember && refused(err) {
		return false, nil
	}
	return false, fmt.Errorf("set owner %d:%d: %w", h.Uid, h.Gid, err)
}

func setAttr(dir int, name string, fd int, attr, value string) error {
	if fd >= 0 {
		return unix.Fsetxattr(fd, attr, []byte(value), 0)
	}
	return unix.Lsetxattr(procName(dir, name), attr, []byte(value), 0)
}

// stripAttrs removes from a directory that was there already the attributes that
// its new header does not have.
func stripAttrs(fd int, h *tar.Header) error {
	attrs, err := attrsAt(-1, "", fd)
	if err != nil {
		return err
	}
	for _, at := range attrs {
		if _, ok := h.PAXRecords[paxAttr+at.name]; ok {
			continue
		}
		if err := unix.Fremovexattr(fd, at.name); err != nil && err != unix.ENODATA {
			return fmt.Errorf("remove %s: %w", at.name, err)
		}
	}
	return nil
}

// holeSize is the smallest run of zeros, aligned, that becomes a hole: tar says
// nothing of the holes of a file that was read densely.
const holeSize = len(zeros)

// content writes what r holds to the new file fd, and zeros as holes.
func (a *applier) content(fd int, r io.Reader) error {
	var size, written int64
	for {
		n, err := io.ReadFull(r, a.buf)
		for b := a.buf[:n]; len(b) > 0; {
			part := b[:min(len(b), holeSize)]
			b = b[len(part):]
			if len(part) == holeSize && part[0] == 0 && string(part) == string(zeros[:]) {
				size += int64(len(part))
				continue
			}
			// Take in what follows, up to the next hole, in one call.
			whole := part
			for len(b) >= holeSize && (b[0] != 0 || string(b[:holeSize]) != string(zeros[:])) {
				whole, b = whole[:len(whole)+holeSize], b[holeSize:]
			}
			if err := writeAt(fd, whole, size); err != nil {
				return err
			}
			size += int64(len(whole))
			written = size
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			if size > written {
				return unix.Ftruncate(fd, size)
			}
			return nil
		default:
			return err
		}
	}
}

func writeAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
