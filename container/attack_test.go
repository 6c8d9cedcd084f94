package container

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// CVE-2024-23652: the cleanup of mount points deleted what a symlink led it to.
func TestMountPointsAreTakenAwayWhereTheyWereMade(t *testing.T) {
	dir := newRoot(t)
	victim := t.TempDir()
	for _, name := range []string{"file", "dir"} {
		os.WriteFile(filepath.Join(victim, name), nil, 0o644)
	}
	os.Remove(victim + "/dir")
	os.Mkdir(victim+"/dir", 0o755)
	os.MkdirAll(dir+"/"+victim, 0o755) // the same path inside, so that the link means the same

	s := sh("mv /d /moved && ln -s " + victim + " /d && mkdir /e2 && mv /e /gone && ln -s / /e")
	s.Mounts = append(s.Mounts,
		Mount{Type: Bind, Source: "/etc/passwd", Dest: "/d/file"},
		Mount{Type: Tmpfs, Dest: "/d/dir"},
		Mount{Type: Tmpfs, Dest: "/e/bin"},
	)
	os.Mkdir(dir+"/d", 0o755)
	output(t, dir, s)
	for _, path := range []string{victim + "/file", victim + "/dir", dir + "/bin/busybox", dir + "/moved"} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("is gone: %v", err)
		}
	}
	for _, path := range []string{"/moved/file", "/moved/dir", "/gone/bin"} {
		if _, err := os.Lstat(dir + path); err == nil {
			t.Errorf("is left: %s", path)
		}
	}
}

// What the container puts in the place of a mount point is its own, and stays.
func TestStubsThatAreNoLongerOurs(t *testing.T) {
	dir := newRoot(t)
	root := mounted(t, dir)
	defer root.Close()
	made, err := makeStubs(root, []Mount{{Dest: "/a/f"}, {Dest: "/b"}, {Dest: "/c"}, {Dest: "/c/inside"}}, func(i int) bool { return i > 0 })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/c/inside"); err == nil {
		t.Error("a mount point inside of a mount was made in the root")
	}
	write(t, dir, "a/f", "not empty")
	os.Remove(dir + "/b")
	write(t, dir, "b", "")
	os.Mkdir(dir+"/c/x", 0o755)
	if err := made.remove(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/a/f", "/b", "/c/x"} {
		if _, err := os.Lstat(dir + path); err != nil {
			t.Error(err)
		}
	}
}

// CVE-2021-30465: somebody swaps a directory on the way for a symlink to the outside. However
// the race goes, nothing is made there.
func TestReachUnderSwaps(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	os.Mkdir(dir+"/d", 0o755)
	os.Symlink(outside, dir+"/link")
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			unix.Renameat2(unix.AT_FDCWD, dir+"/d", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE)
		}
	}()
	reached := 0
	for running := true; running; {
		select {
		case <-stop:
			running = false
		default:
		}
		fd, err := reach(root, "/d/../d/x/y", true, func(int, string) error { return nil })
		if err == nil {
			reached++
			path, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			if !strings.HasPrefix(path, dir+"/") {
				t.Fatalf("reached %s", path)
			}
			unix.Close(fd)
		}
		os.RemoveAll(dir + "/d/x")
		os.RemoveAll(dir + outside)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside: %v", left)
	}
	t.Logf("reached %d times", reached)
}

func TestReach(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(dir+"/real/deep", 0o755)
	write(t, dir, "file", "")
	for link, target := range map[string]string{
		"abs": "/real", "up": "../../../../real", "chain": "abs/deep", "loop": "loop", "dangling": "/new/place",
	} {
		os.Symlink(target, filepath.Join(dir, link))
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for path, want := range map[string]string{
		"/":              "",
		"..":             "",
		"/../../etc":     "/etc",
		"/abs/x":         "/real/x",
		"/up/y":          "/real/y",
		"/chain/../z":    "/real/z", // after the link, as the kernel does it
		"/dangling/a/b":  "/new/place/a/b",
		"/real/./deep//": "/real/deep",
		"/file":          "/file",
	} {
		fd, err := reach(root, path, true, func(int, string) error { return nil })
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		got, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		unix.Close(fd)
		if got != dir+want {
			t.Errorf("%s: reached %s, want %s", path, got, dir+want)
		}
	}
	for _, path := range []string{"/loop", "/loop/x", "/file/x"} {
		if fd, err := reach(root, path, true, func(int, string) error { return nil }); err == nil {
			t.Errorf("%s: reached", path)
			unix.Close(fd)
		}
	}
}

// CVE-2024-21626: a working directory that leads out through a descriptor.
func TestWorkingDirectoryCannotLeadOut(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		os.Symlink("/proc/self/fd/7", dir+"/seven")
		os.Symlink("/../../../../tmp", dir+"/up")
		cwds := []string{"/proc/self/cwd", "/proc/self/root", "/proc/1/cwd", "/seven", "/proc/self/exe"}
		for n := range 16 {
			cwds = append(cwds, "/proc/self/fd/"+strconv.Itoa(n))
		}
		for _, cwd := range cwds {
			s := sh("ls; readlink /proc/self/cwd")
			s.Cwd, s.Init = cwd, init
			if out, _, err := run1(t, dir, s); codeOf(err) < 126 {
				t.Errorf("%s: %v, %q", cwd, err, out)
			}
		}
		s := sh("readlink /proc/self/cwd")
		s.Cwd, s.Init = "/up", init
		if out := output(t, dir, s); out != "/tmp\n" {
			t.Errorf("/up leads to %q", out)
		}
	})
}

