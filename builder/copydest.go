package builder

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// openDest opens Dest as a directory, and makes it if it is not there.
func (c *copier) openDest() (copyDir, error) {
	place, err := walkPath(c.into.Root, c.dest, walkRules{follow: true, mkdir: c.mkdir, mkdirLast: true})
	if err != nil {
		return copyDir{}, err
	}
	defer place.dir.release()
	if !place.st.isDir() {
		return copyDir{}, fmt.Errorf("cannot copy to non-directory: %s", c.dest)
	}
	dir, err := place.open(unix.O_PATH)
	return copyDir{dir, place.path}, err
}

// destFile finds where a source called base goes: to Dest, or into it if that
// is a directory or has to be.
func (c *copier) destFile(base string) (copyDir, string, error) {
	place, err := walkPath(c.into.Root, c.dest, walkRules{follow: true, missing: true, mkdir: c.mkdir, mkdirLast: c.destDir})
	if err != nil {
		return copyDir{}, "", err
	}
	parent, _, _ := cutLast(place.path)
	if place.missing || !place.st.isDir() {
		if c.destDir {
			place.dir.release()
			return copyDir{}, "", &os.PathError{Op: "mkdir", Path: c.dest, Err: unix.ENOTDIR}
		}
		return copyDir{place.dir, parent}, place.name, nil
	}
	defer place.dir.release()
	dir, err := place.open(unix.O_PATH)
	return copyDir{dir, place.path}, base, err
}

// mkdir makes a directory that Dest needs: it belongs to root and has mode 0755,
// or what the flags say.
func (c *copier) mkdir(dir *dirHandle, name, path string) error {
	if err := unix.Mkdirat(dir.fd, name, 0o700); err != nil {
		return err
	}
	fd, err := openAt(dir.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m := fileMeta{mode: 0o755, mtime: keepTime}
	if c.chmod != nil {
		m.mode = c.chmod.Apply(m.mode, true) & 0o777
	}
	if o := c.into.Owner; o != nil {
		m.uid, m.gid = o.UID, o.GID
	}
	return c.setMeta(fd, path, m)
}

// enter makes the directory e in dst, or enters the one that is there. Its
// metadata are set when the last of its files is done, since a directory may
// come out read-only, and gets a new mtime with each file.
func (c *copier) enter(dst copyDir, e *fileEntry) (copyDir, error) {
	at := joinPath(dst.path, e.name)
	fail := func(err error) (copyDir, error) {
		return copyDir{}, &os.PathError{Op: "mkdir", Path: "/" + at, Err: err}
	}
	exists := false
	err := unix.Mkdirat(dst.fd, e.name, 0o700)
	if err == unix.EEXIST {
		var st fileStat
		if err := statAt(dst.fd, e.name, &st); err != nil {
			return fail(err)
		}
		switch {
		case st.isDir():
			exists, err = true, nil
		case st.isLink():
			if err = c.remove(dst, e.name); err == nil {
				err = unix.Mkdirat(dst.fd, e.name, 0o700)
			}
		default:
			return copyDir{}, fmt.Errorf("cannot copy to non-directory: /%s", at)
		}
	}
	if err != nil {
		return fail(err)
	}
	fd, err := openAt(dst.fd, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fail(err)
	}
	dir := newDir(fd)
	m := c.meta(e)
	set := func() error { return c.setMeta(fd, at, m) }
	if exists && e.implied {
		// Nobody asked for this directory: only its mode is taken over, as
		// BuildKit does, and --chmod is not for it.
		set = func() error { return unix.Fchmod(fd, e.st.mode&0o7777) }
	}
	dir.last = func() {
		if c.ctx.Err() != nil {
			return
		}
		if err := set(); err != nil {
			c.cancel(&os.PathError{Op: "set metadata of", Path: "/" + at, Err: err})
		}
	}
	return copyDir{dir, at}, nil
}

// special makes what is neither a directory nor a regular file.
func (c *copier) special(e *fileEntry, dst copyDir, name string, nested bool) error {
	m := c.meta(e)
	fake := m
	fake.mode = fake.mode&0o7777 | unix.S_IFREG
	err := c.create(dst, name, nested, func() error {
		switch e.st.kind() {
		case unix.S_IFLNK:
			return unix.Symlinkat(e.link(), dst.fd, name)
		case unix.S_IFSOCK: // nobody listens to its copy: an empty file, as in BuildKit
			m = fake
		}
		return c.mknod(dst, name, m)
	})
	if errors.Is(err, unix.EPERM) && m.isDevice() && c.into.Refused != nil {
		c.into.Refused("/" + joinPath(dst.path, name))
		return nil
	}
	if err == nil {
		err = c.setMetaAt(dst, name, m)
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: "/" + joinPath(dst.path, name), Err: err}
	}
	return nil
}

// mknod makes a FIFO or a device, or a file that stands in for one that is refused. An overlay
// refuses a device 0:0, its whiteout, and a directory below one must not get it (Draft.Open).
func (c *copier) mknod(dst copyDir, name string, m fileMeta) error {
	err := error(unix.EPERM)
	if m.mode&unix.S_IFMT != unix.S_IFCHR || m.rdev != 0 {
		err = unix.Mknodat(dst.fd, name, m.mode&unix.S_IFMT|0o600, int(m.rdev))
	}
	if err == unix.EPERM && c.into.Owners != nil && m.isDevice() {
		err = unix.Mknodat(dst.fd, name, unix.S_IFREG|0o600, 0)
	}
	return err
}

