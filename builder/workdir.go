package builder

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mk/container"
	"mk/snapshot"
)

// makeDir is WORKDIR: the directory exists afterwards, and belongs to the USER
// in force if it had to be made.
type makeDir struct {
	*engine
	node *Node
}

func (m *makeDir) describe(t *KeyText) {
	t.Add("workdir", m.node.Dir)
	t.Add("user", m.node.User)
}

func (m *makeDir) Close() error { return nil }

func (m *makeDir) perform(ctx context.Context, draft *snapshot.Draft) error {
	root, err := draft.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	user, _, err := container.LookupUser(root, m.node.User)
	if err != nil {
		return err
	}
	return makeDirs(root, m.node.Dir, user.UID, user.GID, m.Trees.Remembers())
}

// MakeDirs makes a directory and those above it that are missing, 0755 and
// owned by uid:gid. Symlinks on the way are followed inside root, and what they
// point to is made where it is missing. A directory that is there stays as it is.
func MakeDirs(root *os.File, dir string, uid, gid uint32) error {
	return makeDirs(root, dir, uid, gid, false)
}

// makeDirs is MakeDirs that keeps, if remember is set, with the file an owner that cannot be set.
func makeDirs(root *os.File, dir string, uid, gid uint32, remember bool) error {
	place, err := walkPath(root, dir, walkRules{
		follow:    true,
		mkdirLast: true,
		mkdir: func(parent *dirHandle, name, path string) error {
			if err := unix.Mkdirat(parent.fd, name, 0o755); err != nil {
				return err
			}
			if err := unix.Fchmodat(parent.fd, name, 0o755, 0); err != nil { // whatever the umask
				return err
			}
			if uid == 0 && gid == 0 {
				return nil
			}
			if remember {
				return snapshot.WriteMark(fmt.Sprintf("/proc/self/fd/%d/%s", parent.fd, name), true, snapshot.Owner{UID: uid, GID: gid})
			}
			if err := unix.Fchownat(parent.fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fmt.Errorf("chown to %d:%d: %w", uid, gid, err)
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	defer place.dir.release()
	if !place.st.isDir() {
		return &os.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	}
	return nil
}
