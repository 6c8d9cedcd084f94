package userns

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Owner is whose a file is, where that cannot be what the kernel says: only one ID is mapped, and
// to the kernel all files are its.
type Owner struct {
	UID, GID uint32
	Mode     uint32 // S_IFCHR or S_IFBLK when a plain file stands for a device, else 0
	Rdev     uint64
}

// Keeper keeps owners with the files that have them: what it was told must be true of the inode
// for as long as that lives, whatever is renamed, linked, or copied up by overlay, and must be gone
// with it. The calls act on path on the calling thread, as getxattr(2) would: path may be relative
// to a working directory that only this thread has, or be a magic link of /proc. A file that it
// knows nothing of is root's; a directory with a default access list it knows. link: the last
// component, if it is a symlink, is meant itself.
//
// A look costs one call of the kernel, and most files have nothing to be asked for then.
type Keeper interface {
	Look(path string, link bool) Signs
	Owner(path string, link bool, s Signs) (Owner, bool)
	SetOwner(path string, link bool, o Owner) error

	// The same for an open file, which is not O_PATH: a sixth of the time.
	LookOf(fd int) Signs
	OwnerOf(fd int, s Signs) (Owner, bool)
	SetOwnerOf(fd int, o Owner) error

	// The same for an attribute that the kernel refuses; a value of nil is none.
	Attr(path, name string) []byte
	SetAttr(path, name string, value []byte) error
}

// Signs are what a look at a file tells that may be known of it.
type Signs struct {
	Owner      bool // an owner
	Default    bool // a default access list
	Capability bool // a file capability, or the owner of a file that cannot have one
}

// Any tells whether there may be anything.
func (s Signs) Any() bool { return s != Signs{} }

// An Emulator plays the kernel to containers that have one ID: it answers chown, mknod, setuid and
// the calls by which a program would find out, as they would be answered where all IDs are mapped.
//
// It sees the calls of EmulationFilter through the listener of that filter and nothing else; what
// they do not change runs as ever. Two things are remembered, and both where they cannot get lost:
//
//   - The owner of a file with the file itself (Keeper), not in a table of inode numbers: those are
//     given out again, and overlay changes them when it copies up a symlink or a file with several
//     names.
//   - The identity of a process in the soft limit RLIMIT_LOCKS, which no kernel since 2.4.25 looks
//     at, and no program in the container sees but in /proc/PID/limits. It is inherited by fork and exec and ends with the process, so that nobody has to watch
//     either. It holds a number that stands for an identity here. Threads share it.
//
// A call is answered on a thread that has joined the mounts and the root of the container, and has
// the machine's /proc, by descriptor, for a working directory: "PID/cwd/file" and "/file" lead
// where they lead the caller, and cannot lead out. Whatever is changed is changed through a
// descriptor of that lookup. Strings are read once. Only on the device of the container's root are
// owners kept; what the container got from outside belongs to the caller and stays so.
//
// What it costs, in µs, on Linux 6.18 and two cores with ten times the work that they can do, the
// fastest of 240 batches. On a machine with less to do it is half of that (the same in C, doing
// nothing: 4.2 for a value, 4.5 for going on):
//
//	                      native   answered
//	getppid, not seen       0.18       0.19
//	getuid                  0.18        7.4
//	stat, file of root       1.2       14.4   there and back, 1.0 to read the path, 0.7 to list attributes
//	fstat, file of root      0.6       13.3   a copy of the descriptor, 1.1; by /proc/PID/fd/N it was 18
//	fstat, file of another   0.6       18     was 26
//	stat, file of another    1.4       30
//	chown                    4         40
//	fchown                   3         25     was 34
//	open that may create     4         20
//
// A table of names that are known to be root's would save the lookups; it would have to see every
// rename. Not looking at stat at all would save most: then chown would be forgotten by ls.
//
// What it costs a step: bench's compile-like one makes 7,800 calls that are answered, 7,200 of them
// stat, in 560 ms of native time. In CPU ms, with what the callers lose by the switches:
//
//	in C: there and back, and no more          90    the floor: 12 µs a call, with cold caches
//	in C: path read, attributes listed        180
//	here                                      224    364 before one thread kept its P (await)
//	here, with every open seen, and let go    350
//
// So the step takes 1.3 times as long; 1.17 is the least for who sees every stat. A second filter for
// those who need it is what the kernel does not take: EmulationFilter.
//
// Emulator may serve many containers at once.
type Emulator struct {
	keeper Keeper
	ids    identities
}

