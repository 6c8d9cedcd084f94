package container

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A pid namespace ends with its first process, and a container that has one of its own with it. One
// in another's pid namespace or in the machine's ends by hand: its processes are those in its
// mount namespace. Whoever is left of these three sees to it: init, which stays as the parent of all
// orphans (Spec.reaps), at the end of its command and of its holder; and the holder at the end of
// init.

// holderGone is the signal by which such an init hears of the end of its holder (PR_SET_PDEATHSIG):
// the last of the real-time ones, which nobody else sends.
const holderGone = unix.Signal(64)

// watchHolder asks for holderGone, in place of an end at once. It takes the thread that never ends.
func watchHolder() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(holderGone), 0, 0, 0); err != nil {
		return fmt.Errorf("ask for a signal at the end of the holder: %w", err)
	}
	if orphaned() {
		return errOrphaned
	}
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// sweepFor is how long a sweep goes on: a process that waits for a disk ends when it wakes.
const sweepFor = 10 * time.Second

// sweep ends all processes, but for this one, that are in a mount namespace, or children of parent.
// proc is /proc, which must be that of this process's pid namespace, or nothing is done. after is
// called after each round.
func sweep(proc *os.File, mounts uint64, parent int, after func()) {
	me := strconv.Itoa(os.Getpid())
	self := make([]byte, 16)
	if n, err := unix.Readlinkat(int(proc.Fd()), "self", self); err != nil || string(self[:n]) != me {
		return
	}
	// Who forks and ends during a round may be missed by it: two in a row must find nobody.
	for clean, until := 0, time.Now().Add(sweepFor); clean < 2 && time.Now().Before(until); {
		clean++
		fd, err := unix.Openat(int(proc.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		list := os.NewFile(uintptr(fd), "/proc")
		names, _ := list.Readdirnames(-1)
		list.Close()
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil || name == me {
				continue
			}
			process, err := unix.PidfdOpen(pid, 0) // before the look, so that it is of the same one
			if err != nil {
				continue
			}
			if in, err := mountsOf(proc, name); err == nil && in == mounts || parentOf(proc, name) == parent {
				unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
				clean = 0
			}
			unix.Close(process)
		}
		after()
		if clean == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// mountsOf is the number of a process's mount namespace.
func mountsOf(proc *os.File, pid string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(proc.Fd()), pid+"/ns/mnt", &st, 0)
	return st.Ino, err
}

// parentOf is the parent of a process that lives; -1.
func parentOf(proc *os.File, pid string) int {
	fd, err := unix.Openat(int(proc.Fd()), pid+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	defer unix.Close(fd)
	text := make([]byte, 256)
	n, err := unix.Read(fd, text)
	if err != nil {
		return -1
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text[:n]), ')')+1 : n])) // from field 3 of proc(5) on
	if len(f) < 2 || f[0] == "Z" {
		return -1
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return -1
	}
	return ppid
}

// remember notes the mount namespace of a container that has no pid namespace of its own.
func (p *Process) remember() {
	if p.spec.Namespaces.ownPID() {
		return
	}
	if proc, err := os.Open("/proc"); err == nil {
		p.mounts, _ = mountsOf(proc, strconv.Itoa(p.Pid()))
		proc.Close()
	}
}

// sweep ends what init has left, when it was killed.
func (p *Process) sweep() {
	if p.mounts == 0 {
		return
	}
	if g := p.spec.Cgroup; g != nil {
		writeCgroup(g.path, "cgroup.kill", "1") // Linux 5.14; it reaches those with other mounts, too
	}
	if proc, err := os.Open("/proc"); err == nil {
		sweep(proc, p.mounts, -2, func() {})
		proc.Close()
	}
}
