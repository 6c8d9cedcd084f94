package snapshot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// parentDir is the directory that the entries of a layer are going to: the last
// one is kept open, since a tar lists a directory's files together.
//
// Its time is noted when it is entered and put back when it is left. So a
// directory has in the end the time that its own entry gave it, wherever in the
// layer that entry stands, and nothing must be kept for each directory.
type parentDir struct {
	path    string // as the layer calls it
	real    string // without symlinks, relative to the root
	fd      int    // -1: none
	mtime   unix.Timespec
	changed bool
	setgid  bool // new files get the directory's group
	acl     bool // new files get the directory's default ACL
}

// join is the real path of name in the directory.
func (p *parentDir) join(name string) string { return joinPath(p.real, name) }

// enter makes dir, a clean relative path, the current directory. It follows
// symlinks inside the root, and makes what is missing, with the given time.
func (a *applier) enter(dir string, mtime time.Time) error {
	if a.parent.fd >= 0 && a.parent.path == dir {
		return nil
	}
	if err := a.leave(); err != nil {
		return err
	}
	fd, err := a.resolve(dir, unix.O_RDONLY)
	if err == unix.ENOENT {
		if err := a.mkdirAll(dir, mtime, 0); err != nil {
			return fmt.Errorf("make parent: %w", err)
		}
		fd, err = a.resolve(dir, unix.O_RDONLY)
	}
	if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	return a.settle(dir, fd)
}

// enterExisting is enter that makes nothing.
func (a *applier) enterExisting(dir string) error {
	if a.parent.fd >= 0 && a.parent.path == dir {
		return nil
	}
	if err := a.leave(); err != nil {
		return err
	}
	fd, err := a.resolve(dir, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	return a.settle(dir, fd)
}

// settle takes fd over as the current directory.
func (a *applier) settle(dir string, fd int) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	real := ""
	if err == nil {
		real, err = a.realPath(fd)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	_, aclErr := unix.Fgetxattr(fd, "system.posix_acl_default", nil)
	a.parent = parentDir{path: dir, real: real, fd: fd, mtime: st.Mtim,
		setgid: st.Mode&unix.S_ISGID != 0, acl: aclErr == nil}
	return nil
}

// leave ends the stay in the current directory.
func (a *applier) leave() (err error) {
	if a.parent.fd < 0 {
		return nil
	}
	if a.parent.changed {
		err = setTime(a.parent.fd, ".", a.parent.mtime)
	}
	unix.Close(a.parent.fd)
	a.parent = parentDir{fd: -1}
	if err != nil {
		return fmt.Errorf("restore time of parent: %w", err)
	}
	return nil
}

// resolve opens a directory below the root. The kernel walks the path: symlinks,
// also absolute ones and any "..", stay inside.
func (a *applier) resolve(p string, access uint64) (int, error) {
	for {
		fd, err := unix.Openat2(a.root, p, &unix.OpenHow{
			Flags:   access | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		// EAGAIN: something was renamed meanwhile anywhere in the system, and
		// a ".." could not be checked.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// realPath is where a directory of the tree is, without symlinks.
func (a *applier) realPath(fd int) (string, error) {
	p, err := os.Readlink("/proc/self/fd/" + itoa(fd))
	if err != nil {
		return "", err
	}
	rel, ok := strings.CutPrefix(p, a.rootPath)
	if !ok {
		return "", fmt.Errorf("%q is not below %q", p, a.rootPath)
	}
	return cleanPath(rel), nil
}

// maxSymlinks is the kernel's own limit on one path.
const maxSymlinks = 40

// mkdirAll makes the directories of p, a path relative to the root, that are
// missing. A symlink to nothing on the way gets its target made.
func (a *applier) mkdirAll(p string, mtime time.Time, links int) error {
	if links > maxSymlinks {
		return unix.ELOOP
	}
	at := "."
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." {
			continue
		}
		next := at + "/" + part
		fd, err := a.resolve(next, unix.O_PATH)
		if err == nil {
			unix.Close(fd)
			at = next
			continue
		}
		if !errors.Is(err, unix.ENOENT) || part == ".." {
			return err
		}
		if err := a.mkdirOne(at, part, mtime, links); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// mkdirOne makes part in the existing directory at.
func (a *applier) mkdirOne(at, part string, mtime time.Time, links int) error {
	dir, err := a.resolve(at, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	err = unix.Mkdirat(dir, part, 0o700)
	if err == unix.EEXIST { // and resolves to nothing: a symlink
		target, err := readlinkAt(dir, part)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(target, "/") {
			target = at + "/" + target
		}
		return a.mkdirAll(target, mtime, links+1)
	} else if err != nil {
		return err
	}
	fd, err := openAt(dir, part, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, 0, 0); err != nil && !refused(err) {
		return err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		return err
	}
	if err := setTime(fd, ".", timespec(mtime)); err != nil {
		return err
	}
	return setTime(dir, ".", st.Mtim)
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// setTime sets the modification time of name in dir and leaves the access time.
func setTime(dir int, name string, mtime unix.Timespec) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return unix.UtimesNanoAt(dir, name, ts, unix.AT_SYMLINK_NOFOLLOW)
}
