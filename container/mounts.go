package container

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// Everything is mounted by descriptors: a file system is made or copied detached, gets its flags,
// and is moved onto the open mount point. No path is looked up twice, and nothing is
// visible before its flags are.

// attachRoot mounts the root over /, where nobody looks: this process and the mounts of stage
// inside stay below it until pivot. It returns the root's descriptor (O_PATH).
func attachRoot(root int, readOnly bool) (int, error) {
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, userns.Explain(userns.OpMount, "the root", err)
	}
	if !readOnly {
		return root, nil
	}
	// A read-only second view on top: the first one is still open in Start, which takes mount
	// points away through it.
	fd, err := unix.OpenTree(root, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, userns.Explain(userns.OpMount, "the root", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return -1, userns.Explain(userns.OpMount, "the root read-only", err)
	}
	if err := moveTo(fd, root); err != nil {
		return -1, userns.Explain(userns.OpMount, "the root read-only", err)
	}
	return fd, nil
}

// pivot makes root the root. covered tells that all other mounts are still there, over it, and
// go by an unmount of "/".
func pivot(root int) (covered bool, err error) {
	if err := unix.Fchdir(root); err != nil {
		return false, err
	}
	// The old root goes on top of the new one, so that no directory for it is needed
	// (pivot_root(2), NOTES). Paths do not lead there: a lookup starts at the root, not over it.
	covered = true
	if err := unix.PivotRoot(".", "."); err == unix.EINVAL {
		// On the kernel's first root file system, as in an initramfs, it cannot be done; there the
		// new root covers it, as switch_root(8) has it.
		covered, err = false, unix.Chroot(".")
		if err != nil {
			return false, err
		}
	} else if err != nil {
		return false, err
	}
	return covered, unix.Chdir("/")
}

// mountOn executes one line of the mount plan.
func mountOn(root int, spec *Spec, m *Mount, source int) error {
	mnt, err := makeMount(spec, m, source)
	if err == nil {
		err = place(root, m.Dest, mnt)
		if err == nil && m.Type == Dev {
			err = fillDev(mnt)
		}
		if mnt != source {
			unix.Close(mnt)
		}
	}
	switch {
	case err == nil || m.Optional:
		return nil
	case m.Type == Proc:
		return userns.Explain(userns.OpProc, m.Dest, err)
	}
	return userns.Explain(userns.OpMount, m.Type+" on "+m.Dest, err)
}

// makeMount makes the detached mount.
func makeMount(spec *Spec, m *Mount, source int) (int, error) {
	switch m.Type {
	case Bind, Attach:
		return source, restrict(source, m)
	case Tmpfs:
		return newFS("tmpfs", m.attributes(), strings.Split(m.Data, ",")...)
	case Dev:
		return newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME, "size=64k", "mode=0755")
	case Devpts:
		// gid 5 is tty; in mode single there is none, and the pty is its user's alone.
		fd, err := newFS("devpts", m.attributes(), "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
		if err == unix.EINVAL {
			fd, err = newFS("devpts", m.attributes(), "newinstance", "ptmxmode=0666", "mode=0620")
		}
		return fd, err
	case Mqueue:
		return newFS("mqueue", m.attributes())
	case Cgroup2:
		if !spec.Namespaces.Cgroup {
			return outerTree("/sys/fs/cgroup", m)
		}
		return newFS("cgroup2", m.attributes())
	case Proc:
		if spec.Namespaces.HostPID { // a fresh one takes the rights of who owns the pid namespace
			return outerTree("/proc", m)
		}
		fd, err := newFS("proc", m.attributes())
		if denied(err) {
			if outer, err2 := outerTree("/proc", m); err2 == nil {
				send(packet{Notice: outerProc}, -1)
				return outer, nil
			}
		}
		return fd, err
	case Sysfs:
		if spec.Namespaces.Net { // it shows the network namespace, and belongs to who owns that
			if fd, err := newFS("sysfs", m.attributes()); !denied(err) {
				return fd, err
			}
		}
		return outerTree("/sys", m)
	}
	return -1, unix.ENODEV
}

const outerProc = "parts of /proc are hidden around mk, and so the kernel allows no fresh one: " +
	"the container has the outer /proc, with the processes of the outside in it"

