package container

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// verdictOf runs a filter over one call in the virtual machine of x/net/bpf, which reads words in
// network order.
func verdictOf(t *testing.T, f Filter, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	var prog []bpf.RawInstruction
	for ; len(f) > 0; f = f[8:] {
		prog = append(prog, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(f), Jt: f[2], Jf: f[3], K: binary.NativeEndian.Uint32(f[4:])})
	}
	code, ok := bpf.Disassemble(prog)
	if !ok {
		t.Fatal("the program has instructions that cannot be disassembled")
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offArgs+8*i+4:], uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

var update = flag.Bool("update", false, "write the compiled seccomp profile anew")

// Run it with -update after a change of the profile or the compiler.
func TestCompiledProfile(t *testing.T) {
	for goarch, have := range map[string]string{"amd64": compiledAMD64, "arm64": compiledARM64} {
		want, err := compileFor(goarch, dockerProfile, DefaultCaps)
		if err != nil {
			t.Fatal(err)
		}
		if file := "seccomp_" + goarch + ".bpf"; *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		} else if have != string(want) {
			t.Errorf("%s is not what the compiler makes of seccomp.json", file)
		}
	}
}

func TestDefaultFilter(t *testing.T) {
	plain, err := DefaultFilter(DefaultCaps)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := DefaultFilter(DefaultCaps | 1<<unix.CAP_SYS_ADMIN)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(plain)/8)
	allow := uint32(unix.SECCOMP_RET_ALLOW)
	arch := architectures(runtime.GOARCH)[0].audit
	for _, c := range []struct {
		name         string
		args         []uint64
		plain, admin uint32
	}{
		{"read", nil, allow, allow},
		{"execve", nil, allow, allow},
		{"openat2", nil, allow, allow},
		{"chroot", nil, allow, allow}, // CAP_SYS_CHROOT is in the default set
		{"keyctl", nil, errno(unix.EPERM), errno(unix.EPERM)},
		{"add_key", nil, errno(unix.EPERM), errno(unix.EPERM)},
		{"userfaultfd", nil, errno(unix.EPERM), errno(unix.EPERM)},
		{"kexec_load", nil, errno(unix.EPERM), errno(unix.EPERM)},
		{"mount", nil, errno(unix.EPERM), allow},
		{"unshare", []uint64{unix.CLONE_NEWUSER}, errno(unix.EPERM), allow},
		{"setns", nil, errno(unix.EPERM), allow},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, allow, allow},
		{"clone", []uint64{unix.CLONE_NEWUSER}, errno(unix.EPERM), allow},
		{"clone", []uint64{unix.CLONE_NEWNS}, errno(unix.EPERM), allow},
		{"clone3", nil, errno(unix.ENOSYS), allow},
		{"socket", []uint64{unix.AF_INET}, allow, allow},
		{"socket", []uint64{unix.AF_ALG}, errno(unix.EPERM), errno(unix.EPERM)},
		{"socket", []uint64{unix.AF_VSOCK}, errno(unix.EPERM), errno(unix.EPERM)},
		{"socket", []uint64{unix.AF_QIPCRTR}, allow, allow},
		{"socket", []uint64{1<<32 + unix.AF_ALG}, allow, allow}, // 64 bits are compared
		{"personality", []uint64{0}, allow, allow},
		{"personality", []uint64{8}, allow, allow},
		{"personality", []uint64{0xffffffff}, allow, allow},
		{"personality", []uint64{0x0040000}, errno(unix.EPERM), errno(unix.EPERM)},
		{"ptrace", nil, allow, allow}, // since 4.8
		{"reboot", nil, errno(unix.EPERM), errno(unix.EPERM)},
		{"open_by_handle_at", nil, errno(unix.EPERM), errno(unix.EPERM)},
	} {
		nr, ok := number(architectures(runtime.GOARCH)[0].calls, c.name)
		if !ok {
			t.Fatalf("no number of %s", c.name)
		}
		if got := verdictOf(t, plain, arch, nr, c.args...); got != c.plain {
			t.Errorf("%s%#x: %#x, want %#x", c.name, c.args, got, c.plain)
		}
		if got := verdictOf(t, admin, arch, nr, c.args...); got != c.admin {
			t.Errorf("%s%#x with CAP_SYS_ADMIN: %#x, want %#x", c.name, c.args, got, c.admin)
		}
	}
	if got := verdictOf(t, plain, arch, 1000); got != errno(unix.ENOSYS) {
		t.Errorf("a call of the future: %#x", got)
	}
	if got := verdictOf(t, plain, unix.AUDIT_ARCH_S390X, 3); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("a call of another architecture: %#x", got)
	}
	if runtime.GOARCH == "amd64" {
		if got := verdictOf(t, plain, unix.AUDIT_ARCH_X86_64, x32Bit); got != errno(unix.ENOSYS) {
			t.Errorf("an x32 call: %#x", got)
		}
		i386 := map[string]uint32{"socketcall": allow, "keyctl": errno(unix.EPERM), "clock_gettime64": allow, "read": allow}
		for name, want := range i386 {
			nr, _ := number(calls386, name)
			if got := verdictOf(t, plain, unix.AUDIT_ARCH_I386, nr); got != want {
				t.Errorf("i386 %s: %#x, want %#x", name, got, want)
			}
		}
	}
}

