package snapshot

import (
	"archive/tar"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// place is a directory of the tree while a layer is applied: ours in the upper
// directory, and the parent's that shines through it.
//
// The layer is written straight into the upper directory, in overlay's form,
// and not through an overlay mount, although there the kernel would resolve the
// names: a whiteout of a directory of 20,000 files is one call here and 20,000
// there, an opaque mark cannot be made there at all, and a file costs 1.4 times
// as much (20,000 of them on tmpfs, Linux 6.18).
// So names are resolved here, one at a time, by calls that never follow a
// symlink and never see a slash: there is no way out, and nobody else is in.
type place struct {
	real  string // relative to the root, no symlinks in it
	upper int
	lower int // -1: the parent has no directory here, or it is hidden

	mtime   unix.Timespec // of upper, when it was entered
	changed bool
	setgid  bool // new files get the directory's group
	acl     bool // new files get the directory's default ACL
}

// join is the real path of name in the directory.
func (at *place) join(name string) string { return joinPath(at.real, name) }

func (at *place) close() {
	unix.Close(at.upper)
	if at.lower >= 0 {
		unix.Close(at.lower)
	}
}

// lowerStat is lstat of name in the parent's directory.
func (at *place) lowerStat(name string) (unix.Stat_t, error) {
	if at.lower < 0 {
		return unix.Stat_t{}, unix.ENOENT
	}
	return statAt(at.lower, name)
}

// enter makes dir, a clean path as the layer has it, the current directory. The
// last one is kept open, since a tar lists a directory's files together. What is
// missing is made, with the given time.
//
// A directory's time is noted when it is entered and put back when it is left.
// So it has in the end the time that its own entry gave it, wherever in the
// layer that entry stands, and nothing must be kept for each directory.
func (a *applier) enter(dir string, mtime time.Time) (*place, error) {
	if a.current != nil && a.currentName == dir {
		return a.current, nil
	}
	if err := a.leave(); err != nil {
		return nil, err
	}
	at, err := a.walk(dir, &mtime)
	if err != nil {
		return nil, fmt.Errorf("open parent: %w", err)
	}
	a.current, a.currentName = at, dir
	return at, nil
}

// leave ends the stay in the current directory.
func (a *applier) leave() error {
	at := a.current
	if at == nil {
		return nil
	}
	a.current = nil
	return at.leave()
}

func (at *place) leave() (err error) {
	if at.changed {
		err = setTime(at.upper, ".", at.mtime)
	}
	at.close()
	if err != nil {
		return fmt.Errorf("restore time of %q: %w", at.real, err)
	}
	return nil
}

// maxSymlinks is the kernel's own limit on one path.
const maxSymlinks = 40

// walk goes to the directory p. Symlinks are followed inside the root, where an
// absolute one starts and above which ".." does not lead. Directories that only
// the parent has are copied up. With mtime, what is missing is made; else it is
// ENOENT. The caller ends with leave.
func (a *applier) walk(p string, mtime *time.Time) (at *place, err error) {
	if at, err = a.top(); err != nil {
		return nil, err
	}
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		var next *place
		target := ""
		switch name {
		case "", ".":
			continue
		case "..": // only in symlinks; the way down again has none
			dir, _ := splitPath(at.real)
			rest = append(strings.Split(dir, "/"), rest...)
			next, err = a.top()
		default:
			next, target, err = a.step(at, name, mtime)
		}
		if err == nil && target != "" {
			if links++; links > maxSymlinks || len(target) > maxPath {
				err = unix.ELOOP
			} else {
				rest = append(strings.Split(target, "/"), rest...)
				if target[0] != '/' {
					continue
				}
				next, err = a.top()
			}
		}
		if err != nil {
			at.leave()
			return nil, err
		}
		if err := at.leave(); err != nil {
			next.close()
			return nil, err
		}
		at = next
	}
	return at, nil
}

// top is the root of the tree.
func (a *applier) top() (*place, error) {
	upper, err := openAt(a.upper, ".", oDir, 0)
	if err != nil {
		return nil, err
	}
	lower := -1
	if a.lower >= 0 {
		if lower, err = openAt(a.lower, ".", oDir, 0); err != nil {
			unix.Close(upper)
			return nil, err
		}
	}
	return newPlace(".", upper, lower)
}