// NewEmulator makes an emulator that keeps owners in k.
func NewEmulator(k Keeper) *Emulator { return &Emulator{keeper: k} }

// Serve answers the calls that come through listener, until stop is called, from the container
// whose pid 1 is pid and whose root is root. Owners are kept with the files of root, and with those
// seen through the mounts that kept are open through. It takes listener over. Stop when the container has
// ended: a caller that finds no answer waits for ever.
func (e *Emulator) Serve(listener *os.File, pid int, root *os.File, kept []*os.File) (stop func(), err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, fmt.Errorf("emulate owners: root: %w", err)
	}
	s := &served{
		Emulator: e, fd: int(listener.Fd()), pid: pid, dev: st.Dev, ino: st.Ino,
		busy: make(chan struct{}, 1), over: make(chan struct{}),
	}
	for _, f := range kept {
		s.kept = append(s.kept, mountOf(int(f.Fd())))
	}
	// The kernel then hands over to the thread that answers and back on one CPU, without letting it
	// sleep in between. Where it cannot (before Linux 6.6), calls are 20 times as slow.
	unix.Syscall(unix.SYS_IOCTL, listener.Fd(), notifSetFlags, syncWakeUp)
	// A thread that answers keeps its P, see await.
	moreProcs(1)
	stop = func() {
		s.stop()
		moreProcs(-1)
		listener.Close()
	}
	started := make(chan error, 1)
	s.running.Add(1)
	go s.thread(started, false)
	if err := <-started; err != nil {
		stop()
		return nil, fmt.Errorf("emulate owners: %w", err)
	}
	s.running.Add(1)
	go s.watch()
	return stop, nil
}

var procs sync.Mutex

