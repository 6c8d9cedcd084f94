package main

// TestVM boots the distribution's kernel in an emulated machine, and runs tests there that need
// what this machine may not have: cgroup2 with a part of it given to an ordinary user. It shows
// at the same time that mk works on that kernel.
//
//	this machine                          the other (testdata/vm/init)
//	initramfs: busybox, modules       →   the disk becomes the root
//	disk: busybox, mk, this binary,   →   TestInVM, and some of TestScripts, as a user of mode
//	newuidmap, the scripts                subid and as one of mode single
//	--- PASS … of its console         ←
//
// Needs qemu-system-x86_64, and a kernel with its modules as .ci/kernel lays them out, in
// MK_TEST_KERNEL or .cache/kernel. MK_TEST_VM_ONLY=subid:TestInVM/limits_run runs that alone, and shows the console. Nothing is accelerated: a machine in a machine may not have KVM,
// or one that hangs.

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// vmLimit ends the machine. On two cores that had nine other processes to run it took four minutes.
const vmLimit = 8 * time.Minute

func TestVM(t *testing.T) {
	if mode := os.Getenv("MK_TEST_REQUIRE"); mode != "" && mode != "root" {
		t.Skip("it is the same machine for everybody: root's tests have booted it")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip(err)
	}
	kernel := os.Getenv("MK_TEST_KERNEL")
	if kernel == "" {
		kernel, _ = filepath.Abs("../../.cache/kernel")
	}
	if _, err := os.Stat(filepath.Join(kernel, "vmlinuz")); err != nil {
		t.Skipf("no kernel: make test-vm fetches one: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if !static(t, self) {
		t.Skip("this test binary is dynamic: CGO_ENABLED=0 makes one that runs anywhere")
	}
	dir := t.TempDir()
	initrd, disk := filepath.Join(dir, "initrd"), filepath.Join(dir, "disk")
	vmInitramfs(t, initrd, kernel)
	vmDisk(t, disk, self)

	ctx, cancel := context.WithTimeout(t.Context(), vmLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
		"-kernel", filepath.Join(kernel, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off no_timer_check mk.tests="+os.Getenv("MK_TEST_VM_ONLY"),
		"-drive", "file="+disk+",if=none,id=disk,format=raw,cache=unsafe", "-device", "virtio-blk-pci,drive=disk")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	console := io.Reader(out)
	if os.Getenv("MK_TEST_VM_ONLY") != "" {
		console = io.TeeReader(out, os.Stdout)
	}
	vmReport(t, console)
	if err := cmd.Wait(); err != nil {
		t.Errorf("qemu: %v %v", err, context.Cause(ctx))
	}
}

var (
	vmResult = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \((.*)\)`)
	vmUser   = regexp.MustCompile(`^vm: tests (\S+)`)
)

// vmReport makes a subtest of each test in the machine, with what that wrote if it failed.
func vmReport(t *testing.T, console io.Reader) {
	var said []string
	passed, user, ended := 0, "", false
	for lines := bufio.NewScanner(console); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		if m := vmUser.FindStringSubmatch(line); m != nil {
			user = m[1]
		}
		ended = ended || line == "vm: end"
		m := vmResult.FindStringSubmatch(line)
		if m == nil {
			said = append(said, line)
			if strings.HasPrefix(line, "vm: ") {
				t.Log(line)
			}
			continue
		}
		said = append(said, line)
		t.Run(user+"/"+m[2], func(t *testing.T) {
			switch m[1] {
			case "PASS":
				passed++
			case "FAIL":
				t.Error("failed in the machine")
			case "SKIP":
				t.Error("skipped in the machine, which has all that it needs")
			}
		})
	}
	if (!ended || passed == 0 || t.Failed()) && os.Getenv("MK_TEST_VM_ONLY") == "" {
		t.Errorf("%d tests passed in the machine; its console:\n%s", passed, strings.Join(said, "\n"))
	}
}

// TestInVM runs testdata/vm/*.txtar, in the machine of TestVM.
func TestInVM(t *testing.T) {
	if os.Getenv("MK_TEST_IN_VM") == "" {
		t.Skip("these are run in the machine of TestVM")
	}
	requireMode(t)
	files, err := filepath.Glob("testdata/vm/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata/vm: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { runScript(t, file) })
	}
}

func static(t *testing.T, path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// vmInitramfs writes the first root: busybox, the init, and the kernel's modules for the disk.
func vmInitramfs(t *testing.T, path, kernel string) {
	var b bytes.Buffer
	dir := func(name string) { writeCpio(&b, name, fs.ModeDir|0o755, nil) }
	file := func(name, from string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		writeCpio(&b, name, 0o755, data)
	}
	dir("bin")
	file("bin/busybox", lookBusybox(t))
	writeCpio(&b, "bin/sh", fs.ModeSymlink|0o777, []byte("busybox"))
	file("init", "testdata/vm/init")
	dir("modules")
	order, err := os.ReadFile(filepath.Join(kernel, "order"))
	if err != nil {
		t.Fatal(err)
	}
	file("modules/order", filepath.Join(kernel, "order"))
	for _, m := range strings.Fields(string(order)) {
		file("modules/"+m, filepath.Join(kernel, m))
	}
	writeCpio(&b, "TRAILER!!!", 0, nil)
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// writeCpio adds a file to an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
func writeCpio(b *bytes.Buffer, name string, mode fs.FileMode, data []byte) {
	kind := uint32(0o100000)
	switch {
	case mode.IsDir():
		kind = 0o040000
	case mode&fs.ModeSymlink != 0:
		kind = 0o120000
	}
	fmt.Fprintf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		b.Len()+1, kind|uint32(mode.Perm()), 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	b.WriteString(name + "\x00")
	pad()
	b.Write(data)
	pad()
}

func lookBusybox(t *testing.T) string {
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip(err)
	}
	if !static(t, path) {
		t.Skipf("%s is dynamic; the package busybox-static has a static one", path)
	}
	return path
}

// vmDisk makes the disk, with the machine's whole system.
func vmDisk(t *testing.T, path, self string) {
	root := t.TempDir()
	put := func(name, from string) {
		to := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"proc", "sys", "dev", "run", "tmp", "home", "root", "etc", "usr/sbin", "sbin"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put("init", "testdata/vm/init")
	put("bin/busybox", lookBusybox(t))
	if err := os.Symlink("busybox", filepath.Join(root, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	put("usr/bin/mk", mkBinary(t))
	if bb, err := foreignBusybox("i386"); err != nil {
		t.Skip(err) // owners_battery needs it, and there is no archive in the machine
	} else {
		put("home/single/cache/busybox-static-i386", bb)
	}
	put("tests/cmd.test", self)
	for _, name := range []string{"newuidmap", "newgidmap"} {
		putProgram(t, put, "", "usr/bin/"+name, name)
	}
	// A server and what it needs is the context of limits_server. redis-tools has redis-server under another
	// name, and starts none on this machine.
	putProgram(t, put, "redis", "usr/bin/redis-server", "redis-check-rdb")
	putProgram(t, put, "redis", "usr/bin/redis-cli", "redis-cli")
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nsubid:x:1000:1000::/home/subid:/bin/sh\nsingle:x:1001:1001::/home/single:/bin/sh\n",
		"group":  "root:x:0:\nsubid:x:1000:\nsingle:x:1001:\n",
		"subuid": "subid:100000:65536\n", "subgid": "subid:100000:65536\n",
		"hosts": "127.0.0.1 localhost vm\n", "resolv.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"testdata/script", "testdata/vm", "../../examples/hello", "../../examples/busybox"} {
		files, err := filepath.Glob(dir + "/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			put(filepath.Join("tests/src/cmd/mk", f), f)
		}
	}
	out, err := exec.Command("/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, path, "700m").CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
}

// putProgram puts a program of this machine, under a name, and its libraries below a directory.
func putProgram(t *testing.T, put func(name, from string), dir, name, program string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skip(err)
	}
	put(filepath.Join(dir, name), path)
	libraries, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Skipf("ldd %s: %v", path, err)
	}
	for word := range strings.FieldsSeq(string(libraries)) {
		if filepath.IsAbs(word) {
			put(filepath.Join(dir, word), word)
		}
	}
}
