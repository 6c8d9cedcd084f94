package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	units "github.com/docker/go-units"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"mk/container"
)

// limits are the words about what of the machine a container may take. What they come to is
// container.Limits.
type limits struct {
	memory, memorySwap, reservation string
	cpus                            string
	cpuPeriod, cpuQuota, cpuShares  int64
	cpuSet, memSet                  string
	pids                            int64
	ioWeight                        int64
	readBPS, writeBPS               []string
	readIOPS, writeIOPS             []string
	parent                          string
}

// defineBuild adds the flags that docker's build has.
func (l *limits) defineBuild(fl *pflag.FlagSet) {
	l.defineMemory(fl)
	l.defineCPU(fl)
	l.defineParent(fl)
}

// define adds those of docker's run.
func (l *limits) define(fl *pflag.FlagSet) {
	l.defineUpdate(fl)
	fl.Var((*list)(&l.readBPS), "device-read-bps", "most bytes a second read from a block device, as PATH:SIZE")
	fl.Var((*list)(&l.writeBPS), "device-write-bps", "most bytes a second written to a block device, as PATH:SIZE")
	fl.Var((*list)(&l.readIOPS), "device-read-iops", "most reads a second of a block device, as PATH:N")
	fl.Var((*list)(&l.writeIOPS), "device-write-iops", "most writes a second to a block device, as PATH:N")
	l.defineParent(fl)
}

// defineUpdate adds those that can be changed later.
func (l *limits) defineUpdate(fl *pflag.FlagSet) {
	l.defineMemory(fl)
	l.defineCPU(fl)
	fl.StringVar(&l.reservation, "memory-reservation", "", "memory that is the last to be taken away")
	fl.StringVar(&l.cpus, "cpus", "", "processors' worth of time, as 1.5")
	fl.Int64Var(&l.pids, "pids-limit", 0, "most processes and threads; -1: any number")
	fl.Int64Var(&l.ioWeight, "blkio-weight", 0, "share of the disk, 10 to 1000, against others' 100")
}

func (l *limits) defineMemory(fl *pflag.FlagSet) {
	fl.StringVarP(&l.memory, "memory", "m", "", "most memory, as 512m")
	fl.StringVar(&l.memorySwap, "memory-swap", "", "most memory and swap together; -1: any swap (default: twice the memory)")
}

func (l *limits) defineCPU(fl *pflag.FlagSet) {
	fl.Int64VarP(&l.cpuShares, "cpu-shares", "c", 0, "share of the processors, against others' 1024")
	fl.Int64Var(&l.cpuPeriod, "cpu-period", 0, "µs in which --cpu-quota is counted")
	fl.Int64Var(&l.cpuQuota, "cpu-quota", 0, "µs of processor time in each --cpu-period (default period: 100000)")
	fl.StringVar(&l.cpuSet, "cpuset-cpus", "", "processors to run on, as 0-2,5")
	fl.StringVar(&l.memSet, "cpuset-mems", "", "memory nodes to use, as 0,1")
}

func (l *limits) defineParent(fl *pflag.FlagSet) {
	fl.StringVar(&l.parent, "cgroup-parent", "", "cgroup to make the container's in: a path from the top, or a systemd slice")
}

