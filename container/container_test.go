package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mk/userns"
)

func TestStatusOfTheCommand(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		s := spec("cat", "/proc/self/status")
		s.Init, s.NoNewPrivs = init, true
		status := output(t, dir, s)
		for _, want := range []string{
			"CapInh:\t0000000000000000", "CapAmb:\t0000000000000000",
			"CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb",
			"NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t1", "Uid:\t0\t0\t0\t0", "Umask:\t0022",
		} {
			if !strings.Contains(status, want+"\n") {
				t.Errorf("no %q in\n%s", want, status)
			}
		}
		s.NoNewPrivs = false
		if status := output(t, dir, s); !strings.Contains(status, "NoNewPrivs:\t0\n") || !strings.Contains(status, "Seccomp:\t2\n") {
			t.Errorf("without no_new_privs:\n%s", status)
		}
	})
}

func TestUserOfTheCommand(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		s := sh("grep -E '^(Uid|Gid|Groups|Cap)' /proc/self/status")
		s.Init, s.NoNewPrivs = init, true
		var err error
		if s.User, _, err = LookupUser(mounted(t, dir), "web"); err != nil {
			t.Fatal(err)
		}
		out, _, err := run1(t, dir, s)
		if mode == userns.Single {
			if userns.Advice(err) == "" || !errors.Is(err, unix.EINVAL) {
				t.Errorf("another user than root in mode single: %v, advice %q", err, userns.Advice(err))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t33\t33\t33\t33\n", "Gid:\t33\t33\t33\t33\n", "Groups:\t33 44 \n",
			"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapBnd:\t00000000a80425fb\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		s.Args = []string{"sh", "-c", "echo to stdout > /dev/stdout"}
		if out := output(t, dir, s); out != "to stdout\n" {
			t.Errorf("through /dev/stdout: %q", out)
		}
	})
}

func TestIsolation(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		s := sh(`hostname; ls /proc/self/fd; echo $$; cat /proc/1/comm; readlink /proc/1/ns/ipc; true`)
		s.Init = init
		s.Hostname = "box"
		got := lines(output(t, dir, s))
		ourIPC, _ := os.Readlink("/proc/self/ns/ipc")
		if got[0] != "box" {
			t.Errorf("host name %q", got[0])
		}
		// ls has the directory open as 3.
		if fds := strings.Join(got[1:5], " "); fds != "0 1 2 3" {
			t.Errorf("descriptors %s, want 0 1 2 and ls's own 3:\n%s", fds, got)
		}
		if (got[5] == "1") != !init {
			t.Errorf("pid of the command: %s", got[5])
		}
		if init {
			if got[6] != "mk:init" {
				t.Errorf("pid 1 is called %q", got[6])
			}
			if len(got) > 7 {
				t.Errorf("pid 1 can be looked into: %q", got[7:])
			}
		} else if got[7] == ourIPC {
			t.Error("the ipc namespace is ours")
		}
	})
}

func TestMountsOfTheContainer(t *testing.T) {
	dir := newRoot(t)
	before := snapshotOf(t, dir)
	s := DefaultSpec(Namespaces{Net: true, Cgroup: true})
	s.Env, s.Args = []string{"PATH=/bin"}, []string{"cat", "/proc/mounts"}
	text := output(t, dir, s)
	mounts := map[string]string{}
	for _, l := range lines(text) {
		f := strings.Fields(l)
		mounts[f[1]] = f[2] + " " + f[3]
	}
	for path, want := range map[string]string{
		"/proc": "proc rw,nosuid,nodev,noexec", "/dev": "tmpfs rw,nosuid", "/dev/pts": "devpts rw,nosuid,noexec",
		"/dev/shm": "tmpfs rw,nosuid,nodev,noexec", "/sys": "sysfs ro,nosuid,nodev,noexec", "/dev/null": "devtmpfs ",
		"/proc/sys": "proc ro", "/proc/interrupts": "devtmpfs ", "/sys/firmware": "tmpfs ro", "/dev/mqueue": "mqueue rw",
	} {
		if !strings.HasPrefix(mounts[path], want) {
			t.Errorf("%s is mounted as %q, want %q…", path, mounts[path], want)
		}
	}
	for path := range mounts {
		if strings.Contains(path, "..") || strings.HasPrefix(path, "/work") || strings.HasPrefix(path, "/home") {
			t.Errorf("a mount of the outside: %s", path)
		}
	}
	if _, ok := mounts["/"]; !ok || strings.Count(text, " / ") != 1 {
		t.Errorf("what is on /:\n%s", text)
	}
	if after := snapshotOf(t, dir); after != before {
		t.Errorf("the mount points left traces in the root:\n%s\nbefore:\n%s", after, before)
	}
	for script, want := range map[string]string{
		"cat /proc/interrupts | wc -c":                         "0\n",
		"ls /sys/firmware | wc -l":                             "0\n",
		"echo x > /proc/sys/kernel/hostname":                   "sh: can't create /proc/sys/kernel/hostname: Read-only file system\n",
		"head -c 5 /dev/zero | wc -c":                          "5\n",
		"test -c /dev/pts/ptmx && readlink /dev/ptmx":          "pts/ptmx\n",
		"echo ok > /dev/fd/1":                                  "ok\n",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start":    "0\n",
		"ip -o link | grep -c UP; ip -o link | wc -l":          "1\n1\n",
		"stat -c %a /dev/shm /dev; touch /dev/shm/x && echo y": "1777\n755\ny\n",
	} {
		s.Args = []string{"sh", "-c", script}
		if out, _, err := run1(t, dir, s); out != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", script, out, err, want)
		}
	}
}

