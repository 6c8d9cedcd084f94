package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// stubs are the mount points that a root lacked and Start made: after the container they must go,
// and the times of the directories around them must be what they would be without, or they would
// end up in the layer. Only Start's side outlives the container, so it makes them, before the
// clone, and takes them away in Wait.
//
// The container's root user had the tree meanwhile and may have moved directories and put symlinks
// in their place (CVE-2024-23652). Therefore each stub is kept as the open directory that it is
// in, its name there, and itself, open, and goes only if that name is still that file, empty. It is
// kept open because the number of an inode that is gone may be given to the next one.
type stubs []stub

type stub struct {
	parent int // O_PATH
	name   string
	self   int // O_PATH; -1 while it is being made
}

// makeStubs makes the mount points of a plan that are not inside of an earlier mount. On error
// those made so far are gone again.
func makeStubs(root *os.File, mounts []Mount, isDir func(i int) bool) (_ stubs, err error) {
	var made stubs
	defer func() {
		if err != nil {
			made.remove()
		}
	}()
	for i, m := range mounts {
		if insideEarlier(mounts[:i], m.Dest) {
			continue
		}
		var before []unix.Stat_t
		from := len(made)
		fd, err := reach(int(root.Fd()), m.Dest, isDir(i), func(parent int, name string) error {
			var st unix.Stat_t
			if err := unix.Fstat(parent, &st); err != nil {
				return err
			}
			keep, err := unix.FcntlInt(uintptr(parent), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return err
			}
			made = append(made, stub{parent: keep, name: name, self: -1})
			before = append(before, st)
			return nil
		})
		if err == nil {
			unix.Close(fd)
		}
		for j := range made[from:] {
			s := &made[from+j]
			var err2 error
			s.self, err2 = unix.Openat(s.parent, s.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err2 == nil {
				err2 = setTimes(s.parent, &before[j])
			}
			if err == nil {
				err = err2
			}
		}
		if err != nil {
			return nil, fmt.Errorf("make the mount point %s: %w", m.Dest, err)
		}
	}
	return made, nil
}

func insideEarlier(earlier []Mount, dest string) bool {
	dest = path.Clean("/" + dest)
	for _, e := range earlier {
		if strings.HasPrefix(dest, strings.TrimSuffix(path.Clean("/"+e.Dest), "/")+"/") {
			return true
		}
	}
	return false
}

// remove takes the stubs away, the last made first, and releases their directories.
func (s stubs) remove() error {
	var errs []error
	for i := len(s) - 1; i >= 0; i-- {
		if err := s[i].remove(); err != nil {
			errs = append(errs, fmt.Errorf("take away the mount point %s: %w", s[i].name, err))
		}
		unix.Close(s[i].parent)
		unix.Close(s[i].self)
	}
	return errors.Join(errs...)
}

func (s stub) remove() error {
	var dir, own, st unix.Stat_t
	if s.self < 0 {
		return nil // it was not made
	}
	if err := unix.Fstat(s.parent, &dir); err != nil {
		return err
	}
	if err := unix.Fstat(s.self, &own); err != nil {
		return err
	}
	err := unix.Fstatat(s.parent, s.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && (st.Dev != own.Dev || st.Ino != own.Ino) {
		return nil // the container replaced it: what is there now is the container's
	}
	if err != nil {
		return err
	}
	flags := 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.AT_REMOVEDIR
	case unix.S_IFREG:
		if st.Size > 0 {
			return nil
		}
	}
	err = unix.Unlinkat(s.parent, s.name, flags)
	if err == unix.ENOTEMPTY || err == unix.EEXIST {
		return nil // the container made something in it, which keeps it
	}
	if err != nil {
		return err
	}
	return setTimes(s.parent, &dir)
}

// setTimes gives a directory (O_PATH) the times of st.
func setTimes(dir int, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}
