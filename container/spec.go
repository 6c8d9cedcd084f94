package container

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Spec is all that init needs to become the container: one typed value on a descriptor, nothing
// else consulted. DefaultSpec gives docker's defaults; a zero Spec has no mounts and no limits.
type Spec struct {
	Name string // shown by ps: "mk:init NAME"

	Args []string // Args[0] is looked up in PATH of Env, inside the container
	Env  []string // the whole environment, HOME included
	Cwd  string   // absolute, and there; "" is /
	User User
	Init bool // a reaping init stays pid 1 and passes signals on; false: the command is pid 1, if anybody is

	Hostname   string // "" keeps the one around
	Domainname string
	Umask      uint32
	OOMScore   int // 0: that around (proc_pid_oom_score_adj(5))
	Rlimits    []Rlimit
	Sysctls    map[string]string // "net.ipv4.ip_forward": "1"

	Mounts       []Mount  // in order; later ones may lie in earlier ones
	Masked       []string // hidden under /dev/null or an empty directory; missing ones are skipped
	ReadOnly     []string // made read-only in place; missing ones are skipped
	RootReadOnly bool

	Caps       CapSet // the bounding set, and what root has; inheritable and ambient are empty
	NoNewPrivs bool
	Seccomp    Filter // empty: unconfined

	// Notify is another filter, of calls that a process outside is to answer; it is installed
	// before the command becomes its user, so that it sees that too. Listener is called, by Start,
	// with the descriptor through which they come (seccomp_unotify(2)), which it takes over, and
	// the pid of init as Start sees it, and the mounts that are Owned, which stay Start's; whoever
	// calls waits until somebody answers. stop is called
	// when pid 1 has ended: when it returns, nobody may be in the container's mounts any more.
	// Where the kernel refuses, Listener is not called, and a notice says so.
	Notify   Filter
	Listener func(listener *os.File, pid int, owned []*os.File) (stop func(), err error) `json:"-"`

	Namespaces Namespaces
	Cgroup     *Cgroup       `json:"-"` // of all processes of the container; nil: that of the caller. Start takes it over
	Network    *Network      `json:"-"` // with Namespaces.Net: made before; stays the caller's, and open until after Wait
	Terminal   *Size         // non-nil: a pty of this size in the container's devpts; see Process.Terminal
	Grace      time.Duration // between SIGTERM and SIGKILL when Start's context ends; 0 is half a second
}

// User is who the command runs as, in IDs of the container.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary ones; docker has the primary group among them
}

// Rlimit is one resource limit. Resource is an unix.RLIMIT_ constant.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Namespaces says which namespaces are new; that of mounts always is.
type Namespaces struct {
	HostPID, HostIPC, HostUTS bool              // those of stage inside, in place of new ones
	Net                       bool              // Spec.Network, or one with lo up and nothing else; false: the network of stage inside
	Cgroup                    bool              // rooted in Spec.Cgroup; false: the one around
	Shared                    []SharedNamespace // those of other containers, in place of new ones
	Time                      *TimeOffsets      // nil: the machine's clocks
}

// shares tells whether a kind of namespace is another container's.
func (n *Namespaces) shares(kind int) bool {
	return slices.ContainsFunc(n.Shared, func(s SharedNamespace) bool { return s.Kind == kind })
}

// ownPID tells whether the container has a pid namespace to itself.
func (n *Namespaces) ownPID() bool { return !n.HostPID && !n.shares(unix.CLONE_NEWPID) }

// reaps tells whether init stays, to see to the others: who has no pid namespace of his own is not
// ended with it.
func (s *Spec) reaps() bool { return s.Init || !s.Namespaces.ownPID() }

// Size of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// The types of Mount.
const (
	Bind    = "bind"   // Source, or File, with all that is mounted below it
	Attach  = "attach" // File is a detached mount (fsmount, open_tree); it is moved here, and so used up
	Tmpfs   = "tmpfs"  // Data: size=64m,mode=1777
	Proc    = "proc"   // a fresh one; the outer one with Namespaces.HostPID and, with a notice, where the kernel refuses
	Sysfs   = "sysfs"  // a fresh one with Namespaces.Net; else the outer one
	Dev     = "dev"    // a tmpfs with docker's devices and links
	Devpts  = "devpts" // an instance of its own
	Mqueue  = "mqueue"
	Cgroup2 = "cgroup" // cgroup2: of Namespaces.Cgroup, or else the outer one
)