// newPlace takes over the descriptors.
func newPlace(real string, upper, lower int) (*place, error) {
	at := &place{real: real, upper: upper, lower: lower}
	var st unix.Stat_t
	if err := unix.Fstat(upper, &st); err != nil {
		at.close()
		return nil, err
	}
	_, err := unix.Fgetxattr(upper, "system.posix_acl_default", nil)
	at.mtime, at.setgid, at.acl = st.Mtim, st.Mode&unix.S_ISGID != 0, err == nil
	return at, nil
}

// step goes from at to name, which is no ".." and has no slash: to a directory,
// or it returns the target of a symlink.
func (a *applier) step(at *place, name string, mtime *time.Time) (*place, string, error) {
	if len(name) > maxName || len(at.join(name)) > maxPath {
		return nil, "", unix.ENAMETOOLONG
	}
	st, err := statAt(at.upper, name)
	gone := err == nil && isWhiteout(&st)
	switch {
	case err == unix.ENOENT:
		st, err = at.lowerStat(name)
		switch {
		case err == unix.ENOENT:
			gone = true
		case err != nil:
			return nil, "", err
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := readlinkAt(at.lower, name)
			return nil, target, err
		case !isDir(&st):
			return nil, "", unix.ENOTDIR
		default:
			if err := a.copyUp(at, name, &st); err != nil {
				return nil, "", err
			}
		}
	case err != nil:
		return nil, "", err
	case gone:
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := readlinkAt(at.upper, name)
		return nil, target, err
	case !isDir(&st):
		return nil, "", unix.ENOTDIR
	}
	if gone {
		if mtime == nil {
			return nil, "", unix.ENOENT
		}
		h := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: *mtime}
		if err := a.create(at, name, h, nil); err != nil {
			return nil, "", err
		}
	}
	next, err := a.descend(at, name)
	return next, "", err
}

// descend opens the directory name, which upper has.
func (a *applier) descend(at *place, name string) (*place, error) {
	upper, err := openAt(at.upper, name, oDir, 0)
	if err != nil {
		return nil, err
	}
	lower := -1
	if at.lower >= 0 && !isOpaque(upper) {
		lower, err = openAt(at.lower, name, oDir, 0)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			lower, err = -1, nil // nothing there, or no directory
		}
		if err != nil {
			unix.Close(upper)
			return nil, err
		}
	}
	return newPlace(at.join(name), upper, lower)
}

// copyUp makes in upper what the parent shows as name: a directory without what
// is in it, or a whole file.
func (a *applier) copyUp(at *place, name string, st *unix.Stat_t) error {
	h := &tar.Header{Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()),
		Devmajor: int64(unix.Major(uint64(st.Rdev))), Devminor: int64(unix.Minor(uint64(st.Rdev)))}
	fd := -1
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		if fd, err = openAt(at.lower, name, oDir, 0); err != nil {
			return err
		}
	case unix.S_IFREG:
		h.Typeflag = tar.TypeReg
		if fd, err = openAt(at.lower, name, oRead, 0); err != nil {
			return err
		}
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlinkAt(at.lower, name); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	default:
		return unix.EINVAL
	}
	var content *os.File
	if fd >= 0 {
		content = os.NewFile(uintptr(fd), name)
		defer content.Close()
	}
	attrs, err := attrsAt(at.lower, name, fd)
	if err != nil {
		return err
	}
	h.PAXRecords = make(map[string]string)
	for _, x := range attrs {
		h.PAXRecords[paxAttr+x.name] = x.value
	}
	o, ok, err := a.parent.Owner(at.join(name))
	if err != nil {
		return err
	}
	if ok {
		if a.remember {
			h.Uid, h.Gid = int(o.UID), int(o.GID)
		}
		switch o.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			h.Typeflag = tar.TypeChar
		case unix.S_IFBLK:
			h.Typeflag = tar.TypeBlock
		}
		if o.Mode != 0 {
			h.Devmajor, h.Devminor = int64(unix.Major(o.Rdev)), int64(unix.Minor(o.Rdev))
		}
		for n, value := range o.Xattrs {
			h.PAXRecords[paxAttr+n] = value
		}
	}
	return a.create(at, name, h, content)
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// setTime sets the modification time of name in dir and leaves the access time.
func setTime(dir int, name string, mtime unix.Timespec) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return unix.UtimesNanoAt(dir, name, ts, unix.AT_SYMLINK_NOFOLLOW)
}
