package userns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attrKeeper keeps owners in an attribute, of regular files and directories; those of sockets it remembers
// for the test.
type attrKeeper struct{}

var socketOwners sync.Map // inode → Owner

func socket(path string) (inode uint64, ok bool) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

const testAttr = "user.test.owner"

// slow is a name that takes the keeper so long.
const slow = 2 * time.Second

func (k attrKeeper) Look(path string, link bool) Signs {
	if strings.HasSuffix(path, "/slow") {
		time.Sleep(slow)
	}
	_, known := k.Owner(path, link, Signs{})
	n, _ := unix.Getxattr(path, capAttr, nil)
	return Signs{Owner: known, Capability: n > 0}
}

func (attrKeeper) Owner(path string, link bool, _ Signs) (o Owner, ok bool) {
	get := unix.Getxattr
	if link {
		get = unix.Lgetxattr
	}
	var b [64]byte
	n, err := get(path, testAttr, b[:])
	if err != nil {
		if ino, is := socket(path); is {
			kept, ok := socketOwners.Load(ino)
			o, _ = kept.(Owner)
			return o, ok
		}
		return o, false
	}
	_, err = fmt.Sscan(string(b[:n]), &o.UID, &o.GID, &o.Mode, &o.Rdev)
	return o, err == nil
}

func (attrKeeper) SetOwner(path string, link bool, o Owner) error {
	if ino, is := socket(path); is {
		socketOwners.Store(ino, o)
		return nil
	}
	return unix.Setxattr(path, testAttr, fmt.Append(nil, o.UID, " ", o.GID, " ", o.Mode, " ", o.Rdev), 0)
}

func (k attrKeeper) LookOf(fd int) Signs { return k.Look(byFD(fd), false) }

func (k attrKeeper) OwnerOf(fd int, s Signs) (Owner, bool) {
	return k.Owner(byFD(fd), false, s)
}

func (k attrKeeper) SetOwnerOf(fd int, o Owner) error {
	return k.SetOwner(byFD(fd), false, o)
}

func (attrKeeper) Attr(path, name string) []byte                 { return nil }
func (attrKeeper) SetAttr(path, name string, value []byte) error { return unix.EOPNOTSUPP }

// subjectEnv names what the process does that is served, behind the filter and in its root.
const subjectEnv = "MK_USERNS_TEST_SUBJECT"

// emulate is stage inside: it serves a subject, and looks at what is outside of the subject's root.
func emulate(name string) int {
	die := func(err error) int { fmt.Println("skip:", err); return 0 }
	dir, err := os.MkdirTemp("", "emulate")
	if err != nil {
		return die(err)
	}
	defer os.RemoveAll(dir)
	outside := filepath.Join(dir, "outside")
	os.WriteFile(outside, nil, 0o600)
	if err := unix.Setxattr(outside, "user.test.probe", []byte("x"), 0); err != nil {
		return die(fmt.Errorf("attributes in %s: %w", dir, err))
	}
	root := filepath.Join(dir, "root")
	os.MkdirAll(root+"/bin", 0o755)
	if busybox, err := os.ReadFile("/bin/busybox"); err == nil {
		os.WriteFile(root+"/bin/busybox", busybox, 0o755)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return die(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{subjectEnv + "=" + name, "ROOT=" + root}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return die(err)
	}
	theirs.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		cmd.Wait()
		return die(fmt.Errorf("no listener: %v", err))
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:n])
	fds, _ := unix.ParseUnixRights(&msgs[0])
	at, _ := os.Open(root)
	stop, err := NewEmulator(attrKeeper{}).Serve(os.NewFile(uintptr(fds[0]), "listener"), cmd.Process.Pid, at, nil)
	if err != nil {
		fmt.Println("serve:", err)
		return 1
	}
	over := make(chan struct{})
	if name == "signals" {
		go signalThreads(over)
	}
	unix.Write(pair[0], []byte("go"))
	err = cmd.Wait()
	close(over)
	stop()
	if err != nil {
		fmt.Println("subject:", err)
		return 1
	}
	if _, ok := (attrKeeper{}).Owner(outside, true, Signs{}); ok {
		fmt.Println("a file outside of the root was changed")
		return 1
	}
	return 0
}

