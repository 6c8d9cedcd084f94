package main

import (
	"net"
	"strconv"
	"strings"
	"time"

	"mk/container"
)

// containerDocument is a container as docker's inspect prints it: the same names for what mk has,
// and nothing for what it has not.
type containerDocument struct {
	ID      string `json:"Id"`
	Created string
	Path    string
	Args    []string
	State   struct {
		Status                                       string
		Running, Paused, Restarting, OOMKilled, Dead bool
		Pid, ExitCode                                int
		Error                                        string
		StartedAt, FinishedAt                        string
		Health                                       *container.Health `json:",omitempty"`
	}
	Image          string
	ResolvConfPath string
	HostnamePath   string
	HostsPath      string
	LogPath        string
	Name           string
	RestartCount   int
	Driver         string
	Platform       string
	SizeRw         int64 `json:",omitempty"`
	layer          string
	HostConfig     struct {
		NetworkMode     string
		PidMode         string
		IpcMode         string
		UTSMode         string
		UsernsMode      string
		TimeOffset      *container.TimeOffsets `json:",omitempty"` // mk's own
		PortBindings    map[string][]bindingDocument
		PublishAllPorts bool
		Dns             []string
		DnsSearch       []string
		DnsOptions      []string
		RestartPolicy   struct {
			Name              string
			MaximumRetryCount int
		}
		Binds          []string
		Tmpfs          map[string]string `json:",omitempty"`
		GroupAdd       []string
		Devices        []deviceDocument
		OomScoreAdj    int
		LogConfig      struct{ Type string }
		AutoRemove     bool
		CapAdd         []string
		CapDrop        []string
		ExtraHosts     []string
		Privileged     bool
		ReadonlyRootfs bool
		SecurityOpt    []string
		Sysctls        []string
		Ulimits        []string
		Init           bool
		ShmSize        string
		limitsDocument
	}
	Mounts []mountDocument
	Config struct {
		Hostname, User  string
		Domainname      string
		Tty, OpenStdin  bool
		Env             []string
		Cmd, Entrypoint []string
		Image           string
		WorkingDir      string
		Labels          map[string]string
		StopSignal      string
		StopTimeout     int
		ExposedPorts    map[string]struct{} `json:",omitempty"`
	}
	NetworkSettings networkDocument
	Userns          string // mk's own: the mode of its files
}

// limitsDocument are docker's names for limits.
type limitsDocument struct {
	CgroupnsMode, CgroupParent                                                         string
	Memory, MemorySwap, MemoryReservation                                              int64
	NanoCpus, CpuShares                                                                int64
	CpuPeriod, CpuQuota                                                                int64
	CpusetCpus, CpusetMems                                                             string
	PidsLimit, BlkioWeight                                                             int64
	BlkioDeviceReadBps, BlkioDeviceWriteBps, BlkioDeviceReadIOps, BlkioDeviceWriteIOps []rateDocument
}

type rateDocument struct {
	Path string
	Rate uint64
}

func describeLimits(w words) limitsDocument {
	l := w.Limits
	d := limitsDocument{
		CgroupnsMode: w.Cgroupns, CgroupParent: w.CgroupParent,
		Memory: l.Memory, MemorySwap: l.MemorySwap, MemoryReservation: l.Reservation,
		NanoCpus: int64(l.CPUs * 1e9), CpuShares: l.CPUShares, CpuPeriod: l.CPUPeriod, CpuQuota: l.CPUQuota,
		CpusetCpus: l.CPUSet, CpusetMems: l.MemSet, PidsLimit: l.Pids, BlkioWeight: l.IOWeight,
	}
	if l.Memory > 0 && l.MemorySwap == 0 {
		d.MemorySwap = 2 * l.Memory
	}
	for _, x := range l.IO {
		for _, rate := range []struct {
			n    uint64
			list *[]rateDocument
		}{
			{x.ReadBPS, &d.BlkioDeviceReadBps}, {x.WriteBPS, &d.BlkioDeviceWriteBps},
			{x.ReadIOPS, &d.BlkioDeviceReadIOps}, {x.WriteIOPS, &d.BlkioDeviceWriteIOps},
		} {
			if rate.n > 0 {
				*rate.list = append(*rate.list, rateDocument{x.Device, rate.n})
			}
		}
	}
	return d
}

