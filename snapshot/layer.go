package snapshot

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// WriteLayer writes the layer as an uncompressed OCI layer tar. The same tree
// gives the same bytes, whoever made it, in whichever mode, wherever:
//
//   - items in the order of the tree: names of a directory bytewise, a directory
//     before what is in it, an opaque mark right after its directory;
//   - pax, owners by number only, modification times with nanoseconds, no other
//     times; those of whiteouts and opaque marks are 0;
//   - the first name of a hardlink group carries the file;
//   - attributes as SCHILY.xattr: security.capability, user.*, POSIX ACLs, and
//     those that were remembered; never overlay's own;
//   - the root directory is there, as "./", only if it differs from the
//     parent's;
//   - a directory that was only copied up by overlay, for the sake of a change
//     below it, is there with its parent's metadata;
//   - sockets are left out. Holes are written as zeros.
//
// A name that begins with .wh. is an error: it would remove a file.
func (s *Snapshot) WriteLayer(ctx context.Context, w io.Writer) error {
	if err := s.writeLayer(ctx, streamTo(w)); err != nil {
		return fmt.Errorf("write layer %s: %w", s.id, err)
	}
	return nil
}

func (s *Snapshot) writeLayer(ctx context.Context, out *stream) error {
	if err := s.items(ctx, func(it *item) error { return out.item(ctx, it, s.meta.epoch) }); err != nil {
		return err
	}
	return out.end()
}

// items visits what the layer holds, see scanAhead.
func (s *Snapshot) items(ctx context.Context, visit func(it *item) error) error {
	owners, err := s.table()
	if err != nil {
		return err
	}
	return scanAhead(ctx, s.store, s.trees(), s.Below(), owners, s.meta.epoch, visit)
}

// streamBuffer is how much of a layer is gathered before it goes on. Measured:
// from 64 KiB up to 1 MiB the speed is the same, and a second level cache holds
// two of these.
const streamBuffer = 256 << 10

// stream gathers a layer's bytes in large pieces. Files are read straight into
// the piece.
type stream struct {
	buf []byte // its capacity is the size of a piece
	// flush takes a full piece and returns the room for the next.
	flush func([]byte) ([]byte, error)
	// read, unless nil, sees the bytes of files, where they lie in buf.
	read  func([]byte)
	total int64
}

// streamTo is a stream that goes to w.
func streamTo(w io.Writer) *stream {
	out := &stream{buf: make([]byte, 0, streamBuffer)}
	out.flush = func(b []byte) ([]byte, error) {
		_, err := w.Write(b)
		return b, err
	}
	return out
}

func (s *stream) flushAll() error {
	if len(s.buf) == 0 {
		return nil
	}
	s.total += int64(len(s.buf))
	next, err := s.flush(s.buf)
	s.buf = next[:0]
	return err
}

func (s *stream) write(b []byte) error {
	for len(b) > 0 {
		n := copy(s.buf[len(s.buf):cap(s.buf)], b)
		s.buf, b = s.buf[:len(s.buf)+n], b[n:]
		if len(s.buf) == cap(s.buf) {
			if err := s.flushAll(); err != nil {
				return err
			}
		}
	}
	return nil
}

// end writes the end of the archive.
func (s *stream) end() error {
	if err := s.write(zeros[:2*blockSize]); err != nil {
		return err
	}
	return s.flushAll()
}

// item adds an item, header and bytes.
func (s *stream) item(ctx context.Context, it *item, epoch *time.Time) error {
	h := tarHeader(it, epoch)
	if err := s.header(&h); err != nil || it.fd < 0 {
		return err
	}
	if err := s.copyFile(ctx, it.fd, it.size); err != nil {
		return &fs.PathError{Op: "read", Path: it.path, Err: err}
	}
	return nil
}

func (s *stream) header(h *header) error {
	// Five blocks at most, and the buffer is never left full: copyFile wants room.
	if cap(s.buf)-len(s.buf) > 5*blockSize && len(h.attrs) == 0 && len(h.name)+len(h.link) < 2*blockSize {
		s.buf = h.append(s.buf) // it fits
		return nil
	}
	return s.write(h.append(nil))
}

// copyFile adds size bytes of the file, and the padding.
func (s *stream) copyFile(ctx context.Context, fd int, size int64) error {
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		room := s.buf[len(s.buf):cap(s.buf)]
		if int64(len(room)) > left {
			room = room[:left]
		}
		n, err := unix.Read(fd, room)
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return err
		} else if n == 0 {
			return fmt.Errorf("%d bytes are missing: the file shrank", left)
		}
		if s.read != nil {
			s.read(room[:n])
		}
		left -= int64(n)
		s.buf = s.buf[:len(s.buf)+n]
		if len(s.buf) == cap(s.buf) {
			if err := s.flushAll(); err != nil {
				return err
			}
		}
	}
	return s.write(padding(size))
}
