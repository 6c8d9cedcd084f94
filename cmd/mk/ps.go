package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"mk/container"
)

const psHelp = `List containers, the newest first: those that run or, with --all, every one.

--filter takes id, name, label=KEY[=value], status=created|running|paused|exited,
exited=CODE, ancestor=IMAGE, health=healthy|…, before=CONTAINER,
since=CONTAINER, volume=NAME, network=NAME, publish=PORT and expose=PORT.
--format is a Go template over .ID .Image .Command .CreatedAt .RunningFor .Status
.State .Ports .Names .Labels .Mounts .LocalVolumes .Networks .Size .Platform, "table" followed by one, or
json.`

// containerLine is a container as docker's templates see it.
type containerLine struct {
	ID, Image, Command, CreatedAt, RunningFor, Status, State, Ports, Names, Labels, Mounts, LocalVolumes, Networks, Size, Platform string

	labels map[string]string
}

// Label is the template's .Label "key".
func (l containerLine) Label(key string) string { return l.labels[key] }

var containerHeadings = map[string]string{"ID": "CONTAINER ID", "RunningFor": "CREATED", "LocalVolumes": "LOCAL VOLUMES"}

// seen is a container at one moment.
type seen struct {
	*container.Container
	status  container.Status
	words   words
	network *container.NetworkStatus // nil: the machine's, or it does not run
}

func look(c *container.Container) (seen, error) {
	st, err := c.Status()
	if err != nil {
		return seen{}, err
	}
	s := seen{Container: c, status: st}
	if s.network, err = c.Network(); err != nil {
		return seen{}, err
	}
	return s, json.Unmarshal(c.Words, &s.words)
}

func newPs(a *app) *cobra.Command {
	var all, quiet, noTrunc, latest, sizes bool
	var last int
	var format string
	var filters []string
	c := &cobra.Command{
		Use: "ps [flags]", Short: "List containers", Long: psHelp, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := openContainers()
			if err != nil {
				return err
			}
			list, err := s.List()
			if err != nil {
				return err
			}
			keep, states, err := containerFilter(s, filters)
			if err != nil {
				return err
			}
			if latest {
				last = 1
			}
			var lines []containerLine
			for _, c := range list {
				v, err := look(c)
				if err != nil {
					fmt.Fprintf(os.Stderr, "mk: container %s: %v\n", c.Name, err)
					continue
				}
				if !all && last <= 0 && !states && !v.status.Running || !keep(v) {
					continue
				}
				if last > 0 && len(lines) == last {
					break
				}
				lines = append(lines, v.line(noTrunc, sizes))
			}
			switch {
			case quiet:
				for _, l := range lines {
					fmt.Fprintln(&stdout, l.ID)
				}
				return nil
			case format == "" || format == "table":
				format = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
				if sizes {
					format += "\t{{.Size}}"
				}
			}
			return printRows(&stdout, format, lines, containerHeadings)
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&all, "all", "a", false, "those that do not run, too")
	fl.BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	fl.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	fl.BoolVarP(&latest, "latest", "l", false, "the newest only, whether it runs or not")
	fl.IntVarP(&last, "last", "n", -1, "the newest N only, whether they run or not")
	fl.BoolVarP(&sizes, "size", "s", false, "show what they take on disk")
	fl.StringVar(&format, "format", "", "Go template, \"table\" with one, or json")
	fl.VarP((*list)(&filters), "filter", "f", "list only these, as KEY=value")
	return c
}

// line is what ps prints of a container.
func (v seen) line(noTrunc, sizes bool) containerLine {
	command := strings.Join(v.Command, " ")
	l := containerLine{
		ID: v.ShortID(), Image: v.Image, Command: command,
		CreatedAt: v.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), RunningFor: since(v.Created),
		Status: v.statusText(), State: v.status.State(), Names: v.Name, Networks: strings.Join(v.words.networks(), ","), labels: v.Labels,
	}
	if noTrunc {
		l.ID = v.ID
	} else if r := []rune(command); len(r) > 20 {
		l.Command = string(r[:19]) + "…"
	}
	l.Command = strconv.Quote(l.Command)
	var labels, mounts []string
	for k, val := range v.Labels {
		labels = append(labels, k+"="+val)
	}
	sort.Strings(labels)
	l.Labels = strings.Join(labels, ",")
	for _, p := range v.words.Places {
		if p.Source != "" {
			mounts = append(mounts, p.Source)
		}
	}
	l.Mounts = strings.Join(mounts, ",")
	volumes := 0
	for _, p := range v.words.Places {
		if p.Type == "volume" {
			volumes++
		}
	}
	l.LocalVolumes, l.Platform = strconv.Itoa(volumes), "linux"
	if v.status.Running && v.words.isolated() {
		var published []container.Port
		if v.network != nil {
			published = v.network.Ports
		}
		l.Ports = portsText(v.words.Exposed, published)
	}
	if sizes {
		l.Size = size(diskUse(v.Path("layer")))
	}
	return l
}

