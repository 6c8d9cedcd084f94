package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Share gives copies of what another holder needs to have things in common with this container, by
// these names: "user", the user namespace that owns all of them; "net" and "bridge" of its
// Spec.Network; "pid", "ipc", "uts", "cgroup", its namespaces; and "shm", its /dev/shm, detached. The
// caller closes them.
func (p *Process) Share(names []string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	ns := &p.spec.Namespaces
	for _, name := range names {
		var f *os.File
		switch {
		case name == "user":
			f, err = os.Open("/proc/self/ns/user")
		case name == "net" || name == "bridge":
			f, err = p.spec.Network.share(name)
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

// share gives a copy of the network's namespace or, if it is plugged into one, of the bridge's.
func (n *Network) share(name string) (*os.File, error) {
	if n == nil {
		return nil, errHostNetwork
	}
	f := n.file
	if name == "bridge" {
		if n.bridge == nil {
			return nil, errors.New("it is on no network with a name")
		}
		f = n.bridge.file
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
