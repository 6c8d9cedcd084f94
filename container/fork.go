package container

import (
	"fmt"
	"path"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"mk/container/nofile"
	"mk/userns"
)

// newborn is all that a child of fork does on its way to execve, prepared: what only a member of the
// new pid and cgroup namespaces can mount, and what makes it the command, in the order of become.
//
// Until its execve the child is one thread of a Go program whose others are not there, in which
// nothing of Go's works that may allocate, grow a stack, wait for a lock or write a pointer. So
// live, the child's own code, makes raw system calls and nothing else, and all it needs is here, as
// the kernel wants it. It says what it did not manage by one report on control, or nothing, and
// then the socket closes: at its execve, or at its end.
//
// It has the memory of its parent, which waits meanwhile (vfork(2)): to copy the tables of the pages
// and to take them apart again would cost more than all the rest. A child whose calls this very
// process answers gets a copy, since a thread that waits so can hold the garbage collector up.
type newborn struct {
	control int // where the report goes
	ours    int // the other end, closed first

	newCgroup  bool
	cgroup     int  // a pidfd of who has the cgroup namespace already, or 0
	noChildren bool // it waits for none: the kernel buries them
	stdio      [3]int
	tty        bool // stdio is a terminal, which is to control it
	fresh      []fresh
	covered    bool // by the old root, which goes
	sysctls    []sysctl
	frozen     []*byte // below /proc
	masked     []masked
	rlimits    []rlimit
	umask      int
	cwd        *byte
	dropped    []int // from the bounding set
	caps       [2]unix.CapUserData
	keyring    bool
	noNewPrivs bool
	filter     *unix.SockFprog // nil: unconfined
	notify     *unix.SockFprog // nil: nobody answers
	notifyFlag uintptr
	user       *User
	groups     []uint32 // nil: none can be set
	alone      []uint32 // the same where notify could not be installed
	program    int      // tiny.go
	argv, envv []*byte  // of program

	// What live needs room for.
	openHow   unix.OpenHow
	readOnly  unix.MountAttr
	set       [1]uint64 // of signals
	action    [4]uint64 // struct sigaction of rt_sigaction(2), the same size on all architectures
	capHeader unix.CapUserHeader
	clone     cloneArgs
	report    report
	message   unix.Msghdr
	iov       unix.Iovec
	rights    [24]byte // one SCM_RIGHTS with one descriptor
}

// fresh is a file system that shows a namespace of who mounts it.
type fresh struct {
	name     *byte
	attr     uintptr
	dest     int // O_PATH
	outer    int // what is taken where the kernel refuses a fresh one; or -1
	optional bool
	is       string
}

type sysctl struct {
	path  *byte // below /proc
	value []byte
	is    string
}

type masked struct {
	path  *byte // below /proc
	cover int   // a detached mount
}

type rlimit struct {
	resource   int
	soft, hard uint64
}

// report is the message of a child that is not what it should be.
type report struct {
	step  int32
	index int32 // of the thing of the step
	errno int32 // 0: the report is of a listener, with a descriptor
	fatal int32 // 1, or the child goes on
}

// The steps of a child, as they fail.
const (
	stepAlive = iota
	stepCgroup
	stepSession
	stepStreams
	stepFresh
	stepPivot
	stepSysctl
	stepFreeze
	stepMask
	stepLimit
	stepCwd
	stepBounding
	stepFilter
	stepNotify
	stepGroups
	stepGID
	stepUID
	stepCaps
	stepPrivs
	stepExec
)