// networkDocument is docker's NetworkSettings.
type networkDocument struct {
	Ports map[string][]bindingDocument // null: exposed only
	endpointDocument
	Networks map[string]endpointDocument
}

type bindingDocument struct {
	HostIp   string // docker's spelling
	HostPort string
}

// endpointDocument is where a container is in a network.
type endpointDocument struct {
	Gateway, IPAddress  string
	IPPrefixLen         int
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
	Aliases             []string `json:",omitempty"`
	Driver              string   `json:",omitempty"` // mk's own: the program that is the way out
}

// describeNetwork tells how a container is connected at this moment.
func describeNetwork(v seen) networkDocument {
	d := networkDocument{Ports: map[string][]bindingDocument{}, Networks: map[string]endpointDocument{}}
	n := v.network
	if n == nil {
		d.Networks[v.words.Network] = endpointDocument{}
		for _, m := range v.words.memberships() {
			d.Networks[m.Network] = endpointDocument{Aliases: m.Aliases}
		}
		return d
	}
	for _, e := range v.words.Exposed {
		d.Ports[e] = nil
	}
	for _, p := range n.Ports {
		for _, at := range listens(p) {
			host, port, _ := net.SplitHostPort(at) // of listens' own making
			d.Ports[portName(p)] = append(d.Ports[portName(p)], bindingDocument{host, port})
		}
	}
	e := endpointDocument{MacAddress: n.MAC, Driver: n.Driver}
	if n.Address.IsValid() {
		e.IPAddress, e.IPPrefixLen = n.Address.Addr().String(), n.Address.Bits()
	}
	if n.Gateway.IsValid() {
		e.Gateway = n.Gateway.String()
	}
	if n.Addr6.IsValid() {
		e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = n.Addr6.Addr().String(), n.Addr6.Bits()
	}
	d.endpointDocument = e
	if !isNamed(v.words.Network) {
		d.Networks[v.words.Network] = e
	}
	for _, m := range v.words.memberships() {
		p := n.Plugs[m.Network]
		e := endpointDocument{MacAddress: p.MAC, Driver: n.Driver, Aliases: m.Aliases}
		if p.Address.IsValid() {
			e.IPAddress, e.IPPrefixLen = p.Address.Addr().String(), p.Address.Bits()
		}
		if p.Addr6.IsValid() {
			e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = p.Addr6.Addr().String(), p.Addr6.Bits()
		}
		d.Networks[m.Network] = e
	}
	return d
}

type deviceDocument struct{ PathOnHost, PathInContainer, CgroupPermissions string }

type mountDocument struct {
	Type, Name, Source, Destination string
	RW                              bool
}