// CVE-2019-5736: the container runs mk's own executable, or opens it, to write to it. What it finds
// is the starter, which executes its first argument, or the reaper.
func TestExecutableCannotBeHad(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		write(t, dir, "script", "#!/proc/self/exe\n")
		os.Chmod(dir+"/script", 0o755)
		os.Symlink("/proc/self/exe", dir+"/link")
		for _, command := range []string{"/proc/self/exe", "/script", "/link"} {
			s := spec(command, "-test.run=^TestMain$")
			s.Init = init
			if out, status, err := run1(t, dir, s); err != nil || status.Code != 125 || out != "" {
				t.Errorf("%s: %v, %v\n%s", command, status, err, out)
			}
		}
	})
	s := sh("cat /proc/1/exe | wc -c; : >> /proc/1/exe; cat /proc/1/environ; ls /proc/1/fd")
	s.Init = true
	out, status, err := run1(t, newRoot(t), s)
	if err != nil || status.Code == 0 || !strings.HasPrefix(out, "cat: can't open '/proc/1/exe': Permission denied\n0\n") {
		t.Errorf("pid 1 can be looked into: %v, %v\n%s", status, err, out)
	}
}

// attacks.md 7 (CVE-2024-9676), and its relatives: accounts that are no accounts.
func TestAccountsThatAreNone(t *testing.T) {
	for name, place := range map[string]func(path string) error{
		"link to the outside": func(p string) error { return os.Symlink("/etc/passwd", p) }, // itself, in the root
		"link up":             func(p string) error { return os.Symlink("../../../../../../etc/shadow", p) },
		"magic link":          func(p string) error { return os.Symlink("/proc/self/environ", p) },
		"fifo":                func(p string) error { return unix.Mkfifo(p, 0o644) },
		"directory":           func(p string) error { return os.Mkdir(p, 0o755) },
		"endless":             func(p string) error { os.WriteFile(p, nil, 0o644); return os.Truncate(p, 10<<30) },
	} {
		dir := newRoot(t)
		os.Remove(dir + "/etc/passwd")
		if err := place(dir + "/etc/passwd"); err != nil {
			t.Fatal(err)
		}
		root := mounted(t, dir)
		start := time.Now()
		u, home, err := LookupUser(root, "root")
		if err == nil {
			t.Errorf("%s: %v %s", name, u, home)
		}
		if time.Since(start) > 2*time.Second {
			t.Errorf("%s: took %v", name, time.Since(start))
		}
		root.Close()
	}
}

func TestLookupUser(t *testing.T) {
	dir := newRoot(t)
	root := mounted(t, dir)
	defer root.Close()
	write(t, dir, "etc/group", "root:x:0:\nbin:x:1:root,web\nweb:x:33:\nextra:x:44:web\n")
	for _, c := range []struct {
		spec string
		want User
		home string
		err  string
	}{
		{"", User{0, 0, []uint32{0, 1}}, "/root", ""},
		{"root", User{0, 0, []uint32{0, 1}}, "/root", ""},
		{"web", User{33, 33, []uint32{33, 1, 44}}, "/srv", ""},
		{"33", User{33, 33, []uint32{33, 1, 44}}, "/srv", ""},
		{"web:extra", User{33, 44, []uint32{44}}, "/srv", ""},
		{"web:7", User{33, 7, []uint32{7}}, "/srv", ""},
		{"33:33", User{33, 33, []uint32{33}}, "/srv", ""},
		{"1234", User{1234, 0, []uint32{0}}, "/", ""},
		{"1234:4321", User{1234, 4321, []uint32{4321}}, "/", ""},
		{"nobody", User{}, "", "unable to find user nobody"},
		{"web:nogroup", User{}, "", "unable to find group nogroup"},
		{"-1", User{}, "", "uids and gids must be in range"},
		{"99999999999", User{}, "", "uids and gids must be in range"},
	} {
		u, home, err := LookupUser(root, c.spec)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v, %v, want error %q", c.spec, u, err, c.err)
			}
			continue
		}
		if err != nil || home != c.home || u.UID != c.want.UID || u.GID != c.want.GID || !slices.Equal(u.Groups, c.want.Groups) {
			t.Errorf("%q: %v %s %v, want %v %s", c.spec, u, home, err, c.want, c.home)
		}
	}
	os.RemoveAll(dir + "/etc")
	if u, home, err := LookupUser(root, ""); err != nil || u.UID != 0 || home != "/" {
		t.Errorf("without any accounts: %v %s %v", u, home, err)
	}
	for spec, want := range map[string][2]uint32{"55": {55, 55}, "55:66": {55, 66}} {
		if uid, gid, err := LookupIDs(root, spec); err != nil || [2]uint32{uid, gid} != want {
			t.Errorf("owner %q: %d:%d, %v", spec, uid, gid, err)
		}
	}
}

