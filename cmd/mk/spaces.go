package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"mk/container"
)

// ofContainer and a name: what that container has.
const ofContainer = "container:"

// spaces are the words about which namespaces a container has, but for its network's.
type spaces struct {
	PID, IPC, UTS, Cgroupns, Userns string
	Time                            *container.TimeOffsets `json:",omitempty"`

	timeOffset string
}

func (w *spaces) define(fl *pflag.FlagSet) {
	fl.StringVar(&w.PID, "pid", "private", "private, host: the machine's processes, or container:NAME: that one's")
	fl.StringVar(&w.IPC, "ipc", "private", "private, host: System V IPC, message queues and /dev/shm of the machine, container:NAME: of that one, or none: private, without /dev/shm")
	fl.StringVar(&w.UTS, "uts", "private", "private, host: the machine's host name, or container:NAME: that one's")
	fl.StringVar(&w.Cgroupns, "cgroupns", "private", "cgroup namespace: private, with the container's own cgroup as its root, host, or container:NAME")
	fl.StringVar(&w.timeOffset, "time-offset", "", "time that the container's clocks since the start are ahead, as DURATION or monotonic=DURATION,boottime=DURATION; seconds without a unit")
}

func (w *spaces) settle() error {
	for _, f := range []struct {
		flag  string
		value *string
		known []string
	}{
		{"--pid", &w.PID, []string{"private", "host"}},
		{"--ipc", &w.IPC, []string{"private", "host", "none", "shareable"}},
		{"--uts", &w.UTS, []string{"private", "host"}},
		{"--cgroupns", &w.Cgroupns, []string{"private", "host"}},
	} {
		switch {
		case *f.value == "":
			*f.value = "private" // docker's way to say nothing
		case *f.value == "shareable" && f.flag == "--ipc":
			*f.value = "private" // others may have it in any case
		case strings.HasPrefix(*f.value, ofContainer) || slices.Contains(f.known, *f.value):
		default:
			return fmt.Errorf("%s %s: want %s or container:NAME", f.flag, *f.value, strings.Join(f.known, ", "))
		}
	}
	var err error
	if w.timeOffset != "" {
		if w.Time, err = parseTimeOffset(w.timeOffset); err != nil {
			return fmt.Errorf("--time-offset %s: %w", w.timeOffset, err)
		}
	}
	return nil
}

// parseTimeOffset reads the value of --time-offset.
func parseTimeOffset(text string) (*container.TimeOffsets, error) {
	t := new(container.TimeOffsets)
	for word := range strings.SplitSeq(text, ",") {
		clock, value, one := strings.Cut(word, "=")
		if !one {
			value = clock
		}
		by, err := time.ParseDuration(value)
		if seconds, serr := strconv.ParseInt(value, 10, 32); serr == nil {
			by, err = time.Duration(seconds)*time.Second, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither seconds nor a duration as 36h or -90s", value)
		}
		switch {
		case !one && word == text:
			t.Monotonic, t.Boottime = by, by
		case clock == "monotonic" && one:
			t.Monotonic = by
		case clock == "boottime" && one:
			t.Boottime = by
		default:
			return nil, errors.New("want DURATION, or monotonic=DURATION and boottime=DURATION")
		}
	}
	return t, nil
}

// namespaces are those that are new, or the machine's; see words.join for those of neighbours.
func (w *words) namespaces() container.Namespaces {
	return container.Namespaces{
		Net: w.isolated(), Cgroup: w.Cgroupns != "host",
		HostPID: w.PID == "host", HostIPC: w.IPC == "host", HostUTS: w.UTS == "host", Time: w.Time,
	}
}

// ownPID tells whether the container has a pid namespace to itself.
func (w *words) ownPID() bool { return w.PID == "private" || w.PID == "" }

// takeUserns reads --userns as docker and podman have it: a container's, in place of a mode.
func (a *app) takeUserns(w *words) error {
	switch word, _, _ := strings.Cut(a.userns, ":"); word {
	case "container":
		w.Userns, a.userns = a.userns, ""
	case "private":
		a.userns = ""
	case "host":
		return errors.New("--userns host: mk is root of a user namespace, or it is nobody: want private, container:NAME, subid, single or root")
	case "keep-id", "nomap":
		return fmt.Errorf("--userns %s: in the container you are root, and what root makes on a bind mount is yours: for another user in it give --user", word)
	case "auto", "ns":
		return fmt.Errorf("--userns %s: every container has a user namespace of its own already, of all IDs that are yours: want private, container:NAME, subid, single or root", word)
	}
	return nil
}
