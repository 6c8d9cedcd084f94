package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"mk/container"
)

// security are the words about rights and limits of a container.
type security struct {
	Privileged bool
	Security   []string // --security-opt
	Profile    []byte   // the content of seccomp=FILE
	Ulimits    []string
	ShmSize    string
	Sysctls    []string
	Groups     []string
	Devices    []string
	Umask      string `json:",omitempty"`
	OOMScore   int    `json:",omitempty"`
}

func (w *security) define(fl *pflag.FlagSet) {
	fl.BoolVar(&w.Privileged, "privileged", false, "all rights that mk itself has: all capabilities, no filter, nothing masked")
	fl.Var((*list)(&w.Security), "security-opt", "seccomp=FILE|unconfined, no-new-privileges, mask=PATH:…, unmask=PATH:…|ALL")
	fl.Var((*list)(&w.Ulimits), "ulimit", "limit, as NAME=SOFT[:HARD]")
	fl.StringVar(&w.ShmSize, "shm-size", "", "size of /dev/shm (default: 64m)")
	fl.Var((*list)(&w.Sysctls), "sysctl", "kernel parameter of the container's namespaces, as NAME=value")
	fl.Var((*list)(&w.Groups), "group-add", "another group of the user, by number or by its name in the image")
	fl.StringVar(&w.Umask, "umask", "", "rights that new files do not have (default: 0022)")
	fl.IntVar(&w.OOMScore, "oom-score-adj", 0, "how gladly the kernel kills it when memory is short, up to 1000")
	fl.Var((*list)(&w.Devices), "device", "device of the machine, as PATH[:CONTAINER]")
}

// settle refuses what apply could not do, and reads the files that are named.
func (w *security) settle() error {
	for _, o := range w.Security {
		if name, ok := strings.CutPrefix(o, "seccomp="); ok && name != "unconfined" {
			var err error
			if w.Profile, err = os.ReadFile(name); err != nil {
				return fmt.Errorf("--security-opt %s: %w", o, err)
			}
		}
	}
	for _, d := range w.Devices {
		source, rest, _ := strings.Cut(d, ":")
		if _, rights, ok := strings.Cut(rest, ":"); ok && rights != "rwm" && rights != "rw" || rest == "r" || rest == "rw" || rest == "w" {
			return fmt.Errorf("--device %s: without root of the machine the rights of the file count: say %s without its last part", d, source)
		}
		var st unix.Stat_t
		if err := unix.Stat(source, &st); err != nil {
			return fmt.Errorf("--device %s: %w", d, err)
		}
		if t := st.Mode & unix.S_IFMT; t != unix.S_IFCHR && t != unix.S_IFBLK && t != unix.S_IFDIR {
			return fmt.Errorf("--device %s: it is not a device", d)
		}
	}
	return w.apply(container.DefaultSpec(container.Namespaces{}))
}

// apply changes a spec by the words.
func (w *security) apply(spec *container.Spec) error {
	if w.Privileged {
		spec.Unconfine()
	}
	for _, o := range w.Security {
		name, value, _ := strings.Cut(o, "=")
		if name == o {
			name, value, _ = strings.Cut(o, ":")
		}
		switch name {
		case "seccomp":
			spec.Seccomp = nil
			if value != "unconfined" {
				var err error
				if spec.Seccomp, err = container.CompileFilter(w.Profile, spec.Caps); err != nil {
					return fmt.Errorf("--security-opt %s: %w", o, err)
				}
			}
		case "no-new-privileges":
			spec.NoNewPrivs = value == "" || value == "true"
		case "mask":
			spec.Masked = append(spec.Masked, strings.Split(value, ":")...)
		case "unmask", "systempaths":
			if value == "ALL" || value == "unconfined" {
				spec.Masked, spec.ReadOnly = nil, nil
				continue
			}
			for _, p := range strings.Split(value, ":") {
				spec.Masked, spec.ReadOnly = without(spec.Masked, p), without(spec.ReadOnly, p)
			}
		case "apparmor", "label":
			if value != "unconfined" && value != "disable" {
				return fmt.Errorf("--security-opt %s: mk loads no %s policy", o, name)
			}
		default:
			return fmt.Errorf("--security-opt %s: want seccomp, no-new-privileges, mask or unmask", o)
		}
	}
	for _, u := range w.Ulimits {
		l, err := parseUlimit(u)
		if err != nil {
			return fmt.Errorf("--ulimit %s: %w", u, err)
		}
		spec.Rlimits = append(spec.Rlimits, l)
	}
	if w.Umask != "" {
		n, err := strconv.ParseUint(w.Umask, 8, 32)
		if err != nil || n > 0o777 {
			return fmt.Errorf("--umask %s: want an octal number up to 0777", w.Umask)
		}
		spec.Umask = uint32(n)
	}
	if w.OOMScore < -1000 || w.OOMScore > 1000 {
		return fmt.Errorf("--oom-score-adj %d: want a number from -1000 to 1000", w.OOMScore)
	}
	spec.OOMScore = w.OOMScore
	if w.ShmSize != "" {
		size, err := units.RAMInBytes(w.ShmSize)
		if err != nil || size <= 0 {
			return fmt.Errorf("--shm-size %s: want a size as 64m", w.ShmSize)
		}
		for i := range spec.Mounts {
			if spec.Mounts[i].Dest == "/dev/shm" {
				spec.Mounts[i].Data = fmt.Sprintf("size=%d,mode=1777", size)
			}
		}
	}
	for _, o := range w.Sysctls {
		name, value, ok := strings.Cut(o, "=")
		if !ok {
			return fmt.Errorf("--sysctl %s: want NAME=value", o)
		}
		if spec.Sysctls == nil {
			spec.Sysctls = map[string]string{}
		}
		spec.Sysctls[name] = value
	}
	for _, g := range w.Groups {
		if g == "keep-groups" {
			return errors.New("--group-add keep-groups: a group of yours on the machine is nobody's in the container, unless /etc/subgid has it")
		}
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			continue // a name: see words.spec
		}
		spec.User.Groups = append(spec.User.Groups, uint32(n))
	}
	for _, d := range w.Devices {
		source, dest, _ := strings.Cut(d, ":")
		dest, _, _ = strings.Cut(dest, ":")
		if dest == "" {
			dest = source
		}
		spec.Mounts = append(spec.Mounts, container.Mount{Type: container.Bind, Source: source, Dest: path.Clean(dest)})
	}
	return nil
}

func without(list []string, path string) []string {
	var out []string
	for _, p := range list {
		if p != path {
			out = append(out, p)
		}
	}
	return out
}
