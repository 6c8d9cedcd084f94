package container

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// openSources makes, for every mount that shows something of the outside, a detached mount that
// init has only to move into place: what a path means is settled here, in the view of stage
// inside, once. nil for the others.
func openSources(mounts []Mount) (_ []*os.File, err error) {
	out := make([]*os.File, len(mounts))
	defer func() {
		if err != nil {
			closeAll(out)
		}
	}()
	for i := range mounts {
		m := &mounts[i]
		switch m.Type {
		case Attach:
			// A copy, so that the next start has one, too; Linux copies what is detached since 6.15.
			if out[i], err = cloneTree(int(m.File.Fd()), "", unix.AT_EMPTY_PATH); err == nil {
				continue
			}
			fd, err := unix.FcntlInt(m.File.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return nil, fmt.Errorf("mount on %s: %w", m.Dest, err)
			}
			out[i] = os.NewFile(uintptr(fd), m.File.Name())
		case Bind:
			dir, path, flags := unix.AT_FDCWD, m.Source, uint(0)
			if m.File != nil {
				dir, path, flags = int(m.File.Fd()), "", unix.AT_EMPTY_PATH
			}
			out[i], err = cloneTree(dir, path, flags)
			if err != nil {
				if m.File != nil {
					path = m.File.Name()
				}
				return nil, userns.Explain(userns.OpMount, path+" on "+m.Dest, err)
			}
		}
	}
	return out, nil
}

// cloneTree copies a mount and all below it, detached. Not recursive it cannot be: in a user
// namespace nobody may look under a mount.
func cloneTree(dir int, path string, flags uint) (*os.File, error) {
	fd, err := unix.OpenTree(dir, path, flags|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountsDirectory reports whether the mount point must be a directory.
func mountsDirectory(m *Mount, source *os.File) bool {
	if source == nil {
		return true
	}
	st, err := source.Stat()
	return err != nil || st.IsDir()
}
