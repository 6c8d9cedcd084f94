package main

// What scripts of foreign architectures need, from Debian's archive: a static busybox,
// and the emulator where it is not installed. Both are kept in the test
// cache; without an archive the script is skipped.

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/rogpeppe/go-internal/testscript"
)

// foreign ARCH DIR
// puts busybox for ARCH into DIR: for arm64, with qemu-aarch64-static in PATH; for i386, which
// this machine's processor knows.
func cmdForeign(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || args[0] != "arm64" && args[0] != "i386" {
		ts.Fatalf("usage: foreign arm64|i386 DIR")
	}
	arch := args[0]
	skip := func(err error) { theScript(ts).t.Skipf("%s: %v", arch, err) }
	if runtime.GOARCH == "arm64" {
		skip(fmt.Errorf("this machine is arm64"))
	}
	bb, err := foreignBusybox(arch)
	if err != nil {
		skip(err)
	}
	to := filepath.Join(ts.MkAbs(args[1]), "busybox")
	ts.Check(os.MkdirAll(filepath.Dir(to), 0o755))
	binary, err := os.ReadFile(bb)
	ts.Check(err)
	ts.Check(os.WriteFile(to, binary, 0o755))
	if arch == "i386" {
		return
	}
	if _, err := exec.LookPath("qemu-aarch64-static"); err == nil {
		return
	}
	qemu, err := cached("qemu-aarch64-static", func(path string) error {
		return fromPackage("qemu-user-static", runtime.GOARCH, "usr/bin/qemu-aarch64-static", path)
	})
	if err != nil {
		skip(err)
	}
	bin := ts.MkAbs("qemu")
	ts.Check(os.MkdirAll(bin, 0o755))
	binary, err = os.ReadFile(qemu)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(bin, "qemu-aarch64-static"), binary, 0o755))
	ts.Setenv("PATH", bin+":"+ts.Getenv("PATH"))
}

func foreignBusybox(arch string) (string, error) {
	return cached("busybox-static-"+arch, func(path string) error {
		return fromPackage("busybox-static", arch, "bin/busybox", path)
	})
}

// fromPackage fetches a package of an architecture, with apt lists of its own, and
// takes one file out of it.
func fromPackage(name, arch, file, to string) error {
	dir, err := os.MkdirTemp("", "mk-apt-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script := `set -e
mkdir -p lists/partial cache/archives/partial; : >status
apt="apt-get -q -oAPT::Architecture=$ARCH -oAPT::Architectures=$ARCH -oDir::State=$PWD -oDir::State::lists=$PWD/lists -oDir::State::status=$PWD/status -oDir::Cache=$PWD/cache"
$apt update || : # of several archives one may be amiss: download says what is missing
$apt download $NAME
dpkg-deb -x ./*.deb root`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "ARCH="+arch, "NAME="+name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch %s for %s: %v\n%s", name, arch, err, out)
	}
	binary, err := os.ReadFile(filepath.Join(dir, "root", file))
	if err != nil {
		return err
	}
	return os.WriteFile(to, binary, 0o755)
}
