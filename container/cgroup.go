package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// Cgroup is the control group of one container: a directory of cgroup2, below one that this user
// was given (see cgroup_place.go).
//
//	mk-<name>    flock: held while its mk lives
//
// The lock is how a directory that a killed mk left is told from one in use. The kernel's side of it
// all is Documentation/admin-guide/cgroup-v2.rst.
type Cgroup struct {
	path   string
	dir    *os.File // locked
	limits Limits
	spare  bool // see CgroupWish
}

const cgroupPrefix = "mk-"

// CgroupWish is what cgroup a container is to have.
type CgroupWish struct {
	Name   string // names the directory; two containers at once need two
	Parent string // --cgroup-parent; "": the nearest that mk was given
	Limits Limits

	// Spare: the container can go without, and does where nothing is given, or only at the price of
	// moving processes. It is for what comes with a cgroup and limits nothing: statistics, pause.
	Spare bool
}

// placing: systemd is asked once by a process, and processes are moved by one thread.
var placing sync.Mutex

// NewCgroup makes a control group. A refusal carries the advice how to be given one; with Spare it
// is nil, nil instead. Start takes the result over; who does not come to that calls Remove.
func NewCgroup(w CgroupWish) (*Cgroup, error) {
	placing.Lock()
	defer placing.Unlock()
	need := w.Limits.controllers()
	b, err := findBranch(w.Parent, need, w.Spare)
	if err == nil {
		err = b.enable(need, w.Spare)
	}
	if err != nil {
		if w.Spare {
			return nil, nil
		}
		return nil, err
	}
	g := &Cgroup{path: filepath.Join(b.dir, cgroupPrefix+w.Name), limits: w.Limits, spare: w.Spare}
	if err := g.make(); err != nil {
		if w.Spare {
			return nil, nil
		}
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	for _, s := range w.Limits.atStart().settings() {
		if err := g.set(s); err != nil {
			g.Remove()
			return nil, err
		}
	}
	return g, nil
}

// make makes the directory, or takes over one that the dead left, and locks it. One that lives is
// in somebody's use.
func (g *Cgroup) make() error {
	for range 100 {
		if err := os.Mkdir(g.path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		dir, err := lockCgroup(g.path)
		if errors.Is(err, os.ErrNotExist) {
			continue // somebody who tidies up was between
		} else if err != nil {
			return fmt.Errorf("lock %s: %w", g.path, err)
		}
		g.dir = dir
		return nil
	}
	return fmt.Errorf("%s does not stay", g.path)
}

// lockCgroup opens and locks a directory. unix.EWOULDBLOCK while its mk lives; os.ErrNotExist when
// it is gone by now.
func lockCgroup(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, err
	}
	ours, err := dir.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(path); err == nil && !os.SameFile(ours, now) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// Path is the directory.
func (g *Cgroup) Path() string { return g.path }

// settle sets what had to be larger until now: init has made the container, and what is left is to
// execute the command.
func (g *Cgroup) settle(beside int64) error {
	l := g.limits.beside(beside)
	for _, s := range l.settings() {
		if s.late {
			if err := g.set(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// set sets one limit.
func (g *Cgroup) set(s setting) error {
	err := writeCgroup(g.path, s.file, s.value)
	if err == nil || s.optional && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if s.other != "" && errors.Is(err, os.ErrNotExist) {
		if err = writeCgroup(g.path, s.other, s.otherValue); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: write %q to %s: %w", s.flag, s.value, filepath.Join(g.path, s.file), err)
}

// Remove removes the directory, with what the container made below it. Its processes have ended.
func (g *Cgroup) Remove() error {
	err := removeCgroup(g.path)
	g.dir.Close()
	return err
}

// RemoveCgroup removes what a killed mk left of a container's cgroup; "" and one that is gone are
// fine. It ends processes in it.
func RemoveCgroup(path string) error {
	if path == "" {
		return nil
	}
	dir, err := lockCgroup(path)
	if errors.Is(err, os.ErrNotExist) || err == unix.EWOULDBLOCK { // or somebody has it, who will
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	writeCgroup(path, "cgroup.kill", "1") // Linux 5.14; a container ends with its holder in any case
	writeCgroup(path, "cgroup.freeze", "0")
	return removeCgroup(path)
}

// SweepCgroups removes those that killed builds left, where a build would make them now.
func SweepCgroups() error {
	b, err := findBranch("", nil, true)
	if err != nil {
		return nil // nothing is given here, so nothing was made
	}
	list, err := filepath.Glob(filepath.Join(b.dir, cgroupPrefix+"*"))
	if err != nil {
		return err
	}
	var all error
	for _, path := range list {
		if filepath.Base(path) != leafName {
			all = errors.Join(all, RemoveCgroup(path))
		}
	}
	return all
}

// removeCgroup waits a moment for the last process: it is gone from the namespace a little before
// it is from the cgroup.
func removeCgroup(path string) (err error) {
	for range 100 {
		removeChildren(path)
		err = unix.Rmdir(path)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", path, err)
}

func removeChildren(path string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			child := filepath.Join(path, e.Name())
			removeChildren(child)
			unix.Rmdir(child)
		}
	}
}

// OOMKills is how many processes the memory limit has killed.
func (g *Cgroup) OOMKills() int {
	n, _ := strconv.Atoi(readCgroupKey(g.path, "memory.events", "oom_kill"))
	return n
}

// members is the file that a process of ours writes itself into.
func (g *Cgroup) members() (*os.File, error) {
	return os.OpenFile(filepath.Join(g.path, "cgroup.procs"), os.O_WRONLY, 0)
}

// Limit changes the limits of the cgroup in path, which a running container has.
// init tells that it has Spec.Init, ownPID that it has a pid namespace to itself.
func Limit(path string, l Limits, init, ownPID bool) error {
	g := &Cgroup{path: path}
	l = l.beside(besides(init, ownPID))
	have := strings.Fields(readCgroup(path, "cgroup.controllers"))
	for _, c := range l.controllers() {
		if !slices.Contains(have, c) {
			return noController(path, have, l.flagOf(c), c)
		}
	}
	for _, s := range l.settings() {
		if err := g.set(s); err != nil {
			return err
		}
	}
	return nil
}

// Freeze stops all processes of a cgroup, and returns when they stand still; Thaw lets them go on.
func Freeze(path string) error { return freezeCgroup(path, "1") }

// Thaw undoes Freeze.
func Thaw(path string) error { return freezeCgroup(path, "0") }

func freezeCgroup(path, want string) error {
	if err := writeCgroup(path, "cgroup.freeze", want); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if readCgroupKey(path, "cgroup.events", "frozen") == want {
			return nil
		}
	}
	return fmt.Errorf("wait for %s: its processes do not stop", path)
}

// Frozen tells whether a cgroup is frozen.
func Frozen(path string) bool {
	return path != "" && strings.TrimSpace(readCgroup(path, "cgroup.freeze")) == "1"
}

// The files of a cgroup are read and written whole. A missing one is "".

func writeCgroup(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

func readCgroup(dir, file string) string {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}

// readCgroupKey reads the value of a key from a file of lines "key value".
func readCgroupKey(dir, file, key string) string {
	for line := range strings.Lines(readCgroup(dir, file)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			return v
		}
	}
	return ""
}

func existsCgroup(dir, file string) bool {
	_, err := os.Stat(filepath.Join(dir, file))
	return err == nil
}

// cgroupRefusal says why there is no cgroup for a container, and what would help.
func cgroupRefusal(what, reason, advice string) error {
	return &userns.Refusal{Op: userns.OpCgroup, What: what, Err: errors.New(reason), Advice: advice}
}