// fork makes a child of this thread, which is locked, in the cgroup of that directory or, with -1,
// in that of the parent; and lets it live. It returns in the parent alone.
//
//go:noinline
//go:norace
func (n *newborn) fork(cgroup int) (int, unix.Errno) {
	var flags uintptr
	if n.notify == nil {
		flags = unix.CLONE_VM | unix.CLONE_VFORK
	}
	trap, a1, a2 := uintptr(unix.SYS_CLONE), flags|uintptr(unix.SIGCHLD), uintptr(0)
	if cgroup >= 0 {
		n.clone = cloneArgs{flags: uint64(flags) | unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(cgroup)}
		trap, a1, a2 = unix.SYS_CLONE3, uintptr(unsafe.Pointer(&n.clone)), unsafe.Sizeof(n.clone)
	}
	// No signal may find Go's handlers in a process that is not Go's any more.
	all, old := ^uint64(0), uint64(0)
	syscall.ForkLock.Lock()
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	child, e := vfork(trap, a1, a2)
	if e == 0 && child == 0 {
		n.live()
	}
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(n)
	return int(child), unix.Errno(e)
}

// vfork is clone(2) or clone3(2), from which two may return that have one memory.
func vfork(trap, a1, a2 uintptr) (pid, errno uintptr)

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// raw is a system call of a child.
//
//go:nosplit
//go:norace
func raw(trap, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, unix.Errno) {
	r, _, e := unix.RawSyscall6(trap, a1, a2, a3, a4, a5, a6)
	return r, e
}