// snapshotOf lists names, types and times of a tree.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(path + " " + fi.Mode().String() + " " + fi.ModTime().Format(time.RFC3339Nano) + "\n")
		return nil
	})
	return b.String()
}

func TestBindsAndTheirMountPoints(t *testing.T) {
	dir := newRoot(t)
	os.MkdirAll(dir+"/run", 0o755)
	// As on Ubuntu: a link to what is not there.
	if err := os.Symlink("../run/systemd/stub-resolv.conf", dir+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	write(t, out, "resolv.conf", "nameserver 192.0.2.1\n")
	os.Mkdir(out+"/data", 0o755)
	write(t, out, "data/f", "data\n")
	before := snapshotOf(t, dir)
	file, err := os.Open(out + "/data")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s := sh("cat /etc/resolv.conf /a/b/c/f /data/f; touch /data/x; touch /a/b/c/x && echo written; mkdir /a/mine; ls /rt")
	s.Mounts = append(s.Mounts,
		Mount{Type: Bind, Source: out + "/resolv.conf", Dest: "/etc/resolv.conf"},
		Mount{Type: Bind, Source: out + "/data", Dest: "/a/b/c"},
		Mount{Type: Bind, File: file, Dest: "/data", ReadOnly: true},
		Mount{Type: Tmpfs, Dest: "/rt", Data: "size=1m"},
		Mount{Type: Bind, Source: out + "/data", Dest: "/rt/x/y"}, // made in the tmpfs, by init
	)
	got := output(t, dir, s)
	want := "nameserver 192.0.2.1\ndata\ndata\ntouch: /data/x: Read-only file system\nwritten\nx\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := os.Stat(out + "/data/x"); err != nil {
		t.Error(err)
	}
	// /a stays, for the sake of /a/mine; /a/b, and what was behind the link, does not.
	if _, err := os.Stat(dir + "/a/mine"); err != nil {
		t.Error(err)
	}
	os.RemoveAll(dir + "/a")
	os.Chtimes(dir, time.Time{}, mtimeIn(before, dir))
	if after := snapshotOf(t, dir); after != before {
		t.Errorf("traces in the root:\n%s\nbefore:\n%s", after, before)
	}
}

func mtimeIn(snapshot, path string) time.Time {
	f := strings.Fields(lines(snapshot)[0])
	m, _ := time.Parse(time.RFC3339Nano, f[2])
	return m
}

func TestReadOnlyRoot(t *testing.T) {
	dir := newRoot(t)
	before := snapshotOf(t, dir)
	s := sh("touch /x; touch /dev/shm/x && echo ok")
	s.RootReadOnly = true
	if out := output(t, dir, s); out != "touch: /x: Read-only file system\nok\n" {
		t.Errorf("%q", out)
	}
	if after := snapshotOf(t, dir); after != before {
		t.Errorf("traces in the root:\n%s\nbefore:\n%s", after, before)
	}
}

