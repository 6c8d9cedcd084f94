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

	auditArch = unix.AUDIT_ARCH_X86_64
)
