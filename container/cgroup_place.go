package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Where cgroups can be made. The kernel lets who is not root have cgroups only below a directory
// that was given to him, and move processes only within it. Whoever gives: a script of root's, an
// outer container, or systemd, which gives its units with Delegate=yes to themselves, and a
// user's manager to the user.
//
//	given/                  cgroup.subtree_control: memory cpu pids
//	    mk-leaf/            mk, and who else was in given itself
//	    mk-<container>/
//
// A directory whose children are limited may have no processes of its own ("no internal
// processes"): those in it move one down, to mk-leaf.

const leafName = cgroupPrefix + "leaf"

// branch is a directory to make cgroups in.
type branch struct {
	dir      string
	crowded  bool // there are processes in it, which have to move for there to be limits
	explicit bool // --cgroup-parent
}

// findBranch finds it: parent, or what was given to this process, or will be by systemd. need are the
// controllers, spare tells that nothing may be changed for it.
func findBranch(parent string, need []string, spare bool) (*branch, error) {
	mount, own, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	slice := strings.HasSuffix(parent, ".slice")
	if parent != "" && !slice {
		return parentBranch(mount, parent, need)
	}
	unit, systemds := systemdUnit(mount, own)
	b := nearestBranch(unit, own)
	switch {
	case spare && (b == nil || b.crowded || systemds):
		return nil, errors.New("nothing is given without a price")
	case b != nil && !systemds && !slice:
		return b, nil
	}
	asked := askSystemd(parent)
	if asked == nil {
		if mount, own, err = ownCgroup(); err != nil {
			return nil, err
		}
		unit, _ = systemdUnit(mount, own)
		b = nearestBranch(unit, own)
	}
	if b != nil && (!slice || asked == nil) {
		return b, nil
	}
	what := "the container"
	if slice {
		what = "the container in " + parent
	}
	return nil, cgroupRefusal(what, fmt.Sprintf("the cgroup of mk, %s, is not yours to divide, and %v", own, asked), adviceDelegate(asked))
}

// ownCgroup finds the directory of this process, and where its cgroup2 is mounted.
func ownCgroup() (mount, own string, err error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", err
	}
	path, found := "", false
	for line := range strings.Lines(string(text)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			path, found = p, true
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", "", err
	}
	if !found || len(mounts) == 0 {
		return "", "", cgroupRefusal("a container", "there is no cgroup2 here", adviceUnified)
	}
	for _, m := range mounts {
		rel, err := filepath.Rel(m.Root, path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return m.Mountpoint, filepath.Join(m.Mountpoint, rel), nil
		}
	}
	return "", "", cgroupRefusal("a container", fmt.Sprintf("the cgroup of mk, %s, is not below what is mounted on %s", path, mounts[0].Mountpoint),
		"start the container around mk with a cgroup namespace of its own: --cgroupns private")
}

// nearestBranch is the nearest directory above this process that was given to its user, up to top,
// or else its own; nil when there is none.
func nearestBranch(top, own string) *branch {
	for dir := own; dir != top; {
		dir = filepath.Dir(dir)
		if given(dir) {
			return &branch{dir: dir, crowded: crowded(dir)}
		}
	}
	if given(own) {
		return &branch{dir: own, crowded: crowded(own)}
	}
	return nil
}

// given tells whether children can be made in a directory, and processes moved there and limited.
func given(dir string) bool {
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if unix.Access(filepath.Join(dir, f), unix.W_OK) != nil {
			return false
		}
	}
	return true
}

// crowded tells whether a directory cannot have limited children as it is. The root of all can.
func crowded(dir string) bool {
	return existsCgroup(dir, "cgroup.type") && readCgroup(dir, "cgroup.procs") != ""
}

