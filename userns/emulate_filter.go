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
	unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET,
	sysChown, sysLchown, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT,
	sysMknod, unix.SYS_MKNODAT, sysMkdir, unix.SYS_MKDIRAT, sysSymlink, unix.SYS_SYMLINKAT, sysCreat, unix.SYS_OPENAT2,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
	unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_FGETXATTR,
	unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, unix.SYS_FLISTXATTR,
	unix.SYS_CHROOT, unix.SYS_EXECVE, unix.SYS_EXECVEAT,
}

// creates are the bits of open's flags with which it may make a file: O_CREAT, and of O_TMPFILE
// the one that is no other flag.
const creates = unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY

// EmulationFilter is the seccomp program that hands to an Emulator the calls that it answers, as
// struct sock_filter in the byte order of this machine. All other calls it allows, and these the
// kernel allows without running it (Linux 5.11). Programs of another architecture, the 32-bit one,
// get the kernel's own answers: one owner, and EINVAL for any other.
func EmulationFilter() []byte {
	const offNr, offArch, offArgs = 0, 4, 16
	word := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	low := func(arg uint32) bpf.Instruction { return word(offArgs + 8*arg) } // both architectures are little-endian
	notify, allow := bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	is := func(nr int, then ...bpf.Instruction) []bpf.Instruction {
		return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: uint8(len(then))}}, then...)
	}
	prog := []bpf.Instruction{
		word(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		allow,
		word(offNr),
	}
	opens := func(flags uint32) []bpf.Instruction {
		return []bpf.Instruction{low(flags), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: creates, SkipFalse: 1}, notify, allow}
	}
	// The limit in which identities are kept, which programs set back to what pid 1 has (pam_limits).
	limits := func(resource uint32) []bpf.Instruction {
		return []bpf.Instruction{low(resource), bpf.JumpIf{Cond: bpf.JumpEqual, Val: rlimitLocks, SkipFalse: 1}, notify, allow}
	}
	if sysOpen >= 0 {
		prog = append(prog, is(sysOpen, opens(1)...)...)
	}
	prog = append(prog, is(unix.SYS_OPENAT, opens(2)...)...)
	prog = append(prog, is(unix.SYS_PRLIMIT64, limits(1)...)...)
	prog = append(prog, is(unix.SYS_SETRLIMIT, limits(0)...)...)
	prog = append(prog, is(unix.SYS_GETRLIMIT, limits(0)...)...)
	prog = append(prog, is(unix.SYS_PRCTL,
		low(0), bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PR_SET_KEEPCAPS, SkipFalse: 1}, notify, allow)...)
	prog = append(prog, is(unix.SYS_GETSOCKOPT,
		low(1), bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOL_SOCKET, SkipFalse: 3},
		low(2), bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SO_PEERCRED, SkipFalse: 1}, notify, allow)...)
	for _, nr := range notified {
		if nr >= 0 {
			prog = append(prog, is(nr, notify)...)
		}
	}
	prog = append(prog, allow)
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
