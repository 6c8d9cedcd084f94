package container

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Two programs of a few instructions each, which run in containers and so must not be mk itself.
//
// starter executes the command. A child of fork still is mk's executable to /proc/self/exe, and a
// command that leads there, or the interpreter that a script names, would hand it to a container
// whose root may be the user who may write to it (CVE-2019-5736). So the child becomes this
// first, which costs a tenth of a millisecond. Its arguments are the file to execute and the
// arguments of that; descriptor 3 is where it reports an errno, of 8 bytes. Without it, as when a
// command has led back to it, it ends.
//
// reaper is pid 1 for commands that want one to bury orphans. It takes its name, lets nobody look
// into it, and does nothing: SIGCHLD is ignored, so that the kernel buries them, and no other signal
// reaches a pid 1 that does not ask for it.
//
// They are written in assembly, beside this file, and copied from there into the only segment of
// an executable in memory, which nobody can change.
const (
	tinyStarter = iota
	tinyReaper
)

// code is that of one, within mk's own.
type code struct{ from, to unsafe.Pointer }

// programs are defined in assembly.
func programs() [2]code

// tiny are the executables, sealed; they are never closed.
var tiny = sync.OnceValues(func() (all [2]int, err error) {
	for i, p := range programs() {
		text := unsafe.Slice((*byte)(p.from), uintptr(p.to)-uintptr(p.from))
		if all[i], err = sealed([]string{"mk:starter", "mk:reaper"}[i], tinyELF(text)); err != nil {
			return all, err
		}
	}
	return all, nil
})

// tinyELF is a static executable of this machine that is nothing but code (elf(5)).
func tinyELF(text []byte) []byte {
	const base, headers = 0x400000, 64 + 56
	machine := elf.EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_AARCH64
	}
	size := uint64(headers + len(text))
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	})
	binary.Write(&b, binary.LittleEndian, elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base,
		Filesz: size, Memsz: size, Align: 0x10000,
	})
	b.Write(text)
	return b.Bytes()
}

// sealed is a file in memory that cannot change, with a descriptor beyond 9.
func sealed(name string, text []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("make a program in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return -1, fmt.Errorf("make a program in memory: %w", err)
	}
	// Who cannot read what it executes cannot be looked into from its first instruction on (would_dump,
	// fs/exec.c). The reaper's own prctl(2) is too late for a command that begins at the same time.
	if err := f.Chmod(0o111); err != nil {
		return -1, fmt.Errorf("make a program in memory: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal a program in memory: %w", err)
	}
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 10)
}
