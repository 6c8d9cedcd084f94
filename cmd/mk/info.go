package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/container"
	"mk/userns"
)

const infoHelp = `Tell how mk becomes root on this machine and what the machine allows, each
thing tried and not guessed, with the one command that mends what it denies.

--format is a Go template over docker's names (.ServerVersion .Driver .CgroupVersion
.CgroupDriver .SecurityOptions .KernelVersion .OSType .Architecture .NCPU .MemTotal .Name
.DockerRootDir .Images .Containers .ContainersRunning .ContainersPaused .ContainersStopped),
podman's (.Host.Security.Rootless .Host.CgroupsVersion .Host.CgroupManager .Host.Arch .Host.OS
.Host.Kernel .Host.CPUs .Host.MemTotal .Host.Hostname .Store.GraphRoot .Store.GraphDriverName)
and mk's (.Mode .Reason .UIDs .GIDs .Allowed .Cgroups .Pasta .Slirp4netns), or json.`

func newInfo(a *app) *cobra.Command {
	var asJSON bool
	var format string
	c := &cobra.Command{Use: "info", Short: "Show the mode, and what this machine allows", Long: infoHelp, Args: cobra.NoArgs}
	c.RunE = a.inside(a.withStore(func(_ *cobra.Command, s *store, _ []string) error {
		r := userns.Survey(a.in, s.root)
		if !asJSON && format == "" {
			return printInfo(s, r)
		}
		doc, err := newInfoDocument(s, r)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(&stdout, doc)
		}
		return printRows(&stdout, format, []infoDocument{doc})
	}))
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON on many lines")
	c.Flags().StringVarP(&format, "format", "f", "", "Go template, or json")
	a.usernsFlag(c)
	return c
}

// infoDocument is what templates see: what docker and mk call by the same name, podman's names for some
// of it, and what only mk knows.
type infoDocument struct {
	ServerVersion, Driver, CgroupDriver, CgroupVersion     string
	KernelVersion, OSType, Architecture                    string
	Name, DockerRootDir                                    string
	SecurityOptions                                        []string
	NCPU                                                   int
	MemTotal                                               uint64 // bytes
	Images, Containers                                     int
	ContainersRunning, ContainersPaused, ContainersStopped int

	Host struct {
		Arch, OS, Kernel, Hostname, CgroupsVersion, CgroupManager string
		CPUs                                                      int
		MemTotal                                                  uint64
		Security                                                  struct{ Rootless bool }
	} `json:"-"`
	Store struct{ GraphRoot, GraphDriverName string } `json:"-"`

	Version     string         `json:"version"`
	Root        string         `json:"root"`
	Mode        userns.Mode    `json:"mode"`
	Reason      string         `json:"reason"`
	UIDs        []userns.Range `json:"uids"`
	GIDs        []userns.Range `json:"gids"`
	Kernel      string         `json:"kernel"`
	Machine     string         `json:"machine"`
	Allowed     map[string]any `json:"allowed"` // true, or why not
	Cgroups     any            `json:"cgroups"`
	Pasta       string         `json:"pasta"` // paths, "" where there is none
	Slirp4netns string         `json:"slirp4netns"`
}

