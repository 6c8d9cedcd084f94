package userns

import "golang.org/x/sys/unix"

// The calls that this architecture never had have numbers that no call has.
const (
	sysOpen = -1 - iota
	sysCreat
	sysMkdir
	sysSymlink
	sysMknod
	sysChown
	sysLchown
	sysStat
	sysLstat
	sysUnlink
	sysRmdir
	sysRename
	sysLink
	sysChmod
	sysUtime
	sysUtimes
	sysFutimes
	sysAccess
	sysReadlink

	sysFstatat = unix.SYS_FSTATAT
	auditArch  = unix.AUDIT_ARCH_AARCH64
	compatArch = unix.AUDIT_ARCH_ARM
)

const compatUtimensat64 = -1

// compatCalls: 32-bit programs get the kernel's own answers here.
var compatCalls, shortCalls map[int32]int