func TestExitCodes(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		write(t, dir, "plain", "x")
		os.WriteFile(dir+"/noloader", []byte("#!/no/such/interpreter\n"), 0o755)
		os.WriteFile(dir+"/garbage", []byte("\x00\x01\x02"), 0o755)
		os.WriteFile(dir+"/bin/denied", []byte("x"), 0o644)
		for _, c := range []struct {
			spec  *Spec
			code  int
			start bool // Start fails
		}{
			{sh("exit 7"), 7, false},
			{sh("kill -TERM $$; sleep 5"), map[bool]int{true: 143, false: 5}[init], false},
			{sh("kill -9 $$"), 137, false},
			{spec("/bin/nothing"), 127, true},
			{spec("nothing"), 127, true},
			{spec("/noloader"), 127, true},
			{spec("/plain"), 126, true},
			{spec("/tmp"), 126, true},
			{spec("/garbage"), 126, true},
			{spec("denied"), 126, true},
		} {
			if !init && strings.Contains(c.spec.Args[len(c.spec.Args)-1], "$$") {
				continue // pid 1 cannot be killed from within
			}
			c.spec.Init = init
			_, status, err := run1(t, dir, c.spec)
			if c.start {
				if codeOf(err) != c.code {
					t.Errorf("%q: %v (code %d), want code %d", c.spec.Args, err, codeOf(err), c.code)
				}
			} else if status.Code != c.code || err != nil {
				t.Errorf("%q: %v, %v, want %d", c.spec.Args, status, err, c.code)
			}
		}
		s := spec("true")
		s.Cwd = "/nowhere"
		if _, _, err := run1(t, dir, s); codeOf(err) != 127 {
			t.Errorf("missing working directory: %v", err)
		}
		s.Cwd, s.Init = "/etc", init
		s.Args = []string{"../bin/cat", "passwd"}
		output(t, dir, s)
	})
}

func TestSeccompAndCapabilitiesDeny(t *testing.T) {
	dir := newRoot(t)
	for script, want := range map[string]string{
		"mount -t tmpfs none /tmp": "permission denied",
		"unshare -U true":          "Operation not permitted",
		"unshare -m true":          "Operation not permitted",
		"hostname x":               "Operation not permitted",
		"dd if=/dev/vda count=1":   "No such file",
	} {
		out, status, err := run1(t, dir, sh(script))
		if status.Code == 0 || err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %v, %q, want %q", script, status, err, out, want)
		}
	}
}

func TestInitReapsAndPassesSignalsOn(t *testing.T) {
	dir := newRoot(t)
	s := sh(`trap 'echo usr1; exit 3' USR1; (sleep 0.01 &) ; sleep 0.05; ps -o stat,comm | grep -c '^Z'; echo ready; while :; do sleep 0.01; done`)
	s.Init = true
	r, w, _ := os.Pipe()
	p, err := Start(context.Background(), s, mounted(t, dir), IO{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	got := ""
	for !strings.Contains(got, "ready") {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += string(buf[:n])
	}
	p.Signal(unix.SIGUSR1)
	status, err := p.Wait()
	n, _ := r.Read(buf)
	if got += string(buf[:n]); got != "0\nready\nusr1\n" || status.Code != 3 || err != nil {
		t.Errorf("%q, %v, %v", got, status, err)
	}
}

func TestEndOfContextEndsTheContainer(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		before := snapshotOf(t, dir)
		ctx, cancel := context.WithCancel(context.Background())
		s := sh("trap '' TERM; echo ready; sleep 100 & wait; sleep 100")
		s.Init, s.Grace = init, 30*time.Millisecond
		r, w, _ := os.Pipe()
		defer r.Close()
		p, err := Start(ctx, s, mounted(t, dir), IO{Stdout: w})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		r.Read(make([]byte, 10))
		cancel()
		start := time.Now()
		status, err := p.Wait()
		if status.Code != 137 || !errors.Is(err, context.Canceled) || time.Since(start) > 5*time.Second {
			t.Errorf("%v, %v after %v", status, err, time.Since(start))
		}
		if after := snapshotOf(t, dir); after != before {
			t.Errorf("traces in the root:\n%s\nbefore:\n%s", after, before)
		}
		if _, err := Start(ctx, s, mounted(t, dir), IO{}); !errors.Is(err, context.Canceled) {
			t.Errorf("start in a context that has ended: %v", err)
		}
	})
}

