// Bench measures mk beside floors and peers, on the same work, in one run.
//
// A floor is the least that the machine can do for that work: the namespaces and the
// overlay by unshare and mount, the copy by cp, the compression by pigz. A peer is
// buildah, podman or BuildKit, when it is on PATH. All contestants of a work take turns, so that
// a machine that gets slower in the middle is unfair to nobody; the table has medians,
// and of mk its ratio to the floor.
//
//	go run ./bench -mk bin/mk              everything, 5 rounds
//	go run ./bench -mk bin/mk -only COPY   some lines
//
// It runs as an ordinary user (make bench sees to that) and needs a static busybox.
// README.md says what each line means. Nothing here is a test: no time is asserted.
package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	mk := flag.String("mk", "bin/mk", "the mk to measure")
	rounds := flag.Int("n", 5, "rounds of each work, after one to warm up")
	budget := flag.Duration("budget", time.Minute, "begin no further round of a work after this time")
	only := flag.String("only", "", "measure only the works whose name matches this expression")
	alone := flag.Bool("alone", false, "leave the peers out")
	flag.Parse()
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	if err := run(*mk, *only, *alone, limits{*rounds, *budget}); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// limits of one work: it has at least the round that warms up and one more. A work of a few milliseconds
// goes on until mk took a second in all, or ten times its rounds: five of those say more of what else the
// machine did than of mk.
type limits struct {
	rounds int
	budget time.Duration
}

func run(mk, only string, alone bool, limits limits) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if mk, err = filepath.Abs(mk); err != nil {
		return err
	}
	b, err := newBench(mk, alone)
	if err != nil {
		return err
	}
	defer b.Close()
	b.describe()

	table := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "work\tfloor\tmk\tmk/floor\tby cpu\tmark\tpeers")
	defer table.Flush() // of what was measured, whatever comes
	var missed []string
	for _, w := range b.works() {
		if !wanted.MatchString(w.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s\n", w.name)
		results, err := w.measure(limits)
		if err != nil {
			fmt.Fprintf(os.Stderr, "  left out: %v\n", err)
			missed = append(missed, w.name)
			continue
		}
		row := w.row(results)
		fmt.Fprintln(table, row)
		fmt.Fprintf(os.Stderr, "  %s\n", strings.ReplaceAll(row, "\t", " | "))
	}
	if len(missed) > 0 {
		return fmt.Errorf("left out: %s", strings.Join(missed, "; "))
	}
	return nil
}

// work is one line of the table.
type work struct {
	name        string
	mark        string // what issue and design want of mk
	memory      bool   // compare peak memory, not time
	contestants []contestant
}

// contestant does a work its own way. prepare is not timed.
type contestant struct {
	name    string
	prepare func() error
	command func() *exec.Cmd      // a fresh one for each round
	measure func() error          // instead of command: work of this process itself
	weigh   func() (int64, error) // instead of command: bytes of memory
}

// result is what one contestant took: a time or bytes of memory, by round.
type result struct {
	name  string
	took  []time.Duration
	cpu   []time.Duration // user and system, of the process and all it waited for
	peak  []int64
	error error
}

// measure lets all contestants take turns. The first round warms up and never counts, and
// one that does follows whatever the budget: of a rebuild, the first is the build. A peer that fails drops out with its error; mk
// and the floor must not fail.
func (w *work) measure(limits limits) ([]*result, error) {
	results := make([]*result, len(w.contestants))
	for i, c := range w.contestants {
		results[i] = &result{name: c.name}
	}
	begin := time.Now()
	for round := 0; limits.another(round, results, time.Since(begin)); round++ {
		for i, c := range w.contestants {
			r := results[i]
			if r.error != nil {
				continue
			}
			took, cpu, peak, err := c.once()
			if err != nil {
				if c.name == "floor" || c.name == "mk" {
					return nil, fmt.Errorf("%s: %w", c.name, err)
				}
				r.error = err
				fmt.Fprintf(os.Stderr, "  %s drops out: %v\n", c.name, err)
				continue
			}
			if round == 1 {
				r.took, r.cpu, r.peak = nil, nil, nil
			}
			r.took = append(r.took, took)
			r.cpu = append(r.cpu, cpu)
			r.peak = append(r.peak, peak)
		}
	}
	return results, nil
}

