package container

import (
	"fmt"
	"strings"
)

// CapSet is a set of capabilities, bit n being capability n.
type CapSet uint64

// capNames are the capabilities in the order of their numbers (linux/capability.h).
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// Docker's default set, and every capability there is.
const (
	DefaultCaps CapSet = 0xa80425fb
	AllCaps     CapSet = 1<<len(capNames) - 1
)

// Has reports whether capability n is in the set.
func (c CapSet) Has(n int) bool { return c>>n&1 == 1 }

// hasName takes the name as seccomp profiles write it: CAP_SYS_ADMIN.
func (c CapSet) hasName(name string) bool {
	n := capNumber(name)
	return n >= 0 && c.Has(n)
}

func (c CapSet) String() string {
	var names []string
	for n, name := range capNames {
		if c.Has(n) {
			names = append(names, "CAP_"+name)
		}
	}
	return strings.Join(names, ",")
}

// capNumber is the number of a capability, with or without CAP_ and in any case, or -1.
func capNumber(name string) int {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for n, known := range capNames {
		if known == name {
			return n
		}
	}
	return -1
}

// ParseCaps is the default set changed by the values of --cap-add and --cap-drop, as docker does
// it: dropping ALL leaves what is added, adding ALL leaves out what is dropped.
func ParseCaps(add, drop []string) (CapSet, error) {
	set := DefaultCaps
	added, addAll, err := parseCapList(add)
	if err != nil {
		return 0, err
	}
	dropped, dropAll, err := parseCapList(drop)
	if err != nil {
		return 0, err
	}
	if addAll {
		set = AllCaps
	}
	if dropAll {
		set = 0
	}
	return set&^dropped | added, nil
}

func parseCapList(names []string) (set CapSet, all bool, err error) {
	for _, name := range names {
		if strings.EqualFold(name, "ALL") || strings.EqualFold(name, "CAP_ALL") {
			all = true
			continue
		}
		n := capNumber(name)
		if n < 0 {
			return 0, false, fmt.Errorf("unknown capability %q", name)
		}
		set |= 1 << n
	}
	return set, all, nil
}
