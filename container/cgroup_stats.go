package container

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Usage is what the processes of a cgroup have used, and use.
type Usage struct {
	At        time.Time
	CPU       time.Duration // of all processors together
	Memory    uint64        // bytes, without what the kernel would drop first
	MemoryMax uint64        // the limit; 0: none
	Pids      uint64
	Read      uint64 // bytes, of block devices
	Written   uint64
	NoMemory  bool // the controller was not given: it is not known
	NoPids    bool
	NoIO      bool
}

// ReadUsage reads the usage of the cgroup in path.
func ReadUsage(path string) (Usage, error) {
	u := Usage{At: time.Now()}
	usec, err := strconv.ParseInt(readCgroupKey(path, "cpu.stat", "usage_usec"), 10, 64)
	if err != nil {
		return u, fmt.Errorf("read usage of %s: %w", path, ErrNotRunning)
	}
	u.CPU = time.Duration(usec) * time.Microsecond
	if text := readCgroup(path, "memory.current"); text != "" {
		u.Memory, _ = strconv.ParseUint(text, 10, 64)
		// docker's: pages of files that nobody has touched for a while are as good as free.
		if cold, _ := strconv.ParseUint(readCgroupKey(path, "memory.stat", "inactive_file"), 10, 64); cold < u.Memory {
			u.Memory -= cold
		}
		u.MemoryMax, _ = strconv.ParseUint(readCgroup(path, "memory.max"), 10, 64) // "max" is 0
	} else {
		u.NoMemory = true
	}
	if text := readCgroup(path, "pids.current"); text != "" {
		u.Pids, _ = strconv.ParseUint(text, 10, 64)
	} else {
		u.NoPids = true
	}
	if !existsCgroup(path, "io.stat") {
		u.NoIO = true
	}
	for line := range strings.Lines(readCgroup(path, "io.stat")) {
		for _, field := range strings.Fields(line) {
			key, value, _ := strings.Cut(field, "=")
			n, _ := strconv.ParseUint(value, 10, 64)
			switch key {
			case "rbytes":
				u.Read += n
			case "wbytes":
				u.Written += n
			}
		}
	}
	return u, nil
}
