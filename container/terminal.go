package container

import (
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Terminal is the master of the pty when Spec.Terminal asked for one, else nil. The caller copies
// from and to it, and closes it after Wait.
func (p *Process) Terminal() *os.File { return p.terminal }

// Resize tells the terminal its size; the container's foreground processes get SIGWINCH.
func (p *Process) Resize(size Size) error {
	return setSize(int(p.terminal.Fd()), size)
}

func setSize(fd int, size Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
}

// openTerminal makes a pty and puts the slave on /dev/console.
func openTerminal(root int, spec *Spec) (master, slave int, err error) {
	master, slave, err = newTerminal(root, spec)
	if err != nil {
		return -1, -1, err
	}
	dev, err := openIn(root, "/dev", unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		err = coverFile(dev, "console", slave)
		unix.Close(dev)
	}
	if err != nil {
		unix.Close(master)
		unix.Close(slave)
		return -1, -1, err
	}
	return master, slave, nil
}

// newTerminal makes a pty in the container's own devpts, so that ttyname and /dev/tty work there. The
// master does not block: see ReadTerminal.
func newTerminal(root int, spec *Spec) (master, slave int, err error) {
	master, err = openIn(root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return -1, -1, err
	}
	fail := func(err error) (int, int, error) {
		unix.Close(master)
		return -1, -1, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(master, &fs); err != nil {
		return fail(err)
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return fail(unix.ENOTTY)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	// The slave by its master, and not by a name that could lead elsewhere (CVE-2025-52565).
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return fail(e)
	}
	slave = int(n)
	err = setSize(master, *spec.Terminal)
	if err == nil {
		err = unix.Fchown(slave, int(spec.User.UID), -1)
	}
	if err != nil {
		unix.Close(slave)
		return fail(err)
	}
	return master, slave, nil
}

// useTerminal makes the slave the standard streams, and, for a command that is pid 1 and so the
// leader of a session already, its controlling terminal.
func useTerminal(slave int, control bool) error {
	if control {
		if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
			return err
		}
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return err
		}
	}
	return unix.Close(slave)
}

// ReadTerminal reads from the master of a pty what there is, and waits for the first of it. The kernel
// hands out at most 4 KiB at a time; while much is written, that is gathered until buf is full or
// nothing comes for terminalPause, since whoever gets it is woken up for every piece. The error at the
// end is EIO, once all processes have closed the other side.
func ReadTerminal(master *os.File, buf []byte) (n int, err error) {
	conn, err := master.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = conn.Read(func(fd uintptr) (done bool) {
		for n < len(buf) && (n < terminalBurst || comesSoon(fd)) {
			m, err := unix.Read(int(fd), buf[n:])
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return n > 0
			case err == nil && m > 0:
				if n += m; n < terminalBurst {
					return true
				}
			case n > 0:
				return true // the next call gets it
			case err == nil:
				failed = io.EOF
				return true
			default:
				failed = err
				return true
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return n, err
}

const (
	terminalBurst = 512       // bytes: more than keys echo, or a prompt has
	terminalPause = 1_000_000 // nanoseconds
)

// comesSoon waits for more. It is a raw call, which keeps the scheduler's place: it is too short to
// give that up and have it back, which would cost more than the read.
func comesSoon(fd uintptr) bool {
	poll := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	pause := unix.Timespec{Nsec: terminalPause}
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&pause)), 0, 0, 0)
	return n == 1
}
