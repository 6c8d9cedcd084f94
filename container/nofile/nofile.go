// Package nofile remembers the limit of open files that this process was started with, for the
// programs that it starts. Go raises the soft limit of its own process before any code that imports
// package syscall can look (go.dev/issue/46279), gives the old one back to what os.StartProcess
// starts, and tells it nobody else.
//
// So this package imports nothing. Packages that depend on nothing uninitialized are initialized in
// the order of their paths (Go specification, "Program initialization", since Go 1.21), and
// "mk/container/nofile" comes before "syscall".
package nofile

import "unsafe"

// Soft and Hard are the limits, RLIM_INFINITY being the largest value; both are 0 where the kernel
// did not tell.
var Soft, Hard = limits()

func limits() (soft, hard uint64) {
	const rlimitNofile = 7 // on all architectures that mk is built for
	var l struct{ soft, hard uint64 }
	if _, _, errno := rawSyscall6(sysPrlimit64, 0, rlimitNofile, 0, uintptr(unsafe.Pointer(&l)), 0, 0); errno != 0 {
		return 0, 0
	}
	return l.soft, l.hard
}

// rawSyscall6 is syscall.RawSyscall6, which may be linked to by its name.
//
//go:linkname rawSyscall6 syscall.RawSyscall6
func rawSyscall6(trap, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr)
