package container

import (
	"os"
	"time"
)

// Spec is all that init needs to become the container: one typed value on a descriptor, nothing
// else consulted. DefaultSpec gives docker's defaults; a zero Spec has no mounts and no limits.
type Spec struct {
	Name string // shown by ps: "mk:init NAME"

	Args []string // Args[0] is looked up in PATH of Env, inside the container
	Env  []string // the whole environment, HOME included; a missing PATH is docker's default
	Cwd  string   // absolute, exists; "" is /
	User User
	Init bool // a reaping init stays pid 1 and passes signals on; false: the process is pid 1

	Hostname   string
	Domainname string
	Umask      uint32
	Rlimits    []Rlimit
	Sysctls    map[string]string // "net.ipv4.ip_forward" → "1"

	Mounts       []Mount  // in order; later ones may lie in earlier ones
	Masked       []string // hidden under /dev/null or an empty tmpfs; missing ones are skipped
	ReadOnly     []string // made read-only in place; missing ones are skipped
	RootReadOnly bool

	Caps       CapSet // bounding, permitted and effective set; the others are empty
	NoNewPrivs bool
	Seccomp    Filter // the compiled filter; empty: unconfined

	Namespaces Namespaces
	Terminal   *Size         // non-nil: a pty of this size in the container's devpts, master by Process.Terminal
	Grace      time.Duration // between SIGTERM and SIGKILL when Start's context ends; 0 is half a second
}

// User is who the process runs as, in IDs of the container.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary, the primary group included
}

// Rlimit is one resource limit; Resource is an unix.RLIMIT_ constant.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Namespaces says which of the optional namespaces are new. Mount, pid, ipc and uts always are.
type Namespaces struct {
	Net    bool // only lo, and that up; false: the network of stage inside
	Cgroup bool // skipped with a notice where the kernel refuses
}

// Size of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// The types of Mount.
const (
	Bind   = "bind"   // Source, or File, and all that is mounted below it
	Attach = "attach" // File is a detached mount (fsmount, open_tree); it is moved, not copied
	Tmpfs  = "tmpfs"  // Data: size=64m,mode=1777
	Proc   = "proc"   // fresh; where the kernel refuses, the outer one with a notice
	Sysfs  = "sysfs"  // fresh with Namespaces.Net; else the outer one, read-only
	Dev    = "dev"    // a tmpfs with docker's devices and links
	Devpts = "devpts" // an instance of its own
	Mqueue = "mqueue"
	Cgroup = "cgroup" // cgroup2; skipped where there is none
)

// Mount is one line of the mount plan.
type Mount struct {
	Type   string
	Source string   // Bind: a path as stage inside sees it, opened by Start
	File   *os.File `json:"-"` // Bind, Attach: in place of Source; stays the caller's
	Dest   string   // absolute; resolved inside the root; created when missing, removed again by Wait
	Data   string   // Tmpfs: options of the file system

	ReadOnly, NoSuid, NoDev, NoExec bool
	Optional                        bool // where the kernel refuses: a notice, not an error
}

// IO is the container's standard streams; nil is /dev/null. They stay the caller's. Only real
// descriptors: nothing is copied, so Wait waits for nobody but the container.
type IO struct{ Stdin, Stdout, Stderr *os.File }
