package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// setgroupsDenied asks, while /proc of the outside is there, whether the kernel lets nobody here
// set groups: so it is in mode single.
func setgroupsDenied() bool {
	text, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(text)) == "deny"
}

// groupsOf is the groups to set, nil for none. Where none can be set, root loses nothing by that; it
// has its power from capabilities, so that a notice does. Anybody else cannot be had there anyway.
func groupsOf(spec *Spec, denied bool, notice func(string)) []uint32 {
	if !denied {
		return append([]uint32{}, spec.User.Groups...)
	}
	var lost []string
	for _, g := range spec.User.Groups {
		if g != spec.User.GID {
			lost = append(lost, fmt.Sprint(g))
		}
	}
	if len(lost) > 0 {
		notice("only one ID is mapped: the user is not in groups " + strings.Join(lost, ", "))
	}
	return nil
}

// become gives this thread the identity, capabilities and filters of the command. The order is
// forced at each step by what the step before takes away.
func become(spec *Spec, setgroupsDenied bool) error {
	// The bounding set first: it takes CAP_SETPCAP.
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := 0; c < 64; c++ {
		if spec.Caps.Has(c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err == unix.EINVAL {
			break // the kernel knows no more
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if len(spec.Seccomp) == 0 {
		// Docker's filter denies keyctl; without one the caller's keys must be out of reach. The
		// quota of keyrings may be used up; then there are no keys of the session either way.
		unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	}
	// A filter without no_new_privs takes CAP_SYS_ADMIN. What follows must pass it; docker's does.
	if !spec.NoNewPrivs {
		if err := filter(spec.Seccomp); err != nil {
			return err
		}
	}
	if len(spec.Notify) > 0 {
		if err := notify(spec.Notify); err == nil {
			setgroupsDenied = false // whoever answers is asked
		} else if err := send(packet{Notice: noNotify(err)}, -1); err != nil {
			return err
		}
	}
	groups := groupsOf(spec, setgroupsDenied, func(text string) { send(packet{Notice: text}, -1) })
	// Raw calls: Go's wrappers change all threads, and a reaper keeps its own identity.
	u := spec.User
	if groups != nil {
		var first *uint32
		if len(groups) > 0 {
			first = &groups[0]
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(first)), 0); e != 0 {
			return userns.Explain(userns.OpSetID, fmt.Sprintf("a member of groups %v", groups), e)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); e != 0 {
		return userns.Explain(userns.OpSetID, fmt.Sprintf("gid %d", u.GID), e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); e != 0 {
		return userns.Explain(userns.OpSetID, fmt.Sprintf("uid %d", u.UID), e)
	}
	if err := setCaps(spec); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	// Changing IDs made the kernel forget it, and a new thread never had it.
	unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	if orphaned() {
		return errOrphaned
	}
	if spec.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
		return filter(spec.Seccomp)
	}
	return nil
}

var errOrphaned = errors.New("the process that started this one is gone")

// orphaned tells whether who started this process was killed before it could ask to die with them. A
// process that ends closes its files first, and then signals its children: either this sees the one,
// or the other comes.
func orphaned() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: controlFD}}, 0) // POLLHUP is always asked for
	return err == nil && n > 0
}

// setCaps leaves root what the container may have, and anybody else nothing: as docker does.
func setCaps(spec *Spec) error {
	want, err := capsOf(spec)
	if err != nil {
		return err
	}
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &want[0])
}

// capsOf is what setCaps sets, on a thread that has what this one has.
func capsOf(spec *Spec) (want [2]unix.CapUserData, err error) {
	caps := spec.Caps
	if spec.User.UID != 0 {
		caps = 0
	}
	var have [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]); err != nil {
		return want, fmt.Errorf("look at the capabilities: %w", err)
	}
	for i := range want {
		want[i].Permitted = have[i].Permitted & uint32(caps>>(32*i)) // older kernels know fewer
		want[i].Effective = want[i].Permitted
	}
	return want, nil
}

// noNotify is the notice where nobody can answer for the kernel.
func noNotify(err error) string {
	return err.Error() + ": chown to others than root, and being another user, are refused"
}

// filter puts a seccomp filter on this thread.
func filter(f Filter) error {
	if len(f) == 0 {
		return nil
	}
	if _, e := install(f, 0); e != 0 {
		return fmt.Errorf("install the seccomp filter: %w", e)
	}
	return nil
}

const waitKillable = 1 << 5 // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19

// notify puts on this thread a filter whose listener goes to Start.
func notify(f Filter) error {
	// No signal is to interrupt a call that is being answered: what has been done would be done
	// again.
	fd, e := install(f, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|waitKillable)
	if e == unix.EINVAL {
		fd, e = install(f, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	}
	if e != 0 {
		return userns.Explain(userns.OpNotify, "", e)
	}
	defer unix.Close(fd)
	return send(packet{Listener: true}, fd)
}

func install(f Filter, flags uintptr) (int, unix.Errno) {
	prog := f.program()
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	runtime.KeepAlive(prog)
	return int(fd), e
}

// program is the filter as the kernel takes it; nil for none.
func (f Filter) program() *unix.SockFprog {
	if len(f) == 0 {
		return nil
	}
	prog := make([]unix.SockFilter, 0, len(f)/8)
	for ; len(f) >= 8; f = f[8:] {
		prog = append(prog, unix.SockFilter{
			Code: binary.NativeEndian.Uint16(f), Jt: f[2], Jf: f[3], K: binary.NativeEndian.Uint32(f[4:])})
	}
	return &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
}

// defaultPath is where commands are looked for when the environment has no PATH; docker's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds Args[0], as execvp(3) would with the container's PATH.
func lookPath(spec *Spec) (string, error) {
	name := spec.Args[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	dirs := defaultPath
	for _, kv := range spec.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = v
		}
	}
	denied := false
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir == "" {
			dir = "."
		}
		file := path.Join(dir, name)
		if dir == "." {
			file = "./" + name // execve looks relative names up here, and argv tells how
		}
		var st unix.Stat_t
		if unix.Stat(file, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if st.Mode&0o111 != 0 {
			return file, nil
		}
		denied = true
	}
	if denied {
		return "", fail(126, "exec %q: %w", name, unix.EACCES)
	}
	return "", fail(127, "exec %q: not found in $PATH (%s)", name, dirs)
}

// execError says why execve did not work, with docker's exit status.
func execError(spec *Spec, file string, err error) error {
	if err != unix.ENOENT {
		return fail(126, "exec %q: %w", spec.Args[0], err)
	}
	if unix.Access(file, unix.F_OK) == nil {
		return fail(127, "exec %q: the file is there, but not the interpreter or loader that it names: %w", spec.Args[0], err)
	}
	return fail(127, "exec %q: %w", spec.Args[0], err)
}
