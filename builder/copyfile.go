package builder

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// copyWorker fills regular files.
type copyWorker struct {
	*copier
	*fileHasher
}

func (w *copyWorker) file(j copyJob) error {
	out := -1
	err := w.create(j.dst, j.name, j.nested, func() (err error) {
		out, err = openAt(j.dst.fd, j.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, j.e.st.mode&0o777|0o200)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if body := w.sel.body; body != nil {
		err = w.writeFrom(out, io.NewSectionReader(body, 0, body.size), j.e)
	} else {
		err = w.fromTree(out, j)
	}
	if err != nil {
		return err
	}
	return w.setMeta(out, joinPath(j.dst.path, j.name), w.meta(j.e))
}

// fromTree copies the bytes that were hashed. The file is unchanged if its times
// say so before and after. Where they prove nothing, because it was written to
// just before it was hashed or has been touched since, the bytes are hashed once
// more on their way.
func (w *copyWorker) fromTree(out int, j copyJob) error {
	in, err := openAt(j.src.fd, j.e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(in)
	var before, after fileStat
	if err := statFd(in, &before); err != nil {
		return err
	}
	if !before.isRegular() || before.size != j.e.st.size || before.mode != j.e.st.mode {
		return errChanged
	}
	if j.e.recent || !before.same(&j.e.st) {
		err = w.writeFrom(out, io.NewSectionReader(fdReader(in), 0, 1<<62), j.e)
	} else {
		err = w.transfer(in, out, &before)
	}
	if err != nil {
		return err
	}
	if err := statFd(in, &after); err != nil {
		return err
	}
	if !after.same(&before) {
		return errChanged
	}
	return nil
}

// gone tells the errors of a source that was there when it was selected.
func gone(err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return errChanged
	}
	return err
}

// writeFrom copies r to its end and checks that these are e's bytes.
func (w *copyWorker) writeFrom(out int, r io.Reader, e *fileEntry) error {
	h := sha256.New()
	for off := int64(0); ; {
		n, err := io.ReadFull(r, w.buf)
		h.Write(w.buf[:n])
		if werr := writePiece(out, w.buf[:n], off); werr != nil {
			return werr
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
	}
	if string(h.Sum(nil)) != string(e.sum[:]) {
		return errChanged
	}
	return nil
}

// transfer copies a file by the cheapest way that the kernel has for it: shared
// extents, a copy within the kernel, a copy through memory. Holes stay holes.
func (w *copyWorker) transfer(in, out int, st *fileStat) error {
	if st.size == 0 {
		return nil
	}
	if !w.noClone.Load() {
		err := unix.IoctlFileClone(out, in)
		if err == nil {
			return nil
		}
		w.noClone.Store(true)
	}
	if st.blocks*512 >= st.size || st.size < int64(len(w.buf)) {
		return w.transferRange(in, out, 0, st.size)
	}
	for off := int64(0); off < st.size; {
		data, err := unix.Seek(in, off, unix.SEEK_DATA)
		if err == unix.ENXIO { // only a hole is left
			break
		}
		if err != nil {
			return w.transferRange(in, out, off, st.size)
		}
		end, err := unix.Seek(in, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := w.transferRange(in, out, data, min(end, st.size)); err != nil {
			return err
		}
		off = end
	}
	return unix.Ftruncate(out, st.size)
}

func (w *copyWorker) transferRange(in, out int, from, to int64) error {
	for from < to {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		// Small pieces are cheaper through memory than by a call that may say no.
		if to-from > int64(len(w.buf)) && !w.noRange.Load() {
			src, dst := from, from
			n, err := unix.CopyFileRange(in, &src, out, &dst, int(min(to-from, 64<<20)), 0)
			if err == nil && n > 0 {
				from += int64(n)
				continue
			}
			switch err {
			case nil, unix.EINTR:
			case unix.EXDEV, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.EPERM:
				w.noRange.Store(true)
			default:
				return err
			}
			if err == unix.EINTR {
				continue
			}
		}
		n, err := preadFull(in, w.buf[:min(int64(len(w.buf)), to-from)], from)
		if err != nil {
			return err
		}
		if n == 0 {
			return errChanged // it has become shorter
		}
		if err := pwriteFull(out, w.buf[:n], from); err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// holePiece is the smallest run of zeros that is worth a hole, in bytes.
const holePiece = 64 << 10

// writePiece writes p at off, at the end of the file, or makes a hole there if
// that does as well.
func writePiece(fd int, p []byte, off int64) error {
	if len(p) >= holePiece && allZero(p) {
		return unix.Ftruncate(fd, off+int64(len(p)))
	}
	return pwriteFull(fd, p, off)
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	return bytes.Count(p, []byte{0}) == len(p)
}

func pwriteFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("write: %w", io.ErrShortWrite)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// setTime sets the mtime of name in dir, or of dir itself if name is nil.
// x/sys/unix has no call for the latter.
func setTime(dir int, name *byte, mtime int64, flags int) error {
	if mtime == keepTime {
		return nil
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime)}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dir), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&times[0])), uintptr(flags), 0, 0)
	if errno != 0 {
		return fmt.Errorf("set mtime: %w", errno)
	}
	return nil
}
