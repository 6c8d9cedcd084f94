package main

// Calls about owners by chance: the same in modes subid and single, and so must be what they
// answer, and the layers that they leave.

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chanceEnv holds the seed of a process that makes such calls, and then of itself as another user.
const chanceEnv = "MK_TEST_CHANCE"

// FuzzModesAgree makes 3 × 200 calls in three steps: the second finds the first one's files below, and
// the kernel copies them up; the third is a user's. Both modes must answer alike, errors too.
func FuzzModesAgree(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		if testMode() != "subid" {
			t.Skip("mode " + testMode() + "; only a user with subordinate IDs has both modes")
		}
		stores, err := chanceStores()
		if err != nil {
			t.Fatal(err)
		}
		recipe := filepath.Join(t.TempDir(), "Recipe")
		text := fmt.Sprintf("FROM chance\nRUN %[1]s=%[2]d /chance >/log1\nRUN >/log3 && chmod 666 /log3 && %[1]s=%[3]d /chance >/log2\nUSER 33\nRUN %[1]s=%[3]d /chance >/log3\n", chanceEnv, 2*seed, 2*seed+1)
		if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var layers [2][]map[string]layerEntry
		var logs [2][]string
		for i, mode := range []string{"subid", "single"} {
			saved := filepath.Join(t.TempDir(), "saved.tar")
			for _, args := range [][]string{{"build", "--no-cache", "-q", "-t", "x", "-f", recipe, stores}, {"save", "-o", saved, "x"}} {
				if out, err := chanceMk(t, stores, mode, args...).CombinedOutput(); err != nil {
					t.Fatalf("mode %s: mk %q: %v\n%s", mode, args, err, out)
				}
			}
			img, err := readImage(t, saved)
			if err != nil {
				t.Fatal(err)
			}
			all, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, layer := range all[len(all)-3:] {
				r, err := layer.Uncompressed()
				if err != nil {
					t.Fatal(err)
				}
				raw, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				entries, err := entriesOf(bytes.NewReader(raw), nil)
				if err != nil {
					t.Fatal(err)
				}
				layers[i] = append(layers[i], entries)
				logs[i] = append(logs[i], chanceLog(t, raw)...)
			}
		}
		for i, line := range logs[0] {
			if i >= len(logs[1]) || logs[1][i] != line {
				t.Fatalf("seed %d: call %d: subid:  %s\n...%s\nsingle: %s", seed, i, line, strings.Join(logs[0][max(0, i-5):i], "\n"), strings.Join(logs[1][i:min(i+1, len(logs[1]))], ""))
			}
		}
		if len(logs[0]) < 600 {
			t.Fatalf("seed %d: %d calls were made", seed, len(logs[0]))
		}
		for n := range layers[0] {
			for _, path := range differing(layers[0][n], layers[1][n]) {
				t.Errorf("seed %d: step %d: %s: subid %s, single %s", seed, n, path, layers[0][n][path].text, layers[1][n][path].text)
				t.Log(strings.Join(logs[0], "\n"))
			}
		}
	})
}

// chanceLog is the log of a layer.
func chanceLog(t *testing.T, layer []byte) []string {
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("no log in the layer: %v", err)
		}
		if strings.HasPrefix(h.Name, "log") {
			text, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		}
	}
}

// chanceStores has an image "chance" for each mode, busybox with this program in it: once a process.
var chanceStores = sync.OnceValues(func() (string, error) {
	shared, err := sharedDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(shared, "chance")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", err
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return "", err
	}
	for name, b := range map[string][]byte{"program": self, "busybox": shell, "Recipe": []byte("FROM scratch\nCOPY busybox /bin/sh\nCOPY program /chance\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
})

var chanceBuilt sync.Map // mode → func() error

func chanceMk(t *testing.T, dir, mode string, args ...string) *exec.Cmd {
	t.Helper()
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(mkBinary(t), args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "MK_ROOT="+filepath.Join(dir, "store-"+mode), "MK_USERNS="+mode)
		return cmd
	}
	build, _ := chanceBuilt.LoadOrStore(mode, sync.OnceValue(func() error {
		if out, err := command("build", "-q", "-t", "chance", "-f", filepath.Join(dir, "Recipe"), dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}))
	if err := build.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return command(args...)
}

// chance is the state of the process that makes the calls, below /w.
type chance struct {
	*rand.Rand
	euid int
	user bool // of a step that began as it is: what only reads is refused, too
	out  io.Writer
}

// makeCalls is the process inside.
func makeCalls(seed string) {
	runtime.LockOSThread() // whose identity it changes
	var n uint64
	fmt.Sscan(seed, &n)
	c := &chance{Rand: rand.New(rand.NewPCG(n, 7)), euid: unix.Geteuid(), user: unix.Getuid() != 0, out: os.Stdout}
	c.log("mkdir /w", unix.Mkdir("/w", 0o755), "/w")
	unix.Chmod("/w", 0o777)
	c.log("chdir /w", unix.Chdir("/w"), ".")
	if n%3 == 0 {
		unix.Chmod(".", 0o2777)
		unix.Chown(".", -1, 50)
	}
	for range 200 {
		c.call()
	}
}

func (c *chance) pick(words ...string) string { return words[c.IntN(len(words))] }

// path of something that may be there: in the top, or one of two directories.
func (c *chance) path() string {
	return c.pick("", "", "d/", "e/", "./d/../", "/w/", "l/") + c.pick("a", "b", "f", "g", "d", "e", "l", "m")
}

func (c *chance) id() int { return []int{-1, 0, 33, 50, 1000, 65534}[c.IntN(6)] }

func (c *chance) log(what string, err error, path string) {
	var st unix.Stat_t
	now := "gone"
	if serr := unix.Lstat(path, &st); serr == nil {
		now = fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR { // overlay counts one for each directory
			now += fmt.Sprintf(" ×%d %d bytes", st.Nlink, st.Size)
		}
	}
	fmt.Fprintf(c.out, "%d: %s: %v: %s\n", c.euid, what, err, now)
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return e
	}
	return nil
}

