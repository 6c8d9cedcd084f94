package container

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A pid namespace ends with its first process, and a container that has one of its own with it. One
// in another's pid namespace or in the machine's ends by hand: its processes are those in its
// mount namespace. Whoever is left of these three sees to it: init, which stays as the parent of all
// orphans (Spec.reaps), at the end of its command and of its holder; the holder at the end of
// init; and when both were killed at once, the next mk that looks at the container.

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

// sweep ends all processes, but for this one, that are theirs by what /proc says. proc is /proc,
// which must be that of this process's pid namespace, or nothing is done. after is called after each
// round. The error is what keeps one of them alive.
func sweep(proc *os.File, theirs func(pid string) bool, after func()) (alive error) {
	me := strconv.Itoa(os.Getpid())
	self := make([]byte, 16)
	if n, err := unix.Readlinkat(int(proc.Fd()), "self", self); err != nil || string(self[:n]) != me {
		return errors.New("look for processes: /proc is of another pid namespace")
	}
	// Who forks and ends during a round may be missed by it: two in a row must find nobody.
	for clean, until := 0, time.Now().Add(sweepFor); clean < 2 && time.Now().Before(until); {
		clean++
		alive = nil
		list, err := openOf(proc, ".")
		if err != nil {
			return err
		}
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
			if theirs(name) {
				clean = 0
				if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
					alive = fmt.Errorf("end process %d: %w", pid, err)
				}
			}
			unix.Close(process)
		}
		after()
		if clean == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return alive
}

// openOf opens a file of /proc.
func openOf(proc *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(proc.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readOf(proc *os.File, name string) (string, error) {
	f, err := openOf(proc, name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(text), err
}

// mountsOf is the number of a process's mount namespace.
func mountsOf(proc *os.File, pid string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(proc.Fd()), pid+"/ns/mnt", &st, 0)
	return st.Ino, err
}

// parentOf is the parent of a process that lives; -1.
func parentOf(proc *os.File, pid string) int {
	text, err := readOf(proc, pid+"/stat")
	if err != nil {
		return -1
	}
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // from field 3 of proc(5) on
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
		sweep(proc, inMounts(proc, p.mounts), func() {})
		proc.Close()
	}
}

// inMounts tells of a process whether it is in a mount namespace.
func inMounts(proc *os.File, mounts uint64) func(pid string) bool {
	return func(pid string) bool {
		in, err := mountsOf(proc, pid)
		return err == nil && in == mounts
	}
}

// sweepLate ends what is left of a container of which both init and the holder were killed, unless
// somebody starts or removes it just now, who does that himself. It takes the stage host to reach all
// of them: stage inside is root of a user namespace beside theirs, and no more than their caller's equal.
func (c *Container) sweepLate(s Status) error {
	if !s.Loose || s.Pid == 0 {
		return nil
	}
	change, err := os.Open(c.Path("change"))
	if err != nil {
		return err
	}
	defer change.Close()
	err = unix.Flock(int(change.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return nil
	} else if err != nil {
		return err
	}
	if running, err := c.Running(); err != nil || running {
		return err
	}
	return c.sweep()
}

// sweep is sweepLate for who is alone with the container, by its change lock or as its holder.
//
// The number of a mount namespace that has ended is given to another. So the container's processes
// are known by what they have mounted: files of its directory, on /etc. Who has gone to another root
// since then does not see those, and is found with the others of his namespace.
func (c *Container) sweep() error {
	s, err := c.readStatus()
	if err != nil || !s.Loose || s.Pid == 0 {
		return err
	}
	if err := RemoveCgroup(s.Cgroup); err != nil {
		return err
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer proc.Close()
	namespaces := map[uint64]*os.File{} // open, so that their numbers stay theirs
	defer func() {
		for _, f := range namespaces {
			f.Close()
		}
	}()
	theirs := func(pid string) bool {
		in, err := mountsOf(proc, pid)
		if err == nil && namespaces[in] != nil {
			return true
		}
		text, rerr := readOf(proc, pid+"/mountinfo")
		if rerr != nil || !strings.Contains(text, "/"+c.ID+"/etc/") {
			return false
		}
		if err == nil {
			if f, oerr := openOf(proc, pid+"/ns/mnt"); oerr == nil {
				namespaces[in] = f
			}
		}
		return true
	}
	if err := sweep(proc, theirs, func() {}); err != nil {
		return err
	}
	s.killed()
	return c.setStatus(s)
}
