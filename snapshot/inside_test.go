package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Tests that mount or chown run in a helper process: the test binary again, in a
// user and a mount namespace of its own, with only that test. The mode says how
// many IDs it has:
//
//	single  one, as with unshare --map-root-user
//	subid   a range, by newuidmap
//	root    all, the identity map; only for root
const (
	modeEnv = "MK_SNAPSHOT_TEST_MODE"
	waitEnv = "MK_SNAPSHOT_TEST_WAIT"
	jobEnv  = "MK_SNAPSHOT_TEST_JOB"
)

func TestMain(m *testing.M) {
	if os.Getenv(waitEnv) != "" {
		// The maps are being written; descriptor 3 ends when they are. An exec
		// by the root that we are then gives back the capabilities that the
		// first one took from an unmapped ID.
		io.Copy(io.Discard, os.NewFile(3, "maps"))
		os.Unsetenv(waitEnv)
		panic(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	if job := os.Getenv(jobEnv); job != "" {
		runJob(job)
		return
	}
	os.Exit(m.Run())
}

func testModes() []string {
	modes := []string{"single", "subid"}
	if os.Getuid() == 0 {
		modes = append(modes, "root")
	}
	return modes
}

// inside runs the test in each mode, in a helper process.
func inside(t *testing.T, test func(t *testing.T, mode string)) {
	t.Helper()
	if mode := os.Getenv(modeEnv); mode != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Skipf("make mounts private: %v", err)
		}
		test(t, mode)
		return
	}
	for _, mode := range testModes() {
		t.Run(mode, func(t *testing.T) {
			cmd := insideCommand(t, mode, "-test.run=^"+t.Name()[:strings.IndexByte(t.Name(), '/')]+"$", "-test.v")
			out, err := cmd.CombinedOutput()
			switch {
			case err != nil:
				t.Fatalf("%v\n%s", err, out)
			case bytes.Contains(out, []byte("--- SKIP")) && !bytes.Contains(out, []byte("--- PASS")):
				t.Skipf("%s", out)
			case testing.Verbose():
				t.Logf("%s", out)
			}
		})
	}
}

// insideCommand is this test binary, to be run in the mode. It is skipped, with
// the kernel's word, where there are no user namespaces.
func insideCommand(tb testing.TB, mode string, args ...string) *helper {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), modeEnv+"="+mode)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	one := func(id, n int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: n}}
	}
	switch mode {
	case "single":
		attr.UidMappings, attr.GidMappings = one(os.Getuid(), 1), one(os.Getgid(), 1)
	case "root":
		attr.UidMappings, attr.GidMappings = one(0, 1<<32-1), one(0, 1<<32-1)
		attr.GidMappingsEnableSetgroups = true
	case "subid":
		if _, err := exec.LookPath("newuidmap"); err != nil {
			tb.Skip(err)
		}
	}
	cmd.SysProcAttr = attr
	return &helper{Cmd: cmd, tb: tb, subid: mode == "subid"}
}

type helper struct {
	*exec.Cmd
	tb    testing.TB
	subid bool
}

func (h *helper) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	h.Stdout, h.Stderr = &out, &out
	h.start()
	err := h.Wait()
	return out.Bytes(), err
}

func (h *helper) start() {
	h.tb.Helper()
	var w *os.File
	if h.subid {
		var r *os.File
		r, w, _ = os.Pipe()
		defer r.Close()
		defer w.Close()
		h.ExtraFiles = []*os.File{r}
		h.Env = append(h.Env, waitEnv+"=1")
	}
	if err := h.Start(); err != nil {
		h.tb.Skipf("user namespace: %v", err)
	}
	if h.subid {
		pid := strconv.Itoa(h.Process.Pid)
		err1 := mapRange("newuidmap", "/etc/subuid", pid, os.Getuid())
		err2 := mapRange("newgidmap", "/etc/subgid", pid, os.Getgid())
		if err := errors.Join(err1, err2); err != nil {
			h.Process.Kill()
			h.Wait()
			h.tb.Skip(err)
		}
	}
}