// signalThreads sends this process's threads the signal that Go sends them, thousands of times as often.
func signalThreads(over chan struct{}) {
	for {
		tasks, _ := os.ReadDir("/proc/self/task")
		for range 100 {
			select {
			case <-over:
				return
			default:
			}
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
			}
		}
	}
}

// beSubject is a process like a container's: another root, the filter, and then the calls.
func beSubject(name string) {
	check := func(err error) {
		if err != nil {
			fmt.Println("skip:", err)
			os.Exit(0)
		}
	}
	check(unix.Chroot(os.Getenv("ROOT")))
	check(unix.Chdir("/"))
	f := EmulationFilter(name == "rights")
	prog := unix.SockFprog{Len: uint16(len(f) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&f[0]))}
	const tsyncESRCH = 1 << 4
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_TSYNC|tsyncESRCH, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		check(e)
	}
	check(unix.Sendmsg(3, []byte("l"), unix.UnixRights(int(fd)), nil, 0))
	unix.Close(int(fd))
	unix.Read(3, make([]byte, 2))
	if problem := subjects[name](); problem != "" {
		fmt.Println("problem:", problem)
		os.Exit(1)
	}
	os.Exit(0)
}

func owners(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// expect is a table of calls: got, want, got, want…
func expect(pairs ...any) string {
	var wrong []string
	for i := 0; i < len(pairs); i += 2 {
		if got, want := fmt.Sprint(pairs[i]), fmt.Sprint(pairs[i+1]); got != want {
			wrong = append(wrong, fmt.Sprintf("%d: %s, want %s", i/2, got, want))
		}
	}
	return strings.Join(wrong, "; ")
}

// oldProgram is an executable for i386 of a few calls.
func oldProgram() []byte {
	const base, start = 0x8048000, 52 + 32
	le := binary.LittleEndian
	var code []byte
	call := func(regs ...uint32) { // eax, ebx, ecx, edx
		for i, v := range regs {
			code = le.AppendUint32(append(code, []byte{0xb8, 0xbb, 0xb9, 0xba}[i]), v)
		}
		code = append(code, 0xcd, 0x80)
	}
	const data = base + start + 512
	call(182, data, 33, 34) // chown16
	call(182, data+2, 0xffff, 35)
	call(81, 2, data+4)             // setgroups16
	call(46, 44)                    // setgid16
	call(23, 33)                    // setuid16
	call(24)                        // getuid16
	code = append(code, 0x89, 0xc6) // mov esi, eax
	call(50)                        // getegid16
	code = append(code, 0x01, 0xc6) // add esi, eax
	call(80, 0, 0)                  // getgroups16
	code = append(code, 0x01, 0xc6)
	code = append(code, 0x89, 0xf3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80) // exit(esi)
	b := append([]byte("\x7fELF\x01\x01\x01"), make([]byte, 9)...)
	for _, v := range []uint16{2, 3} { // executable, i386
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{1, base + start, 52, 0, 0} { // version, entry, program headers
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{52, 32, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{1, 0, base, base, 4096, 4096, 5, 4096} { // all of it, to read and execute
		b = le.AppendUint32(b, v)
	}
	b = append(b, code...)
	b = append(b, make([]byte, start+512-len(b))...)
	b = append(b, "f\x00g\x00\x32\x00\x05\x00"...)
	return append(b, make([]byte, 4096-len(b))...)
}

func touch(name string) string { os.WriteFile(name, nil, 0o644); return name }

// absent makes a call that would do what another is answered for, with arguments that a kernel which has it
// does not take: EFAULT, EINVAL, or EBADF.
func absent(call uintptr) unix.Errno {
	_, _, e := unix.Syscall6(call, ^uintptr(0), 0, ^uintptr(0), 0, 0, 0)
	return e
}

// chownAt is fchownat with whatever is at addr.
func chownAt(addr unsafe.Pointer, uid int) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_FCHOWNAT, ^uintptr(99), uintptr(addr), uintptr(uid), uintptr(uid), 0, 0)
	return e
}

var subjects = map[string]func() string{
	"calls": func() string {
		touch("f")
		os.Mkdir("d", 0o755)
		dir, _ := unix.Open("d", unix.O_RDONLY, 0)
		path, _ := unix.Open("f", unix.O_PATH, 0)
		return expect(
			unix.Chown("f", 33, 34), nil, owners("f"), "33:34",
			unix.Fchown(dir, 5, -1), nil, owners("d"), "5:0",
			unix.Fchownat(dir, touch("d/x")[2:], 6, 7, 0), nil, owners("d/x"), "6:7",
			unix.Fchownat(path, "", 8, 9, unix.AT_EMPTY_PATH), nil, owners("f"), "8:9",
			unix.Fchownat(path, "", 8, 9, 0), unix.ENOENT,
			unix.Fchownat(dir, "x", 1, 1, 0x40), unix.EINVAL,
			unix.Fchownat(99, "x", 1, 1, 0), unix.EBADF,
			unix.Fchownat(99, "", 1, 1, unix.AT_EMPTY_PATH), unix.EBADF,
			unix.Fchown(99, 1, 1), unix.EBADF,
			unix.Fchown(path, 1, 1), unix.EBADF, owners("f"), "8:9",
			unix.Chown("missing", 1, 1), unix.ENOENT,
			unix.Chown("f/x", 1, 1), unix.ENOTDIR,
			unix.Mknod("null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), nil,
			unix.Mknod("whiteout", unix.S_IFCHR, 0), unix.EPERM,
			unix.Setxattr("f", KeeperAttrs+"owner", []byte("0:0"), 0), unix.EPERM,
			absent(unix.SYS_SETXATTRAT), unix.ENOSYS, absent(unix.SYS_REMOVEXATTRAT), unix.ENOSYS,
			absent(unix.SYS_LISTXATTRAT), unix.ENOSYS, absent(unix.SYS_GETXATTRAT), unix.ENOSYS,
			absent(unix.SYS_IO_URING_SETUP), unix.ENOSYS, absent(x32|unix.SYS_FCHOWN), unix.ENOSYS,
			unix.Setgroups([]int{44, 5}), nil,
			unix.Setresgid(-1, 7, -1), nil, unix.Getegid(), 7, unix.Getgid(), 0,
			unix.Setresuid(33, 33, 0), nil, unix.Geteuid(), 33,
			unix.Setgroups(nil), unix.EPERM,
			unix.Chown("f", 33, 33), unix.EPERM,
			unix.Setresuid(-1, 0, -1), nil, unix.Geteuid(), 0,
			unix.Setuid(33), nil, unix.Setuid(0), unix.EPERM, unix.Setreuid(-1, 34), unix.EPERM,
			unix.Getuid(), 33,
		)
	},
	// What capabilities(7) says of user ID changes.
	"capabilities": func() string {
		caps := func() string {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var d [2]unix.CapUserData
			if err := unix.Capget(&h, &d[0]); err != nil {
				return err.Error()
			}
			return fmt.Sprint(d[0].Permitted != 0, d[0].Effective != 0)
		}
		return expect(
			caps(), "true true",
			unix.Setresuid(-1, 33, -1), nil, caps(), "true false",
			unix.Setresuid(-1, 0, -1), nil, caps(), "true true",
			unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0), nil,
			unix.Setresuid(33, 33, 33), nil, caps(), "true false",
		)
	},
	"no capabilities": func() string {
		unix.Setresuid(33, 33, 33)
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var d [2]unix.CapUserData
		return expect(unix.Capget(&h, &d[0]), nil, d[0].Permitted|d[1].Permitted, 0, d[0].Effective|d[1].Effective, 0)
	},
	// To write what is there, for who may not.
	"writes": func() string {
		touch("root's")
		touch("own")
		touch("all")
		unix.Chmod("all", 0o666)
		unix.Chmod("own", 0o600)
		unix.Chown("own", 33, 33)
		unix.Mkdir("dir", 0o777)
		unix.Symlink("root's", "link")
		open := func(name string, flags int) error {
			fd, err := unix.Open(name, flags, 0)
			unix.Close(fd)
			return err
		}
		unix.Setresuid(33, 33, 33)
		return expect(
			open("root's", unix.O_WRONLY), unix.EACCES, open("root's", unix.O_RDWR), unix.EACCES,
			open("link", unix.O_RDWR), unix.EACCES, open("link", unix.O_RDWR|unix.O_NOFOLLOW), unix.ELOOP,
			open("root's", unix.O_RDONLY), nil, open("own", unix.O_RDWR), nil, open("all", unix.O_WRONLY), nil,
			open("dir", unix.O_WRONLY), unix.EISDIR, open("missing", unix.O_WRONLY), unix.ENOENT,
		)
	},
	// What changes a directory, relative to descriptors, and what only reads.
	"rights": func() string {
		unix.Mkdir("dir", 0o755)
		touch("dir/f")
		unix.Mkdir("private", 0o700)
		touch("private/f")
		unix.Mkdir("own", 0o777)
		unix.Chmod("own", 0o777)
		touch("own/f")
		unix.Symlink("/private/f", "link")
		unix.Symlink("loop", "loop")
		unix.Chmod(touch("secret"), 0o600)
		dir, _ := unix.Open("dir", unix.O_PATH, 0)
		private, _ := unix.Open("private", unix.O_PATH, 0)
		own, _ := unix.Open("own", unix.O_RDONLY, 0)
		secret, _ := unix.Open("secret", unix.O_RDONLY, 0)
		unix.Setresuid(33, 33, 33)
		open := func(at int, name string, flags int) error {
			fd, err := unix.Openat(at, name, flags, 0o600)
			unix.Close(fd)
			return err
		}
		var how unix.OpenHow
		_, err2 := unix.Openat2(unix.AT_FDCWD, "secret", &how)
		_, errLink := unix.Readlink("private/l", make([]byte, 9))
		return expect(
			unix.Unlinkat(dir, "f", 0), unix.EACCES, unix.Unlinkat(private, "f", 0), unix.EACCES,
			unix.Renameat(own, "f", dir, "g"), unix.EACCES, unix.Renameat(dir, "f", own, "g"), unix.EACCES,
			unix.Renameat2(own, "f", dir, "f", unix.RENAME_EXCHANGE), unix.EACCES,
			unix.Renameat2(dir, "f", own, "f", unix.RENAME_NOREPLACE), unix.EEXIST,
			unix.Linkat(own, "missing", dir, "g", 0), unix.ENOENT,
			unix.Mkdirat(dir, "g", 0o755), unix.EACCES, unix.Mkdirat(dir, "f", 0o755), unix.EEXIST,
			unix.Fchmod(secret, 0o777), unix.EPERM, unix.Fchmodat(private, "f", 0o777, 0), unix.EACCES,
			unix.Fchdir(private), unix.EACCES, unix.Chdir("link"), unix.EACCES, unix.Chdir("dir/f"), unix.ENOTDIR,
			unix.Rmdir("."), unix.EINVAL, unix.Rmdir("/"), unix.EBUSY, unix.Unlink("loop/x"), unix.ELOOP,
			unix.Unlink(""), unix.ENOENT, unix.Unlinkat(99, "x", 0), unix.EBADF, unix.Unlink("dir/f/x"), unix.ENOTDIR,
			open(unix.AT_FDCWD, "secret", 0), unix.EACCES, open(private, "f", 0), unix.EACCES, err2, unix.EACCES,
			open(unix.AT_FDCWD, "link", 0), unix.EACCES, open(unix.AT_FDCWD, "loop", 0), unix.ELOOP,
			open(unix.AT_FDCWD, "private/new", unix.O_CREAT), unix.EACCES, open(dir, "new", unix.O_CREAT), unix.EACCES,
			open(unix.AT_FDCWD, "dir", unix.O_TMPFILE|unix.O_RDWR), unix.EACCES, open(own, "n", unix.O_CREAT|unix.O_RDWR), nil,
			open(unix.AT_FDCWD, "dir/f", unix.O_NOATIME), unix.EPERM, open(unix.AT_FDCWD, "own/../dir//f", 0), nil,
			unix.Access("secret", unix.R_OK), unix.EACCES, unix.Access("dir/f", unix.R_OK), nil, errLink, unix.EACCES,
			unix.Chroot("/"), unix.EPERM, owners("private/f"), unix.EACCES, owners("own/n"), "33:0",
			unix.Renameat(own, "f", own, "g"), nil, unix.Unlinkat(own, "g", 0), nil,
		)
	},
	"peers": func() string {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err.Error()
		}
		groups := func(size uint32) (list [2]uint32, n uint32, e unix.Errno) {
			_, _, e = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(pair[0]), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&list)), uintptr(unsafe.Pointer(&size)), 0)
			return list, size, e
		}
		before, err := unix.GetsockoptUcred(pair[0], unix.SOL_SOCKET, unix.SO_PEERCRED)
		unix.Setgroups([]int{44, 5})
		unix.Setresgid(34, 34, 34)
		unix.Setresuid(33, 33, 33)
		after, _ := unix.GetsockoptUcred(pair[0], unix.SOL_SOCKET, unix.SO_PEERCRED)
		list, n, e := groups(8)
		_, small, eSmall := groups(4)
		return expect(
			err, nil, before.Uid, 0, after.Uid, 33, after.Gid, 34, after.Pid, before.Pid,
			list, [2]uint32{5, 44}, n, 8, e, unix.Errno(0), small, 8, eSmall, unix.ERANGE,
		)
	},
	// A socket's file is whose it is made by, and only he may chmod it; the name is what he said.
	"sockets": func() string {
		unix.Mkdir("dir", 0o755)
		unix.Mkdir("own", 0o777)
		unix.Chmod("own", 0o777)
		unix.Setresgid(44, 44, 44)
		unix.Setresuid(33, 33, 33)
		unix.Chdir("own")
		named := func(path string) (unix.Sockaddr, error) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				defer unix.Close(fd)
				err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
			}
			name, _ := unix.Getsockname(fd)
			return name, err
		}
		a, errA := named("a")
		_, errB := named("/own/b")
		_, denied := named("/dir/b")
		_, again := named("a")
		_, abstract := named("@mk-test-sockets")
		return expect(
			errA, nil, a.(*unix.SockaddrUnix).Name, "a", owners("a"), "33:44", errB, nil, owners("/own/b"), "33:44",
			denied, unix.EACCES, again, unix.EADDRINUSE, abstract, nil, unix.Chmod("a", 0o600), nil,
		)
	},
	// A 32-bit program of Linux 2.2: chown("f", 33, 34), setgroups, setgid(44), setuid(33), and exits
	// with getuid() + getegid() + getgroups().
	"short IDs": func() string {
		touch("f")
		touch("g")
		if err := os.WriteFile("old", oldProgram(), 0o755); err != nil {
			return err.Error()
		}
		cmd := exec.Command("/old")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stdout // there is no /dev/null
		if err := cmd.Run(); cmd.ProcessState == nil {
			if errors.Is(err, unix.ENOEXEC) {
				return "" // a kernel without 32-bit programs
			}
			return err.Error()
		}
		return expect(cmd.ProcessState.ExitCode(), 33+44+2, owners("f"), "33:34", owners("g"), "0:35")
	},
	"groups": func() string {
		unix.Setgroups([]int{44, 5})
		list, err := unix.Getgroups()
		_, _, small := unix.Syscall(unix.SYS_GETGROUPS, 1, uintptr(unsafe.Pointer(new([2]uint32))), 0)
		_, _, bad := unix.Syscall(unix.SYS_SETGROUPS, 3, 8, 0)
		return expect(list, []int{5, 44}, err, nil, small, unix.EINVAL, bad, unix.EFAULT)
	},
	// The path changes under the supervisor's eyes.
	"racing memory": func() string {
		touch("in")
		paths := [][]byte{[]byte("/in\x00"), []byte("/../../../../../outside\x00"), []byte("../outside\x00"), []byte("/link\x00")}
		os.Symlink("../../outside", "link")
		var buf [64]byte
		var done atomic.Bool
		var racers sync.WaitGroup
		racers.Go(func() {
			for i := 0; !done.Load(); i++ {
				copy(buf[:], paths[i%len(paths)])
			}
		})
		for i := range 3000 {
			chownAt(unsafe.Pointer(&buf), i%50)
		}
		done.Store(true)
		racers.Wait()
		return expect(unix.Chown("in", 3, 3), nil, owners("in"), "3:3")
	},
	"symlink swaps": func() string {
		os.Mkdir("a", 0o755)
		touch("a/outside")
		os.Symlink("..", "b")
		var done atomic.Bool
		var racers sync.WaitGroup
		racers.Go(func() {
			for !done.Load() {
				unix.Renameat2(unix.AT_FDCWD, "a", unix.AT_FDCWD, "b", unix.RENAME_EXCHANGE)
			}
		})
		unix.Setresgid(50, 50, 0)
		unix.Setresuid(1000, 1000, 0)
		for i := range 2000 {
			unix.Chown("a/outside", 7, 7)
			if fd, err := unix.Open(fmt.Sprintf("a/../../outside%d", i%5), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600); err == nil {
				unix.Close(fd)
			}
			unix.Mkdir("a/dir", 0o755)
		}
		done.Store(true)
		racers.Wait()
		return ""
	},
	"bad pointers": func() string {
		page := os.Getpagesize()
		mem, _ := unix.Mmap(-1, 0, 3*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		unix.Mprotect(mem[2*page:], unix.PROT_NONE)
		for i := range mem[:2*page] {
			mem[i] = 'a'
		}
		copy(mem[2*page-3:2*page], "/f\x00") // ends where the memory does
		touch("f")
		unix.Chown("f", 1, 1)
		_, _, readOnly := unix.Syscall6(sysFstatat, ^uintptr(99), uintptr(unsafe.Pointer(&mem[2*page-3])), uintptr(unsafe.Pointer(&mem[2*page])), 0, 0, 0)
		return expect(
			chownAt(unsafe.Pointer(&mem[2*page-3]), 2), unix.Errno(0), owners("f"), "2:2",
			chownAt(unsafe.Pointer(&mem[2*page-100]), 2), unix.ENOENT, // aaa…/f
			chownAt(unsafe.Pointer(&mem[0]), 2), unix.ENAMETOOLONG,
			chownAt(unsafe.Pointer(&mem[2*page]), 2), unix.EFAULT,
			chownAt(nil, 2), unix.EFAULT,
			readOnly, unix.EFAULT,
		)
	},
	// Nobody may make the supervisor wait: not by a fifo that has no reader.
	"fifo": func() string {
		unix.Mkfifo("p", 0o666)
		unix.Setresgid(50, 50, 0)
		unix.Setresuid(1000, 1000, 0)
		go unix.Open("p", unix.O_CREAT|unix.O_WRONLY, 0o600)
		time.Sleep(20 * time.Millisecond)
		begin := time.Now()
		for range 10 {
			unix.Getuid()
		}
		return expect(time.Since(begin) < time.Second, true)
	},
	// Nor by a file system on which a lookup takes its time.
	"slow lookups": func() string {
		for range 3 {
			go owners("/slow")
		}
		time.Sleep(100 * time.Millisecond)
		begin := time.Now()
		for range 10 {
			unix.Getuid()
		}
		return expect(time.Since(begin) < slow/2, true)
	},
	// Nor do signals take an answer away, or make another of it.
	"signals": func() string {
		os.Chmod("/", 0o777)
		unix.Setgid(34)
		unix.Setuid(33)
		for i := range 3000 {
			name := strconv.Itoa(i)
			fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			if err != nil || fd <= 3 || owners(name) != "33:34" {
				return fmt.Sprintf("open %s: %d, %v, of %s", name, fd, err, owners(name))
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				return fmt.Sprintf("write to %d: %v", fd, err)
			}
			unix.Close(fd)
		}
		return ""
	},
	"killed targets": func() string {
		if _, err := os.Stat("/bin/busybox"); err != nil {
			return ""
		}
		touch("f")
		var all sync.WaitGroup
		for range 40 {
			all.Go(func() {
				cmd := exec.Command("/bin/busybox", "sh", "-c", "while :; do busybox chown 3 /f; done")
				cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stdout
				cmd.Start()
				time.Sleep(time.Duration(20+cmd.Process.Pid%50) * time.Millisecond)
				cmd.Process.Kill()
				cmd.Wait()
			})
		}
		all.Wait()
		time.Sleep(200 * time.Millisecond) // what the last ones asked for may still be done
		return expect(unix.Chown("f", 4, 4), nil, owners("f"), "4:4")
	},
	// More processes than a container may have at once, each forked to be answered once.
	"ten thousand processes": func() string {
		if _, err := os.Stat("/bin/busybox"); err != nil {
			return ""
		}
		touch("f")
		unix.Chown("f", 3, 3)
		var all sync.WaitGroup
		var right atomic.Int32
		for range 10 {
			all.Go(func() {
				cmd := exec.Command("/bin/busybox", "sh", "-c", "i=0; n=0; while [ $i -lt 1000 ]; do i=$((i+1)); (test -G /f || test -O /f) || n=$((n+1)); done; echo $n")
				cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
				if out, err := cmd.Output(); err == nil && strings.TrimSpace(string(out)) == "1000" {
					right.Add(1)
				}
			})
		}
		all.Wait()
		return expect(right.Load(), 10, unix.Chown("f", 4, 4), nil, owners("f"), "4:4")
	},
	"huge paths": func() string {
		longest := "/" + strings.Repeat("d/", 2047) // 4,095 bytes, and the NUL
		for range 300 {
			unix.Mkdir("d", 0o755)
			if err := unix.Chdir("d"); err != nil {
				return err.Error()
			}
		}
		touch("f")
		up := strings.Repeat("../", 300)
		return expect(
			unix.Chown("f", 5, 6), nil, owners("f"), "5:6",
			owners(strings.Repeat("d/../", 800)+"f"), unix.ENOENT, // no d below
			unix.Chown(up+strings.Repeat("d/", 300)+"f", 7, 8), nil, owners("f"), "7:8",
			unix.Chown(longest, 1, 1), unix.ENOENT,
			unix.Chown(longest+"d", 1, 1), unix.ENAMETOOLONG,
			unix.Chown(strings.Repeat("x", 256), 1, 1), unix.ENAMETOOLONG,
			unix.Mkdir(strings.Repeat("y", 256), 0o755), unix.ENAMETOOLONG,
		)
	},
	"many identities": func() string {
		var last error
		for i := range maxIdentities + 10 {
			if last = unix.Setgroups([]int{i}); last != nil {
				break
			}
		}
		return expect(last, unix.EAGAIN, unix.Getuid(), 0)
	},
	"identity is inherited": func() string {
		if _, err := os.Stat("/bin/busybox"); err != nil {
			return ""
		}
		unix.Setgid(34)
		unix.Setuid(33)
		cmd := exec.Command("/bin/busybox", "sh", "-c", "busybox id -u; (busybox id -g; ulimit -a | busybox grep locks)")
		cmd.Stdin = os.Stdin // there is no /dev/null
		out, err := cmd.CombinedOutput()
		words := append(strings.Fields(string(out)), "", "", "")
		return expect(err, nil, words[0], 33, words[1], 34, words[len(words)-4], "unlimited")
	},
}

// TestEmulator has every subject answered, in mode single.
func TestEmulator(t *testing.T) {
	need(t, Single)
	for name := range subjects {
		t.Run(name, func(t *testing.T) {
			cmd := host(t, "emulate "+name, Single)
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s%s", err, out, cmd.Stderr)
			}
			if strings.HasPrefix(string(out), "skip: ") {
				t.Skip(string(out))
			}
		})
	}
}
