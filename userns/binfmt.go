package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// A foreign architecture is one whose programs this machine's processor does not
// run. The kernel starts an interpreter for them, if one is registered in the
// binfmt_misc that the user namespace sees: since Linux 6.7 a namespace may have one
// of its own, where root of the namespace registers what it likes and the host
// sees nothing of it.

// foreign is what the kernel must know to recognize an architecture's programs, and
// the name of the program that runs them.
type foreign struct {
	qemu    string // qemu-aarch64
	machine uint16 // e_machine of the ELF header
	class   byte   // 1: 32 bits, 2: 64
	big     bool   // big-endian
}

// foreigns are the architectures that Debian's qemu-user runs and that images are made for.
var foreigns = map[string]foreign{
	"amd64":    {"qemu-x86_64", 62, 2, false},
	"386":      {"qemu-i386", 3, 1, false},
	"arm64":    {"qemu-aarch64", 183, 2, false},
	"arm":      {"qemu-arm", 40, 1, false},
	"riscv64":  {"qemu-riscv64", 243, 2, false},
	"ppc64le":  {"qemu-ppc64le", 21, 2, false},
	"s390x":    {"qemu-s390x", 22, 2, true},
	"loong64":  {"qemu-loongarch64", 258, 2, false},
	"mips64le": {"qemu-mips64el", 8, 2, false},
}

// ErrNoEmulator says that nothing here runs programs of an architecture.
var ErrNoEmulator = errors.New("no emulator")

// Emulation lets the processes of this namespace, and of those below it, run programs
// of one foreign architecture until it is closed.
type Emulation struct{ instance *os.File }

// Close ends the emulation: the registrations go with their file system.
func (e *Emulation) Close() error {
	if e.instance == nil {
		return nil
	}
	return e.instance.Close()
}

// Emulate makes programs of arch (GOARCH's word) run. In a user namespace of its own
// it registers the static qemu-user that PATH has, which the kernel opens at once, so
// that it need not be in any container; otherwise, and where the kernel cannot do
// that, it relies on what the host has registered. Neither is ErrNoEmulator.
func (in *Inside) Emulate(arch string) (*Emulation, error) {
	f, known := foreigns[arch]
	if !known {
		return nil, fmt.Errorf("run programs of %s: %w", arch, ErrNoEmulator)
	}
	why := errors.New("mk has no user namespace of its own here")
	if in.Choice.Userns {
		qemu, err := findQemu(f.qemu)
		if err == nil {
			var e *Emulation
			if e, err = register(f, qemu); err == nil {
				return e, nil
			}
		}
		why = err
	}
	if hostRuns(f) {
		return &Emulation{}, nil
	}
	return nil, fmt.Errorf("run programs of %s: %w: %w", arch, ErrNoEmulator, why)
}

// findQemu looks for the emulator under both of its names. Only a static one works
// in a container's root; Debian's qemu-user-static has it under the first, and where
// qemu-user itself is static, under the second.
func findQemu(name string) (string, error) {
	for _, n := range []string{name + "-static", name} {
		if path, err := exec.LookPath(n); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s-static is not in PATH", name)
}

// register mounts a binfmt_misc of this user namespace, nowhere, and writes the
// emulator into it. Flag F opens it now, in this root; C gives setuid programs their owner
// back; P keeps argv[0].
func register(f foreign, qemu string) (*Emulation, error) {
	fs, err := unix.Fsopen("binfmt_misc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open binfmt_misc: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make a binfmt_misc of this namespace (Linux 6.7 or newer): %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount binfmt_misc: %w", err)
	}
	e := &Emulation{instance: os.NewFile(uintptr(fd), "binfmt_misc")}
	reg, err := unix.Openat(fd, "register", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(reg, []byte(f.rule(qemu)))
		unix.Close(reg)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) { // another of this process's builds was first
		e.Close()
		return nil, fmt.Errorf("register %s: %w", qemu, err)
	}
	return e, nil
}

// rule is binfmt_misc's line: the ELF header of an executable (or position
// independent one) of the architecture. Of the OS ABI byte any value is taken.
func (f foreign) rule(qemu string) string {
	magic := make([]byte, 20)
	mask := []byte("\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff")
	copy(magic, "\x7fELF")
	magic[4], magic[5], magic[6] = f.class, 1, 1
	kind, machine := 16, 18 // offsets of the low bytes of e_type (2, or 3 by the mask) and e_machine
	magic[kind], magic[machine], magic[machine+1] = 2, byte(f.machine), byte(f.machine>>8)
	if f.big {
		magic[5] = 2
		magic[kind], magic[kind+1] = 0, 2
		magic[machine], magic[machine+1] = byte(f.machine>>8), byte(f.machine)
		mask[kind], mask[kind+1] = 0xff, 0xfe
	}
	hex := func(b []byte) string {
		var s strings.Builder
		for _, c := range b {
			fmt.Fprintf(&s, `\x%02x`, c)
		}
		return s.String()
	}
	return fmt.Sprintf(":%s:M::%s:%s:%s:FPC", f.qemu, hex(magic), hex(mask), qemu)
}

// hostRuns says whether the binfmt_misc that is mounted here has the architecture, with
// its interpreter opened in advance.
func hostRuns(f foreign) bool {
	text, err := os.ReadFile("/proc/sys/fs/binfmt_misc/" + f.qemu)
	if err != nil || !strings.HasPrefix(string(text), "enabled") {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if flags, ok := strings.CutPrefix(line, "flags: "); ok {
			return strings.Contains(flags, "F")
		}
	}
	return false
}