// parentBranch is --cgroup-parent, a path from the top of the hierarchy, made when it is missing.
func parentBranch(mount, parent string, need []string) (*branch, error) {
	rel := filepath.Clean("/" + parent)
	dir := mount
	for _, name := range strings.Split(strings.Trim(rel, "/"), "/") {
		above := dir
		dir = filepath.Join(dir, name)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return nil, cgroupRefusal("the container in "+parent, err.Error(), adviceParent)
		}
		if err := (&branch{dir: above, crowded: crowded(above), explicit: true}).enable(need, false); err != nil {
			return nil, err
		}
	}
	if !given(dir) {
		return nil, cgroupRefusal("the container in "+parent, dir+" is not yours to divide", adviceParent)
	}
	return &branch{dir: dir, crowded: crowded(dir), explicit: true}, nil
}

// enable makes the controllers work in the directory's children.
func (b *branch) enable(need []string, spare bool) error {
	have, on := strings.Fields(readCgroup(b.dir, "cgroup.controllers")), strings.Fields(readCgroup(b.dir, "cgroup.subtree_control"))
	if spare {
		need = []string{"memory", "pids", "io"} // what statistics want; the time of processors needs none
	}
	for _, c := range need {
		if slices.Contains(on, c) {
			continue
		}
		if !slices.Contains(have, c) {
			if spare {
				continue
			}
			return noController(b.dir, have, "limits of "+c, c)
		}
		err := writeCgroup(b.dir, "cgroup.subtree_control", "+"+c)
		if errors.Is(err, unix.EBUSY) && b.crowded && !b.explicit {
			if err := b.clear(); err != nil {
				return err
			}
			err = writeCgroup(b.dir, "cgroup.subtree_control", "+"+c)
		}
		if err != nil && !spare {
			advice := adviceDelegate(nil)
			if errors.Is(err, unix.EBUSY) {
				advice = "there are processes in it: move them to a cgroup below it, or name another one"
			}
			return cgroupRefusal("by "+c+" in "+b.dir, err.Error(), advice)
		}
	}
	return nil
}

// clear moves the processes of a directory one down.
func (b *branch) clear() error {
	leaf := filepath.Join(b.dir, leafName)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cgroup for the processes in %s: %w", b.dir, err)
	}
	for range 20 { // they may start others meanwhile
		pids := strings.Fields(readCgroup(b.dir, "cgroup.procs"))
		if len(pids) == 0 {
			b.crowded = false
			return nil
		}
		for _, pid := range pids {
			if err := writeCgroup(leaf, "cgroup.procs", pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return cgroupRefusal("the container", fmt.Sprintf("process %s in %s cannot be moved: %v", pid, b.dir, err),
					"start mk in a cgroup of its own: "+ownScope)
			}
		}
	}
	return cgroupRefusal("the container", "the processes in "+b.dir+" start others faster than they can be moved",
		"start mk in a cgroup of its own: "+ownScope)
}

// CgroupState is what this machine gives for limits.
type CgroupState struct {
	Dir         string   `json:",omitempty"` // that can be divided; "" when systemd would make one
	Controllers []string // of Dir
	Systemd     string   `json:",omitempty"` // the bus that would be asked
}

// String is a line of mk info.
func (s *CgroupState) String() string {
	list := strings.Join(s.Controllers, " ")
	switch {
	case s.Systemd != "":
		return "a scope that systemd makes, asked on " + s.Systemd + ": " + list
	case list == "":
		return s.Dir + ", without controllers"
	}
	return s.Dir + ": " + list
}

// Cgroups tells what a container with limits would get. Nothing is changed.
func Cgroups() (*CgroupState, error) {
	mount, own, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	unit, systemds := systemdUnit(mount, own)
	b := nearestBranch(unit, own)
	if b != nil && !systemds {
		return &CgroupState{Dir: b.dir, Controllers: strings.Fields(readCgroup(b.dir, "cgroup.controllers"))}, nil
	}
	bus, err := systemdBus()
	if err == nil {
		return &CgroupState{Systemd: bus, Controllers: systemdControllers(mount)}, nil
	}
	if b != nil {
		return &CgroupState{Dir: b.dir, Controllers: strings.Fields(readCgroup(b.dir, "cgroup.controllers"))}, nil
	}
	return nil, cgroupRefusal("containers", fmt.Sprintf("the cgroup of mk, %s, is not yours to divide, and %v", own, err), adviceDelegate(err))
}
