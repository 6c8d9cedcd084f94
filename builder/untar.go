package builder

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"mk/recipe"
)

// ADD's own idea of an archive: what begins with a tar header, maybe after
// decompression; the name does not matter. What does not, an empty file, an
// empty archive or a gzip of something else, is a file like any other. Unlike
// a layer, an archive has no whiteouts: `.wh.x` is a file's name.

// maxZstdWindow bounds the memory that a zstd archive can ask for, in bytes:
// what `zstd --long` writes by default.
const maxZstdWindow = 128 << 20

// decompress looks at the first bytes of r, and reads it as it stands if they
// are of no compression known here.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 128<<10)
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 0x08}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(b)
		return io.NopCloser(z), err
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// unpack extracts the file r into Dest if it is an archive; done tells that it
// was one.
func (c *copier) unpack(src *dirHandle, r *fileRoot) (done bool, err error) {
	var in io.ReaderAt = c.sel.body
	size := r.entry.st.size
	verify := func() error { return nil }
	if c.sel.body == nil {
		fd, err := openAt(src.fd, r.entry.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return false, gone(err)
		}
		defer unix.Close(fd)
		in = fdReader(fd)
		verify = func() error { return unchanged(fd, &r.entry) }
		if err := verify(); err != nil {
			return false, fmt.Errorf("unpack %q: %w", "/"+r.path, err)
		}
	}
	plain, err := decompress(io.NewSectionReader(in, 0, size))
	if err != nil {
		return false, nil
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	first, err := archive.Next()
	if err != nil {
		return err == io.EOF && c.into.OnlyArchives, nil
	}
	c.settle()
	if err := c.extract(archive, first); err != nil {
		return true, fmt.Errorf("unpack %q: %w", "/"+r.path, err)
	}
	if err := drain(plain); err != nil {
		return true, fmt.Errorf("unpack %q: %w", "/"+r.path, err)
	}
	return true, verify()
}

// unchanged checks that an open file is still the one that was hashed.
func unchanged(fd int, e *fileEntry) error {
	var st fileStat
	if err := statFd(fd, &st); err != nil {
		return err
	}
	if !e.recent && st.same(&e.st) {
		return nil
	}
	var sum [32]byte
	if err := newFileHasher().sum(fd, st.size, &sum); err != nil {
		return err
	}
	if sum != e.sum {
		return errChanged
	}
	return nil
}

// drain reads what stands behind the archive's end, up to 64 MiB of it, so that
// the checksum of the compression is seen.
func drain(r io.Reader) error {
	_, err := io.CopyN(io.Discard, r, 64<<20)
	if err == io.EOF || errors.Is(err, gzip.ErrHeader) { // gzip(1) also only warns of what follows
		return nil
	}
	return err
}

// untar is the extraction of one archive.
type untar struct {
	*copier
	base copyDir // Dest
	buf  []byte

	// parent is the directory of the last entry, which is mostly that of the
	// next one too. It is forgotten when anything but a file was made.
	parent     copyDir
	parentName string

	// dirs get their metadata at the end, by path in the root: until then they
	// are filled, maybe while read-only, and each file changes their times.
	dirs map[string]fileMeta
}

// extract makes the entries of an archive below Dest. --chmod is not for them,
// as in BuildKit.
func (c *copier) extract(archive *tar.Reader, hdr *tar.Header) error {
	defer func(chmod *recipe.Chmod) { c.chmod = chmod }(c.chmod)
	c.chmod = nil
	base, err := c.openDest()
	if err != nil {
		return err
	}
	defer base.release()
	u := &untar{copier: c, base: base, buf: make([]byte, 256<<10), dirs: make(map[string]fileMeta)}
	defer u.forget()
	for err == nil && c.ctx.Err() == nil {
		if err := u.entry(archive, hdr); err != nil {
			return fmt.Errorf("%q: %w", hdr.Name, err)
		}
		hdr, err = archive.Next()
	}
	if err != nil && err != io.EOF {
		return err
	}
	// What is in a directory comes before it.
	for _, path := range slices.Backward(slices.Sorted(maps.Keys(u.dirs))) {
		if err := u.finish(path, u.dirs[path]); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	return nil
}

// finish sets the metadata of a directory.
func (u *untar) finish(path string, m fileMeta) error {
	place, err := walkPath(u.into.Root, path, walkRules{})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // replaced by a later member, with all above it
	}
	if err != nil {
		return err
	}
	defer place.dir.release()
	if !place.st.isDir() {
		return nil
	}
	dir, err := place.open(unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer dir.release()
	return u.setMeta(dir.fd, path, m)
}

func (u *untar) forget() {
	u.parent.release()
	u.parent = copyDir{}
}

var errEscapes = errors.New("the name leads out of the destination")

// cleanMember is a member's name relative to the destination; "." is that itself.
func cleanMember(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("the name has a zero byte")
	}
	clean := path.Clean("./" + strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", errEscapes
	}
	return clean, nil
}

// locate opens the directory that a member is in. Symlinks on the way, of the
// archive or of the image, are followed inside the root; directories that the
// archive leaves out are made.
func (u *untar) locate(member string) (copyDir, string, error) {
	dir, name, _ := cutLast(member)
	if u.parent.dirHandle != nil && u.parentName == dir {
		return u.parent, name, nil
	}
	place, err := walkPath(u.into.Root, u.base.path+"/"+dir, walkRules{follow: true, mkdir: u.mkdir, mkdirLast: true})
	if err != nil {
		return copyDir{}, "", err
	}
	defer place.dir.release()
	open, err := place.open(unix.O_PATH)
	if err != nil {
		return copyDir{}, "", err
	}
	u.forget()
	u.parent, u.parentName = copyDir{open, place.path}, dir
	return u.parent, name, nil
}

func (u *untar) entry(archive io.Reader, hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	member, err := cleanMember(hdr.Name)
	if err != nil {
		return err
	}
	m, err := u.memberMeta(hdr)
	if err != nil {
		return err
	}
	if member == "." {
		return nil // Dest keeps its metadata
	}
	dst, name, err := u.locate(member)
	if err != nil {
		return err
	}
	at := joinPath(dst.path, name)
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // old archives have TypeRegA
		return u.file(archive, hdr.Size, dst, name, m)
	case tar.TypeLink:
		return u.link(dst, name, hdr.Linkname, m)
	case tar.TypeDir:
		err := unix.Mkdirat(dst.fd, name, 0o700)
		if err == unix.EEXIST {
			var st fileStat
			if err = statAt(dst.fd, name, &st); err == nil && !st.isDir() {
				if err = u.remove(dst, name); err == nil {
					err = unix.Mkdirat(dst.fd, name, 0o700)
				}
			}
		}
		u.dirs[at] = m
		return err
	}
	err = u.create(dst, name, true, func() error {
		if m.mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.Symlinkat(hdr.Linkname, dst.fd, name)
		}
		return u.mknod(dst, name, m)
	})
	if err != nil {
		return err
	}
	err = u.setMetaAt(dst, name, m)
	u.forget() // a link may stand where the directory's name led through
	return err
}

