package container

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limits are what a container may take of the machine, by docker's flags and in their units. Zero
// is no limit.
type Limits struct {
	Memory      int64 // bytes
	MemorySwap  int64 // bytes of memory and swap together; -1: any swap; 0: as much swap as memory
	Reservation int64 // bytes that are the last to be taken away

	CPUs      float64 // processors' worth of time; in place of the next two
	CPUQuota  int64   // µs of time in each period
	CPUPeriod int64   // µs; 0 is 100 ms
	CPUShares int64   // 2 to 262144, against others of 1024
	CPUSet    string  // processors: 0-2,5
	MemSet    string  // memory nodes

	Pids int64 // processes and threads; < 0: any

	IOWeight int64      // 10 to 1000, against others of 100
	IO       []IOLimits // one a device
}

// IOLimits are those of one block device.
type IOLimits struct {
	Device                                 string // path of its node, for messages
	Major, Minor                           uint32
	ReadBPS, WriteBPS, ReadIOPS, WriteIOPS uint64
}

// IsZero tells whether nothing is limited.
func (l *Limits) IsZero() bool { return len(l.settings()) == 0 }

// Equal tells whether two limit the same.
func (l *Limits) Equal(other *Limits) bool { return slices.Equal(l.settings(), other.settings()) }

// setting is a limit as the kernel takes it.
type setting struct {
	flag       string // that asks for it
	controller string
	file       string
	value      string
	late       bool // larger until the command is executed; see atStart

	optional          bool   // nothing is lost in a kernel without the file
	other, otherValue string // in place of a missing file
}

// While init makes the container, it is a Go program with threads of its own, and pages of what it
// reads; once the command is executed, nothing of it is left. Until just before, no limit is
// smaller than these.
const (
	startMemory = 64 << 20
	startPids   = 64
)

// besides is how many processes and threads of mk's stay in a container's cgroup: the reaper of
// Spec.Init, or stage init, a Go program, where that is not pid 1 of a namespace of its own.
func besides(init, ownPID bool) int64 {
	switch {
	case !ownPID:
		return 16
	case init:
		return 1
	}
	return 0
}

// beside is the limits where n processes of mk's are counted, too.
func (l Limits) beside(n int64) Limits {
	if l.Pids > 0 {
		l.Pids += n
	}
	return l
}

// atStart is the limits while init makes the container.
func (l Limits) atStart() *Limits {
	if l.Memory > 0 && l.Memory < startMemory {
		l.Memory = startMemory
		if l.MemorySwap > 0 {
			l.MemorySwap = max(l.MemorySwap, startMemory)
		}
	}
	if l.Pids > 0 {
		l.Pids = max(l.Pids, startPids)
	}
	l.CPUs, l.CPUQuota, l.CPUPeriod = 0, 0, 0 // a start of 5 ms should not take 50
	return &l
}

