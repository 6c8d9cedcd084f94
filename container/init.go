package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// Init is stage init: the first process of a container that no thread can make (see Spec.here), or a
// command of Exec. It is in the new namespaces, root with all capabilities, and in the mounts of
// stage inside. It becomes the container by its orders, and never returns.
func Init([]string) {
	err := run()
	if send(packet{Failure: toFailure(err)}, -1) != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", userns.InitName, err)
	}
	os.Exit(125)
}

// Of several threads each has namespaces of its own, and those of a process are those of its first
// thread. Only before main can it be had for sure.
func init() {
	if userns.StageOf(os.Args[0]) == userns.StageInit {
		runtime.LockOSThread()
	}
}

const maxFD = 1<<32 - 1

// run returns only with an error.
func run() error {
	o, sources, err := takeOrders()
	if err != nil {
		return err
	}
	if o.Join != nil {
		return join(o.Spec, o.Join, sources)
	}
	spec := o.Spec
	if !spec.Namespaces.ownPID() {
		if err := watchHolder(); err != nil {
			return err
		}
	}
	cgroups := -1
	if spec.Namespaces.Cgroup && !spec.Namespaces.shares(unix.CLONE_NEWCGROUP) {
		// Not by a flag of clone, which would take the cgroup of the parent for the root of it.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("make a cgroup namespace: %w", err)
		}
		if cgroups, err = unix.Open("/proc/thread-self/ns/cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open the cgroup namespace: %w", err)
		}
	}

	// "6" is what the kernel took for a name.
	if comm, err := os.OpenFile("/proc/self/comm", os.O_WRONLY, 0); err == nil {
		comm.WriteString(userns.InitName)
		comm.Close()
	}

	if spec.Namespaces.Time != nil {
		if err := enteredTime(); err != nil {
			return err
		}
	}
	if err := takeOOMScore(spec); err != nil {
		return err
	}
	// Where: the mounts of stage inside, with the new root beside them. The outer /proc, /sys
	// and /dev are needed: fresh ones may be mounted only while these can be seen.
	if err := namesOf(spec); err != nil {
		return err
	}
	if spec.Namespaces.Net {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
	}
	root, err := attachRoot(rootFD, spec.RootReadOnly)
	if err != nil {
		return err
	}
	denied := setgroupsDenied()
	for i := range spec.Mounts {
		if err := mountOn(root, spec, &spec.Mounts[i], sources[i]); err != nil {
			return err
		}
	}
	tty := -1
	if spec.Terminal != nil {
		master, slave, err := openTerminal(root, spec)
		if err != nil {
			return fmt.Errorf("open a terminal: %w", err)
		}
		if err := send(packet{Terminal: true}, master); err != nil {
			return err
		}
		tty = slave
	}
	if err := writeSysctls(root, spec.Sysctls); err != nil {
		return err
	}
	if err := protect(root, spec); err != nil {
		return err
	}
	covered, err := pivot(root)
	if err == nil && covered {
		err = unix.Unmount("/", unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("pivot into the root: %w", err)
	}
	unix.Close(root)

	// Where: in the container's root, nothing else mounted; still with all capabilities.
	path, err := settleIn(spec, tty, !spec.reaps())
	if err != nil {
		return err
	}

	if o.Await {
		if err := send(packet{Ready: true}, -1); err != nil {
			return err
		}
		if n, err := unix.Read(controlFD, make([]byte, 1)); err != nil || n != 1 {
			return fmt.Errorf("wait for the limits: %w", err)
		}
	}

	if err := closeRest(); err != nil {
		return err
	}
	if spec.reaps() {
		return reap(spec, path, denied, cgroups)
	}
	runtime.LockOSThread() // to the kernel identity and filters belong to threads
	if err := become(spec, denied); err != nil {
		return err
	}
	return execError(spec, path, syscall.Exec(path, spec.Args, spec.Env))
}

// takeOOMScore is for a process that is still dumpable: else /proc/self is not its own to write to.
func takeOOMScore(spec *Spec) error {
	if spec.OOMScore == 0 {
		return nil
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(spec.OOMScore)), 0); err != nil {
		return fmt.Errorf("set the OOM score to %d, which only root of the machine may lower: %w", spec.OOMScore, err)
	}
	return nil
}

// settleIn sets limits, directory and streams of a process that is in the container's root, and
// finds its command. tty is its terminal, -1 for none; own says that it is to control the process.
func settleIn(spec *Spec, tty int, own bool) (path string, err error) {
	for _, l := range spec.Rlimits {
		// syscall's, which knows that the runtime raised the soft limit of files for itself.
		if err := syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return "", fmt.Errorf("set limit %d to %d:%d: %w", l.Resource, l.Soft, l.Hard, err)
		}
	}
	unix.Umask(int(spec.Umask))
	if err := enterCwd(spec.Cwd); err != nil {
		return "", err
	}
	if path, err = lookPath(spec); err != nil {
		return "", err
	}
	if tty < 0 {
		giveStreams(spec.User)
	} else if err := useTerminal(tty, own); err != nil {
		return "", fmt.Errorf("use the terminal: %w", err)
	}
	return path, nil
}

// closeRest lets whatever is open beyond the standard streams end at the exec (CVE-2024-21626).
func closeRest() error {
	if err := unix.CloseRange(3, maxFD, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	return nil
}

// takeOrders reads the orders, and takes the descriptors of the mounts.
func takeOrders() (*orders, []int, error) {
	unix.Close(selfFD)
	f := os.NewFile(ordersFD, "orders")
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("%s was not started by mk: %w", userns.InitName, err)
	}
	text := make([]byte, st.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		return nil, nil, fmt.Errorf("read the orders: %w", err)
	}
	o := new(orders)
	if err := json.Unmarshal(text, o); err != nil {
		return nil, nil, fmt.Errorf("read the orders: %w", err)
	}
	next := sourcesFD
	fds := make([]int, len(o.Sources))
	for i, has := range o.Sources {
		fds[i] = -1
		if has {
			fds[i] = next
			next++
		}
	}
	return o, fds, nil
}

func namesOf(spec *Spec) error {
	if spec.Namespaces.HostUTS || spec.Namespaces.shares(unix.CLONE_NEWUTS) {
		return nil
	}
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set the host name to %q: %w", spec.Hostname, err)
		}
	}
	if spec.Domainname != "" {
		if err := unix.Setdomainname([]byte(spec.Domainname)); err != nil {
			return fmt.Errorf("set the domain name to %q: %w", spec.Domainname, err)
		}
	}
	return nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// enterCwd goes to the working directory. Magic links are not followed: they lead out of the
// root (WORKDIR /proc/self/fd/7, CVE-2024-21626).
func enterCwd(cwd string) error {
	if cwd == "" {
		cwd = "/"
	}
	fd, err := openIn(unix.AT_FDCWD, cwd, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		err = unix.Fchdir(fd)
		unix.Close(fd)
	}
	if err != nil {
		code := 126
		if errors.Is(err, unix.ENOENT) {
			code = 127
		}
		return fail(code, "change to the working directory %q: %w", cwd, err)
	}
	return nil
}

// giveStreams makes pipes on the standard streams the user's, so that /dev/stdout can be opened.
// Only pipes: a file or a terminal is somebody's.
func giveStreams(u User) {
	for fd := range 3 {
		giveStream(fd, u)
	}
}

func giveStream(fd int, u User) {
	var st unix.Stat_t
	if u.UID != 0 && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
		unix.Fchown(fd, int(u.UID), -1)
	}
}
