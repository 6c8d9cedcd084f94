package userns

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// notified are the calls that the supervisor sees, whatever their arguments are.
var notified = []int{
	sysStat, sysLstat, unix.SYS_FSTAT, sysFstatat, unix.SYS_STATX,
	unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
	unix.SYS_GETRESUID, unix.SYS_GETRESGID, unix.SYS_GETGROUPS,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPGET, unix.SYS_CAPSET,
	sysChown, sysLchown, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT,
	sysMknod, unix.SYS_MKNODAT, sysMkdir, unix.SYS_MKDIRAT, sysSymlink, unix.SYS_SYMLINKAT, sysCreat, unix.SYS_OPENAT2,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
	unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_FGETXATTR,
	unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, unix.SYS_FLISTXATTR,
	unix.SYS_CHROOT, unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	sysUnlink, sysRmdir, unix.SYS_UNLINKAT, sysRename, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, sysLink, unix.SYS_LINKAT,
	sysChmod, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2,
	sysUtime, sysUtimes, sysFutimes, unix.SYS_UTIMENSAT, unix.SYS_TRUNCATE, unix.SYS_CHDIR,
	unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_BIND,
}

// missing are calls that would go past the supervisor: to these a kernel is played that does not have them,
// and programs make the older ones. From 424 on all architectures have the same numbers.
var missing = []uint32{
	unix.SYS_SETXATTRAT, unix.SYS_GETXATTRAT, unix.SYS_LISTXATTRAT, unix.SYS_REMOVEXATTRAT, // Linux 6.13
	unix.SYS_IO_URING_SETUP, // where no other filter forbids it
}

// x32 is the bit of the calls of the x32 ABI, which are missing as well.
const x32 = 1 << 30

// notifiedOfUsers are those that change nothing, are frequent, and are refused to some who are not root.
var notifiedOfUsers = []int{
	sysOpen, unix.SYS_OPENAT, sysAccess, sysReadlink, unix.SYS_READLINKAT, unix.SYS_FCHDIR,
}

const (
	// creates are the bits of open's flags with which it may make a file: O_CREAT, and of O_TMPFILE
	// the one that is no other flag.
	creates = unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY
	// writes are those with which it may change one.
	writes = unix.O_WRONLY | unix.O_RDWR
)

// EmulationFilter is the seccomp program that hands to an Emulator the calls that it answers, as
// struct sock_filter in the byte order of this machine. All other calls it allows, and these the
// kernel allows without running it (Linux 5.11).
//
// users: it is for a command that does not begin as root. Then each open is handed over, too, which
// takes 8 µs in place of 2. A process that becomes a user later keeps the filter of root: the
// kernel takes one listener for all that came of one process (EBUSY), and a second filter could hand over
// only to a tracer, 12 µs a call (measured in C on Linux 6.18), whom gdb, strace and LeakSanitizer
// then find in their place.
func EmulationFilter(users bool) []byte {
	const offNr, offArch = 0, 4
	word := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	theirs := map[int][]int32{}
	for _, calls := range []map[int32]int{compatCalls, shortCalls} {
		for their, ours := range calls {
			theirs[ours] = append(theirs[ours], their)
		}
	}
	own := filterCalls(users, func(call int) []int32 {
		if call < 0 { // this architecture has none
			return nil
		}
		return []int32{int32(call)}
	})
	compat := filterCalls(users, func(call int) []int32 { return theirs[call] })
	prog := []bpf.Instruction{
		word(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipFalse: 2},
		word(offNr),
		bpf.Jump{Skip: uint32(len(compat) + 3)},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: compatArch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
		word(offNr),
	}
	prog = append(append(prog, compat...), own...)
	raw, err := bpf.Assemble(prog)
	if err != nil {
		panic(err) // a constant program
	}
	var out []byte
	for _, r := range raw {
		out = binary.NativeEndian.AppendUint16(out, r.Op)
		out = append(out, r.Jt, r.Jf)
		out = binary.NativeEndian.AppendUint32(out, r.K)
	}
	return out
}

// filterCalls is the part for one architecture, which may have numbers for a call of ours.
func filterCalls(users bool, numbers func(call int) []int32) (prog []bpf.Instruction) {
	const offArgs = 16
	low := func(arg uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offArgs + 8*arg, Size: 4} } // all are little-endian
	notify, allow := bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	on := func(call int, then ...bpf.Instruction) {
		for _, nr := range numbers(call) {
			prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: uint8(len(then))})
			prog = append(prog, then...)
		}
	}
	bits := func(arg, some uint32) []bpf.Instruction {
		return []bpf.Instruction{low(arg), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: some, SkipFalse: 1}, notify, allow}
	}
	// The limit in which identities are kept, which programs set back to what pid 1 has (pam_limits).
	limits := func(resource uint32) []bpf.Instruction {
		return []bpf.Instruction{low(resource), bpf.JumpIf{Cond: bpf.JumpEqual, Val: rlimitLocks, SkipFalse: 1}, notify, allow}
	}
	absent := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	for _, nr := range missing {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: 1}, absent)
	}
	prog = append(prog, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32, SkipFalse: 1}, absent)
	if users {
		for _, call := range notifiedOfUsers {
			on(call, notify)
		}
	}
	on(sysOpen, bits(1, creates|writes)...)
	on(unix.SYS_OPENAT, bits(2, creates|writes)...)
	for _, call := range notified {
		on(call, notify)
	}
	on(sysAccess, bits(1, mayWrite|mayExec)...) // to read: each program's, of /etc/ld.so.preload
	on(unix.SYS_PRLIMIT64, limits(1)...)
	on(unix.SYS_SETRLIMIT, limits(0)...)
	on(unix.SYS_GETRLIMIT, limits(0)...)
	// A new handler of SIGCHLD.
	on(unix.SYS_RT_SIGACTION,
		low(0), bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(unix.SIGCHLD), SkipFalse: 3},
		low(1), bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, notify, allow)
	on(unix.SYS_PRCTL,
		low(0), bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PR_SET_KEEPCAPS, SkipFalse: 1}, notify, allow)
	on(unix.SYS_GETSOCKOPT,
		low(1), bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOL_SOCKET, SkipFalse: 4},
		low(2), bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SO_PEERCRED, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SO_PEERGROUPS, SkipFalse: 1}, notify, allow)
	return append(prog, allow)
}