// statusText is docker's: "Up 5 minutes", "Exited (0) 2 hours ago", "Created".
func (v seen) statusText() string {
	switch v.status.State() {
	case container.StateCreated:
		return "Created"
	case container.StateRunning, container.StatePaused:
		text := "Up " + strings.TrimSuffix(since(v.status.Started), " ago")
		if v.status.Pid == 0 {
			text = "Restarting (" + strconv.Itoa(v.status.Code) + ")"
		}
		if h := v.status.Health; h != nil && h.Status == container.HealthStarting {
			text += " (health: starting)"
		} else if h != nil {
			text += " (" + h.Status + ")"
		}
		if v.status.Paused {
			text += " (Paused)"
		}
		return text
	}
	text := fmt.Sprintf("Exited (%d)", v.status.Code)
	if v.status.Finished.After(v.status.Started) {
		text += " " + since(v.status.Finished)
	}
	return text
}

// containerFilter makes a test of --filter;
// states tells that one of them asks for containers whether they run or not.
func containerFilter(s *container.Store, filters []string) (keep func(seen) bool, states bool, err error) {
	all := filter[seen]{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		var test func(seen) bool
		switch key {
		case "id":
			test = func(v seen) bool { return strings.HasPrefix(v.ID, value) }
		case "name":
			test = func(v seen) bool {
				match, _ := path.Match(value, v.Name)
				return match || strings.Contains(v.Name, strings.Trim(value, "^$/"))
			}
			if strings.HasPrefix(value, "^") && strings.HasSuffix(value, "$") {
				test = func(v seen) bool { return v.Name == strings.Trim(value, "^$/") }
			}
		case "label":
			k, want, has := strings.Cut(value, "=")
			test = func(v seen) bool { return hasLabel(v.Labels, k, want, !has) }
			key += k // each label is a key of its own
		case "status":
			if !slices.Contains([]string{"created", "running", "exited", "paused", "dead", "restarting", "removing"}, value) {
				return nil, false, fmt.Errorf("--filter %s: there is no such status", f)
			}
			states = true
			test = func(v seen) bool { return v.status.State() == value }
		case "exited":
			code, err := strconv.Atoi(value)
			if err != nil {
				return nil, false, fmt.Errorf("--filter %s: want an exit status", f)
			}
			states = true
			test = func(v seen) bool { return v.status.State() == container.StateExited && v.status.Code == code }
		case "ancestor":
			test = func(v seen) bool {
				id := strings.TrimPrefix(v.ImageID, "sha256:")
				return v.Image == value || strings.TrimSuffix(v.Image, ":latest") == strings.TrimSuffix(value, ":latest") ||
					v.ImageID == value || len(value) >= 6 && strings.HasPrefix(id, value)
			}
		case "health":
			if !slices.Contains([]string{"none", container.HealthStarting, container.HealthHealthy, container.HealthUnhealthy}, value) {
				return nil, false, fmt.Errorf("--filter %s: want starting, healthy, unhealthy or none", f)
			}
			test = func(v seen) bool {
				if h := v.status.Health; h != nil {
					return h.Status == value
				}
				return value == "none"
			}
		case "volume":
			test = func(v seen) bool {
				return slices.ContainsFunc(v.words.Places, func(p place) bool { return p.Source == value || p.Dest == value })
			}
		case "network":
			test = func(v seen) bool { return slices.Contains(v.words.networks(), value) }
		case "publish", "expose":
			ports, err := container.ParsePorts(value)
			if err != nil {
				return nil, false, fmt.Errorf("--filter %s: want PORT[-PORT][/PROTOCOL]", f)
			}
			test = func(v seen) bool {
				return slices.ContainsFunc(ports, func(p container.Port) bool {
					exposed := key == "expose" && slices.Contains(v.words.Exposed, portName(p))
					return exposed || slices.ContainsFunc(v.words.Ports, func(q container.Port) bool { return portName(q) == portName(p) })
				})
			}
		case "before", "since":
			c, err := s.Find(value)
			if err != nil {
				return nil, false, fmt.Errorf("--filter %s: %w", f, err)
			}
			test = func(v seen) bool {
				if key == "before" {
					return v.Created.Before(c.Created)
				}
				return v.Created.After(c.Created)
			}
		default:
			return nil, false, fmt.Errorf("--filter %s: want id, name, label, status, exited, ancestor, health, volume, network, publish, expose, before or since", f)
		}
		if !ok {
			return nil, false, fmt.Errorf("--filter %s: want KEY=value", f)
		}
		all.add(key, test)
	}
	return all.keeps, states, nil
}