// call makes one.
func (c *chance) call() {
	p, q := c.path(), c.path()
	if c.user && c.IntN(4) == 0 {
		switch c.IntN(4) {
		case 0:
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			unix.Close(fd)
			c.log("read "+p, err, p)
		case 1:
			fd, err := unix.Open(p, unix.O_PATH, 0)
			if err == nil {
				err = unix.Fchdir(fd)
				unix.Close(fd)
			}
			c.log("fchdir "+p, err, p)
			unix.Chdir("/w")
		case 2:
			_, err := unix.Readlink(p, make([]byte, 100))
			c.log("readlink "+p, err, p)
		case 3:
			c.log("may read "+p, unix.Access(p, unix.R_OK), p)
		}
		return
	}
	mode := uint32(c.IntN(8)<<9 | c.IntN(512))
	no := ^uintptr(0)
	switch n := c.IntN(24); {
	case n < 4:
		flags := []int{unix.O_EXCL, unix.O_TRUNC, 0, unix.O_APPEND, unix.O_NOFOLLOW}[c.IntN(5)]
		fd, err := unix.Open(p, unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK|flags, mode&0o777)
		if err == nil {
			unix.Write(fd, []byte("x"))
			if c.IntN(3) == 0 {
				c.log("fchown", unix.Fchown(fd, c.id(), c.id()), p)
			}
			unix.Close(fd)
		}
		c.log(fmt.Sprintf("open %s %o", p, flags), err, p)
	case n < 6:
		c.log("mkdir "+p, unix.Mkdir(p, mode&0o777), p)
	case n < 7:
		c.log("symlink "+q+" "+p, unix.Symlink(q, p), p)
	case n < 8:
		c.log("mkfifo "+p, unix.Mkfifo(p, mode&0o777), p)
	case n < 11:
		u, g := c.id(), c.id()
		c.log(fmt.Sprintf("chown %d:%d %s", u, g, p), unix.Chown(p, u, g), p)
	case n < 13:
		u, g := c.id(), c.id()
		c.log(fmt.Sprintf("lchown %d:%d %s", u, g, p), unix.Lchown(p, u, g), p)
	case n < 15:
		name := c.pick("d", "e", ".")
		if c.euid != 0 {
			name = "."
		}
		dir, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			err = unix.Fchownat(dir, c.pick("", "a", "f", "../a"), c.id(), c.id(), []int{0, unix.AT_SYMLINK_NOFOLLOW, unix.AT_EMPTY_PATH}[c.IntN(3)])
			unix.Close(dir)
		}
		c.log("fchownat", err, ".")
	case n < 17:
		old := c.euid
		if c.euid == 0 {
			c.euid = []int{33, 1000}[c.IntN(2)]
			raw(unix.SYS_SETRESGID, no, uintptr(c.euid), no)
		} else {
			c.euid = 0
		}
		err := raw(unix.SYS_SETRESUID, no, uintptr(c.euid), no)
		if c.euid == 0 {
			raw(unix.SYS_SETRESGID, no, 0, no)
		}
		c.euid = unix.Geteuid()
		c.log(fmt.Sprintf("seteuid from %d: now %d:%d", old, unix.Geteuid(), unix.Getegid()), err, ".")
	case n < 18 && c.IntN(2) == 0:
		c.log("setgroups", raw(unix.SYS_SETGROUPS, 0, 0), ".")
	case n < 18:
		c.log("link "+p+" "+q, unix.Link(p, q), q)
	case n < 19:
		c.log("rename "+p+" "+q, unix.Rename(p, q), q)
	case n < 20:
		c.log("unlink "+p, unix.Unlink(p), p)
	case n < 21:
		if mode&0o2010 == 0o2000 {
			mode |= 0o010 // without, setgid means locks of long ago, and stays when a stranger writes (docs/modes.md)
		}
		c.log(fmt.Sprintf("chmod %o %s", mode, p), unix.Chmod(p, mode), p)
	case n < 22:
		switch c.IntN(6) {
		case 0:
			c.log("truncate "+p, unix.Truncate(p, 3), p)
		case 1:
			c.log("utimes "+p, unix.Utimes(p, make([]unix.Timeval, 2)), p)
		case 2:
			c.log("touch "+p, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, unix.AT_SYMLINK_NOFOLLOW), p)
		case 3:
			c.log("access "+p, unix.Faccessat(unix.AT_FDCWD, p, mode&7, unix.AT_EACCESS), p)
		case 4:
			c.log("rmdir "+p, unix.Rmdir(p), p)
		case 5:
			c.log("exchange "+p+" "+q, unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE), q)
		}
	case n < 23 && c.IntN(2) == 0:
		c.log("setxattr "+p, unix.Setxattr(p, "user.chance", []byte{byte(c.IntN(3)) + '0'}, 0), p)
	case n < 23:
		var list []byte
		// One that gives nobody here other permissions than the mode does.
		group := uint32(c.IntN(8)) | 1 // see chmod
		for _, e := range [][3]uint32{{1, uint32(c.IntN(8)), 1<<32 - 1}, {2, uint32(c.IntN(8)), uint32(c.IntN(2) * 77)}, {4, group, 1<<32 - 1}, {16, group, 1<<32 - 1}, {32, uint32(c.IntN(8)), 1<<32 - 1}} {
			list = binary.LittleEndian.AppendUint16(list, uint16(e[0]))
			list = binary.LittleEndian.AppendUint16(list, uint16(e[1]))
			list = binary.LittleEndian.AppendUint32(list, e[2])
		}
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			c.log("no file for an access list "+p, nil, p)
			return
		}
		c.log("setfacl "+p, unix.Setxattr(p, "system.posix_acl_access", slices.Concat([]byte{2, 0, 0, 0}, list), 0), p)
		got := make([]byte, 256)
		n, err := unix.Getxattr(p, "system.posix_acl_access", got)
		c.log(fmt.Sprintf("getfacl %x", got[:max(n, 0)]), err, p)
	default:
		// Another process, which becomes another user for good.
		var out bytes.Buffer
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{chanceEnv + "=user " + p + " " + q}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, &out, &out
		uid := []uint32{33, 1000}[c.IntN(2)]
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{50}}}
		err := cmd.Run()
		c.log(fmt.Sprintf("as %d: %s", uid, strings.ReplaceAll(strings.TrimSpace(out.String()), "\n", " | ")), err, p)
	}
}