// parse reads the words over what was there: those that were not said leave it as it is.
func (l *limits) parse(over container.Limits) (_ container.Limits, err error) {
	out := over
	size := func(flag, word string, to *int64, least int64) {
		if word == "" || err != nil {
			return
		}
		if word == "-1" {
			*to = -1
			return
		}
		n, perr := units.RAMInBytes(word)
		switch {
		case perr != nil || n < 0:
			err = fmt.Errorf("%s %s: want a size, like 512m", flag, word)
		case n < least:
			err = fmt.Errorf("%s %s: want %s at least", flag, word, strings.ToLower(strings.TrimSuffix(size2(least), "iB")))
		default:
			*to = n
		}
	}
	size("--memory", l.memory, &out.Memory, leastMemory)
	size("--memory-swap", l.memorySwap, &out.MemorySwap, 0)
	size("--memory-reservation", l.reservation, &out.Reservation, leastMemory)
	if err != nil {
		return over, err
	}
	if out.Memory == -1 {
		out.Memory = 0
		if over.Memory > 0 {
			out.Memory, out.MemorySwap = -1, -1 // of a running container: taken away
		}
	}
	switch {
	case l.memorySwap != "" && out.MemorySwap != 0 && out.Memory == 0:
		return over, errors.New("--memory-swap: it counts memory and swap together, so --memory is needed too")
	case out.MemorySwap > 0 && out.MemorySwap < out.Memory:
		return over, fmt.Errorf("--memory-swap: it counts memory and swap together, so it cannot be less than the memory, %s", size2(out.Memory))
	case out.Reservation > 0 && out.Memory > 0 && out.Reservation > out.Memory:
		return over, fmt.Errorf("--memory-reservation: it cannot be more than --memory, %s", size2(out.Memory))
	}
	if l.cpus != "" {
		n, perr := strconv.ParseFloat(l.cpus, 64)
		if perr != nil || math.IsNaN(n) || n < 0.01 || n > float64(runtime.NumCPU()) {
			return over, fmt.Errorf("--cpus %s: want a number from 0.01 to %d, which is what the machine has", l.cpus, runtime.NumCPU())
		}
		if l.cpuQuota != 0 || l.cpuPeriod != 0 {
			return over, errors.New("--cpus and --cpu-period or --cpu-quota: they say the same, say one")
		}
		out.CPUs, out.CPUQuota, out.CPUPeriod = n, 0, 0
	}
	for _, x := range []struct {
		flag        string
		n           int64
		least, most int64
		to          *int64
	}{
		{"--cpu-period", l.cpuPeriod, 1000, 1_000_000, &out.CPUPeriod},
		{"--cpu-quota", l.cpuQuota, 1000, math.MaxInt64, &out.CPUQuota},
		{"--cpu-shares", l.cpuShares, 2, 1 << 18, &out.CPUShares},
		{"--pids-limit", l.pids, 1, math.MaxInt64, &out.Pids},
		{"--blkio-weight", l.ioWeight, 10, 1000, &out.IOWeight},
	} {
		switch {
		case x.n == 0:
		case x.n == -1 && (x.to == &out.CPUQuota || x.to == &out.Pids):
			*x.to = -1
		case x.n < x.least || x.n > x.most:
			if x.most == math.MaxInt64 {
				return over, fmt.Errorf("%s %d: want %d at least, or -1", x.flag, x.n, x.least)
			}
			return over, fmt.Errorf("%s %d: want a number from %d to %d", x.flag, x.n, x.least, x.most)
		default:
			*x.to = x.n
		}
	}
	if l.cpuQuota != 0 || l.cpuPeriod != 0 {
		out.CPUs = 0
	}
	for _, x := range []struct {
		flag, word string
		to         *string
	}{{"--cpuset-cpus", l.cpuSet, &out.CPUSet}, {"--cpuset-mems", l.memSet, &out.MemSet}} {
		if strings.Trim(x.word, "0123456789,-") != "" {
			return over, fmt.Errorf("%s %s: want numbers and ranges, as 0-2,5", x.flag, x.word)
		}
		if x.word != "" {
			*x.to = x.word
		}
	}
	out.IO, err = l.devices()
	return out, err
}

// leastMemory is docker's.
const leastMemory = 6 << 20

func size2(n int64) string { return units.BytesSize(float64(n)) }

// devices reads the limits of block devices.
func (l *limits) devices() (list []container.IOLimits, err error) {
	for _, x := range []struct {
		flag  string
		words []string
		bytes bool
		set   func(*container.IOLimits, uint64)
	}{
		{"--device-read-bps", l.readBPS, true, func(d *container.IOLimits, n uint64) { d.ReadBPS = n }},
		{"--device-write-bps", l.writeBPS, true, func(d *container.IOLimits, n uint64) { d.WriteBPS = n }},
		{"--device-read-iops", l.readIOPS, false, func(d *container.IOLimits, n uint64) { d.ReadIOPS = n }},
		{"--device-write-iops", l.writeIOPS, false, func(d *container.IOLimits, n uint64) { d.WriteIOPS = n }},
	} {
		for _, word := range x.words {
			path, amount, _ := strings.Cut(word, ":")
			var n int64
			if x.bytes {
				n, err = units.RAMInBytes(amount)
			} else {
				n, err = strconv.ParseInt(amount, 10, 64)
			}
			if err != nil || n <= 0 {
				return nil, fmt.Errorf("%s %s: want PATH:AMOUNT, with an amount above 0", x.flag, word)
			}
			d := container.IOLimits{Device: path}
			if d.Major, d.Minor, err = blockDevice(path); err != nil {
				return nil, fmt.Errorf("%s %s: %w", x.flag, word, err)
			}
			x.set(&d, uint64(n))
			list = append(list, d)
		}
	}
	return list, nil
}

func blockDevice(path string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, errors.New("it is not a block device")
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}
