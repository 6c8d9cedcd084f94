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
	c := &cobra.Command{
		Use: "top CONTAINER [-o FIELDS]", Short: "List the processes of a running container", Args: cobra.MinimumNArgs(1),
		Long: topHelp,
		RunE: func(_ *cobra.Command, args []string) error {
			fields, err := topFields(args[1:])
			if err != nil {
				return err
			}
			all, err := findContainers(args[:1])
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
			return printProcesses(st.Pid, kind, fields)
		},
	}
	c.Flags().SetInterspersed(false) // what follows the container is ps's
	return c
}

const topHelp = `List the processes of a running container, with the IDs that the machine knows them by.

-o FIELDS, as of ps, takes user, pid, ppid, stime, tty, time, comm and args.`

// topFields reads options of ps, as docker has them, or names of fields, as podman.
func topFields(words []string) ([]string, error) {
	fields := strings.Split("user,pid,ppid,stime,tty,time,args", ",")
	switch text := strings.Join(words, " "); {
	case text == "" || text == "-ef":
		return fields, nil
	case strings.HasPrefix(text, "-o") || strings.HasPrefix(text, "-eo"):
		words = strings.FieldsFunc(strings.TrimPrefix(strings.TrimPrefix(text, "-eo"), "-o"), func(r rune) bool { return r == ',' || r == ' ' })
	case strings.HasPrefix(text, "-"):
		return nil, fmt.Errorf("top: %s: want -o FIELDS", text)
	}
	for i, w := range words {
		switch w {
		case "cmd", "command":
			words[i] = "args"
		case "uid":
			words[i] = "user"
		case "start":
			words[i] = "stime"
		case "user", "pid", "ppid", "stime", "tty", "time", "comm", "args":
		default:
			return nil, fmt.Errorf("top: there is no field %q: want user, pid, ppid, stime, tty, time, comm or args", w)
		}
	}
	return words, nil
}

// topHeadings are those of ps -ef.
var topHeadings = map[string]string{"user": "UID", "comm": "COMMAND", "args": "CMD"}

// printProcesses prints, as ps -ef does, the processes in a namespace of a process.
func printProcesses(pid int, kind string, fields []string) error {
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
	w := tabwriter.NewWriter(&stdout, 0, 8, 3, ' ', 0)
	var row []string
	for _, f := range fields {
		heading := topHeadings[f]
		if heading == "" {
			heading = strings.ToUpper(f)
		}
		row = append(row, heading)
	}
	fmt.Fprintln(w, strings.Join(row, "\t"))
	for _, e := range entries {
		if link, err := os.Readlink("/proc/" + e.Name() + "/ns/" + kind); err != nil || link != ns {
			continue
		}
		if p, ok := readProcess(e.Name()); ok {
			const ticks = 100 // USER_HZ, the same on every Linux
			start := boot.Add(time.Duration(p.start) * time.Second / ticks)
			cpu := time.Duration(p.ticks) * time.Second / ticks
			values := map[string]string{"user": p.user, "pid": e.Name(), "ppid": p.parent, "stime": start.Format("15:04"), "tty": p.tty,
				"time": fmt.Sprintf("%02d:%02d:%02d", int(cpu.Hours()), int(cpu.Minutes())%60, int(cpu.Seconds())%60), "args": p.command, "comm": p.name}
			row = row[:0]
			for _, f := range fields {
				row = append(row, values[f])
			}
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
	}
	return w.Flush()
}

// process is what top prints of one.
type process struct {
	user, parent, tty, command, name string
	start, ticks                     uint64
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
	p.command, p.name = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")), string(stat[open+1:end])
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
