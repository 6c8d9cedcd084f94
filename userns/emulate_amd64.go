package userns

import "golang.org/x/sys/unix"

// The calls that only this architecture still has: those with a directory descriptor took their
// place.
const (
	sysOpen    = unix.SYS_OPEN
	sysCreat   = unix.SYS_CREAT
	sysMkdir   = unix.SYS_MKDIR
	sysSymlink = unix.SYS_SYMLINK
	sysMknod   = unix.SYS_MKNOD
	sysChown   = unix.SYS_CHOWN
	sysLchown  = unix.SYS_LCHOWN
	sysStat    = unix.SYS_STAT
	sysLstat   = unix.SYS_LSTAT
	sysFstatat = unix.SYS_NEWFSTATAT

	auditArch  = unix.AUDIT_ARCH_X86_64
	compatArch = unix.AUDIT_ARCH_I386
)

// compatCalls are the calls of 32-bit programs that are answered, and which call of ours each is: by
// asm/unistd_32.h. Their arguments are the same, but for the structures of stat64 and ugetrlimit. The calls of before
// Linux 2.4, with IDs of 16 bits, are left to the kernel.
var compatCalls = map[int32]int{
	5: unix.SYS_OPEN, 295: unix.SYS_OPENAT, 437: unix.SYS_OPENAT2, 8: unix.SYS_CREAT,
	11: unix.SYS_EXECVE, 358: unix.SYS_EXECVEAT, 61: unix.SYS_CHROOT,
	14: unix.SYS_MKNOD, 297: unix.SYS_MKNODAT, 39: unix.SYS_MKDIR, 296: unix.SYS_MKDIRAT,
	83: unix.SYS_SYMLINK, 304: unix.SYS_SYMLINKAT,
	195: unix.SYS_STAT, 196: unix.SYS_LSTAT, 197: unix.SYS_FSTAT, 300: unix.SYS_NEWFSTATAT, 383: unix.SYS_STATX,
	212: unix.SYS_CHOWN, 198: unix.SYS_LCHOWN, 207: unix.SYS_FCHOWN, 298: unix.SYS_FCHOWNAT,
	199: unix.SYS_GETUID, 200: unix.SYS_GETGID, 201: unix.SYS_GETEUID, 202: unix.SYS_GETEGID,
	203: unix.SYS_SETREUID, 204: unix.SYS_SETREGID, 205: unix.SYS_GETGROUPS, 206: unix.SYS_SETGROUPS,
	208: unix.SYS_SETRESUID, 209: unix.SYS_GETRESUID, 210: unix.SYS_SETRESGID, 211: unix.SYS_GETRESGID,
	213: unix.SYS_SETUID, 214: unix.SYS_SETGID, 215: unix.SYS_SETFSUID, 216: unix.SYS_SETFSGID,
	226: unix.SYS_SETXATTR, 227: unix.SYS_LSETXATTR, 228: unix.SYS_FSETXATTR,
	229: unix.SYS_GETXATTR, 230: unix.SYS_LGETXATTR, 231: unix.SYS_FGETXATTR,
	232: unix.SYS_LISTXATTR, 233: unix.SYS_LLISTXATTR, 234: unix.SYS_FLISTXATTR,
	235: unix.SYS_REMOVEXATTR, 236: unix.SYS_LREMOVEXATTR, 237: unix.SYS_FREMOVEXATTR,
	172: unix.SYS_PRCTL, 184: unix.SYS_CAPGET, 185: unix.SYS_CAPSET,
	75: unix.SYS_SETRLIMIT, 191: unix.SYS_GETRLIMIT, 340: unix.SYS_PRLIMIT64, 365: unix.SYS_GETSOCKOPT,
}
