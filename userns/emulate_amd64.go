package userns

import "golang.org/x/sys/unix"

// The calls that only this architecture still has: those with a directory descriptor took their
// place.
const (
	sysOpen     = unix.SYS_OPEN
	sysCreat    = unix.SYS_CREAT
	sysMkdir    = unix.SYS_MKDIR
	sysSymlink  = unix.SYS_SYMLINK
	sysMknod    = unix.SYS_MKNOD
	sysChown    = unix.SYS_CHOWN
	sysLchown   = unix.SYS_LCHOWN
	sysStat     = unix.SYS_STAT
	sysLstat    = unix.SYS_LSTAT
	sysFstatat  = unix.SYS_NEWFSTATAT
	sysUnlink   = unix.SYS_UNLINK
	sysRmdir    = unix.SYS_RMDIR
	sysRename   = unix.SYS_RENAME
	sysLink     = unix.SYS_LINK
	sysChmod    = unix.SYS_CHMOD
	sysUtime    = unix.SYS_UTIME
	sysUtimes   = unix.SYS_UTIMES
	sysFutimes  = unix.SYS_FUTIMESAT
	sysAccess   = unix.SYS_ACCESS
	sysReadlink = unix.SYS_READLINK

	auditArch  = unix.AUDIT_ARCH_X86_64
	compatArch = unix.AUDIT_ARCH_I386
)

// compatUtimensat64 is the one with times of 64 bits.
const compatUtimensat64 = 412

// compatCalls are the calls of 32-bit programs that are answered, and which call of ours each is: by
// asm/unistd_32.h. Their arguments are the same, but for the structures of stat64 and ugetrlimit.
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
	10: unix.SYS_UNLINK, 40: unix.SYS_RMDIR, 301: unix.SYS_UNLINKAT,
	38: unix.SYS_RENAME, 302: unix.SYS_RENAMEAT, 353: unix.SYS_RENAMEAT2, 9: unix.SYS_LINK, 303: unix.SYS_LINKAT,
	15: unix.SYS_CHMOD, 94: unix.SYS_FCHMOD, 306: unix.SYS_FCHMODAT, 452: unix.SYS_FCHMODAT2,
	30: unix.SYS_UTIME, 271: unix.SYS_UTIMES, 299: unix.SYS_FUTIMESAT, 320: unix.SYS_UTIMENSAT, compatUtimensat64: unix.SYS_UTIMENSAT,
	85: unix.SYS_READLINK, 305: unix.SYS_READLINKAT, 92: unix.SYS_TRUNCATE, 193: unix.SYS_TRUNCATE, 12: unix.SYS_CHDIR, 133: unix.SYS_FCHDIR,
	33: unix.SYS_ACCESS, 307: unix.SYS_FACCESSAT, 439: unix.SYS_FACCESSAT2,
	75: unix.SYS_SETRLIMIT, 191: unix.SYS_GETRLIMIT, 340: unix.SYS_PRLIMIT64, 365: unix.SYS_GETSOCKOPT, 361: unix.SYS_BIND,
	174: unix.SYS_RT_SIGACTION,
}

// shortCalls are those of before Linux 2.4, with IDs of 16 bits. Those of stat are left to the kernel: no
// program has made them since glibc 2.1.
var shortCalls = map[int32]int{
	182: unix.SYS_CHOWN, 16: unix.SYS_LCHOWN, 95: unix.SYS_FCHOWN,
	24: unix.SYS_GETUID, 47: unix.SYS_GETGID, 49: unix.SYS_GETEUID, 50: unix.SYS_GETEGID,
	70: unix.SYS_SETREUID, 71: unix.SYS_SETREGID, 80: unix.SYS_GETGROUPS, 81: unix.SYS_SETGROUPS,
	164: unix.SYS_SETRESUID, 165: unix.SYS_GETRESUID, 170: unix.SYS_SETRESGID, 171: unix.SYS_GETRESGID,
	23: unix.SYS_SETUID, 46: unix.SYS_SETGID, 138: unix.SYS_SETFSUID, 139: unix.SYS_SETFSGID,
}
