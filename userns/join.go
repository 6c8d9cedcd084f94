package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Join is Launch into a user namespace that is there already: that of another stage inside of this
// user, which sent it as a descriptor. Only who is in one user namespace can share a network. The
// mounts are a new copy of this process's.
//
// The kernel lets no process with two threads change its user namespace, and a Go program has
// always more (setns(2), EINVAL). So the child of a plain fork joins, between fork and exec, as
// os.StartProcess does its own things there.
func Join(choice Choice, user *os.File, args []string, files ...*os.File) (*Child, error) {
	if sameNamespace(user, "/proc/self/ns/user") { // root where user namespaces are denied
		choice.Userns = false
		proc, lifeline, err := admit(choice, args, files)
		if err != nil {
			return nil, err
		}
		return &Child{proc, lifeline}, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	all := append([]*os.File{os.Stdin, os.Stdout, os.Stderr, r}, files...)
	proc, err := forkJoin(user, append([]string{InsideName}, args...), all)
	if err == nil {
		err = (&hello{choice, len(files)}).send(w)
		if err != nil {
			proc.Kill()
			proc.Wait()
		}
	}
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("join a user namespace: %w", err)
	}
	return &Child{proc, w}, nil
}

func sameNamespace(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// What the runtime wants done around a fork: no signals, and no handlers of them in the child.
// They are the runtime's own for syscall.forkExec, and gVisor's, by its promise in runtime/proc.go.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// forkJoin starts this program in the user namespace, with files from descriptor 0 on.
func forkJoin(user *os.File, args []string, files []*os.File) (*os.Process, error) {
	path, err := syscall.BytePtrFromString("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return nil, err
	}
	envv, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return nil, err
	}
	failed, fail, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failed.Close()
	// Copies far above where they have to go, so that none is overwritten before its turn.
	high := make([]uintptr, 0, len(files)+2)
	defer func() {
		for _, fd := range high {
			unix.Close(int(fd))
		}
	}()
	for _, f := range append(files, user, fail) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 100)
		if err != nil {
			fail.Close()
			return nil, err
		}
		high = append(high, uintptr(fd))
	}
	fail.Close()

	// The runtime raised our limit of files and knows what it was, but tells nobody: who started us
	// has it still.
	var limit *unix.Rlimit
	var ours, theirs unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &ours) == nil && unix.Prlimit(os.Getppid(), unix.RLIMIT_NOFILE, nil, &theirs) == nil && theirs.Max == ours.Max {
		limit = &theirs
	}

	syscall.ForkLock.Lock()
	pid, errno := forkAndJoin(high, path, &argv[0], &envv[0], limit)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	if errno != 0 {
		return nil, errno
	}
	unix.Close(int(high[len(high)-1]))
	high = high[:len(high)-1]
	proc, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	why := make([]byte, 1)
	if _, err := io.ReadFull(failed, why); err == nil {
		proc.Wait()
		return nil, syscall.Errno(why[0])
	} else if !errors.Is(err, io.EOF) { // its end is the exec
		return nil, err
	}
	return proc, nil
}

// forkAndJoin is the fork and what the child does. The child is a copy of one thread of many: it may
// neither allocate nor grow its stack nor wait for anybody. fds are its files, then the user
// namespace, then the pipe for an errno; limit is of files, or nil.
//
//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func forkAndJoin(fds []uintptr, path *byte, argv, envv **byte, limit *unix.Rlimit) (pid int, errno syscall.Errno) {
	runtimeBeforeFork()
	child, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || child != 0 {
		runtimeAfterFork()
		return int(child), errno
	}
	runtimeAfterForkInChild()
	n := len(fds) - 2
	_, _, errno = syscall.RawSyscall(unix.SYS_SETNS, fds[n], unix.CLONE_NEWUSER, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0)
	}
	for i := 0; i < n && errno == 0; i++ {
		_, _, errno = syscall.RawSyscall(unix.SYS_DUP3, fds[i], uintptr(i), 0)
	}
	if errno == 0 && limit != nil {
		_, _, errno = syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(limit)), 0, 0, 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envv)))
	}
	why := byte(errno)
	syscall.RawSyscall(unix.SYS_WRITE, fds[n+1], uintptr(unsafe.Pointer(&why)), 1)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}
