package snapshot

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// whiteout removes what the parent has at .wh.name in dir, or with the opaque
// mark all that it has in dir. What this layer has there stays.
func (a *applier) whiteout(dir, name string) error {
	if name == strings.TrimPrefix(opaqueName, whiteoutPrefix) {
		name = ""
	} else if strings.HasPrefix(name, whiteoutPrefix) {
		return nil // other marks of aufs, from images of the first years
	} else if name == "" || name == "." || name == ".." {
		return errName
	}
	if a.parent == nil {
		return nil
	}
	if err := a.leave(); err != nil {
		return err
	}
	at, err := a.walk(dir, nil)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil // nothing to remove
	} else if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	a.current, a.currentName = at, dir
	if name == "" {
		return a.hideAll(at)
	}
	return a.hide(at, name)
}

// hide removes name from at as far as it is the parent's.
func (a *applier) hide(at *place, name string) error {
	if err := a.dropCopied(at.join(name)); err != nil {
		return err
	}
	at.changed = true
	st, err := statAt(at.upper, name)
	if err == nil && isDir(&st) {
		in, err := a.descend(at, name)
		if err != nil {
			return err
		}
		err = a.hideAll(in)
		if lerr := in.leave(); err == nil {
			err = lerr
		}
		return err
	} else if err != unix.ENOENT {
		return err // nil: a file of this layer, or a whiteout
	}
	if _, err := at.lowerStat(name); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	return unix.Mknodat(at.upper, name, unix.S_IFCHR, 0)
}

// hideAll makes the directory opaque.
func (a *applier) hideAll(at *place) error {
	if err := a.dropCopied(at.real); err != nil {
		return err
	}
	if at.lower < 0 {
		return nil
	}
	unix.Close(at.lower)
	at.lower, at.changed = -1, true
	if err := setOpaque(at.upper); err != nil {
		return err
	}
	return dropWhiteouts(at.upper)
}

// dropWhiteouts removes the whiteouts in a directory that has become opaque, and
// deeper. They hide nothing any more; and overlay, which never has them there,
// would list their names.
func dropWhiteouts(dir int) error {
	d, err := openAt(dir, ".", oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	names, err := readNames(d)
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := statAt(d, name)
		if err != nil {
			return err
		}
		if isWhiteout(&st) {
			err = unix.Unlinkat(d, name, 0)
		} else if isDir(&st) {
			err = dropWhiteoutsBelow(d, name, &st)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func dropWhiteoutsBelow(dir int, name string, st *unix.Stat_t) error {
	fd, err := openAt(dir, name, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if isOpaque(fd) {
		return nil // has none
	}
	if err := dropWhiteouts(fd); err != nil {
		return err
	}
	return setTime(fd, ".", st.Mtim)
}

// dropCopied removes from upper what was copied up at p or below it.
func (a *applier) dropCopied(p string) error {
	for file := range a.copied {
		if file != p && !isBelow(file, p) {
			continue
		}
		dir, name := splitPath(file)
		at, err := a.walk(dir, nil)
		if err != nil {
			return err
		}
		at.changed = true
		err = a.remove(at, name)
		if lerr := at.leave(); err == nil {
			err = lerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}
