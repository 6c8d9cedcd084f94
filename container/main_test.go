package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// TestMain runs the tests in stage inside, once in every mode that this machine and this user
// allow, and the containers that they start are stage init of the test binary.
func TestMain(m *testing.M) {
	switch userns.StageOf(os.Args[0]) {
	case userns.StageInit:
		Init(os.Args[1:])
	case userns.StageInside:
		in, err := userns.Arrive()
		if err != nil {
			fmt.Fprintf(os.Stderr, "skip: %v\n", err)
			os.Exit(skipped)
		}
		mode = in.Choice.Mode
		ctx, _ := in.Context(context.Background())
		context.AfterFunc(ctx, func() { os.Exit(1) }) // a killed test leaves nothing running
		code := m.Run()
		os.RemoveAll(busyboxDir)
		os.Exit(code)
	}
	if inside := os.Getenv(parentEnv); inside != "" { // see TestKilledParentLeavesNothing
		mode = userns.Mode(inside)
		os.Exit(m.Run())
	}
	if os.Getenv(maskedEnv) != "" { // see TestOuterProcWhereAFreshOneIsRefused
		if err := unix.Mount("/dev/null", "/proc/uptime", "", unix.MS_BIND, ""); err != nil {
			fmt.Printf("skip: %v\n", err)
			os.Exit(skipped)
		}
	}
	code := 0
	modes := []string{"root", "subid", "single"}
	if os.Getenv(maskedEnv) != "" {
		modes = []string{"single"}
	}
	for _, mode := range modes {
		choice, err := userns.Choose(mode)
		if err != nil {
			fmt.Printf("=== skip %v\n", err)
			continue
		}
		fmt.Printf("=== mode %s\n", mode)
		c, err := userns.Enter(context.Background(), choice)
		switch {
		case err != nil:
			fmt.Printf("=== skip mode %s: %v\n", mode, err)
		case c != 0 && c != skipped:
			code = c
		}
	}
	os.Exit(code)
}

const skipped = 77

var (
	mode       userns.Mode
	busyboxDir string // a directory with busybox in it, to link from
)

// parentEnv is set, to the mode, in a second process of stage inside.
const parentEnv = "MK_CONTAINER_PARENT"

// maskedEnv is set in a process that is to hide a part of its /proc, and then to enter.
const maskedEnv = "MK_CONTAINER_MASKED"

// newRoot makes a directory with busybox in it, to be a root.
func newRoot(t testing.TB) (dir string) {
	t.Helper()
	if busyboxDir == "" {
		bin, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Skip(err)
		}
		if busyboxDir, err = os.MkdirTemp("", "mk-busybox"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(busyboxDir+"/busybox", bin, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir = t.TempDir()
	os.Chmod(dir, 0o755)
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(dir+"/tmp", 0o1777)
	if err := os.Link(busyboxDir+"/busybox", dir+"/bin/busybox"); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "ls", "id", "true", "sleep", "grep", "hostname", "env", "stty", "tty", "echo",
		"ps", "kill", "wc", "touch", "mount", "ip", "stat", "dd", "mkdir", "mv", "ln", "rm", "readlink", "head", "unshare", "test"} {
		if err := os.Symlink("busybox", dir+"/bin/"+applet); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n")
	write(t, dir, "etc/group", "root:x:0:\nweb:x:33:\nextra:x:44:web\n")
	return dir
}

// mounted is what --rootfs makes of a directory. It is good for one container.
func mounted(t testing.TB, dir string) *os.File {
	t.Helper()
	root, err := cloneTree(unix.AT_FDCWD, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// spec is docker's default for a command.
func spec(args ...string) *Spec {
	s := DefaultSpec(Namespaces{})
	s.Args = args
	s.Env = []string{"PATH=/bin"}
	return s
}

func sh(script string) *Spec { return spec("sh", "-c", script) }

// run1 runs a container to its end. Its output must be small.
func run1(t testing.TB, dir string, s *Spec) (out string, status ExitStatus, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	root := mounted(t, dir)
	defer root.Close()
	p, err := Start(context.Background(), s, root, IO{Stdout: w, Stderr: w})
	w.Close()
	defer r.Close()
	if err != nil {
		return "", ExitStatus{Code: 125}, err
	}
	var b bytes.Buffer
	io.Copy(&b, r)
	status, err = p.Wait()
	for _, n := range p.Notices() {
		t.Logf("notice: %s", n)
	}
	return b.String(), status, err
}

// output is what a container writes that must succeed.
func output(t testing.TB, dir string, s *Spec) string {
	t.Helper()
	out, status, err := run1(t, dir, s)
	if err != nil || status.Code != 0 {
		t.Fatalf("%q: %v, %v\n%s", s.Args, status, err, out)
	}
	return out
}

func codeOf(err error) int {
	var start *StartError
	if errors.As(err, &start) {
		return start.Code
	}
	return -1
}

// both runs a test with the command as pid 1, and with an init.
func both(t *testing.T, f func(t *testing.T, init bool)) {
	t.Run("exec", func(t *testing.T) { f(t, false) })
	t.Run("init", func(t *testing.T) { f(t, true) })
}

func lines(s string) []string { return strings.Split(strings.TrimRight(s, "\n"), "\n") }