// Every operator, around every boundary that the two halves have, against plain arithmetic.
func TestConditions(t *testing.T) {
	values := []uint64{0, 1, 5, 1<<32 - 1, 1 << 32, 1<<32 + 5, 1<<63 + 7, 1<<64 - 1}
	holds := map[string]func(arg, v uint64) bool{
		"SCMP_CMP_EQ":        func(a, v uint64) bool { return a == v },
		"SCMP_CMP_NE":        func(a, v uint64) bool { return a != v },
		"SCMP_CMP_LT":        func(a, v uint64) bool { return a < v },
		"SCMP_CMP_LE":        func(a, v uint64) bool { return a <= v },
		"SCMP_CMP_GT":        func(a, v uint64) bool { return a > v },
		"SCMP_CMP_GE":        func(a, v uint64) bool { return a >= v },
		"SCMP_CMP_MASKED_EQ": func(a, v uint64) bool { return a&v == v&0x100000005 },
	}
	nr, _ := number(architectures(runtime.GOARCH)[0].calls, "socket")
	for op, want := range holds {
		for _, v := range values {
			text := fmt.Sprintf(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
				"args":[{"index":2,"op":"SCMP_CMP_EQ","value":9},{"index":1,"op":%q,"value":%d,"valueTwo":%d}]}]}`, op, v, v&0x100000005)
			f, err := CompileFilter([]byte(text), 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, arg := range values {
				for _, third := range []uint64{9, 8} {
					got := verdictOf(t, f, architectures(runtime.GOARCH)[0].audit, nr, 0, arg, third) == unix.SECCOMP_RET_ALLOW
					if got != (want(arg, v) && third == 9) {
						t.Errorf("%#x %s %#x, third %d: %v", arg, op, v, third, got)
					}
				}
			}
		}
	}
}

func TestBadProfiles(t *testing.T) {
	for _, text := range []string{
		`nonsense`, `{"defaultAction":"SCMP_ACT_EXPLODE"}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"x"}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"op":"x"}]}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`,
	} {
		if _, err := CompileFilter([]byte(text), DefaultCaps); err == nil {
			t.Errorf("taken: %s", text)
		}
	}
}

func BenchmarkCompileFilter(b *testing.B) {
	for b.Loop() {
		if _, err := CompileFilter(dockerProfile, DefaultCaps); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCompileFilter(f *testing.F) {
	f.Add(dockerProfile)
	f.Fuzz(func(t *testing.T, text []byte) { CompileFilter(text, DefaultCaps) })
}