// live is the child. It does not return.
//
//go:nosplit
//go:noinline
//go:norace
func (n *newborn) live() {
	n.report.step = stepAlive
	raw(unix.SYS_CLOSE, uintptr(n.ours), 0, 0, 0, 0, 0)
	if e := n.dieWithParent(); e != 0 {
		n.fail(e)
	}
	// Handlers of Go's are of no use here, and after execve what was ignored would stay so.
	for sig := uintptr(1); sig <= 64; sig++ {
		raw(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&n.action)), 0, 8, 0, 0)
	}
	if n.noChildren {
		n.action[0] = 1 // SIG_IGN, in all layouts of the structure
		raw(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&n.action)), 0, 8, 0, 0)
	}
	n.report.step = stepCgroup
	if n.cgroup > 0 {
		if _, e := raw(unix.SYS_SETNS, uintptr(n.cgroup), unix.CLONE_NEWCGROUP, 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	if n.newCgroup {
		if _, e := raw(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	n.report.step = stepSession
	if _, e := raw(unix.SYS_SETSID, 0, 0, 0, 0, 0, 0); e != 0 {
		n.fail(e)
	}
	n.report.step = stepStreams
	for i := 0; i < 3; i++ {
		if _, e := raw(unix.SYS_DUP3, uintptr(n.stdio[i]), uintptr(i), 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	if n.tty {
		if _, e := raw(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	n.mount()
	n.settle()
	n.become()
	n.report.step = stepExec
	raw(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&n.set)), 0, 8, 0, 0)
	var e unix.Errno
	if !n.noChildren { // a starter, which reports on
		_, e = raw(unix.SYS_DUP3, uintptr(n.control), 3, 0, 0, 0, 0)
	}
	if e == 0 {
		_, e = raw(unix.SYS_EXECVEAT, uintptr(n.program), uintptr(unsafe.Pointer(&empty[0])),
			uintptr(unsafe.Pointer(&n.argv[0])), uintptr(unsafe.Pointer(&n.envv[0])), unix.AT_EMPTY_PATH, 0)
	}
	n.fail(e)
}

// dieWithParent asks for SIGKILL when the parent's thread ends, and finds out whether it has.
//
//go:nosplit
//go:norace
func (n *newborn) dieWithParent() unix.Errno {
	if _, e := raw(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0); e != 0 {
		return e
	}
	// Not by getppid(2), which is 0 for a parent of another pid namespace. The other end of the
	// socket closes with the parent.
	r, e := raw(unix.SYS_RECVFROM, uintptr(n.control), uintptr(unsafe.Pointer(&n.report)), 0, unix.MSG_DONTWAIT|unix.MSG_PEEK, 0, 0)
	if e == unix.EAGAIN {
		return 0
	}
	if e == 0 && r == 0 {
		return unix.ESRCH
	}
	return e
}

// mount mounts what shows the namespaces of the child: /proc, with its masks, and /sys/fs/cgroup.
//
//go:nosplit
//go:norace
func (n *newborn) mount() {
	proc := ^uintptr(0)
	n.report.step = stepFresh
	for i := range n.fresh {
		f := &n.fresh[i]
		n.report.index = int32(i)
		mnt, e := n.freshMount(f)
		if (e == unix.EPERM || e == unix.EACCES) && f.outer >= 0 {
			n.report.errno = int32(e)
			n.send(-1)
			mnt, e = uintptr(f.outer), 0
		}
		if e == 0 {
			_, e = raw(unix.SYS_MOVE_MOUNT, mnt, uintptr(unsafe.Pointer(&empty[0])), uintptr(f.dest), uintptr(unsafe.Pointer(&empty[0])),
				unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, 0)
		}
		if e != 0 && !f.optional {
			n.fail(e)
		}
		if i == 0 {
			proc = mnt
		}
	}
	n.report.step = stepPivot
	if n.covered {
		if _, e := raw(unix.SYS_UMOUNT2, uintptr(unsafe.Pointer(&slash[0])), unix.MNT_DETACH, 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	n.report.step = stepSysctl
	for i := range n.sysctls {
		s := &n.sysctls[i]
		n.report.index = int32(i)
		n.openHow.Flags = unix.O_WRONLY | unix.O_CLOEXEC
		fd, e := n.open(proc, s.path)
		if e == 0 {
			_, e = raw(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&s.value[0])), uintptr(len(s.value)), 0, 0, 0)
			raw(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		}
		if e != 0 {
			n.fail(e)
		}
	}
	n.openHow.Flags = unix.O_PATH | unix.O_CLOEXEC
	n.report.step = stepFreeze
	for i := range n.frozen {
		n.report.index = int32(i)
		if e := n.freeze(proc, n.frozen[i]); e != 0 && e != unix.ENOENT && e != unix.ENOTDIR {
			n.fail(e)
		}
	}
	n.report.step = stepMask
	for i := range n.masked {
		n.report.index = int32(i)
		fd, e := n.open(proc, n.masked[i].path)
		if e == unix.ENOENT || e == unix.ENOTDIR {
			continue
		}
		if e == 0 {
			_, e = raw(unix.SYS_MOVE_MOUNT, uintptr(n.masked[i].cover), uintptr(unsafe.Pointer(&empty[0])), fd, uintptr(unsafe.Pointer(&empty[0])),
				unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, 0)
			raw(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		}
		if e != 0 {
			n.fail(e)
		}
	}
}

// Strings of the kernel's.
var (
	empty  = [1]byte{}
	slash  = [2]byte{'/', 0}
	source = [...]byte{'s', 'o', 'u', 'r', 'c', 'e', 0}
)

// freshMount makes a file system and a mount of it.
//
//go:nosplit
//go:norace
func (n *newborn) freshMount(f *fresh) (uintptr, unix.Errno) {
	fs, e := raw(unix.SYS_FSOPEN, uintptr(unsafe.Pointer(f.name)), unix.FSOPEN_CLOEXEC, 0, 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	_, e = raw(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, uintptr(unsafe.Pointer(&source[0])), uintptr(unsafe.Pointer(f.name)), 0, 0)
	if e == 0 {
		_, e = raw(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0, 0)
	}
	var mnt uintptr
	if e == 0 {
		mnt, e = raw(unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, f.attr, 0, 0, 0)
	}
	raw(unix.SYS_CLOSE, fs, 0, 0, 0, 0, 0)
	return mnt, e
}

// open opens a path below a directory, with the flags that openHow has.
//
//go:nosplit
//go:norace
func (n *newborn) open(dir uintptr, path *byte) (fd uintptr, e unix.Errno) {
	for {
		fd, e = raw(unix.SYS_OPENAT2, dir, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&n.openHow)), unsafe.Sizeof(n.openHow), 0, 0)
		if e != unix.EAGAIN && e != unix.EINTR {
			return fd, e
		}
	}
}

// freeze makes a path below /proc read-only, by a read-only copy of the mount on it.
//
//go:nosplit
//go:norace
func (n *newborn) freeze(proc uintptr, path *byte) unix.Errno {
	fd, e := n.open(proc, path)
	if e != 0 {
		return e
	}
	none := uintptr(unsafe.Pointer(&empty[0]))
	copied, e := raw(unix.SYS_OPEN_TREE, fd, none, unix.AT_EMPTY_PATH|unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, 0, 0, 0)
	if e == 0 {
		_, e = raw(unix.SYS_MOUNT_SETATTR, copied, none, unix.AT_EMPTY_PATH|unix.AT_RECURSIVE,
			uintptr(unsafe.Pointer(&n.readOnly)), unsafe.Sizeof(n.readOnly), 0)
		if e == 0 {
			_, e = raw(unix.SYS_MOVE_MOUNT, copied, none, fd, none, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, 0)
		}
		raw(unix.SYS_CLOSE, copied, 0, 0, 0, 0, 0)
	}
	raw(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
	return e
}

// settle sets limits and the directory, and lets whatever else is open end at the exec
// (CVE-2024-21626).
//
//go:nosplit
//go:norace
func (n *newborn) settle() {
	n.report.step = stepLimit
	for i := range n.rlimits {
		n.report.index = int32(i)
		if _, e := raw(unix.SYS_PRLIMIT64, 0, uintptr(n.rlimits[i].resource), uintptr(unsafe.Pointer(&n.rlimits[i].soft)), 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	raw(unix.SYS_UMASK, uintptr(n.umask), 0, 0, 0, 0, 0)
	n.report.step = stepCwd
	raw(unix.SYS_CHDIR, uintptr(unsafe.Pointer(&slash[0])), 0, 0, 0, 0, 0) // RESOLVE_IN_ROOT takes it for the root
	n.openHow.Flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, e := n.open(atCwd, n.cwd)
	if e == 0 {
		_, e = raw(unix.SYS_FCHDIR, fd, 0, 0, 0, 0, 0)
	}
	if e == 0 {
		_, e = raw(unix.SYS_CLOSE_RANGE, 3, maxFD, unix.CLOSE_RANGE_CLOEXEC, 0, 0, 0)
	}
	if e != 0 {
		n.fail(e)
	}
}

const atCwd = ^uintptr(99) // AT_FDCWD, -100

// become is the function of that name, of a child: the comments there say why in this order.
//
//go:nosplit
//go:norace
func (n *newborn) become() {
	n.report.step = stepBounding
	raw(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	for i := range n.dropped {
		n.report.index = int32(n.dropped[i])
		if _, e := raw(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(n.dropped[i]), 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	if n.keyring {
		raw(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0)
	}
	n.report.step = stepFilter
	if !n.noNewPrivs && n.filter != nil {
		if _, e := raw(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(n.filter)), 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	groups := n.groups
	if n.notify != nil {
		n.report.step = stepNotify
		fd, e := raw(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, n.notifyFlag, uintptr(unsafe.Pointer(n.notify)), 0, 0, 0)
		n.report.errno = int32(e)
		if e == 0 {
			n.send(int32(fd))
			raw(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		} else {
			n.send(-1)
			groups = n.alone
		}
	}
	n.report.step = stepGroups
	if groups != nil {
		first := uintptr(0)
		if len(groups) > 0 {
			first = uintptr(unsafe.Pointer(&groups[0]))
		}
		if _, e := raw(unix.SYS_SETGROUPS, uintptr(len(groups)), first, 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
	}
	n.report.step = stepGID
	gid, uid := uintptr(n.user.GID), uintptr(n.user.UID)
	if _, e := raw(unix.SYS_SETRESGID, gid, gid, gid, 0, 0, 0); e != 0 {
		n.fail(e)
	}
	n.report.step = stepUID
	if _, e := raw(unix.SYS_SETRESUID, uid, uid, uid, 0, 0, 0); e != 0 {
		n.fail(e)
	}
	n.report.step = stepCaps
	if _, e := raw(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&n.capHeader)), uintptr(unsafe.Pointer(&n.caps)), 0, 0, 0, 0); e != 0 {
		n.fail(e)
	}
	// Changing IDs made the kernel forget it.
	n.report.step = stepAlive
	if e := n.dieWithParent(); e != 0 {
		n.fail(e)
	}
	if n.noNewPrivs {
		n.report.step = stepPrivs
		if _, e := raw(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
			n.fail(e)
		}
		n.report.step = stepFilter
		if n.filter != nil {
			if _, e := raw(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(n.filter)), 0, 0, 0); e != 0 {
				n.fail(e)
			}
		}
	}
}

// fail reports the step and ends.
//
//go:nosplit
//go:norace
func (n *newborn) fail(e unix.Errno) {
	n.report.errno, n.report.fatal = int32(e), 1
	n.send(-1)
	for {
		raw(unix.SYS_EXIT_GROUP, 125, 0, 0, 0, 0, 0)
	}
}

// send sends the report, with a descriptor when fd ≥ 0.
//
//go:nosplit
//go:norace
func (n *newborn) send(fd int32) {
	length := uint64(0)
	if fd >= 0 {
		length = uint64(unix.SizeofCmsghdr + 4)
		*(*int32)(unsafe.Pointer(&n.rights[unix.SizeofCmsghdr])) = fd
	}
	n.message.Controllen = length
	raw(unix.SYS_SENDMSG, uintptr(n.control), uintptr(unsafe.Pointer(&n.message)), unix.MSG_NOSIGNAL, 0, 0, 0)
}

// knownCaps is how many capabilities the kernel knows: the first ones.
var knownCaps = sync.OnceValue(func() int {
	for c := range 64 {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err != nil {
			return c
		}
	}
	return 64
})

// prepare is a newborn of a spec, but for its mounts: whatever can fail in Go's way fails here.
func prepare(spec *Spec, file string, setgroupsDenied bool, notice func(string)) (*newborn, error) {
	n := &newborn{umask: int(spec.Umask), user: &spec.User, noNewPrivs: spec.NoNewPrivs, keyring: len(spec.Seccomp) == 0,
		newCgroup: spec.Namespaces.Cgroup, tty: spec.Terminal != nil}
	n.openHow.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	n.readOnly.Attr_set = unix.MOUNT_ATTR_RDONLY
	n.capHeader.Version = unix.LINUX_CAPABILITY_VERSION_3
	n.iov.Base, n.iov.Len = (*byte)(unsafe.Pointer(&n.report)), uint64(unsafe.Sizeof(n.report))
	n.message.Iov, n.message.Iovlen, n.message.Control = &n.iov, 1, &n.rights[0]
	head := (*unix.Cmsghdr)(unsafe.Pointer(&n.rights[0]))
	head.Level, head.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	head.SetLen(unix.SizeofCmsghdr + 4)

	for c := range knownCaps() {
		if !spec.Caps.Has(c) {
			n.dropped = append(n.dropped, c)
		}
	}
	var err error
	if n.caps, err = capsOf(spec); err != nil {
		return nil, err
	}
	nofileGiven := false
	for _, l := range spec.Rlimits {
		n.rlimits = append(n.rlimits, rlimit{l.Resource, l.Soft, l.Hard})
		nofileGiven = nofileGiven || l.Resource == unix.RLIMIT_NOFILE
	}
	if !nofileGiven && nofile.Hard > 0 {
		n.rlimits = append(n.rlimits, rlimit{unix.RLIMIT_NOFILE, nofile.Soft, nofile.Hard})
	}
	n.filter = spec.Seccomp.program()
	n.groups = groupsOf(spec, setgroupsDenied && len(spec.Notify) == 0, notice)
	if n.notify = spec.Notify.program(); n.notify != nil {
		n.alone = groupsOf(spec, setgroupsDenied, func(string) {}) // it comes with a notice of its own
		n.notifyFlag = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		// The kernel looks at the flags before it looks at the program.
		if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, n.notifyFlag|waitKillable, 0); e == unix.EFAULT {
			n.notifyFlag |= waitKillable
		}
	}
	cwd := spec.Cwd
	if cwd == "" {
		cwd = "/"
	}
	// Without NULs, as check saw to.
	n.cwd, _ = unix.BytePtrFromString(cwd)
	if n.argv, err = syscall.SlicePtrFromStrings(append([]string{file}, spec.Args...)); err == nil {
		n.envv, err = syscall.SlicePtrFromStrings(spec.Env)
	}
	if err != nil {
		return nil, err
	}
	programs, err := tiny()
	n.program = programs[tinyStarter]
	return n, err
}

// below is a path of the plan as it lies below the mount on dir, or false.
func below(dir, name string) (*byte, bool) {
	rel, ok := strings.CutPrefix(path.Clean("/"+name), dir+"/")
	if !ok {
		return nil, false
	}
	p, err := unix.BytePtrFromString(rel)
	return p, err == nil
}

// explain says what a fatal report means.
func (n *newborn) explain(r report) error {
	err := unix.Errno(r.errno)
	switch r.step {
	case stepCgroup:
		return fmt.Errorf("make a cgroup namespace: %w", err)
	case stepStreams:
		return fmt.Errorf("set up the standard streams: %w", err)
	case stepFresh:
		if f := &n.fresh[r.index]; f.is != "cgroup2" {
			return userns.Explain(userns.OpProc, "/proc", err)
		}
		return userns.Explain(userns.OpMount, "cgroup on /sys/fs/cgroup", err)
	case stepPivot:
		return fmt.Errorf("pivot into the root: %w", err)
	case stepSysctl:
		return fmt.Errorf("set sysctl %s: %w", n.sysctls[r.index].is, err)
	case stepFreeze:
		return userns.Explain(userns.OpMount, "/proc/"+unix.BytePtrToString(n.frozen[r.index])+" read-only", err)
	case stepMask:
		return userns.Explain(userns.OpMount, "a mask on /proc/"+unix.BytePtrToString(n.masked[r.index].path), err)
	case stepLimit:
		l := n.rlimits[r.index]
		return fmt.Errorf("set limit %d to %d:%d: %w", l.resource, l.soft, l.hard, err)
	case stepCwd:
		code := 126
		if err == unix.ENOENT {
			code = 127
		}
		return fail(code, "change to the working directory %q: %w", unix.BytePtrToString(n.cwd), err)
	case stepBounding:
		return fmt.Errorf("drop capability %d: %w", r.index, err)
	case stepFilter:
		return fmt.Errorf("install the seccomp filter: %w", err)
	case stepGroups:
		return userns.Explain(userns.OpSetID, fmt.Sprintf("a member of groups %v", n.groups), err)
	case stepGID:
		return userns.Explain(userns.OpSetID, fmt.Sprintf("gid %d", n.user.GID), err)
	case stepUID:
		return userns.Explain(userns.OpSetID, fmt.Sprintf("uid %d", n.user.UID), err)
	case stepCaps:
		return fmt.Errorf("set capabilities: %w", err)
	case stepPrivs:
		return fmt.Errorf("set no_new_privs: %w", err)
	case stepExec:
		if err == unix.E2BIG { // execve(2): MAX_ARG_STRLEN, and a quarter of RLIMIT_STACK
			return fmt.Errorf("execute the command: a word of it (as a RUN's here-document is) has more than 128 KiB, or all of it and the environment too much: %w", err)
		}
		return fmt.Errorf("execute a program in memory: %w", err)
	}
	return fmt.Errorf("begin a process (step %d): %w", r.step, err)
}
