package main

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mk/container"
)

func newTop(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "top CONTAINER", Short: "List the processes of a running container", Args: cobra.ExactArgs(1),
		Long: "List the processes of a running container, with the IDs that the machine knows them by.",
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := findContainers(args)
			if err != nil {
				return err
			}
			st, err := all[0].Status()
			if err != nil {
				return err
			}
			if st.Pid == 0 {
				return &exitError{status: exitFailed, err: fmt.Errorf("top: %s: %w", all[0].Name, container.ErrNotRunning)}
			}
			v, err := look(all[0])
			if err != nil {
				return err
			}
			kind := "pid"
			if v.words.PID != "private" && v.words.PID != "" { // what is in there is not all its own
				kind = "mnt"
			}
			return printProcesses(st.Pid, kind)
		},
	}
}

// printProcesses prints, as ps -ef does, the processes in a namespace of a process.
func printProcesses(pid int, kind string) error {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return err
	}
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	seconds, _ := strconv.ParseFloat(strings.Fields(string(up))[0], 64)
	boot := time.Now().Add(-time.Duration(seconds * float64(time.Second)))
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "UID\tPID\tPPID\tSTIME\tTTY\tTIME\tCMD")
	for _, e := range entries {
		if link, err := os.Readlink("/proc/" + e.Name() + "/ns/" + kind); err != nil || link != ns {
			continue
		}
		if p, ok := readProcess(e.Name()); ok {
			const ticks = 100 // USER_HZ, the same on every Linux
			start := boot.Add(time.Duration(p.start) * time.Second / ticks)
			cpu := time.Duration(p.ticks) * time.Second / ticks
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%02d:%02d:%02d\t%s\n", p.user, e.Name(), p.parent, start.Format("15:04"), p.tty,
				int(cpu.Hours()), int(cpu.Minutes())%60, int(cpu.Seconds())%60, p.command)
		}
	}
	return w.Flush()
}

// process is what top prints of one.
type process struct {
	user, parent, tty, command string
	start, ticks               uint64
}

func readProcess(pid string) (p process, ok bool) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return p, false
	}
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open {
		return p, false
	}
	f := strings.Fields(string(stat[end+1:])) // from field 3 of proc(5) on
	if len(f) < 20 {
		return p, false
	}
	number := func(i int) uint64 { n, _ := strconv.ParseUint(f[i-3], 10, 64); return n }
	p.parent, p.start, p.ticks, p.tty = f[4-3], number(22), number(14)+number(15), "?"
	if t := number(7); t>>8&0xfff == 136 { // a pty
		p.tty = fmt.Sprintf("pts/%d", t&0xff|t>>12&0xfff00)
	}
	line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
	p.command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	if p.command == "" {
		p.command = "[" + string(stat[open+1:end]) + "]"
	}
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	for line := range strings.Lines(string(status)) {
		if uids, found := strings.CutPrefix(line, "Uid:"); found {
			p.user = strings.Fields(uids)[0]
			if u, err := user.LookupId(p.user); err == nil {
				p.user = u.Username
			}
		}
	}
	return p, true
}