// settings translates the limits, in the order to write them.
func (l *Limits) settings() (list []setting) {
	number := func(n int64) string {
		if n < 0 {
			return "max"
		}
		return strconv.FormatInt(n, 10)
	}
	if l.Memory != 0 {
		list = append(list, setting{flag: "--memory", controller: "memory", file: "memory.max", value: number(l.Memory), late: true})
		swap := l.Memory
		switch {
		case l.MemorySwap < 0 || l.Memory < 0:
			swap = -1
		case l.MemorySwap > 0:
			swap = l.MemorySwap - l.Memory
		}
		list = append(list, setting{flag: "--memory-swap", controller: "memory", file: "memory.swap.max", value: number(swap),
			late: true, optional: l.MemorySwap == 0}) // a kernel without swap has no such file
	}
	if l.Reservation != 0 {
		list = append(list, setting{flag: "--memory-reservation", controller: "memory", file: "memory.low", value: number(l.Reservation)})
	}
	if quota, period := l.quota(); quota != 0 {
		list = append(list, setting{flag: l.flagOf("cpu"), controller: "cpu", file: "cpu.max", value: fmt.Sprintf("%s %d", number(quota), period), late: true})
	}
	if l.CPUShares != 0 {
		list = append(list, setting{flag: "--cpu-shares", controller: "cpu", file: "cpu.weight", value: number(cpuWeight(l.CPUShares))})
	}
	if l.CPUSet != "" {
		list = append(list, setting{flag: "--cpuset-cpus", controller: "cpuset", file: "cpuset.cpus", value: l.CPUSet})
	}
	if l.MemSet != "" {
		list = append(list, setting{flag: "--cpuset-mems", controller: "cpuset", file: "cpuset.mems", value: l.MemSet})
	}
	if l.Pids != 0 {
		list = append(list, setting{flag: "--pids-limit", controller: "pids", file: "pids.max", value: number(l.Pids), late: true})
	}
	if l.IOWeight != 0 {
		// The bfq scheduler has docker's range, and a file only where it is loaded.
		list = append(list, setting{flag: "--blkio-weight", controller: "io", file: "io.bfq.weight", value: number(l.IOWeight),
			other: "io.weight", otherValue: number(1 + (l.IOWeight-10)*9999/990)})
	}
	for _, d := range l.IO {
		list = append(list, setting{flag: d.flag(), controller: "io", file: "io.max", value: d.line()})
	}
	return list
}

// quota is the time of each period that the processors work, both in µs; 0 is no limit.
func (l *Limits) quota() (quota, period int64) {
	period = l.CPUPeriod
	if period == 0 {
		period = 100_000
	}
	switch {
	case l.CPUs > 0:
		return max(int64(l.CPUs*float64(period)), 1000), period // the kernel's least is 1 ms
	case l.CPUQuota == 0 && l.CPUPeriod != 0:
		return -1, period
	}
	return l.CPUQuota, period
}

// cpuWeight is the cgroup2 weight, 1 to 10000, of docker's shares, 2 to 262144. A straight line
// through the ends would give the default of the one, 1024, 39 of the other, whose default is 100;
// so it is the exponential of a parabola through all three.
func cpuWeight(shares int64) int64 {
	x := math.Log2(float64(min(max(shares, 2), 1<<18)))
	return int64(math.Ceil(math.Pow(10, (x*x+125*x)/612-7.0/34) - 1e-9))
}

// line is one of io.max.
func (d IOLimits) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d", d.Major, d.Minor)
	for _, x := range []struct {
		key string
		n   uint64
	}{{"rbps", d.ReadBPS}, {"wbps", d.WriteBPS}, {"riops", d.ReadIOPS}, {"wiops", d.WriteIOPS}} {
		if x.n > 0 {
			fmt.Fprintf(&b, " %s=%d", x.key, x.n)
		}
	}
	return b.String()
}

func (d IOLimits) flag() string {
	switch {
	case d.ReadBPS > 0:
		return "--device-read-bps " + d.Device
	case d.WriteBPS > 0:
		return "--device-write-bps " + d.Device
	case d.ReadIOPS > 0:
		return "--device-read-iops " + d.Device
	}
	return "--device-write-iops " + d.Device
}

// controllers lists what of cgroup2 the limits need.
func (l *Limits) controllers() (list []string) {
	for _, s := range l.settings() {
		if !slices.Contains(list, s.controller) {
			list = append(list, s.controller)
		}
	}
	return list
}

// flagOf is the flag that needs a controller.
func (l *Limits) flagOf(controller string) string {
	if controller == "cpu" {
		switch {
		case l.CPUs > 0:
			return "--cpus"
		case l.CPUQuota != 0:
			return "--cpu-quota"
		case l.CPUPeriod != 0:
			return "--cpu-period"
		}
		return "--cpu-shares"
	}
	for _, s := range l.settings() {
		if s.controller == controller {
			return s.flag
		}
	}
	return ""
}
