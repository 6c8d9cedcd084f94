package userns

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Report is what this machine allows, each thing tried and not guessed. A nil error means yes.
type Report struct {
	Choice   Choice
	Kernel   string // uname -r
	Machine  string // uname -m
	Overlay  error  // a detached overlay with upper and work in the directory given
	Notifier error  // seccomp user notification, for mode single
	FastWake error  // … that wakes on the same CPU (Linux 6.6): 3 µs a call in place of 70
	Tun      error  // /dev/net/tun can be opened, for the networks below
	Pasta    string // path of the program, or ""
	Slirp    string
}

// Survey tries everything, in stage inside. dir is a directory of the store; what is made there is
// removed again. It is for mk info, and costs milliseconds.
func Survey(in *Inside, dir string) Report {
	r := Report{Choice: in.Choice}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
		r.Machine = unix.ByteSliceToString(u.Machine[:])
	}
	r.Overlay = Explain(OpOverlay, dir, tryOverlay(dir))
	r.Notifier, r.FastWake = tryNotifier()
	r.Notifier = Explain(OpNotify, "", r.Notifier)
	if fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		r.Tun = Explain(OpTun, "/dev/net/tun", err)
	} else {
		unix.Close(fd)
	}
	r.Pasta, _ = exec.LookPath("pasta")
	r.Slirp, _ = exec.LookPath("slirp4netns")
	return r
}

// tryOverlay makes an overlay as snapshots do, and does not attach it.
func tryOverlay(dir string) error {
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(tmp, name), 0o700); err != nil {
			return err
		}
	}
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fsfd)
	for _, opt := range [][2]string{
		{"lowerdir", tmp + "/lower"}, {"upperdir", tmp + "/upper"}, {"workdir", tmp + "/work"},
	} {
		if err := unix.FsconfigSetString(fsfd, opt[0], opt[1]); err != nil {
			return err
		}
	}
	if err := unix.FsconfigSetFlag(fsfd, "userxattr"); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(mnt)
}

// tryNotifier installs a filter that allows everything, on a thread that ends here.
func tryNotifier() (notifier, fastWake error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread, and its filter, end with the goroutine
		allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
		prog := unix.SockFprog{Len: 1, Filter: &allow}
		fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
			uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(&allow)
		if e != 0 {
			notifier, fastWake = e, e
			return
		}
		defer unix.Close(int(fd))
		const setFlags, syncWakeUp = 0x40082104, 1 // SECCOMP_IOCTL_NOTIF_SET_FLAGS
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, setFlags, syncWakeUp); e != 0 {
			fastWake = e
		}
	}()
	<-done
	return notifier, fastWake
}
