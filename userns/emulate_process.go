package userns

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// To the kernel all processes are the caller's, too. So who is not root is refused signals to processes of
// others here, kill(2), and /proc/PID belongs to whom the process is: ps and start-stop-daemon look there.
// Not asked for, since programs make them often, of themselves: tgkill, and the reading of /proc/PID/status.

// mayKill tells whether c may send signals to a process of other's.
func (c *ids) mayKill(other *ids) bool {
	theirs := []uint32{other.uid[real], other.uid[saved]}
	return c.capable(unix.CAP_KILL) || slices.Contains(theirs, c.uid[effective]) || slices.Contains(theirs, c.uid[real])
}

// kill answers kill, tkill and rt_sigqueueinfo: those to who may be sent signals the kernel does.
func (t *tracer) kill(pid, signal int32) reply {
	c, ok := t.who()
	// SIGCONT may be sent to all of the session. Only to kill is a number below 1 a group's.
	if !ok || c.capable(unix.CAP_KILL) || signal < 0 || signal > 64 || signal == int32(unix.SIGCONT) || pid <= 0 && t.n.nr != unix.SYS_KILL {
		return native
	}
	// Who is in a PID namespace of his own in the container has other numbers than its /proc.
	numbers := strings.Fields(t.status("NStgid"))
	if len(numbers) != len(strings.Fields(statusOf(t.pid, "NStgid"))) {
		return native
	}
	if pid > 0 {
		if other, ok := t.identityOf(pid); ok && !c.mayKill(&other) {
			return failed(unix.EPERM)
		}
		return native
	}
	own, err := strconv.ParseInt(numbers[len(numbers)-1], 10, 32)
	if err != nil {
		return native
	}
	return t.killGroup(&c, int32(own), pid, signal)
}

// killGroup sends a signal to those of a process group, or to all, who may be sent it. If these are all of
// them, the kernel does. own is the caller's number.
func (t *tracer) killGroup(c *ids, own, pid, signal int32) reply {
	group := -pid
	if pid == 0 {
		group = groupOf(t.inProc(own, "stat"))
	}
	var some []int32
	refused := false
	for _, one := range t.processes() {
		switch other, ok := t.identityOf(one); {
		case !ok, pid == -1 && (one == 1 || one == own), pid != -1 && groupOf(t.inProc(one, "stat")) != group:
		case c.mayKill(&other):
			some = append(some, one)
		default:
			refused = true
		}
	}
	switch {
	case !refused:
		return native
	case !t.alive():
		return failed(unix.ESRCH)
	case len(some) == 0 && pid != -1:
		return failed(unix.EPERM)
	}
	for _, one := range some {
		if one == 1 && (signal == int32(unix.SIGKILL) || signal == int32(unix.SIGSTOP)) {
			continue // from inside, it gets neither
		}
		// A directory of /proc is taken for a pidfd: the process is the one that was looked at, or none.
		if dir := t.openProc(one, "", unix.O_DIRECTORY); dir >= 0 {
			unix.PidfdSendSignal(dir, unix.Signal(signal), nil, 0)
			unix.Close(dir)
		}
	}
	return value(0)
}

// groupOf reads the process group from a text of /proc/PID/stat, -1 where there is none.
func groupOf(stat []byte) int32 {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, parent, group
	if len(fields) < 3 {
		return -1
	}
	n, err := strconv.ParseInt(fields[2], 10, 32)
	if err != nil {
		return -1
	}
	return int32(n)
}

// processes are the numbers of the container's processes, as it sees them.
func (t *tracer) processes() (all []int32) {
	fd := t.openProc(0, "", unix.O_DIRECTORY)
	if fd < 0 {
		return nil
	}
	dir := os.NewFile(uintptr(fd), "/proc")
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if n, err := strconv.ParseInt(name, 10, 32); err == nil {
			all = append(all, int32(n))
		}
	}
	return all
}

// identityOf is who a process of the container is, by the number that it has there.
func (t *tracer) identityOf(pid int32) (c ids, ok bool) {
	_, rest, ok := bytes.Cut(t.inProc(pid, "limits"), []byte("\nMax file locks"))
	if !ok {
		return c, false
	}
	soft, _, _ := strings.Cut(strings.TrimLeft(string(rest), " "), " ")
	limit, _ := strconv.ParseUint(soft, 10, 64) // else it is unlimited, and no number
	return t.numbered(limit), true
}

// inProc reads a file of the container's /proc/PID, nil if there is none.
func (t *tracer) inProc(pid int32, name string) []byte {
	fd := t.openProc(pid, name, 0)
	if fd < 0 {
		return nil
	}
	defer unix.Close(fd)
	b := make([]byte, 4096)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil
	}
	return b[:n]
}

// openProc opens something of the container's /proc, if that is one: -1.
func (t *tracer) openProc(pid int32, name string, flags int) int {
	path := "proc"
	if pid > 0 {
		path += "/" + strconv.Itoa(int(pid))
	}
	if name != "" {
		path += "/" + name
	}
	// In the container's root: the caller's may be another.
	fd, err := unix.Openat2(t.root, path, &unix.OpenHow{
		Flags:   uint64(unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | flags),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1
	}
	if !isProc(fd) {
		unix.Close(fd)
		return -1
	}
	return fd
}

func isProc(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC
}

// ownerInProc is who the process is that a path of locate's is about, as proc(5) has it: /proc/PID and what
// is in it, but for net. Who names it relative to a directory gets the kernel's answer, which is root.
func (t *tracer) ownerInProc(path string) (o Owner, ok bool) {
	if !t.changed.Load() {
		return o, false
	}
	rest, named := strings.CutPrefix(path, "/proc/")
	number, rest, _ := strings.Cut(rest, "/")
	pid, err := strconv.ParseInt(number, 10, 32)
	first, _, _ := strings.Cut(rest, "/")
	if err != nil || pid <= 0 || first == "net" {
		return o, false
	}
	var c ids
	switch {
	case named:
		c, ok = t.identityOf(int32(pid))
	case uint32(pid) == t.n.pid && first != "cwd" && first != "fd": // of /proc/self
		c, ok = t.who()
	}
	return Owner{UID: c.uid[effective], GID: c.gid[effective]}, ok
}
