package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	units "github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"mk/container"
)

const statsHelp = `Show what containers use: those that are named, or all that run. Without
--no-stream it goes on until ctrl-c.

The numbers are those of a container's cgroup. One that has none, or has it
without a controller, shows -- in its place.

--format is a Go template over .ID .Name .Container .CPUPerc .MemUsage .MemPerc
.NetIO .BlockIO .PIDs, "table" followed by one, or json.`

// statsLine is a container as docker's templates see it.
type statsLine struct {
	ID, Name, Container, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs string
}

var statsHeadings = map[string]string{
	"ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O",
}

// statsInterval is the time between two looks, docker's.
const statsInterval = time.Second

func newStats(*app) *cobra.Command {
	var all, noStream, noTrunc bool
	var format string
	c := &cobra.Command{Use: "stats [flags] [CONTAINER...]", Short: "Show what containers use", Long: statsHelp}
	c.RunE = func(c *cobra.Command, args []string) error {
		if format == "" || format == "table" {
			format = "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"
		}
		w := &watch{names: args, all: all, noTrunc: noTrunc, last: map[string]container.Usage{}}
		if _, err := w.look(); err != nil { // processors' time is known by two looks
			return err
		}
		clear := strings.HasPrefix(format, "table") && !noStream && term.IsTerminal(int(os.Stdout.Fd()))
		for wait(c.Context(), statsInterval) {
			lines, err := w.look()
			if err != nil {
				return err
			}
			if clear {
				fmt.Fprint(&stdout, "\033[H\033[J")
			}
			if err := printRows(&stdout, format, lines, statsHeadings); err != nil || noStream {
				return err
			}
		}
		return nil
	}
	fl := c.Flags()
	fl.BoolVarP(&all, "all", "a", false, "those that do not run, too")
	fl.BoolVar(&noStream, "no-stream", false, "show it once")
	fl.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	fl.StringVar(&format, "format", "", "Go template, \"table\" with one, or json")
	return c
}

// wait waits; false when the context ended.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// watch looks at containers again and again.
type watch struct {
	names        []string
	all, noTrunc bool
	last         map[string]container.Usage
}

func (w *watch) look() ([]statsLine, error) {
	var list []*container.Container
	var err error
	if len(w.names) > 0 {
		list, err = findContainers(w.names)
	} else {
		var s *container.Store
		if s, err = openContainers(); err == nil {
			list, err = s.List()
		}
	}
	if err != nil {
		return nil, err
	}
	lines := []statsLine{}
	for _, c := range list {
		st, err := c.Status()
		if err != nil {
			return nil, err
		}
		if st.Pid == 0 && !w.all && len(w.names) == 0 {
			continue
		}
		lines = append(lines, w.line(c, st))
	}
	return lines, nil
}

// line is one container; what is not known is --.
func (w *watch) line(c *container.Container, st container.Status) statsLine {
	l := statsLine{ID: c.ShortID(), Name: c.Name, Container: c.ShortID(),
		CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "-- / --", BlockIO: "-- / --", PIDs: "--"}
	if w.noTrunc {
		l.ID, l.Container = c.ID, c.ID
	}
	if st.Pid == 0 {
		return l
	}
	if in, out, err := netUse(st.Pid); err == nil {
		l.NetIO = units.HumanSizeWithPrecision(float64(in), 3) + " / " + units.HumanSizeWithPrecision(float64(out), 3)
	}
	if st.Cgroup == "" {
		return l
	}
	u, err := container.ReadUsage(st.Cgroup)
	if err != nil { // it ended just now
		return l
	}
	if before, ok := w.last[c.ID]; ok && u.At.After(before.At) && u.CPU >= before.CPU {
		l.CPUPerc = fmt.Sprintf("%.2f%%", 100*float64(u.CPU-before.CPU)/float64(u.At.Sub(before.At)))
	}
	w.last[c.ID] = u
	if !u.NoMemory {
		limit := machineMemory()
		if u.MemoryMax > 0 {
			limit = min(limit, u.MemoryMax)
		}
		l.MemUsage = units.BytesSize(float64(u.Memory)) + " / " + units.BytesSize(float64(limit))
		l.MemPerc = fmt.Sprintf("%.2f%%", 100*float64(u.Memory)/float64(limit))
	}
	if !u.NoIO {
		l.BlockIO = units.HumanSizeWithPrecision(float64(u.Read), 3) + " / " + units.HumanSizeWithPrecision(float64(u.Written), 3)
	}
	if !u.NoPids {
		l.PIDs = fmt.Sprint(u.Pids)
	}
	return l
}

func machineMemory() uint64 {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	return uint64(s.Totalram) * uint64(s.Unit)
}

// netUse is what a process' network namespace has received and sent, without lo; nothing when the
// namespace is ours, as docker counts nothing of the host's.
func netUse(pid int) (in, out uint64, err error) {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err == nil {
		if ours, err := os.Readlink("/proc/self/ns/net"); err == nil && ours == theirs {
			return 0, 0, nil
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, numbers, ok := strings.Cut(line, ":")
		f := strings.Fields(numbers)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) < 9 {
			continue
		}
		var r, t uint64
		fmt.Sscan(f[0], &r)
		fmt.Sscan(f[8], &t)
		in, out = in+r, out+t
	}
	return in, out, nil
}
