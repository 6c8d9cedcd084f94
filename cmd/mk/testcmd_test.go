package main

// The words that scripts have beside testscript's own.

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"mk":      cmdMk,
	"status":  cmdStatus,
	"need":    cmdNeed,
	"base":    cmdBase,
	"newfile": cmdNewfile,
	"held":    cmdHeld,
	"proc":    cmdProc,
	"faulty":  cmdFaulty,
	"tree":    cmdTree,
	"layers":  cmdLayers,
	"same":    cmdSame,
	"config":  cmdConfig,
	"damaged": cmdDamaged,
	"setattr": cmdSetattr,
	"serve":   cmdServe,
	"small":   cmdSmall,
	"count":   cmdCount,
	"foreign": cmdForeign,
	"mutate":  cmdMutate,

	"attacker": cmdAttacker,
	"terminal": cmdTerminal,
	"keys":     cmdKeys,
	"screen":   cmdScreen,

	"distribution": cmdDistribution,
	"validate":     cmdValidate,
	"hostile":      cmdHostile,
}

// mk ARG...
// runs mk; "! mk" wants it to fail by itself, not by a signal. "status" then looks
// at its exit status, "stdout" and "stderr" at its output.
func cmdMk(ts *testscript.TestScript, neg bool, args []string) {
	s := theScript(ts)
	err := ts.Exec(s.binary, args...)
	s.status = 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		s.status = exit.ExitCode()
		if s.status < 0 {
			ts.Fatalf("mk ended by %v", exit)
		}
	case err != nil:
		ts.Fatalf("run mk: %v", err)
	}
	switch {
	case neg && err == nil:
		ts.Fatalf("mk succeeded; it should have failed")
	case !neg && err != nil:
		ts.Fatalf("mk failed: %v", err)
	}
}

// status N
// asserts the exit status of the last mk.
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: status N")
	}
	if got := theScript(ts).status; strconv.Itoa(got) != args[0] {
		ts.Fatalf("mk's exit status is %d, not %s", got, args[0])
	}
}

// need MODE...
// skips the script where mk runs in another mode; "need PROGRAM" where it is not on PATH; "need tun"
// where /dev/net/tun cannot be opened.
func cmdNeed(ts *testscript.TestScript, neg bool, args []string) {
	if args[0] == "tun" {
		tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			theScript(ts).t.Skip(err)
		}
		tun.Close()
		return
	}
	modes := []string{"subid", "single", "root"}
	if !slices.Contains(modes, args[0]) {
		for _, program := range args {
			if _, err := exec.LookPath(program); err != nil {
				theScript(ts).t.Skip(err)
			}
		}
		return
	}
	if !slices.Contains(args, testMode()) {
		theScript(ts).t.Skipf("mode %s; this script is of %s", testMode(), strings.Join(args, ", "))
	}
}

// base NAME...
// puts a base image (busybox, debian, golang) into the registry, by its docker.io name.
func cmdBase(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		if err := serveBase(name); err != nil {
			theScript(ts).t.Skipf("base %s: %v", name, err)
		}
	}
}

// newfile PATH SIZE
// writes SIZE bytes (suffixes k, M) that do not compress and are the same every time.
func cmdNewfile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: newfile PATH SIZE")
	}
	path := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
	size, err := parseSize(args[1])
	ts.Check(err)
	f, err := os.Create(path)
	ts.Check(err)
	defer f.Close()
	source := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 1<<16)
	for size > 0 {
		source.Read(buf)
		n, err := f.Write(buf[:min(int64(len(buf)), size)])
		ts.Check(err)
		size -= int64(n)
	}
	ts.Check(f.Close())
}

// held DURATION PATTERN
//
// holds the lock that is in the one file of that name, as the holder of a container does while it runs.
func cmdHeld(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: held DURATION PATTERN")
	}
	duration, err := time.ParseDuration(args[0])
	ts.Check(err)
	names, err := filepath.Glob(ts.MkAbs(args[1]))
	ts.Check(err)
	if len(names) != 1 {
		ts.Fatalf("%q are %d files", args[1], len(names))
	}
	f, err := os.OpenFile(names[0], os.O_RDWR, 0)
	ts.Check(err)
	ts.Check(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	time.AfterFunc(duration, func() { f.Close() })
}