// newInfoDocument counts containers and images; the rest is in the report.
func newInfoDocument(s *store, r userns.Report) (infoDocument, error) {
	d := infoDocument{
		ServerVersion: version, Driver: "overlay", CgroupVersion: "1",
		KernelVersion: r.Kernel, OSType: runtime.GOOS, Architecture: r.Machine, NCPU: runtime.NumCPU(), DockerRootDir: s.root,
		SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"},
		Version:         version, Root: s.root, Mode: r.Choice.Mode, Reason: r.Choice.Reason, UIDs: r.Choice.UIDs, GIDs: r.Choice.GIDs,
		Kernel: r.Kernel, Machine: r.Machine, Allowed: map[string]any{}, Pasta: r.Pasta, Slirp4netns: r.Slirp,
	}
	for _, x := range allowed(r) {
		if d.Allowed[x.name] = true; x.err != nil {
			d.Allowed[x.name] = x.err.Error()
		}
	}
	var err error
	if d.Name, err = os.Hostname(); err != nil {
		return d, err
	}
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		return d, fmt.Errorf("sysinfo: %w", err)
	}
	d.MemTotal = uint64(machine.Totalram) * uint64(machine.Unit)
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		d.CgroupVersion = "2"
	}
	switch cgroups, err := container.Cgroups(); {
	case err != nil:
		d.CgroupDriver, d.Cgroups = "none", err.Error()
	case cgroups.Systemd != "":
		d.CgroupDriver, d.Cgroups = "systemd", cgroups
	default:
		d.CgroupDriver, d.Cgroups = "cgroupfs", cgroups
	}
	rootless := r.Choice.Mode != userns.Root
	if rootless {
		d.SecurityOptions = append(d.SecurityOptions, "name=rootless")
	}
	d.Host.Arch, d.Host.OS, d.Host.Kernel, d.Host.Hostname = runtime.GOARCH, d.OSType, d.Kernel, d.Name
	d.Host.CgroupsVersion, d.Host.CgroupManager, d.Host.CPUs, d.Host.MemTotal = "v"+d.CgroupVersion, d.CgroupDriver, d.NCPU, d.MemTotal
	d.Host.Security.Rootless = rootless
	d.Store.GraphRoot, d.Store.GraphDriverName = s.root, d.Driver

	tagged, err := s.images.List()
	if err != nil {
		return d, err
	}
	images := map[digest.Digest]bool{}
	for _, t := range tagged {
		images[t.Descriptor.Digest] = true
	}
	d.Images = len(images)
	containers, err := s.containers.List()
	if err != nil {
		return d, err
	}
	d.Containers = len(containers)
	for _, c := range containers {
		status, err := c.Status()
		switch {
		case err != nil:
			return d, fmt.Errorf("container %s: %w", c.Name, err)
		case status.Paused:
			d.ContainersPaused++
		case status.Running:
			d.ContainersRunning++
		default:
			d.ContainersStopped++
		}
	}
	return d, nil
}

// trial is something that was tried, and what came of it.
type trial struct {
	name string
	err  error
}

func allowed(r userns.Report) []trial {
	return []trial{{"overlay", r.Overlay}, {"seccomp notifier", r.Notifier}, {"fast notifier", r.FastWake}, {"/dev/net/tun", r.Tun}}
}

func printInfo(s *store, r userns.Report) error {
	cgroups, cgroupErr := container.Cgroups()
	w := tabwriter.NewWriter(&stdout, 0, 8, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, value) }
	row("version", version)
	row("store", s.root)
	row("mode", string(r.Choice.Mode))
	row("reason", r.Choice.Reason)
	row("uids", ranges(r.Choice.UIDs))
	row("gids", ranges(r.Choice.GIDs))
	row("kernel", r.Kernel+" "+r.Machine)
	for _, x := range allowed(r) {
		if x.err == nil {
			row(x.name, "yes")
			continue
		}
		row(x.name, "no: "+x.err.Error())
		if advice := userns.Advice(x.err); advice != "" {
			row("", "hint: "+advice)
		}
	}
	if cgroupErr != nil {
		row("cgroup", "no: "+cgroupErr.Error())
		if advice := userns.Advice(cgroupErr); advice != "" {
			row("", "hint: "+advice)
		}
	} else {
		row("cgroup", cgroups.String())
	}
	for _, x := range [][2]string{{"pasta", r.Pasta}, {"slirp4netns", r.Slirp}} {
		if x[1] == "" {
			x[1] = "not installed"
		}
		row(x[0], x[1])
	}
	return w.Flush()
}

func ranges(list []userns.Range) string {
	var words []string
	for _, r := range list {
		words = append(words, fmt.Sprintf("%d→%d+%d", r.Inside, r.Outside, r.Length))
	}
	if len(words) == 0 {
		return "all, as they are"
	}
	return strings.Join(words, " ")
}