// A parent that is killed leaves no process behind, whoever the command runs as.
func TestKilledParentLeavesNothing(t *testing.T) {
	if os.Getenv(parentEnv) != "" {
		dir := newRoot(t)
		s := sh("sleep 1000 & sleep 1000")
		s.Init = os.Getenv("MK_CONTAINER_INIT") == "true"
		if mode != userns.Single {
			s.User = User{UID: 33, GID: 33}
		}
		p, err := Start(context.Background(), s, mounted(t, dir), IO{})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(strconv.Itoa(p.Pid()) + "\n")
		time.Sleep(time.Minute)
		return
	}
	both(t, func(t *testing.T, init bool) {
		r, w, _ := os.Pipe()
		proc, err := os.StartProcess("/proc/self/exe", []string{"parent", "-test.run=^TestKilledParentLeavesNothing$"}, &os.ProcAttr{
			Env: append(os.Environ(), parentEnv+"="+string(mode), "MK_CONTAINER_INIT="+strconv.FormatBool(init), "TMPDIR="+t.TempDir()), Files: []*os.File{nil, w, os.Stderr},
		})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 0, 4096)
		pid := 0
		for pid == 0 {
			n, err := r.Read(text[len(text):cap(text)])
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			text = text[:len(text)+n]
			for _, l := range lines(string(text)) {
				if p, err := strconv.Atoi(l); err == nil && strings.HasSuffix(string(text), "\n") {
					pid = p
				}
			}
		}
		proc.Kill()
		proc.Wait()
		r.Close()
		for range 200 {
			if gone(pid) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("pid 1 of the container, %d, outlived its parent", pid)
		unix.Kill(pid, unix.SIGKILL)
	})
}

// gone tells whether a process has ended, though it may still wait to be buried, or as pid 1 for the
// burial of others by who has inherited them.
func gone(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	const flags, exiting = 9 - 3, 4 // proc_pid_stat(5), after the name; PF_EXITING
	fields := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:]))
	n, err := strconv.Atoi(fields[flags])
	return err == nil && n&exiting != 0
}