func parseSize(s string) (int64, error) {
	unit := int64(1)
	switch {
	case strings.HasSuffix(s, "k"):
		unit, s = 1<<10, strings.TrimSuffix(s, "k")
	case strings.HasSuffix(s, "M"):
		unit, s = 1<<20, strings.TrimSuffix(s, "M")
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n * unit, err
}

// proc PATTERN
// waits until a process whose command line matches lives; "! proc" until none does.
// Scripts run at once, so the pattern has to be this script's own: $UNIQUE is a number that
// no other script of this machine has.
func cmdProc(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] proc PATTERN")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		found := processes(func(pid, cmdline string) bool { return re.MatchString(cmdline) })
		if (len(found) > 0) != neg {
			return
		}
		if time.Now().After(deadline) {
			if neg {
				ts.Fatalf("still running:\n%s", strings.Join(found, "\n"))
			}
			ts.Fatalf("no process like %q", args[0])
		}
	}
}

// processes lists the live processes, zombies left out, of which keep says so.
func processes(keep func(pid, cmdline string) bool) []string {
	var found []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || e.Name() == strconv.Itoa(os.Getpid()) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(raw) == 0 {
			continue
		}
		cmdline := strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
		if keep(e.Name(), cmdline) {
			found = append(found, e.Name()+" "+cmdline)
		}
	}
	return found
}

// processesIn lists processes that see a mount from below dir: a container or a mk
// that is still inside.
func processesIn(dir string) []string {
	return processes(func(pid, _ string) bool { return len(mountsUnder(dir, pid)) > 0 })
}

// killOf ends the processes that a script of that directory started, known by the $WORK
// in their environment, and looks again for those that were just being forked.
func killOf(work string) {
	for quiet := 0; quiet < 3; time.Sleep(20 * time.Millisecond) {
		found := processes(func(pid, _ string) bool {
			environ, _ := os.ReadFile(filepath.Join("/proc", pid, "environ"))
			return slices.Contains(strings.Split(string(environ), "\x00"), "WORK="+work)
		})
		if len(found) == 0 {
			quiet++
			continue
		}
		for _, line := range found {
			pid, _, _ := strings.Cut(line, " ")
			if n, err := strconv.Atoi(pid); err == nil {
				syscall.Kill(n, syscall.SIGKILL)
			}
		}
	}
}

// mountsUnder lists the mounts of a process that name dir, as mount point or as source.
func mountsUnder(dir, pid string) []string {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "mountinfo"))
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, dir+"/") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// damaged
// says that the script breaks its store on purpose: mk check is not asked at its end.
func cmdDamaged(ts *testscript.TestScript, neg bool, args []string) { theScript(ts).damaged = true }

// setattr PATH NAME VALUE
// sets an extended attribute; the script is skipped with the kernel's word where the
// file system has none.
func cmdSetattr(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: setattr PATH NAME VALUE")
	}
	err := syscall.Setxattr(ts.MkAbs(args[0]), args[1], []byte(args[2]), 0)
	if errors.Is(err, syscall.ENOTSUP) {
		theScript(ts).t.Skipf("setxattr %s: %v", args[1], err)
	}
	ts.Check(err)
}

// small SIZE
// puts $MK_ROOT onto a file system of that size. Mounting one takes root; CI gives
// ordinary users one in MK_TEST_SMALL.
func cmdSmall(ts *testscript.TestScript, neg bool, args []string) {
	s := theScript(ts)
	if given := os.Getenv("MK_TEST_SMALL"); given != "" {
		root := filepath.Join(given, "store")
		ts.Defer(func() { removeTree(root) })
		ts.Setenv("MK_ROOT", root)
		return
	}
	dir := filepath.Join(s.work, "small")
	ts.Check(os.Mkdir(dir, 0o755))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[0]); err != nil {
		s.t.Skipf("mount a tmpfs of %s: %v", args[0], err)
	}
	s.t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	ts.Defer(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	ts.Setenv("MK_ROOT", filepath.Join(dir, "mk"))
}

// count N PATTERN
// asserts that exactly N lines of the last command's stderr match.
func cmdCount(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: count N PATTERN")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	n := 0
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		if re.MatchString(strings.TrimSuffix(line, "\n")) {
			n++
		}
	}
	if strconv.Itoa(n) != args[0] {
		ts.Fatalf("%d lines of stderr match %q, not %s", n, args[1], args[0])
	}
}

// removeTree removes a tree that may hold files of other IDs. An ordinary user does
// it as the root of a user namespace that maps them.
func removeTree(dir string) error {
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		return nil
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(path, 0o700) // a directory without write permission keeps its entries
		}
		return nil
	})
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	out, err := exec.Command("unshare", "--map-root-user", "--map-auto", "rm", "-rf", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("rm -rf %s in a user namespace: %v: %s", dir, err, out)
	}
	return nil
}
