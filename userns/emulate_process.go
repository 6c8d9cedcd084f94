package userns

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// /proc/PID belongs to whom the process is: ps of busybox and start-stop-daemon look there. Of /proc/PID/status,
// which is only read, the supervisor is not asked.
//
// Nor is it asked whether somebody may be sent a signal, though the kernel allows all of them: a call that is asked may be
// interrupted by a signal before it was seen, with EINTR where the handler wants that, which kill(2) never gives. A
// shell that kills two children gets SIGCHLD of the first just then, and says so (busybox's did, on a busy machine).

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

// inProc reads a file of a process in the container's /proc, nil if there is none, or that is no proc.
func (t *tracer) inProc(pid int32, name string) []byte {
	path := "proc/" + strconv.Itoa(int(pid)) + "/" + name
	// In the container's root: the caller's may be another.
	fd, err := unix.Openat2(t.root, path, &unix.OpenHow{
		Flags:   uint64(unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if !isProc(fd) {
		return nil
	}
	b := make([]byte, 4096)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil
	}
	return b[:n]
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
