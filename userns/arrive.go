package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Inside is what stage inside knows of itself.
type Inside struct {
	Choice Choice     // what was really entered: its Mode may differ from what the host expected
	Files  []*os.File // those given to Enter, close-on-exec; the command's to close

	lifeline *os.File
}

// ErrHostGone is the cause of the end of Inside.Context.
var ErrHostGone = errors.New("the process that started this one is gone")

// Arrive finishes the entry, first thing in stage inside. When it returns, the process is root of
// its namespaces with all capabilities, and its mounts no longer reach the caller's.
func Arrive() (*Inside, error) {
	var st unix.Stat_t
	if err := unix.Fstat(lifelineFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("%s was not started by mk", InsideName)
	}
	unix.CloseOnExec(lifelineFD)
	in := &Inside{lifeline: os.NewFile(lifelineFD, "lifeline")}

	// Until the host has written the maps we are nobody; its message is the sign that it has.
	hello, err := receiveHello(in.lifeline)
	if err != nil {
		return nil, fmt.Errorf("wait for the ID maps: %w", ErrHostGone)
	}
	in.Choice = hello.Choice
	for fd := uintptr(lifelineFD + 1); len(in.Files) < hello.Files; fd++ {
		unix.CloseOnExec(int(fd))
		in.Files = append(in.Files, os.NewFile(fd, "file of Enter"))
	}
	if uid := os.Getuid(); uid != 0 {
		return nil, fmt.Errorf("enter mode %s: uid is %d, not 0, behind the map", in.Choice.Mode, uid)
	}
	if in.Choice.Userns {
		if err := clearAmbient(); err != nil {
			return nil, fmt.Errorf("clear the ambient capabilities: %w", err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, Explain(OpPrivate, "/", err)
	}
	// "exe" is what the kernel took for a name; ps and pgrep should find mk.
	writeFile("/proc/self/comm", InsideName)
	// Nothing that runs in a container may read our memory, environment or descriptors, even
	// where it can see us (a container with the outer /proc) and has as many capabilities.
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	return in, nil
}

// clearAmbient empties the ambient and inheritable sets of every thread; uid 0 does not need them
// to keep its capabilities over an exec, and no child should find them (CVE-2022-27651). What is
// no longer inheritable is no longer ambient, capabilities(7), so that the world is stopped once:
// that costs half a millisecond.
func clearAmbient() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])))
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
	return err
}

// everyThread makes a system call on all threads. A program linked with cgo, which for mk is one
// built for the race detector, cannot; there only this thread makes it.
func everyThread(trap, a1, a2 uintptr) error {
	_, _, e := syscall.AllThreadsSyscall6(trap, a1, a2, 0, 0, 0, 0)
	if e == unix.ENOTSUP {
		_, _, e = unix.RawSyscall6(trap, a1, a2, 0, 0, 0, 0)
	}
	if e != 0 {
		return e
	}
	return nil
}

// Context ends when ctx ends, when the host is gone (cause ErrHostGone), or when stop is called.
// A holder that is to outlive the host calls stop and goes on with a context of its own.
func (in *Inside) Context(ctx context.Context) (_ context.Context, stop context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		in.lifeline.Read(make([]byte, 1)) // nothing is ever sent: it returns at EOF
		cancel(ErrHostGone)
	}()
	return ctx, func() { cancel(context.Canceled) }
}