// describeContainer gathers what inspect prints of a container.
func describeContainer(c *container.Container) (*containerDocument, error) {
	v, err := look(c)
	if err != nil {
		return nil, err
	}
	st, w := v.status, v.words
	d := &containerDocument{
		ID: c.ID, Created: c.Created.UTC().Format(time.RFC3339Nano), Path: c.Command[0], Args: c.Command[1:],
		Image: c.ImageID, Name: "/" + c.Name, RestartCount: st.Restarts, Driver: "overlay", Platform: "linux",
		ResolvConfPath: c.Path("etc/resolv.conf"), HostnamePath: c.Path("etc/hostname"), HostsPath: c.Path("etc/hosts"),
		LogPath: c.Path("log"), Mounts: []mountDocument{}, Userns: c.Mode, layer: c.Path("layer"),
	}
	s := &d.State
	s.Status, s.Running, s.Pid, s.ExitCode, s.Error = st.State(), st.Running, st.Pid, st.Code, st.Error
	s.Paused, s.OOMKilled = st.Paused, st.OOMKilled
	s.Restarting = st.Running && st.Pid == 0 && !st.Started.IsZero()
	s.StartedAt, s.FinishedAt = st.Started.UTC().Format(time.RFC3339Nano), st.Finished.UTC().Format(time.RFC3339Nano)
	s.Health = st.Health
	h := &d.HostConfig
	h.NetworkMode, h.AutoRemove = w.Network, c.AutoRemove
	policy, tries, _ := strings.Cut(c.Restart, ":")
	h.RestartPolicy.Name = policy
	h.RestartPolicy.MaximumRetryCount, _ = strconv.Atoi(tries) // checked when it was made; none is 0
	h.GroupAdd, h.OomScoreAdj, h.LogConfig.Type = w.Groups, w.OOMScore, "json-file"
	for _, name := range w.Devices {
		from, to, _ := strings.Cut(name, ":")
		if to, _, _ = strings.Cut(to, ":"); to == "" {
			to = from
		}
		h.Devices = append(h.Devices, deviceDocument{from, to, "rwm"})
	}
	for _, p := range w.Places {
		switch {
		case p.Type == container.Tmpfs:
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[p.Dest] = p.Options
		case p.Type == container.Bind || p.Type == "volume" && !p.Own:
			bind := p.Source + ":" + p.Dest
			if p.ReadOnly {
				bind += ":ro"
			}
			h.Binds = append(h.Binds, bind)
		}
	}
	h.CapAdd, h.CapDrop, h.ExtraHosts, h.Privileged, h.ReadonlyRootfs = w.CapAdd, w.CapDrop, w.Hosts, w.Privileged, w.ReadOnly
	h.SecurityOpt, h.Sysctls, h.Ulimits, h.Init, h.ShmSize = w.Security, w.Sysctls, w.Ulimits, w.Init, w.ShmSize
	h.PidMode, h.IpcMode, h.UTSMode, h.UsernsMode = w.PID, w.IPC, w.UTS, w.Userns
	h.TimeOffset = w.Time
	h.limitsDocument = describeLimits(w)
	for _, p := range w.Places {
		m := mountDocument{Type: p.Type, Source: p.Source, Destination: p.Dest, RW: !p.ReadOnly}
		if p.Type == "volume" {
			m.Name = p.Source
		}
		d.Mounts = append(d.Mounts, m)
	}
	g := &d.Config
	g.Domainname = w.Domain
	g.Hostname, g.User, g.Tty, g.OpenStdin, g.Env = c.Hostname, c.User, c.Tty, c.Stdin, c.Env
	g.Entrypoint, g.Cmd = c.Command[:c.Entrypoint], c.Command[c.Entrypoint:]
	g.Image, g.WorkingDir, g.Labels, g.StopSignal, g.StopTimeout = c.Image, c.Dir, c.Labels, c.StopSignal, c.StopTimeout
	h.PortBindings, h.PublishAllPorts = map[string][]bindingDocument{}, w.PublishAll
	for _, p := range w.Ports {
		b := bindingDocument{HostIp: p.IP}
		if p.Host != 0 {
			b.HostPort = strconv.Itoa(int(p.Host))
		}
		if p.HostEnd > p.Host {
			b.HostPort += "-" + strconv.Itoa(int(p.HostEnd))
		}
		h.PortBindings[portName(p)] = append(h.PortBindings[portName(p)], b)
	}
	h.Dns, h.DnsSearch, h.DnsOptions = w.DNS, w.DNSSearch, w.DNSOptions
	if len(w.Exposed) > 0 {
		g.ExposedPorts = map[string]struct{}{}
		for _, e := range w.Exposed {
			g.ExposedPorts[e] = struct{}{}
		}
	}
	d.NetworkSettings = describeNetwork(v)
	return d, nil
}