// memberMeta is what a member's header says, and the flags.
func (u *untar) memberMeta(hdr *tar.Header) (fileMeta, error) {
	kinds := map[byte]uint32{tar.TypeSymlink: unix.S_IFLNK, tar.TypeDir: unix.S_IFDIR, tar.TypeFifo: unix.S_IFIFO,
		tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeLink: unix.S_IFREG, tar.TypeReg: unix.S_IFREG,
		tar.TypeRegA: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeCont: unix.S_IFREG} //nolint:staticcheck
	kind, ok := kinds[hdr.Typeflag]
	if !ok {
		return fileMeta{}, fmt.Errorf("members of type %q are not supported", hdr.Typeflag)
	}
	m := fileMeta{mode: kind | uint32(hdr.Mode)&0o7777, mtime: hdr.ModTime.UnixNano(), uid: uint32(hdr.Uid), gid: uint32(hdr.Gid)}
	if hdr.Uid < 0 || hdr.Gid < 0 || hdr.Uid > 1<<32-2 || hdr.Gid > 1<<32-2 {
		return m, fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, unix.EINVAL)
	}
	if u.into.Owner != nil {
		m.uid, m.gid = u.into.Owner.UID, u.into.Owner.GID
	}
	if m.isDevice() {
		m.rdev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	for key, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && wantXattr(name, false) {
			m.xattrs = append(m.xattrs, fileXattr{name, value})
		}
	}
	sortXattrs(m.xattrs)
	return m, nil
}

func (u *untar) file(archive io.Reader, size int64, dst copyDir, name string, m fileMeta) error {
	out := -1
	err := u.create(dst, name, true, func() (err error) {
		out, err = openAt(dst.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, m.mode&0o777|0o200)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(out)
	for off := int64(0); off < size; {
		b := u.buf[:min(int64(len(u.buf)), size-off)]
		if _, err := io.ReadFull(archive, b); err != nil {
			return err
		}
		if err := writePiece(out, b, off); err != nil {
			return err
		}
		off += int64(len(b))
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
	return u.setMeta(out, joinPath(dst.path, name), m)
}

// link makes a member that is a hardlink: its target is a member too, so it is
// relative to the destination.
func (u *untar) link(dst copyDir, name, target string, m fileMeta) error {
	member, err := cleanMember(target)
	if err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	dir, base, _ := cutLast(member)
	parent, err := walkPath(u.into.Root, u.base.path+"/"+dir, walkRules{follow: true})
	if err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	defer parent.dir.release()
	from, err := parent.open(unix.O_PATH)
	if err != nil {
		return err
	}
	defer from.release()
	var before, after fileStat
	if err := statAt(from.fd, base, &before); err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	if statAt(dst.fd, name, &after) == nil && before.ino == after.ino && before.dev == after.dev {
		return nil // already the same file, maybe by the same name
	}
	err = u.create(dst, name, true, func() error { return unix.Linkat(from.fd, base, dst.fd, name, 0) })
	if err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	u.remember(joinPath(dst.path, name), &before, m, nil)
	return nil
}
