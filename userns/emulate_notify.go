package userns

import (
	"bytes"
	"encoding/binary"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How the kernel and a listener talk: seccomp_unotify(2). A notification has an id, which is good
// until the thread that called is gone; what was read of that thread counts only if the id is good
// afterwards, for a number of a process may be given out again.
const (
	notifRecv     = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	notifSend     = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	notifIDValid  = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	notifAddFD    = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD
	notifSetFlags = 0x40082104 // SECCOMP_IOCTL_NOTIF_SET_FLAGS

	syncWakeUp   = 1 // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6
	flagContinue = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE
	addFDSend    = 2 // SECCOMP_ADDFD_FLAG_SEND, Linux 5.14
)

// notif is struct seccomp_notif.
type notif struct {
	id    uint64
	pid   uint32 // of the thread, as this process sees it
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	val   int64
	error int32 // negative errno
	flags uint32
}

// addFD is struct seccomp_notif_addfd.
type addFD struct {
	id                              uint64
	flags, srcFD, newFD, newFDFlags uint32
}

// ioctl asks again when a signal was in the way, of which Go sends itself many: the kernel takes its lock
// interruptibly, and an answer that is not given is waited for for ever. Who receives is to be woken.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) (uintptr, unix.Errno) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if e != unix.EINTR || request == notifRecv {
			return r, e
		}
	}
}

// handOverFD makes a descriptor the caller's, and its number the answer. Signals wait meanwhile: one that
// comes before the caller took it ends the call with 0, as if that were the number (seccomp_notify_addfd
// takes the request back, and not the answer; Linux 6.18).
func handOverFD(fd int, a *addFD) unix.Errno {
	all := ^uint64(0)
	var was uint64
	const size = 8 // of the kernel's signal set
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&was)), size, 0, 0)
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), notifAddFD, uintptr(unsafe.Pointer(a)))
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&was)), 0, size, 0, 0)
	return e
}

// reply is what becomes of a call.
type reply struct {
	val   int64
	errno unix.Errno
	how   replyKind
}

type replyKind byte

const (
	replyValue  replyKind = iota // val, or errno
	replyNative                  // the kernel does what was asked
	replySent                    // the answer has been given already
)

var native = reply{how: replyNative}

func value(v int64) reply          { return reply{val: v} }
func failed(e unix.Errno) reply    { return reply{errno: e} }
func errnoOf(err error) unix.Errno { e, _ := err.(unix.Errno); return max(e, 0) }

// alive tells whether the thread still waits for its answer: what was read of it before was its own.
func (t *tracer) alive() bool {
	_, e := ioctl(t.fd, notifIDValid, unsafe.Pointer(&t.n.id))
	return e == 0
}

// read reads memory of the caller, all of b.
func (t *tracer) read(addr uint64, b []byte) bool {
	n, err := t.readSome(addr, b)
	return err == 0 && n == len(b)
}

func (t *tracer) readSome(addr uint64, b []byte) (int, unix.Errno) {
	if len(b) == 0 {
		return 0, 0
	}
	local := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	remote := unix.RemoteIovec{Base: uintptr(addr), Len: len(b)}
	n, _, e := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(t.n.pid),
		uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	return int(n), e
}

// readString reads a string that ends with NUL, of at most max bytes with it, into t.text.
func (t *tracer) readString(addr uint64, max int) ([]byte, unix.Errno) {
	const page = 4096
	have := 0
	for want := 256; have < max; want = page {
		n := min(page-int((addr+uint64(have))%page), max-have, want)
		got, e := t.readSome(addr+uint64(have), t.text[have:have+n])
		if e != 0 {
			return nil, e
		}
		if i := bytes.IndexByte(t.text[have:have+got], 0); i >= 0 {
			return t.text[:have+i], 0
		}
		have += got
		if got < n {
			return nil, unix.EFAULT
		}
	}
	return nil, unix.ENAMETOOLONG
}

// write writes to the memory of the caller, which must be there for it to write.
func (t *tracer) write(addr uint64, b []byte) unix.Errno {
	if !t.alive() {
		return unix.ESRCH
	}
	local := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	remote := unix.RemoteIovec{Base: uintptr(addr), Len: len(b)}
	n, _, e := unix.Syscall6(unix.SYS_PROCESS_VM_WRITEV, uintptr(t.n.pid),
		uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if e == 0 && int(n) != len(b) {
		e = unix.EFAULT
	}
	return e
}

// maxCallers is how many callers a thread keeps descriptors of.
const maxCallers = 64

// borrow gets a copy of a descriptor of the caller, which shares its description: 1.1 µs, where
// /proc/PID/fd/N costs 2.4 with each look. It is -1 where the kernel gives none: of a thread
// before Linux 6.9, of a descriptor that is not open. What is O_PATH stays so. The caller closes.
//
// A pidfd means the process that had the number when it was opened, for ever: when that is gone, it
// gives ESRCH, and the number is somebody else's.
func (t *tracer) borrow(fd int32) int {
	for range 2 {
		pidfd, known := t.pidfds[t.n.pid]
		if !known {
			const thread = unix.O_EXCL // PIDFD_THREAD, Linux 6.9
			var err error
			if pidfd, err = unix.PidfdOpen(int(t.n.pid), thread); err == unix.EINVAL {
				pidfd, err = unix.PidfdOpen(int(t.n.pid), 0)
			}
			if err != nil {
				return -1
			}
			if len(t.pidfds) >= maxCallers {
				t.forgetCallers()
			}
			if t.pidfds == nil {
				t.pidfds = map[uint32]int{}
			}
			t.pidfds[t.n.pid] = pidfd
		}
		got, err := unix.PidfdGetfd(pidfd, int(fd), 0)
		if err == nil {
			return got
		}
		if !known || err != unix.ESRCH {
			return -1
		}
		unix.Close(pidfd)
		delete(t.pidfds, t.n.pid)
	}
	return -1
}

func (t *tracer) forgetCallers() {
	for _, pidfd := range t.pidfds {
		unix.Close(pidfd)
	}
	clear(t.pidfds)
}

// umask of the caller, 022 when it cannot be read.
func (t *tracer) umask() int {
	m, err := strconv.ParseUint(t.status("Umask"), 8, 32)
	if err != nil {
		return 0o022
	}
	return int(m)
}

// status is a line of /proc/PID/status of the caller.
func (t *tracer) status(name string) string { return statusOf(int(t.n.pid), name) }

// statusOf reads it for any process, relative to /proc.
func statusOf(pid int, name string) string {
	status, err := os.ReadFile(strconv.Itoa(pid) + "/status")
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(status, []byte("\n"+name+":\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(line)
}

func word32(b []byte, off int) uint32       { return binary.NativeEndian.Uint32(b[off:]) }
func putWord32(b []byte, off int, v uint32) { binary.NativeEndian.PutUint32(b[off:], v) }