func TestTerminal(t *testing.T) {
	both(t, func(t *testing.T, init bool) {
		dir := newRoot(t)
		s := sh("tty; stty size; read line; stty size; echo got $line; test -c /dev/console && echo console > /dev/tty; exit 4")
		s.Init, s.Terminal = init, &Size{Rows: 20, Cols: 70}
		p, err := Start(context.Background(), s, mounted(t, dir), IO{})
		if err != nil {
			t.Fatal(err)
		}
		master := p.Terminal()
		defer master.Close()
		var got string
		read := func(until string) {
			buf := make([]byte, 1000)
			for !strings.Contains(got, until) {
				n, err := master.Read(buf)
				if err != nil {
					break
				}
				got += string(buf[:n])
			}
		}
		read("20 70")
		if err := p.Resize(Size{Rows: 30, Cols: 90}); err != nil {
			t.Fatal(err)
		}
		master.Write([]byte("hello\n"))
		read("console")
		status, err := p.Wait()
		for _, want := range []string{"/dev/pts/0", "20 70", "30 90", "got hello", "console"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
		if status.Code != 4 || err != nil {
			t.Errorf("%v, %v", status, err)
		}
	})
}

func TestInterruptFromTheTerminal(t *testing.T) {
	dir := newRoot(t)
	s := sh("trap 'echo int; exit 9' INT; echo ready; while :; do sleep 0.01; done")
	s.Terminal = &Size{}
	p, err := Start(context.Background(), s, mounted(t, dir), IO{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Terminal().Close()
	buf := make([]byte, 100)
	p.Terminal().Read(buf)
	p.Terminal().Write([]byte{3})
	if status, err := p.Wait(); status.Code != 9 || err != nil {
		t.Errorf("%v, %v", status, err)
	}
}

func TestLimitsAndSysctls(t *testing.T) {
	dir := newRoot(t)
	s := sh("ulimit -n; ulimit -c; cat /proc/sys/kernel/shmmni")
	s.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 123, 456}, {unix.RLIMIT_CORE, 0, 0}}
	s.Sysctls = map[string]string{"kernel.shmmni": "77"}
	if out := output(t, dir, s); out != "123\n0\n77\n" {
		t.Errorf("%q", out)
	}
	s.Sysctls = map[string]string{"kernel.../../../etc": "x"}
	if _, _, err := run1(t, dir, s); err == nil {
		t.Error("a sysctl with a path in it was taken")
	}
	level, err := os.ReadFile("/proc/sys/kernel/printk")
	if err != nil {
		t.Skip(err)
	}
	s.Sysctls = map[string]string{"kernel.printk": string(level)}
	writable := unix.Access("/proc/sys/kernel/printk", unix.W_OK) == nil // the caller is the real root
	if _, _, err := run1(t, dir, s); (err == nil) != writable {
		t.Errorf("a sysctl of the machine: %v", err)
	}
}

func TestSpecsThatCannotBe(t *testing.T) {
	dir := newRoot(t)
	for name, change := range map[string]func(*Spec){
		"no command":     func(s *Spec) { s.Args = nil },
		"NUL":            func(s *Spec) { s.Args = []string{"a\x00b"} },
		"relative cwd":   func(s *Spec) { s.Cwd = "x" },
		"mount on /":     func(s *Spec) { s.Mounts = []Mount{{Type: Tmpfs, Dest: "/.."}} },
		"mount type":     func(s *Spec) { s.Mounts = []Mount{{Type: "nfs", Dest: "/x"}} },
		"no source":      func(s *Spec) { s.Mounts = []Mount{{Type: Bind, Dest: "/x"}} },
		"missing source": func(s *Spec) { s.Mounts = []Mount{{Type: Bind, Source: "/no/such", Dest: "/x"}} },
		"file on dir":    func(s *Spec) { s.Mounts = []Mount{{Type: Bind, Source: "/etc/passwd", Dest: "/bin"}} },
		"dir on file":    func(s *Spec) { s.Mounts = []Mount{{Type: Bind, Source: "/etc", Dest: "/etc/passwd"}} },
		"filter":         func(s *Spec) { s.Seccomp = Filter("nonsense") },
	} {
		s := spec("true")
		s.NoNewPrivs = true
		change(s)
		if _, _, err := run1(t, dir, s); err == nil {
			t.Errorf("%s: taken", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func BenchmarkTrue(b *testing.B) {
	for _, c := range []struct {
		name string
		init bool
		ns   Namespaces
	}{{"exec", false, Namespaces{}}, {"init", true, Namespaces{}}, {"init+net+cgroup", true, Namespaces{Net: true, Cgroup: true}}} {
		b.Run(string(mode)+"/"+c.name, func(b *testing.B) {
			dir := newRoot(b)
			s := DefaultSpec(c.ns)
			s.Args, s.Env = []string{"true"}, []string{"PATH=/bin"}
			s.Init = c.init
			var took []float64
			for b.Loop() {
				start := time.Now()
				if _, status, err := run1(b, dir, s); err != nil || status.Code != 0 {
					b.Fatal(status, err)
				}
				took = append(took, time.Since(start).Seconds()*1e3)
			}
			slices.Sort(took)
			b.ReportMetric(took[0], "min-ms")
			b.ReportMetric(took[len(took)/2], "median-ms")
		})
	}
}

// On an overlay, as a RUN step has it, the mount points leave nothing in the layer but the
// directories that they were in, unchanged.
func TestOverlayRootStaysClean(t *testing.T) {
	lower, upper, work := newRoot(t), t.TempDir(), t.TempDir()
	old := time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC)
	os.Chtimes(lower+"/etc", old, old)
	os.Chtimes(upper, old, old) // of the merged root it is upper's that counts
	root, err := overlay(lower, upper, work)
	if err != nil {
		t.Skipf("overlay: %v", err)
	}
	defer root.Close()
	s := sh("cat /etc/resolv.conf; echo made > /tmp/made")
	s.Mounts = append(s.Mounts, Mount{Type: Bind, Source: "/etc/passwd", Dest: "/etc/resolv.conf"},
		Mount{Type: Bind, Source: "/etc/passwd", Dest: "/run/secrets/one"})
	p, err := Start(context.Background(), s, root, IO{})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); status.Code != 0 || err != nil {
		t.Fatal(status, err)
	}
	var got []string
	filepath.Walk(upper, func(path string, fi os.FileInfo, err error) error {
		if path == upper+"/etc" && !fi.ModTime().Equal(old) {
			t.Errorf("%s was changed at %v", path, fi.ModTime())
		}
		got = append(got, strings.TrimPrefix(path, upper))
		return nil
	})
	if want := []string{"", "/etc", "/tmp", "/tmp/made"}; !slices.Equal(got, want) {
		t.Errorf("in the layer: %q, want %q", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(upper, &st); err != nil || !time.Unix(st.Mtim.Unix()).Equal(old) {
		t.Errorf("/ of the layer was changed at %v", time.Unix(st.Mtim.Unix()))
	}
}

func overlay(lower, upper, work string) (*os.File, error) {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fsfd)
	for k, v := range map[string]string{"lowerdir": lower, "upperdir": upper, "workdir": work} {
		if err := unix.FsconfigSetString(fsfd, k, v); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigSetFlag(fsfd, "userxattr"); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, err
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(mnt), "overlay"), nil
}