// moreProcs changes how many threads may run Go at a time.
func moreProcs(n int) {
	procs.Lock()
	defer procs.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

// served is one container being served.
type served struct {
	*Emulator
	fd       int // the listener
	pid      int
	dev, ino uint64              // of the container's root: where owners are kept
	kept     []uint64            // mounts where they are too, by mountOf
	chroots  atomic.Bool         // somebody has another root than the container's
	changed  atomic.Bool         // somebody has, or had, another identity than the first
	first    atomic.Pointer[ids] // root, with the groups that the command begins with; nil: with none
	began    atomic.Bool         // the command has
	other    others
	last     lastKnown
	answered atomic.Uint64 // calls

	leader  atomic.Int32  // the first thread
	awaits  atomic.Bool   // it waits with its P
	rest    atomic.Bool   // it shall wait without
	idle    atomic.Bool   // it does: there are no calls
	busy    chan struct{} // wakes watch when there are
	over    chan struct{} // closed by stop
	running sync.WaitGroup
	mu      sync.Mutex
	threads []int
	helpers int
}

const (
	lookEvery  = 10 * time.Millisecond  // how often watch looks whether calls wait
	isIdle     = 2                      // looks at which none waits and none was answered since the one before
	isStuck    = 2                      // looks at which calls wait and none was answered since the one before
	isBehind   = 10                     // looks at which calls wait
	helpFor    = 100 * time.Millisecond // how long another thread helps
	maxHelpers = 7                      // at a time: a container may serve itself a file system on which lookups wait
)

func (s *served) ended() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// stop ends the threads, which may sleep in the kernel: a signal wakes them. Go's own for
// preemption, which a Go program takes at any time.
func (s *served) stop() {
	close(s.over)
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	for {
		s.mu.Lock()
		for _, tid := range s.threads {
			unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		}
		s.mu.Unlock()
		select {
		case <-done:
			return
		default:
			runtime.Gosched()
			unix.Nanosleep(&unix.Timespec{Nsec: 100_000}, nil)
		}
	}
}

// watch lets another thread help while calls wait: one keeps the first thread, or there are more
// than it can answer. Several would all be woken by each call, on other CPUs than the caller's, which takes
// twice the time: that a call waits when one happens to look is no reason.
func (s *served) watch() {
	defer s.running.Done()
	for {
		quiet, stuck, behind := 0, 0, 0
		for done := s.answered.Load(); stuck < isStuck && behind < isBehind; {
			look := time.After(lookEvery)
			if s.idle.Load() {
				look = nil
			}
			select {
			case <-s.over:
				return
			case <-s.busy:
			case <-look:
			}
			fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
			unix.Poll(fds, 0)
			now := s.answered.Load()
			waits, answers := fds[0].Revents&unix.POLLIN != 0, now != done
			quiet, stuck, behind = counted(quiet, !waits && !answers), counted(stuck, waits && !answers), counted(behind, waits)
			if quiet >= isIdle && s.awaits.Load() { // a signal may end what an answer is busy with
				s.rest.Store(true)
				unix.Tgkill(unix.Getpid(), int(s.leader.Load()), unix.SIGURG)
			}
			done = now
		}
		s.mu.Lock()
		if s.helpers < maxHelpers {
			s.helpers++
			s.running.Add(1)
			go s.thread(make(chan error, 1), true)
		}
		s.mu.Unlock()
	}
}

// counted is how often in a row something was so.
func counted(before int, so bool) int {
	if !so {
		return 0
	}
	return before + 1
}

// thread is one thread that answers. It ends with its goroutine, as it is no longer like others.
func (s *served) thread(started chan<- error, helps bool) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // Go keeps this one for ever: let another do it
		inner := make(chan error, 1)
		go s.thread(inner, helps)
		started <- <-inner // ours is locked until the other one has its own
		runtime.UnlockOSThread()
		return
	}
	defer s.running.Done()
	t := &tracer{served: s, home: -1, proc: -1, root: -1}
	defer t.close()
	if helps {
		defer func() {
			s.mu.Lock()
			s.helpers--
			s.mu.Unlock()
		}()
	}
	if err := t.join(); err != nil {
		started <- err
		return
	}
	s.mu.Lock()
	s.threads = append(s.threads, unix.Gettid())
	s.mu.Unlock()
	if !helps {
		s.leader.Store(int32(unix.Gettid()))
	}
	started <- nil
	for begin := time.Now(); !s.ended(); {
		if !helps {
			t.await()
		} else if time.Since(begin) > helpFor {
			break
		}
		if !t.next() {
			break
		}
	}
	s.mu.Lock()
	s.threads = slices.DeleteFunc(s.threads, func(tid int) bool { return tid == unix.Gettid() })
	s.mu.Unlock()
}

// tracer is the state of one such thread.
type tracer struct {
	*served
	home   int // the mounts that we came from
	proc   int // the machine's /proc: our working directory
	root   int // the container's root: our root
	n      notif
	text   [unix.PathMax]byte
	path   []byte
	idSize int            // of an ID in the caller's memory
	pidfds map[uint32]int // of callers: see borrow
}

// join enters the mounts of the container with this thread.
func (t *tracer) join() (err error) {
	if t.proc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /proc: %w", err)
	}
	mounts, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", t.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the container's mounts: %w", err)
	}
	defer unix.Close(mounts)
	if t.home, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open our mounts: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("take a root of its own: %w", err)
	}
	if err := unix.Setns(mounts, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("join the container's mounts: %w", err)
	}
	if err := unix.Fchdir(t.proc); err != nil {
		return err
	}
	if t.root, err = unix.Open(strconv.Itoa(t.pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open the container's root: %w", err)
	}
	// Paths that the container names are followed from there: it must be what we were told.
	var st unix.Stat_t
	if err := unix.Fstat(t.root, &st); err != nil {
		return fmt.Errorf("look at the container's root: %w", err)
	} else if st.Dev != t.dev || st.Ino != t.ino {
		return fmt.Errorf("process %d is not in the container's root", t.pid)
	}
	unix.Umask(0)
	return t.rootAt(strconv.Itoa(t.pid) + "/root")
}

