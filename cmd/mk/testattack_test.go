package main

// What a hostile program tries in a container: this test binary itself, copied into an image.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// attackEnv is set for a process that is to attack. Its value is a file that the outside alone has.
const attackEnv = "MK_TEST_ATTACK"

// attacker PATH
// puts a program there that tries to get out of a container, when MK_TEST_ATTACK names a file of the
// outside; it prints "stayed in" and succeeds when nothing worked.
func cmdAttacker(ts *testscript.TestScript, neg bool, args []string) {
	self, err := os.Executable()
	ts.Check(err)
	if err := checkStatic(self); err != nil {
		theScript(ts).t.Skip(err)
	}
	from, err := os.Open(self)
	ts.Check(err)
	defer from.Close()
	to, err := os.OpenFile(ts.MkAbs(args[0]), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	ts.Check(err)
	_, err = io.Copy(to, from)
	ts.Check(errors.Join(err, to.Close()))
}

// attack is one thing to try. It returns what it got, or why it did not.
type attack struct {
	what string
	try  func() error
}

// denied is an attack that is a single system call: it fails with one of these or worked.
func denied(what string, number uintptr, args ...uintptr) attack {
	return attack{what, func() error {
		var a [6]uintptr
		copy(a[:], args)
		_, _, e := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
		switch e {
		case unix.EPERM, unix.EACCES, unix.ENOSYS:
			return e
		case 0:
			return nil
		}
		return fmt.Errorf("it was tried: %w", e)
	}}
}

// reads fails unless there is something in a file.
func reads(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 512))
	return err
}

// attacks of attacks.md 22, 28 and 29.
func attacks(outside string) []attack {
	path := func(s string) uintptr { p, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(p)) }
	sees := func(dir string) error { // fails unless dir is the outside's root
		_, err := os.Stat(dir + outside)
		return err
	}
	all := []attack{
		{"chroot twice, and up", func() error {
			root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			if err := os.MkdirAll("/jail", 0o755); err != nil {
				return err
			}
			if err := unix.Chroot("/jail"); err != nil {
				return err
			}
			if err := unix.Fchdir(root); err != nil {
				return err
			}
			for range 64 {
				unix.Chdir("..")
			}
			err = sees(".")
			return errors.Join(err, unix.Chroot("."))
		}},
		{"the root of pid 1", func() error { return sees("/proc/1/root") }},
		{"the directory of pid 1", func() error { return sees("/proc/1/cwd/../../../../../../../../..") }},
		{"a block device", func() error {
			if err := unix.Mknod("/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))); err != nil {
				return err
			}
			return reads("/disk") // mode single makes nodes that are nothing
		}},
		{"the machine's memory", func() error { return reads("/proc/kcore") }},
		{"the machine's core pattern", func() error { return os.WriteFile("/proc/sys/kernel/core_pattern", []byte("|/x"), 0) }},
		{"who answers for uevents", func() error { return os.WriteFile("/sys/kernel/uevent_helper", []byte("/x"), 0) }},
		{"a release agent", func() error { return os.WriteFile("/sys/fs/cgroup/release_agent", []byte("/x"), 0) }},
		{"trace mk", func() error {
			line, err := os.ReadFile("/proc/1/cmdline")
			if err == nil && !strings.HasPrefix(string(line), "mk:") {
				return errors.New("pid 1 is none of mk's") // but the container's own
			}
			return unix.PtraceAttach(1)
		}},
		denied("mount", unix.SYS_MOUNT, path("none"), path("/tmp"), path("tmpfs")),
		denied("unmount", unix.SYS_UMOUNT2, path("/proc"), unix.MNT_DETACH),
		denied("pivot_root", unix.SYS_PIVOT_ROOT, path("/"), path("/")),
		denied("open_tree", unix.SYS_OPEN_TREE, ^uintptr(99), path("/"), 1),
		denied("fsopen", unix.SYS_FSOPEN, path("tmpfs"), 0),
		denied("a user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		denied("a mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWNS),
		denied("clone3", unix.SYS_CLONE3, 0, 0),
		denied("somebody's keys", unix.SYS_KEYCTL, 0, ^uintptr(2)),
		denied("add_key", unix.SYS_ADD_KEY, path("user"), path("x"), path("y"), 1, ^uintptr(3)),
		denied("userfaultfd", unix.SYS_USERFAULTFD, 0),
		denied("bpf", unix.SYS_BPF, 0),
		denied("perf_event_open", unix.SYS_PERF_EVENT_OPEN, 0),
		denied("kexec_load", unix.SYS_KEXEC_LOAD, 0),
		denied("init_module", unix.SYS_INIT_MODULE, 0),
		denied("reboot", unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF),
		denied("swapon", unix.SYS_SWAPON, path("/disk"), 0),
		denied("settimeofday", unix.SYS_SETTIMEOFDAY, 0, path("00000000")),
		denied("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, 0, path("\x04\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00"), 0),
		{"type into the terminal", func() error { // of who started it; without one there is nothing to type into
			c := byte('x')
			_, _, e := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
			if e != 0 {
				return e
			}
			return nil
		}},
	}
	for fd := 3; fd < 64; fd++ {
		all = append(all, attack{fmt.Sprintf("descriptor %d", fd), func() error { return sees(fmt.Sprintf("/proc/self/fd/%d/../../../../../../../../..", fd)) }})
	}
	return all
}

// runAttacks is main of that process. The chroot comes last: what is looked for is gone behind it.
func runAttacks(outside string) {
	runtime.LockOSThread()
	all := attacks(outside)
	all = append(all[1:], all[0])
	worked := 0
	for _, a := range all {
		err := a.try()
		if err == nil {
			worked++
			fmt.Println("worked:", a.what)
		} else if !strings.HasPrefix(a.what, "descriptor") {
			fmt.Printf("%s: %v\n", a.what, err)
		}
	}
	if worked > 0 {
		os.Exit(1)
	}
	fmt.Println("stayed in")
}
