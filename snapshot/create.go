package snapshot

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// create makes name in at as h says; r has the bytes of a file.
func (a *applier) create(at *place, name string, h *tar.Header, r io.Reader) error {
	at.changed = true
	switch h.Typeflag {
	case tar.TypeDir:
		return a.mkdir(at, name, h)
	case tar.TypeLink:
		return a.link(at, name, h)
	case tar.TypeSymlink:
		return a.node(at, name, h, func() error { return unix.Symlinkat(h.Linkname, at.upper, name) })
	case tar.TypeFifo:
		return a.node(at, name, h, func() error { return unix.Mknodat(at.upper, name, unix.S_IFIFO|0o600, 0) })
	case tar.TypeChar, tar.TypeBlock:
		return a.device(at, name, h)
	}
	if a.onlyNamed(at, name) {
		return nil
	}
	return a.file(at, name, h, r)
}

// replace calls create, which fails with EEXIST if upper has name already; then
// what is there is removed and create called again.
func (a *applier) replace(at *place, name string, create func() error) error {
	err := create()
	if err != unix.EEXIST {
		return err
	}
	if err := a.remove(at, name); err != nil {
		return err
	}
	return create()
}

// remove removes name from upper, with all that is below it.
func (a *applier) remove(at *place, name string) error {
	if a.owners.Len() > 0 {
		a.owners.Delete(at.join(name))
	}
	delete(a.copied, at.join(name))
	r := remover{top: -1}
	return r.remove(at.upper, name, 0)
}

func (a *applier) mkdir(at *place, name string, h *tar.Header) error {
	err := unix.Mkdirat(at.upper, name, 0o700)
	existed, hides := false, false
	if err == unix.EEXIST {
		st, serr := statAt(at.upper, name)
		if serr != nil {
			return serr
		}
		if existed = isDir(&st); existed {
			err = nil
		} else if err = a.remove(at, name); err == nil {
			// The parent's directory, if it has one, was hidden by what was
			// here, and stays so.
			below, serr := at.lowerStat(name)
			hides = serr == nil && isDir(&below)
			err = unix.Mkdirat(at.upper, name, 0o700)
		}
	}
	if err != nil {
		return err
	}
	fd, err := openAt(at.upper, name, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if hides {
		if err := setOpaque(fd); err != nil {
			return err
		}
	}
	if existed || at.acl {
		if err := stripAttrs(fd, h); err != nil {
			return err
		}
	}
	return a.describe(at, name, fd, h)
}

func (a *applier) file(at *place, name string, h *tar.Header, r io.Reader) error {
	fd := -1
	err := a.replace(at, name, func() (err error) {
		fd, err = openAt(at.upper, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := a.content(fd, r); err != nil {
		return err
	}
	return a.describe(at, name, fd, h)
}

// node makes a file that has no bytes.
func (a *applier) node(at *place, name string, h *tar.Header, create func() error) error {
	if err := a.replace(at, name, create); err != nil {
		return err
	}
	return a.describe(at, name, -1, h)
}

// device makes a device node. In a user namespace the kernel never does; then,
// in every mode, an empty file stands for it. 0:0 is overlay's whiteout, and must
// not be made whoever we are.
func (a *applier) device(at *place, name string, h *tar.Header) error {
	kind := uint32(unix.S_IFCHR)
	if h.Typeflag == tar.TypeBlock {
		kind = unix.S_IFBLK
	}
	if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
		return fmt.Errorf("device number %d:%d: %w", h.Devmajor, h.Devminor, unix.EINVAL)
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	err := error(unix.EPERM)
	if dev != 0 {
		err = a.replace(at, name, func() error { return unix.Mknodat(at.upper, name, kind|0o600, int(dev)) })
	}
	if err == nil {
		return a.describe(at, name, -1, h)
	} else if err != unix.EPERM {
		return err
	}
	if err := a.file(at, name, h, strings.NewReader("")); err != nil {
		return err
	}
	o, _ := a.owners.lookup(at.join(name))
	o.UID, o.GID, o.Mode, o.Rdev = uint32(h.Uid), uint32(h.Gid), kind, dev
	a.owners.Set(at.join(name), o)
	return nil
}

// link makes a hardlink to a file of this layer, or of the parent: that one is
// copied up first. What the file is like, its first name has said.
func (a *applier) link(at *place, name string, h *tar.Header) error {
	if err := a.linkTo(at, name, h.Linkname); err != nil {
		return fmt.Errorf("to %q: %w", clip(h.Linkname), err)
	}
	return nil
}

func (a *applier) linkTo(at *place, name, target string) (err error) {
	p, err := entryPath(target)
	if err != nil {
		return err
	}
	dir, base := splitPath(p)
	to := at
	if dir != a.currentName { // most links lead to a neighbour
		if to, err = a.walk(dir, nil); err != nil {
			return err
		}
		defer func() {
			if lerr := to.leave(); err == nil {
				err = lerr
			}
		}()
	}
	file, self := to.join(base), at.join(name)
	if file == self {
		return nil
	}
	st, err := statAt(to.upper, base)
	if err == unix.ENOENT {
		if st, err = to.lowerStat(base); err == nil && !isDir(&st) {
			if err := a.copyUp(to, base, &st); err != nil {
				return err
			}
			if a.copied == nil {
				a.copied = make(map[string]bool)
			}
			a.copied[file] = true
		}
	} else if err == nil && isWhiteout(&st) {
		err = unix.ENOENT
	}
	if err == unix.ENOENT && a.onlyNamed(at, name) { // so is its target
		return nil
	} else if err != nil {
		return err
	}
	if isDir(&st) {
		return unix.EISDIR
	}
	if err := a.replace(at, name, func() error { return unix.Linkat(to.upper, base, at.upper, name, 0) }); err != nil {
		return err
	}
	if o, ok := a.owners.lookup(file); ok {
		a.owners.Set(self, o)
	} else {
		a.owners.forget(self)
	}
	return nil
}