// mountOf is the number of the mount through which a file is open, 0 before Linux 5.8.
func mountOf(fd int) uint64 {
	const unique = 0x4000 // STATX_MNT_ID_UNIQUE, Linux 6.8: never given out again
	var stx unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID|unique, &stx) != nil {
		return 0
	}
	return stx.Mnt_id
}

// keeps tells whether the owner of an open file is kept with it.
func (t *tracer) keeps(fd int, st *unix.Stat_t) bool {
	if st.Dev == t.dev {
		return true
	}
	if len(t.kept) == 0 {
		return false
	}
	id := mountOf(fd)
	return id != 0 && slices.Contains(t.kept, id)
}

// rootAt makes path the root of this thread.
func (t *tracer) rootAt(path string) error {
	if err := unix.Chroot(path); err != nil {
		return fmt.Errorf("enter the container's root: %w", err)
	}
	return unix.Fchdir(t.proc)
}

// await returns when there may be a call. Go takes the P from a thread that waits in the kernel, and
// what that costs for each call (a thread of Go's that looks for such, every 20 µs, and getting a P
// back) is as much as the answer. So while calls come this thread keeps its P. Go asks for it back
// by a signal, which ends the wait, and so does watch when no calls come: a timer for each wait would cost
// as much as the wait. To wait in the call that takes the notification would save another half of a microsecond, but no signal
// ends that: it is restarted, Go's handlers being SA_RESTART, and who stops the world waits for the next call.
func (t *tracer) await() {
	for !t.ended() {
		fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}
		t.awaits.Store(true)
		n, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 1, 0, 0, 0, 0)
		t.awaits.Store(false)
		if e == 0 && n > 0 {
			return
		}
		if t.rest.Swap(false) {
			t.idle.Store(true)
			unix.Poll(fds, -1)
			t.idle.Store(false)
			select {
			case t.busy <- struct{}{}:
			default:
			}
		}
	}
}

// next answers one call. It is false at the end.
func (t *tracer) next() bool {
	t.n = notif{} // the kernel insists
	if _, e := ioctl(t.fd, notifRecv, unsafe.Pointer(&t.n)); e != 0 {
		if e == unix.ENOENT { // the caller died, or all have
			fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}
			unix.Poll(fds, 10)
			return fds[0].Revents&unix.POLLHUP == 0
		}
		return true
	}
	r := t.answer()
	t.answered.Add(1)
	a := answer{id: t.n.id, val: r.val, error: -int32(r.errno)}
	switch r.how {
	case replySent:
		return true
	case replyNative:
		a = answer{id: t.n.id, flags: flagContinue}
	}
	ioctl(t.fd, notifSend, unsafe.Pointer(&a)) // ENOENT: the caller is gone, and so be it
	return true
}

// close leaves the container's mounts, which go with the last one who is in them. The end of the
// thread would do it too, but nobody can wait for that.
func (t *tracer) close() {
	unix.Setns(t.home, unix.CLONE_NEWNS)
	for _, fd := range []int{t.home, t.proc, t.root} {
		unix.Close(fd)
	}
	t.forgetCallers()
}