// another says whether one more round follows those that were measured.
func (l limits) another(round int, results []*result, elapsed time.Duration) bool {
	switch {
	case round <= 1:
		return true
	case elapsed >= l.budget:
		return false
	case round <= l.rounds:
		return true
	}
	var took time.Duration
	for _, r := range results {
		if r.name == "mk" {
			for _, t := range r.took {
				took += t
			}
		}
	}
	return took < time.Second && round <= 10*l.rounds
}

func (c *contestant) once() (took, cpu time.Duration, peak int64, err error) {
	if c.prepare != nil {
		if err := c.prepare(); err != nil {
			return 0, 0, 0, fmt.Errorf("prepare: %w", err)
		}
	}
	if c.weigh != nil {
		peak, err = c.weigh()
		return 0, 0, peak, err
	}
	syscall.Sync() // what the one before wrote is not this one's burden
	if err := lighten(); err != nil {
		return 0, 0, 0, err
	}
	begin := time.Now()
	if c.measure != nil {
		before := cpuOf(syscall.RUSAGE_SELF)
		err := c.measure()
		return time.Since(begin), cpuOf(syscall.RUSAGE_SELF) - before, 0, err
	}
	before := cpuOf(syscall.RUSAGE_CHILDREN)
	cmd := c.command()
	out, err := cmd.CombinedOutput()
	took = time.Since(begin)
	reap()
	cpu = cpuOf(syscall.RUSAGE_CHILDREN) - before
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return 0, 0, 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.Join(lines[max(0, len(lines)-3):], " / "))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return took, cpu, usage.Maxrss << 10, nil // the highest of the process and all it waited for
}

// lighten makes this process as small as it can be, also for the past: a child begins with the highest resident
// set that its parent ever had (proc_pid_clear_refs(5), "5"; exec keeps it in ru_maxrss).
func lighten() error {
	debug.FreeOSMemory()
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// cpuOf is the processor time of this process, or of those that it waited for and those that
// they did, until now.
func cpuOf(who int) time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// daemons are children of this process that stay.
var daemons []int

// reap waits a moment for what a command left behind: mk run says goodbye before its inside is
// gone, and its time counts too. Orphans are ours, see main.
func reap() {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.ECHILD {
				return
			}
			if pid <= 0 {
				break
			}
		}
		if len(daemons) > 0 && !somethingEnds() {
			return
		}
	}
}

// somethingEnds says whether this process has a child that is no daemon.
func somethingEnds() bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path) // "" if it ended meanwhile
		pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // proc_pid_stat(5): state, parent
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) && !slices.Contains(daemons, pid) {
			return true
		}
	}
	return false
}

// row is the work's line: medians, and mk against the floor.
func (w *work) row(results []*result) string {
	cells := map[string]string{"floor": "–", "mk": "–"}
	ratio, byCPU := "–", "–"
	var peers []string
	var floor, mk, floorCPU, mkCPU float64
	for _, r := range results {
		var value float64
		var text string
		switch {
		case r.error != nil:
			text = "failed"
		case w.memory:
			value = float64(median(r.peak))
			text = fmt.Sprintf("%.0f MiB", value/(1<<20))
		default:
			value = float64(median(r.took))
			text = human(time.Duration(value))
		}
		switch r.name {
		case "floor":
			floor, floorCPU = value, float64(median(r.cpu))
			cells["floor"] = text
		case "mk":
			mk, mkCPU = value, float64(median(r.cpu))
			cells["mk"] = text
		default:
			peers = append(peers, r.name+" "+text)
		}
	}
	if floor > 0 {
		ratio = fmt.Sprintf("%.2f", mk/floor)
	}
	if floorCPU > 0 {
		byCPU = fmt.Sprintf("%.2f", mkCPU/floorCPU)
	}
	return strings.Join([]string{w.name, cells["floor"], cells["mk"], ratio, byCPU, w.mark, strings.Join(peers, ", ")}, "\t")
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// human prints three digits of a time.
func human(d time.Duration) string {
	switch {
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