func denied(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// newFS makes a file system and a mount of it.
func newFS(name string, attributes int, options ...string) (int, error) {
	fsfd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fsfd)
	// What mount(8) and df show as the device, as with docker.
	if err := unix.FsconfigSetString(fsfd, "source", name); err != nil {
		return -1, err
	}
	for _, o := range options {
		key, value, hasValue := strings.Cut(o, "=")
		switch {
		case key == "":
		case hasValue:
			err = unix.FsconfigSetString(fsfd, key, value)
		default:
			err = unix.FsconfigSetFlag(fsfd, key)
		}
		if err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attributes)
}

// outerTree copies a file system of stage inside.
func outerTree(path string, m *Mount) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	return fd, restrict(fd, m)
}

func (m *Mount) attributes() (a int) {
	for _, f := range []struct {
		on   bool
		attr int
	}{
		{m.ReadOnly, unix.MOUNT_ATTR_RDONLY}, {m.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{m.NoDev, unix.MOUNT_ATTR_NODEV}, {m.NoExec, unix.MOUNT_ATTR_NOEXEC},
	} {
		if f.on {
			a |= f.attr
		}
	}
	return a
}

// restrict adds the mount's flags to a copied tree, to all of it.
func restrict(mnt int, m *Mount) error {
	attr := unix.MountAttr{Attr_set: uint64(m.attributes())}
	if attr.Attr_set == 0 {
		return nil
	}
	return unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
}

// place moves a detached mount to its place, made when it is missing: Start made those in the root
// itself, this makes those in other mounts.
func place(root int, dest string, mnt int) error {
	var st unix.Stat_t
	if err := unix.Fstat(mnt, &st); err != nil {
		return err
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	dst, err := reach(root, dest, dir, func(int, string) error { return nil })
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return moveTo(mnt, dst)
}

func moveTo(mnt, dst int) error {
	return unix.MoveMount(mnt, "", dst, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// protect hides and freezes the paths of spec, all below /proc and /sys.
func protect(root int, spec *Spec) error {
	for _, path := range spec.ReadOnly {
		if err := freeze(root, path); err != nil {
			return userns.Explain(userns.OpMount, path+" read-only", err)
		}
	}
	if len(spec.Masked) == 0 {
		return nil
	}
	null, err := openDevice("null")
	if err != nil {
		return err
	}
	defer unix.Close(null)
	for _, path := range spec.Masked {
		if err := mask(root, path, null); err != nil {
			return userns.Explain(userns.OpMount, "a mask on "+path, err)
		}
	}
	return nil
}

func freeze(root int, path string) error {
	fd, err := openIn(root, path, unix.O_PATH)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	copied, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(copied)
	if err := restrict(copied, &Mount{ReadOnly: true}); err != nil {
		return err
	}
	return moveTo(copied, fd)
}

// mask covers a file with /dev/null, which is given as the descriptor of the real device
// (CVE-2025-31133), and a directory with an empty one.
func mask(root int, path string, null int) error {
	fd, err := openIn(root, path, unix.O_PATH)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	cover, err := coverFor(st.Mode&unix.S_IFMT == unix.S_IFDIR, null)
	if err != nil {
		return err
	}
	defer unix.Close(cover)
	return moveTo(cover, fd)
}

// coverFor is the detached mount that masks a directory, or a file.
func coverFor(dir bool, null int) (int, error) {
	if dir {
		return newFS("tmpfs", unix.MOUNT_ATTR_RDONLY, "size=4k", "nr_inodes=2", "mode=0755")
	}
	return unix.OpenTree(null, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// writeSysctls writes before /proc/sys is frozen. Only those of a namespace of the container's
// can be written at all.
func writeSysctls(root int, sysctls map[string]string) error {
	for name, value := range sysctls {
		path := "proc/sys/" + strings.ReplaceAll(name, ".", "/")
		fd, err := openIn(root, path, unix.O_WRONLY)
		if err != nil {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
		var st unix.Statfs_t
		if err = unix.Fstatfs(fd, &st); err == nil && st.Type != unix.PROC_SUPER_MAGIC {
			err = errors.New("the container's /proc is not a proc") // CVE-2025-52881
		}
		if err == nil {
			_, err = unix.Write(fd, []byte(value))
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
		}
	}
	return nil
}
