package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Share gives copies of what another holder, in the same user namespace, needs to have things in
// common with this container: "net", its Spec.Network; "pid", "ipc", "uts" and "cgroup", its
// namespaces; and "shm", its /dev/shm, detached. The caller closes them.
func (p *Process) Share(names []string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	for _, name := range names {
		var f *os.File
		switch ns := &p.spec.Namespaces; {
		case name == "net":
			f, err = p.spec.Network.share()
		case name == "pid" && ns.HostPID, name == "ipc" && ns.HostIPC, name == "uts" && ns.HostUTS, name == "cgroup" && !ns.Cgroup:
			err = fmt.Errorf("it has the machine's %s namespace: share that, by host", name)
		case name == "shm":
			f, err = p.shm()
		case name == "pid" || name == "ipc" || name == "uts" || name == "cgroup":
			f, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.Pid(), name))
		default:
			err = fmt.Errorf("there is no %q to share", name)
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// shm copies the mount of the container's /dev/shm; nil, with no error, where there is none.
func (p *Process) shm() (*os.File, error) {
	init, err := p.pidfd()
	if err != nil {
		return nil, err
	}
	defer init.Close()
	var shm *os.File
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread stays in there, and ends here
		done <- func() error {
			// A thread that shares its directories with others cannot join a mount namespace.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(int(init.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
			// The container made the path: it may be anything, but leads nowhere.
			fd, err := unix.Openat2(unix.AT_FDCWD, "/dev/shm", &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
				Resolve: unix.RESOLVE_NO_SYMLINKS})
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			shm, err = cloneTree(fd, "", unix.AT_EMPTY_PATH)
			return err
		}()
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("share /dev/shm: %w", err)
	}
	return shm, nil
}

var errHostNetwork = errors.New("it has the machine's network")

// share gives a copy of the network's namespace.
func (n *Network) share() (*os.File, error) {
	if n == nil {
		return nil, errHostNetwork
	}
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}