// makeUserCalls is that process.
func makeUserCalls(args string) {
	p, q, _ := strings.Cut(args, " ")
	c := &chance{out: os.Stdout, Rand: rand.New(rand.NewPCG(1, 1))}
	c.euid = unix.Getuid()
	fd, err := unix.Open(p, unix.O_CREAT|unix.O_RDWR|unix.O_NONBLOCK, 0o640)
	c.log("open "+p, err, p)
	if err == nil {
		c.log("fchown", unix.Fchown(fd, -1, 50), p)
		c.log("fchown", unix.Fchown(fd, 0, 0), p)
	}
	c.log("mkdir "+q, unix.Mkdir(q, 0o755), q)
	c.log("chown "+q, unix.Chown(q, -1, 50), q)
	c.log("rename "+p+" "+q, unix.Rename(p, q), q)
	c.log("chmod "+q, unix.Chmod(q, 0o6750), q)
	c.log("link "+q+" "+p, unix.Link(q, p), p)
	c.log("access "+p, unix.Access(p, unix.W_OK), p)
	c.log("chdir "+q, unix.Chdir(q), ".")
	c.log("unlink "+p, unix.Unlink(p), p)
	c.log("setuid", raw(unix.SYS_SETUID, 0), ".")
	var three [3]uint32
	err = raw(unix.SYS_GETRESUID, uintptr(unsafe.Pointer(&three[0])), uintptr(unsafe.Pointer(&three[1])), uintptr(unsafe.Pointer(&three[2])))
	groups, _ := unix.Getgroups()
	c.log(fmt.Sprint("ids ", three, groups), err, ".")
}