func mapRange(tool, file, pid string, id int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	u, err := user.Current()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && (f[0] == u.Username || f[0] == u.Uid) {
			out, err := exec.Command(tool, pid, "0", strconv.Itoa(id), "1", "1", f[1], f[2]).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %v: %s", tool, err, out)
			}
			return nil
		}
	}
	return fmt.Errorf("%s has no range for %s", file, u.Username)
}

// openStore opens a new store as the mode does.
func openStore(tb testing.TB, mode string) *Store {
	tb.Helper()
	s, err := Open(tb.TempDir()+"/trees", mode == "single")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { removeTree(s.Dir()) })
	return s
}

// change makes a snapshot by running f on a mount of a draft.
func change(tb testing.TB, s *Store, parent *Snapshot, f func(root string)) *Snapshot {
	tb.Helper()
	d, err := s.NewDraft(parent)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Discard()
	m, err := d.Mount()
	if err != nil {
		tb.Fatal(err)
	}
	f(procPath(m))
	m.Close()
	return commit(tb, d)
}

// applyTar makes a snapshot of a layer.
func applyTar(tb testing.TB, s *Store, parent *Snapshot, layer []byte) *Snapshot {
	tb.Helper()
	d, err := s.NewDraft(parent)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Discard()
	if err := d.Apply(context.Background(), bytes.NewReader(layer)); err != nil {
		tb.Fatal(err)
	}
	return commit(tb, d)
}

func commit(tb testing.TB, d *Draft) *Snapshot {
	tb.Helper()
	snap, err := d.Commit()
	if err != nil {
		tb.Fatal(err)
	}
	return snap
}

func layerOf(tb testing.TB, s *Snapshot) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := s.WriteLayer(context.Background(), &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func digestsOf(tb testing.TB, s *Snapshot) Digests {
	tb.Helper()
	d, err := s.Digests(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func checkClean(tb testing.TB, s *Store) {
	tb.Helper()
	for _, p := range s.Check(context.Background()) {
		tb.Error(p)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// testTime is not on a second.
var testTime = time.Unix(1_600_000_000, 123_456_789)

// file is an entry for tarOf.
type file struct {
	tar.Header
	content string
}

func reg(name, content string, edit ...func(*tar.Header)) file {
	return entry(tar.TypeReg, name, content, edit...)
}

func entry(flag byte, name, content string, edit ...func(*tar.Header)) file {
	mode := int64(0o644)
	if flag == tar.TypeDir {
		mode = 0o755
	}
	f := file{tar.Header{Typeflag: flag, Name: name, Mode: mode, Size: int64(len(content)), ModTime: testTime, Format: tar.FormatPAX}, content}
	for _, e := range edit {
		e(&f.Header)
	}
	return f
}

func linkTo(target string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = target } }
func perm(m int64) func(*tar.Header)         { return func(h *tar.Header) { h.Mode = m } }
func owner(uid, gid int) func(*tar.Header)   { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
func dev(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}
func xattr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxAttr+name] = value
	}
}

func tarOf(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		must(tb, w.WriteHeader(&f.Header))
		_, err := io.WriteString(w, f.content)
		must(tb, err)
	}
	must(tb, w.Close())
	return b.Bytes()
}

// listTar is a tar as text, a line an entry, for comparison and for messages.
func listTar(tb testing.TB, layer []byte) string {
	tb.Helper()
	var b strings.Builder
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return b.String()
		}
		must(tb, err)
		content, err := io.ReadAll(r)
		must(tb, err)
		fmt.Fprintf(&b, "%c %s %o %d:%d", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid)
		if h.Linkname != "" {
			fmt.Fprintf(&b, " -> %s", h.Linkname)
		}
		if h.Devmajor != 0 || h.Devminor != 0 {
			fmt.Fprintf(&b, " %d,%d", h.Devmajor, h.Devminor)
		}
		if len(content) > 64 {
			fmt.Fprintf(&b, " %d bytes %s", len(content), digest.FromBytes(content).Encoded()[:12])
		} else if len(content) > 0 {
			fmt.Fprintf(&b, " %q", content)
		}
		for _, k := range sortedKeys(h.PAXRecords) {
			if strings.HasPrefix(k, paxAttr) {
				fmt.Fprintf(&b, " %s=%q", k[len(paxAttr):], h.PAXRecords[k])
			}
		}
		fmt.Fprintln(&b)
	}
}