// Mount is one line of the mount plan.
type Mount struct {
	Type   string
	Source string   // Bind: a path as stage inside sees it, opened by Start
	File   *os.File `json:"-"` // Bind, Attach: in place of Source; stays the caller's
	Dest   string   // absolute, symlinks followed inside the root; made when missing, gone after Wait
	Data   string   // Tmpfs: options of the file system

	ReadOnly, NoSuid, NoDev, NoExec bool
	Owned                           bool // mk's own files: the Listener may keep owners with them
	Optional                        bool // where the kernel refuses, the container goes without, silently
}

// IO is the container's standard streams; nil is /dev/null. They stay the caller's. With a
// terminal they are not used. Being files, they are not copied, and Wait waits for nobody
// but the container.
type IO struct{ Stdin, Stdout, Stderr *os.File }

// DefaultSpec is docker's container, as far as it does not depend on an image: mounts of /proc, /dev
// and /sys, masked and read-only paths, capabilities, and the seccomp filter.
func DefaultSpec(ns Namespaces) *Spec {
	filter, err := DefaultFilter(DefaultCaps)
	if err != nil {
		panic(err) // on architectures that mk is not built for
	}
	s := &Spec{
		Cwd:   "/",
		Umask: 0o022,
		Mounts: []Mount{
			{Type: Proc, Dest: "/proc", NoSuid: true, NoDev: true, NoExec: true},
			{Type: Dev, Dest: "/dev"},
			{Type: Devpts, Dest: "/dev/pts", NoSuid: true, NoExec: true},
			{Type: Tmpfs, Dest: "/dev/shm", Data: "size=64m,mode=1777", NoSuid: true, NoDev: true, NoExec: true},
			{Type: Mqueue, Dest: "/dev/mqueue", NoSuid: true, NoDev: true, NoExec: true, Optional: true},
			{Type: Sysfs, Dest: "/sys", ReadOnly: true, NoSuid: true, NoDev: true, NoExec: true},
		},
		Masked: append([]string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
			"/sys/devices/virtual/powercap", "/sys/firmware",
		}, thermalThrottle()...),
		ReadOnly:   []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		Caps:       DefaultCaps,
		Seccomp:    filter,
		Namespaces: ns,
	}
	s.Mounts = append(s.Mounts, Mount{Type: Cgroup2, Dest: "/sys/fs/cgroup", ReadOnly: true,
		NoSuid: true, NoDev: true, NoExec: true, Optional: true})
	if ns.Net {
		// Ports are the container's own: no privilege is needed for the low ones (docker 20.10).
		s.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	}
	return s
}

// Unconfine gives every power that there is in mk's own user namespace, which is none over the
// machine: run --privileged, RUN --security=insecure.
func (s *Spec) Unconfine() {
	s.Caps = AllCaps
	s.Seccomp, s.NoNewPrivs = nil, false
	s.Masked, s.ReadOnly = nil, nil
	for i := range s.Mounts {
		if m := &s.Mounts[i]; m.Type == Sysfs || m.Type == Cgroup2 {
			m.ReadOnly = false
		}
	}
}

// thermalThrottle are counters by which one container can listen to another; docker hides them.
func thermalThrottle() []string {
	var out []string
	for cpu := range runtime.NumCPU() {
		path := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/thermal_throttle", cpu)
		if _, err := os.Stat(path); err != nil {
			break
		}
		out = append(out, path)
	}
	return out
}

// check refuses what no init could do.
func (s *Spec) check() error {
	if len(s.Args) == 0 || s.Args[0] == "" {
		return fail(126, "there is no command to run")
	}
	for _, text := range slices.Concat(s.Args, s.Env, []string{s.Cwd, s.Name}) {
		if strings.ContainsRune(text, 0) {
			return fail(126, "%q has a NUL byte in it", text)
		}
	}
	if s.Cwd != "" && !filepath.IsAbs(s.Cwd) {
		return fail(126, "working directory %q is not absolute", s.Cwd)
	}
	if len(s.Seccomp)%8 != 0 || len(s.Notify)%8 != 0 {
		return fail(125, "seccomp filters of %d and %d bytes", len(s.Seccomp), len(s.Notify))
	}
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if !filepath.IsAbs(m.Dest) || filepath.Clean(m.Dest) == "/" {
			return fail(125, "mount %s on %q: want an absolute path below /", m.Type, m.Dest)
		}
		switch m.Type {
		case Bind:
			if (m.File == nil) == (m.Source == "") {
				return fail(125, "mount on %s: a bind needs a source or a file", m.Dest)
			}
		case Attach:
			if m.File == nil {
				return fail(125, "mount on %s: there is no file to attach", m.Dest)
			}
		case Tmpfs, Proc, Sysfs, Dev, Devpts, Mqueue, Cgroup2:
		default:
			return fail(125, "mount on %s: unknown type %q", m.Dest, m.Type)
		}
	}
	return nil
}