// A root whose own directories are links to elsewhere is mounted on in its own tree.
func TestHostileMountDestinations(t *testing.T) {
	dir, outside := newRoot(t), t.TempDir()
	os.Symlink(outside, dir+"/proc")
	os.Symlink("../../../../../.."+outside, dir+"/dev")
	os.Symlink("/", dir+"/out")
	s := sh("test -d /proc/self && test -c /dev/null && echo ok")
	s.Mounts = append(s.Mounts, Mount{Type: Tmpfs, Dest: "/out/../../x"})
	// /proc and /dev are the same directory now: /dev covers /proc, and nothing else happens.
	out, _, err := run1(t, dir, s)
	t.Logf("%q, %v", out, err)
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside: %v", left)
	}
	if left, _ := os.ReadDir(dir + outside); len(left) > 0 {
		t.Errorf("left inside: %v", left)
	}
}

func TestParseCaps(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		want      CapSet
	}{
		{nil, nil, DefaultCaps},
		{nil, []string{"ALL"}, 0},
		{[]string{"net_admin"}, []string{"all"}, 1 << unix.CAP_NET_ADMIN},
		{[]string{"CAP_SYS_ADMIN"}, nil, DefaultCaps | 1<<unix.CAP_SYS_ADMIN},
		{[]string{"ALL"}, []string{"CHOWN"}, AllCaps &^ 1},
		{nil, []string{"CAP_CHOWN", "Kill"}, DefaultCaps &^ (1<<unix.CAP_CHOWN | 1<<unix.CAP_KILL)},
	} {
		if got, err := ParseCaps(c.add, c.drop); err != nil || got != c.want {
			t.Errorf("add %v, drop %v: %v, %v, want %v", c.add, c.drop, got, err, c.want)
		}
	}
	if _, err := ParseCaps([]string{"CAP_FLY"}, nil); err == nil {
		t.Error("CAP_FLY was taken")
	}
	if unix.CAP_LAST_CAP != len(capNames)-1 {
		t.Errorf("there are %d capabilities", unix.CAP_LAST_CAP+1)
	}
	all := spec("grep", "CapEff", "/proc/self/status")
	all.Caps, all.Seccomp = AllCaps, nil
	dir := newRoot(t)
	if out := output(t, dir, all); mode != userns.Root && strings.Contains(out, "a80425fb") {
		t.Errorf("all capabilities: %s", out)
	}
}

// As in a docker container: a part of /proc is hidden, and the kernel refuses a fresh one.
func TestOuterProcWhereAFreshOneIsRefused(t *testing.T) {
	if os.Getenv(maskedEnv) != "" {
		dir := newRoot(t)
		root := mounted(t, dir)
		defer root.Close()
		p, err := Start(context.Background(), sh("test -d /proc/self && ! (: > /proc/sys/kernel/hostname)"), root, IO{})
		if err != nil {
			t.Fatal(err)
		}
		status, err := p.Wait()
		if err != nil || status.Code != 0 || len(p.Notices()) != 1 || !strings.Contains(p.Notices()[0], "outer /proc") {
			t.Errorf("%v, %v, notices %q", status, err, p.Notices())
		}
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOuterProcWhereAFreshOneIsRefused$")
	cmd.Env = append(os.Environ(), maskedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "skip: ") {
		t.Skipf("%s", out)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// mk in a container with docker's filter: user namespaces are refused, with the advice for that.
func TestNestedIsRefusedWithAdvice(t *testing.T) {
	if os.Getenv(parentEnv) != "" {
		choice, err := userns.Choose("")
		if err == nil {
			_, err = userns.Enter(context.Background(), choice)
		}
		if err == nil || !strings.Contains(userns.Advice(err), "seccomp=unconfined") {
			t.Errorf("%v, advice %q", err, userns.Advice(err))
		}
		return
	}
	dir := newRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := spec("/mk", "-test.run=^TestNestedIsRefusedWithAdvice$")
	s.Mounts = append(s.Mounts, Mount{Type: Bind, Source: exe, Dest: "/mk"})
	s.Env = append(s.Env, parentEnv+"="+string(mode))
	if out, status, err := run1(t, dir, s); codeOf(err) == 127 {
		t.Skipf("not a static executable: %v", err)
	} else if err != nil || status.Code != 0 {
		t.Errorf("%v, %v\n%s", status, err, out)
	}
}
