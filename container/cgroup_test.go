package container

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The files and values are those of Documentation/admin-guide/cgroup-v2.rst.
func TestLimitsAsFiles(t *testing.T) {
	for _, x := range []struct {
		name   string
		limits Limits
		want   map[string]string
	}{
		{"none", Limits{}, map[string]string{}},
		{"memory alone doubles as swap", Limits{Memory: 64 << 20}, map[string]string{"memory.max": "67108864", "memory.swap.max": "67108864"}},
		{"memory without swap", Limits{Memory: 64 << 20, MemorySwap: 64 << 20}, map[string]string{"memory.max": "67108864", "memory.swap.max": "0"}},
		{"memory and any swap", Limits{Memory: 64 << 20, MemorySwap: -1}, map[string]string{"memory.max": "67108864", "memory.swap.max": "max"}},
		{"taken away", Limits{Memory: -1, MemorySwap: -1, Pids: -1}, map[string]string{"memory.max": "max", "memory.swap.max": "max", "pids.max": "max"}},
		{"cpus", Limits{CPUs: 1.5}, map[string]string{"cpu.max": "150000 100000"}},
		{"the least of cpus", Limits{CPUs: 0.001}, map[string]string{"cpu.max": "1000 100000"}},
		{"quota", Limits{CPUQuota: 20000, CPUPeriod: 50000}, map[string]string{"cpu.max": "20000 50000"}},
		{"period alone", Limits{CPUPeriod: 50000}, map[string]string{"cpu.max": "max 50000"}},
		{"no quota", Limits{CPUQuota: -1}, map[string]string{"cpu.max": "max 100000"}},
		{"sets", Limits{CPUSet: "0-2", MemSet: "0"}, map[string]string{"cpuset.cpus": "0-2", "cpuset.mems": "0"}},
		{"io", Limits{IO: []IOLimits{{Major: 8, Minor: 1, ReadBPS: 5, WriteIOPS: 6}}}, map[string]string{"io.max": "8:1 rbps=5 wiops=6"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			got := map[string]string{}
			for _, s := range x.limits.settings() {
				got[s.file] = s.value
			}
			if diff := cmp.Diff(x.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The ends and the defaults of the two scales meet.
func TestCPUWeight(t *testing.T) {
	for shares, want := range map[int64]int64{2: 1, 1024: 100, 1 << 18: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("%d shares: weight %d, want %d", shares, got, want)
		}
	}
}

// While init works, nothing is limited so far that it could not.
func TestLimitsAtStart(t *testing.T) {
	l := Limits{Memory: 6 << 20, MemorySwap: 6 << 20, Pids: 1}
	got := *l.atStart()
	if got.Memory != startMemory || got.MemorySwap != startMemory || got.Pids != startPids {
		t.Errorf("%+v", got)
	}
	big := Limits{Memory: 1 << 30, Pids: 1000, CPUSet: "0"}
	if diff := cmp.Diff(big, *big.atStart()); diff != "" {
		t.Error(diff)
	}
}