// create runs make, once more after removing what has the name already. Unless
// nested, a directory is not removed.
func (c *copier) create(dst copyDir, name string, nested bool, make func() error) error {
	err := make()
	if err != unix.EEXIST {
		return err
	}
	if !nested {
		var st fileStat
		if err := statAt(dst.fd, name, &st); err != nil {
			return err
		}
		if st.isDir() {
			return fmt.Errorf("cannot replace to directory %s with file", "/"+joinPath(dst.path, name))
		}
	}
	if err := c.remove(dst, name); err != nil {
		return err
	}
	return make()
}

// remove removes a name from dst, and all below it.
func (c *copier) remove(dst copyDir, name string) error {
	if c.into.Owners != nil {
		c.into.Owners.Delete(joinPath(dst.path, name))
	}
	return removeAt(dst.fd, name)
}

// removeAt removes a name in dir, and all below it, following nothing.
func removeAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := newDirReader().read(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAt(fd, n.name); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// fileMeta is what a file of the destination gets.
type fileMeta struct {
	mode     uint32 // with type bits
	uid, gid uint32
	rdev     uint64
	mtime    int64 // ns, or keepTime
	xattrs   []fileXattr
}

const keepTime = -1 << 63

func (m *fileMeta) isDevice() bool {
	kind := m.mode & unix.S_IFMT
	return kind == unix.S_IFCHR || kind == unix.S_IFBLK
}

func (c *copier) owner(st *fileStat) (uid, gid uint32) {
	switch {
	case c.into.Owner != nil:
		return c.into.Owner.UID, c.into.Owner.GID
	case c.sel.files == nil || c.sel.files.Local:
		return 0, 0
	}
	return st.uid, st.gid
}

func (c *copier) meta(e *fileEntry) fileMeta {
	m := fileMeta{mode: e.st.mode, rdev: e.st.rdev, mtime: e.st.mtime, xattrs: e.xattrs()}
	m.uid, m.gid = c.owner(&e.st)
	if c.chmod != nil && !e.st.isLink() {
		m.mode = m.mode&^0o7777 | c.chmod.Apply(m.mode&0o7777, e.st.isDir())
	}
	return m
}

// remember puts into the table, if there is one, what is not set: the number of
// a device that a plain file stands for, and where owners are remembered, those
// and the attributes that were refused. Plain files of root are entered too: the
// table of a lower layer may say otherwise of the path.
func (c *copier) remember(path string, st *fileStat, m fileMeta, refused map[string]string) {
	standIn := m.isDevice() && st.isRegular()
	if c.into.Owners == nil || !c.into.Remember && !standIn {
		return
	}
	o := snapshot.Owner{UID: m.uid, GID: m.gid}
	if m.isDevice() {
		o.Mode, o.Rdev = m.mode&unix.S_IFMT, m.rdev
	}
	o.Xattrs = refused
	c.into.Owners.Set(path, o)
}

// setMeta sets the metadata of the open file at path. The owner comes first, because
// changing it clears setuid and capabilities; the time last.
func (c *copier) setMeta(fd int, path string, m fileMeta) error {
	var st fileStat
	if err := statFd(fd, &st); err != nil {
		return err
	}
	if !c.into.Remember && (st.uid != m.uid || st.gid != m.gid) {
		if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
			return fmt.Errorf("chown to %d:%d: %w", m.uid, m.gid, err)
		}
		st.mode &^= 0o6000 // for the comparison below: as the kernel may have
	}
	if (st.mode^m.mode)&0o7777 != 0 || m.mode&0o6000 != 0 {
		if err := unix.Fchmod(fd, m.mode&0o7777); err != nil {
			return fmt.Errorf("chmod to %04o: %w", m.mode&0o7777, err)
		}
	}
	var refused map[string]string
	for _, x := range m.xattrs {
		err := unix.Fsetxattr(fd, x.name, []byte(x.value), 0)
		switch {
		case err == nil:
		case c.into.Remember && (err == unix.EPERM || err == unix.EOPNOTSUPP):
			if refused == nil {
				refused = make(map[string]string)
			}
			refused[x.name] = x.value
		default:
			return fmt.Errorf("set attribute %s: %w", x.name, err)
		}
	}
	c.remember(path, &st, m, refused)
	return setTime(fd, nil, m.mtime, 0)
}

// setMetaAt is setMeta for a new file that is better not opened.
func (c *copier) setMetaAt(dst copyDir, name string, m fileMeta) error {
	var st fileStat
	if err := statAt(dst.fd, name, &st); err != nil {
		return err
	}
	c.remember(joinPath(dst.path, name), &st, m, nil)
	if !c.into.Remember && (st.uid != m.uid || st.gid != m.gid) {
		if err := unix.Fchownat(dst.fd, name, int(m.uid), int(m.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown to %d:%d: %w", m.uid, m.gid, err)
		}
	}
	if m.mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dst.fd, name, m.mode&0o7777, 0); err != nil {
			return err
		}
	}
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return setTime(dst.fd, p, m.mtime, unix.AT_SYMLINK_NOFOLLOW)
}

// cutLast splits a path at its last slash.
func cutLast(path string) (dir, name string, found bool) {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i], path[i+1:], true
		}
	}
	return "", path, false
}