// answer decides on the call in t.n.
func (t *tracer) answer() reply {
	long := t.n.nr == compatUtimensat64
	t.idSize = 4
	if t.n.arch == compatArch {
		ours, ok := compatCalls[t.n.nr]
		if !ok {
			if ours, ok = shortCalls[t.n.nr]; !ok {
				return native
			}
			t.shorten(ours)
		}
		t.n.nr = int32(ours)
	}
	if t.chroots.Load() {
		// Somebody has another root than the container's.
		home := strconv.Itoa(int(t.n.pid)) + "/root"
		var now, own unix.Stat_t
		if unix.Stat(home, &now) == nil && unix.Fstat(t.root, &own) == nil && (now.Dev != own.Dev || now.Ino != own.Ino) {
			if t.rootAt(home) != nil {
				return failed(unix.EPERM)
			}
			defer func() {
				unix.Fchdir(t.root)
				t.rootAt(".")
			}()
		}
	}
	a := &t.n.args
	switch int(t.n.nr) {
	case sysStat:
		return t.stat(unix.AT_FDCWD, a[0], a[1], 0)
	case sysLstat:
		return t.stat(unix.AT_FDCWD, a[0], a[1], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FSTAT:
		return t.stat(int32(a[0]), 0, a[1], unix.AT_EMPTY_PATH)
	case sysFstatat:
		return t.stat(int32(a[0]), a[1], a[2], int(int32(a[3])))
	case unix.SYS_STATX:
		return t.statx(int32(a[0]), a[1], int(int32(a[2])), uint32(a[3]), a[4])

	case sysChown:
		return t.chown(unix.AT_FDCWD, a[0], uint32(a[1]), uint32(a[2]), 0)
	case sysLchown:
		return t.chown(unix.AT_FDCWD, a[0], uint32(a[1]), uint32(a[2]), unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FCHOWN:
		return t.chown(int32(a[0]), 0, uint32(a[1]), uint32(a[2]), unix.AT_EMPTY_PATH)
	case unix.SYS_FCHOWNAT:
		return t.chown(int32(a[0]), a[1], uint32(a[2]), uint32(a[3]), int(int32(a[4])))

	case sysMknod:
		return t.mknod(unix.AT_FDCWD, a[0], uint32(a[1]), a[2])
	case unix.SYS_MKNODAT:
		return t.mknod(int32(a[0]), a[1], uint32(a[2]), a[3])
	case sysMkdir:
		return t.mkdir(unix.AT_FDCWD, a[0], uint32(a[1]))
	case unix.SYS_MKDIRAT:
		return t.mkdir(int32(a[0]), a[1], uint32(a[2]))
	case sysSymlink:
		return t.symlink(a[0], unix.AT_FDCWD, a[1])
	case unix.SYS_SYMLINKAT:
		return t.symlink(a[0], int32(a[1]), a[2])
	case sysCreat:
		return t.open(unix.AT_FDCWD, a[0], unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, uint32(a[1]))
	case sysOpen:
		return t.open(unix.AT_FDCWD, a[0], int(uint32(a[1])), uint32(a[2]))
	case unix.SYS_OPENAT:
		return t.open(int32(a[0]), a[1], int(uint32(a[2])), uint32(a[3]))
	case unix.SYS_OPENAT2:
		return t.openat2(int32(a[0]), a[1], a[2], a[3])

	case unix.SYS_SETXATTR:
		return t.setAttr(unix.AT_FDCWD, a[0], 0)
	case unix.SYS_LSETXATTR:
		return t.setAttr(unix.AT_FDCWD, a[0], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FSETXATTR:
		return t.setAttr(int32(a[0]), 0, unix.AT_EMPTY_PATH)
	case unix.SYS_REMOVEXATTR:
		return t.removeAttr(unix.AT_FDCWD, a[0], 0)
	case unix.SYS_LREMOVEXATTR:
		return t.removeAttr(unix.AT_FDCWD, a[0], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FREMOVEXATTR:
		return t.removeAttr(int32(a[0]), 0, unix.AT_EMPTY_PATH)
	case unix.SYS_GETXATTR:
		return t.getAttr(unix.AT_FDCWD, a[0], 0)
	case unix.SYS_LGETXATTR:
		return t.getAttr(unix.AT_FDCWD, a[0], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FGETXATTR:
		return t.getAttr(int32(a[0]), 0, unix.AT_EMPTY_PATH)
	case unix.SYS_LISTXATTR:
		return t.listAttrs(unix.AT_FDCWD, a[0], a[1], a[2], 0)
	case unix.SYS_LLISTXATTR:
		return t.listAttrs(unix.AT_FDCWD, a[0], a[1], a[2], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FLISTXATTR:
		return t.listAttrs(int32(a[0]), 0, a[1], a[2], unix.AT_EMPTY_PATH)
	case unix.SYS_GETSOCKOPT:
		return t.peer(int32(a[0]), a[2], a[3], a[4])
	case unix.SYS_CAPGET:
		return t.capget()
	case unix.SYS_PRCTL, unix.SYS_CAPSET:
		return t.capabilities()
	case unix.SYS_PRLIMIT64:
		return t.limit(a[3])
	case unix.SYS_GETRLIMIT:
		return t.limit(a[1])
	case unix.SYS_SETRLIMIT:
		return value(0)
	case unix.SYS_EXECVE:
		return t.exec(unix.AT_FDCWD, a[0], 0)
	case unix.SYS_EXECVEAT:
		return t.exec(int32(a[0]), a[1], int(int32(a[4])))
	case unix.SYS_BIND:
		return t.bind(int32(a[0]), a[1], a[2])
	case sysUnlink:
		return t.unlink(unix.AT_FDCWD, a[0], 0)
	case sysRmdir:
		return t.unlink(unix.AT_FDCWD, a[0], unix.AT_REMOVEDIR)
	case unix.SYS_UNLINKAT:
		return t.unlink(int32(a[0]), a[1], int(int32(a[2])))
	case sysRename:
		return t.rename(unix.AT_FDCWD, a[0], unix.AT_FDCWD, a[1], 0)
	case unix.SYS_RENAMEAT:
		return t.rename(int32(a[0]), a[1], int32(a[2]), a[3], 0)
	case unix.SYS_RENAMEAT2:
		return t.rename(int32(a[0]), a[1], int32(a[2]), a[3], uint(uint32(a[4])))
	case sysLink:
		return t.link(unix.AT_FDCWD, a[0], unix.AT_FDCWD, a[1], 0)
	case unix.SYS_LINKAT:
		return t.link(int32(a[0]), a[1], int32(a[2]), a[3], int(int32(a[4])))
	case sysChmod:
		return t.chmod(unix.AT_FDCWD, a[0], uint32(a[1]), 0)
	case unix.SYS_FCHMOD:
		return t.fchmod(int32(a[0]), uint32(a[1]))
	case unix.SYS_FCHMODAT:
		return t.chmod(int32(a[0]), a[1], uint32(a[2]), 0)
	case unix.SYS_FCHMODAT2:
		return t.chmod(int32(a[0]), a[1], uint32(a[2]), int(int32(a[3])))
	case sysUtime, sysUtimes:
		return t.utimes(unix.AT_FDCWD, a[0], a[1], 0, 0)
	case sysFutimes:
		return t.utimes(int32(a[0]), a[1], a[2], 0, 0)
	case unix.SYS_UTIMENSAT:
		size := 8
		if t.n.arch == compatArch && !long {
			size = 4
		}
		return t.utimes(int32(a[0]), a[1], a[2], int(int32(a[3])), size)
	case unix.SYS_TRUNCATE:
		return t.ask(unix.AT_FDCWD, a[0], 0, unix.S_IFREG, mayWrite)
	case unix.SYS_CHDIR:
		return t.ask(unix.AT_FDCWD, a[0], 0, unix.S_IFDIR, mayExec)
	case unix.SYS_FCHDIR:
		return t.ask(int32(a[0]), 0, unix.AT_EMPTY_PATH, unix.S_IFDIR, mayExec)
	case sysAccess:
		return t.access(unix.AT_FDCWD, a[0], uint32(a[1]), 0)
	case unix.SYS_FACCESSAT:
		return t.access(int32(a[0]), a[1], uint32(a[2]), 0)
	case unix.SYS_FACCESSAT2:
		return t.access(int32(a[0]), a[1], uint32(a[2]), int(int32(a[3])))
	case sysReadlink:
		return t.ask(unix.AT_FDCWD, a[0], unix.AT_SYMLINK_NOFOLLOW, 0, 0)
	case unix.SYS_READLINKAT:
		return t.ask(int32(a[0]), a[1], unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, 0, 0)
	case unix.SYS_RT_SIGACTION:
		return t.sigaction(a[0], a[1])
	case unix.SYS_CHROOT:
		if c, ok := t.who(); !ok || !c.capable(unix.CAP_SYS_CHROOT) {
			return failed(unix.EPERM)
		}
		t.chroots.Store(true)
		return native
	}
	return t.identity()
}
