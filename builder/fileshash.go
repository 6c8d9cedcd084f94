package builder

import (
	"crypto/sha256"
	"hash"
	"io"

	"golang.org/x/sys/unix"
)

// fileHasher hashes one file after another without allocating.
type fileHasher struct {
	h   hash.Hash
	buf []byte
}

// 256 KiB: from 64 KiB on, reading from the page cache and hashing gets no faster.
func newFileHasher() *fileHasher { return &fileHasher{sha256.New(), make([]byte, 256<<10)} }

// sum hashes the file at fd from its start to its end, wherever that is by now;
// size is where it is thought to be.
func (f *fileHasher) sum(fd int, size int64, out *[32]byte) error {
	if size < int64(len(f.buf)) {
		n, err := preadFull(fd, f.buf, 0)
		if err != nil {
			return err
		}
		if n < len(f.buf) {
			*out = sha256.Sum256(f.buf[:n])
			return nil
		}
	}
	f.h.Reset()
	for off := int64(0); ; {
		n, err := preadFull(fd, f.buf, off)
		if err != nil {
			return err
		}
		f.h.Write(f.buf[:n])
		if n < len(f.buf) {
			f.h.Sum(out[:0])
			return nil
		}
		off += int64(n)
	}
}

// preadFull reads at off until buf is full or the file ends.
func preadFull(fd int, buf []byte, off int64) (int, error) {
	done := 0
	for done < len(buf) {
		n, err := unix.Pread(fd, buf[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// fdReader reads a descriptor that somebody else closes.
type fdReader int

func (fd fdReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := preadFull(int(fd), p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
