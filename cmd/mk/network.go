package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"mk/container"
)

// The networks that have a name of their own.
const (
	networkHost    = "host"    // the machine's
	networkNone    = "none"    // lo and nothing else
	networkPrivate = "private" // the container's own, with a way out where the machine has one to give

)

// isNamed tells whether a word for a network is the name of one that mk network made.
func isNamed(word string) bool {
	switch word {
	case "", "default", "bridge", networkHost, networkNone, networkPrivate:
		return false
	}
	return !strings.HasPrefix(word, ofContainer)
}

// networking are the words about a container's network.
type networking struct {
	Network    string
	Ports      []container.Port // --publish
	PublishAll bool
	Exposed    []string // "80/tcp": of the image and of --expose
	DNS        []string
	DNSSearch  []string
	DNSOptions []string
	Aliases    []string     // on Network, where that has a name
	IP, IP6    string       // there
	MAC        string       // there
	Joined     []membership `json:",omitempty"` // further networks with names

	publish []string
	expose  []string
}

func (w *networking) define(fl *pflag.FlagSet) {
	fl.Var(networkFlag{w}, "network", "host, none, private, container:NAME, or the name of one that mk network made, or of several (default: host; with --publish, private)")
	fl.Var(networkFlag{w}, "net", "")
	fl.MarkHidden("net")
	fl.VarP((*list)(&w.publish), "publish", "p", "port of the machine that leads to one of the container, as [IP:]PORT:CONTAINER[/udp]")
	fl.BoolVarP(&w.PublishAll, "publish-all", "P", false, "publish all ports that the image exposes, on free ones")
	fl.Var((*list)(&w.expose), "expose", "port that --publish-all publishes, too")
	fl.Var((*list)(&w.Aliases), "network-alias", "another name on the network")
	fl.Var((*list)(&w.Aliases), "net-alias", "")
	fl.MarkHidden("net-alias")
	fl.StringVar(&w.IP, "ip", "", "address on the network")
	fl.StringVar(&w.IP6, "ip6", "", "IPv6 address on the network")
	fl.StringVar(&w.MAC, "mac-address", "", "MAC address on the network")
	fl.Var((*list)(&w.DNS), "dns", "address of a name server")
	fl.Var((*list)(&w.DNSSearch), "dns-search", "domain in which names are looked up")
	fl.Var((*list)(&w.DNSOptions), "dns-option", "option of resolv.conf")
	fl.Var((*list)(&w.DNSOptions), "dns-opt", "")
	fl.MarkHidden("dns-opt")
}

// settle reads the flags, and says which network it is.
func (w *networking) settle() error {
	w.Ports = nil
	for _, text := range w.publish {
		ports, err := container.ParsePorts(text)
		if err != nil {
			return fmt.Errorf("--publish %s: %w", text, err)
		}
		w.Ports = append(w.Ports, ports...)
	}
	for _, text := range w.expose {
		ports, err := container.ParsePorts(text)
		if err == nil && strings.Contains(text, ":") {
			err = errors.New("want PORT[/PROTOCOL]")
		}
		if err != nil {
			return fmt.Errorf("--expose %s: %w", text, err)
		}
		for _, p := range ports {
			w.Exposed = append(w.Exposed, portName(p))
		}
	}
	for _, a := range w.DNS {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("--dns %s: it is no IP address", a)
		}
	}
	publishes := len(w.Ports) > 0 || w.PublishAll
	switch w.Network {
	case "", "default":
		w.Network = networkHost
		if publishes {
			w.Network = networkPrivate
		}
	case "bridge":
		w.Network = networkPrivate
	case networkNone, networkPrivate:
	case networkHost:
		if publishes {
			return errors.New("--publish and --network host: the container has the machine's ports already")
		}
	default:
		if !isNamed(w.Network) && publishes {
			return fmt.Errorf("--publish and --network %s: publish them with that container", w.Network)
		}
	}
	if (len(w.Aliases) > 0 || w.IP+w.IP6+w.MAC != "") && !isNamed(w.Network) {
		return errors.New("--network-alias, --ip, --ip6 and --mac-address: they are of a network with a name: see mk network create")
	}
	if len(w.Joined) > 0 && !isNamed(w.Network) && w.Network != networkPrivate {
		return fmt.Errorf("--network %s and --network %s: only networks with names, and private, go together", w.Network, w.Joined[0].Network)
	}
	for i, m := range w.memberships() {
		if m.MAC != "" {
			if a, err := net.ParseMAC(m.MAC); err != nil || len(a) != 6 || a[0]&1 != 0 {
				return fmt.Errorf("--mac-address %s: want one as 02:42:0a:59:00:05", m.MAC)
			}
		}
		if slices.ContainsFunc(w.memberships()[:i], func(o membership) bool { return o.Network == m.Network }) {
			return fmt.Errorf("--network %s: it is there twice", m.Network)
		}
		if err := checkNetworkName(m.Network); err != nil {
			return err
		}
	}
	return nil
}

// isolated tells whether the container has a network of its own.
func (w *networking) isolated() bool { return w.Network != networkHost }

// portName is docker's "80/tcp".
func portName(p container.Port) string { return fmt.Sprintf("%d/%s", p.Container, p.Proto) }

// wanted are the ports to publish: those asked for and, with --publish-all, those exposed.
func (w *networking) wanted() ([]container.Port, error) {
	ports := slices.Clone(w.Ports)
	if !w.PublishAll {
		return ports, nil
	}
	for _, e := range w.Exposed {
		if slices.ContainsFunc(w.Ports, func(p container.Port) bool { return portName(p) == e }) {
			continue
		}
		more, err := container.ParsePorts(e)
		if err != nil {
			return nil, fmt.Errorf("publish the exposed port %s: %w", e, err)
		}
		ports = append(ports, more...)
	}
	return ports, nil
}

// openNetwork makes the network of a run and writes down what it is; nil for the machine's own.
// stop takes all of it away again.
func (s *store) openNetwork(ctx context.Context, c *container.Container, w *words, at *socket) (_ *container.Network, stop func(), err error) {
	stop = func() {}
	if !w.isolated() {
		return nil, stop, nil
	}
	if strings.HasPrefix(w.Network, ofContainer) {
		if at.given["net"] == nil {
			return nil, stop, fmt.Errorf("--network %s: nobody gave the network", w.Network)
		}
		n, err := container.OpenNetwork(at.given["net"])
		if err == nil {
			stop = func() { n.Close() }
		}
		return n, stop, err
	}
	ports, err := w.wanted()
	if err != nil {
		return nil, stop, err
	}
	n, err := container.NewNetwork()
	if err != nil {
		return nil, stop, err
	}
	at.mu.Lock()
	defer at.mu.Unlock()
	if len(at.plugged) == 0 {
		c.SetNetwork(nil) // that a killed holder left
	}
	at.network = n
	networks := &networks{filepath.Join(s.root, "networks"), s.containers}
	stop = func() {
		at.mu.Lock()
		defer at.mu.Unlock()
		at.network = nil
		n.Close()
		for _, name := range slices.Sorted(maps.Keys(at.plugged)) {
			networks.say("disconnect", at.plugged[name].record, c)
		}
		if len(at.plugged) == 0 {
			c.SetNetwork(nil)
		} // else its addresses are its own until the holder ends
	}
	for _, m := range w.memberships() {
		record, err := networks.find(m.Network)
		if err == nil {
			err = networks.plugIn(n, c, m, record, at, at.given["bridge:"+m.Network])
		}
		if err != nil {
			return nil, stop, fmt.Errorf("network %s: %w", m.Network, err)
		}
	}
	if err := at.settleNames(networks, w); err != nil {
		return nil, stop, err
	}
	outside, err := networks.wayOut(w)
	if err != nil {
		return nil, stop, err
	}
	if outside {
		notices, err := connectNetwork(ctx, n)
		if err != nil {
			return nil, stop, err
		}
		for _, n := range notices {
			fmt.Fprintln(os.Stderr, "mk:", n)
		}
	}
	if !n.Address.IsValid() && (outside || len(ports) > 0) {
		if err := n.Alone(); err != nil {
			return nil, stop, err
		}
	}
	if ports, err = n.Publish(c.Path(""), ports); err != nil {
		return nil, stop, err
	}
	return n, stop, c.SetNetwork(at.status(ports))
}

// machineServers are the machine's name servers.
func machineServers() (servers []string) {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return servers
}

// writeNames writes the container's hosts and resolv.conf, as they are for a run with network n;
// nil is the machine's. Who shares a container's network has its names, too.
func (s *store) writeNames(c *container.Container, w *words, n *container.Network) error {
	if name, ok := strings.CutPrefix(w.Network, ofContainer); ok {
		other, err := s.containers.Find(name)
		if err != nil {
			return err
		}
		for _, name := range []string{"hosts", "resolv.conf"} {
			text, err := os.ReadFile(other.Path("etc/" + name))
			if err != nil {
				return err
			}
			if err := writeFile(c.Path("etc/"+name), string(text)); err != nil {
				return err
			}
		}
		return nil
	}
	own, gateway := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, "127.0.0.1"
	if n != nil && len(n.Own()) > 0 {
		own, gateway = n.Own(), machineAddress()
	}
	lines, err := hostLines(w.Hosts, gateway)
	if err != nil {
		return err
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, a := range own {
		hosts += a.String() + "\t" + c.Hostname + "\n"
	}
	for _, l := range lines {
		hosts += l + "\n"
	}
	if err := writeFile(filepath.Join(c.Path("etc"), "hosts"), hosts); err != nil {
		return err
	}
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeFile(filepath.Join(c.Path("etc"), "resolv.conf"), w.resolvConf(string(text), n))
}

// resolvConf makes the container's resolv.conf of the machine's.
func (w *networking) resolvConf(machine string, n *container.Network) string {
	servers := w.DNS
	if n != nil && len(servers) == 0 && n.DNS.IsValid() {
		servers = []string{n.DNS.String()}
	}
	if n == nil && len(servers)+len(w.DNSSearch)+len(w.DNSOptions) == 0 {
		return machine
	}
	var search, options string
	for line := range strings.Lines(machine) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key {
		case "nameserver":
			if n == nil && len(w.DNS) == 0 {
				servers = append(servers, strings.TrimSpace(value))
			}
		case "search", "domain":
			search = value
		case "options":
			options = value
		}
	}
	if len(w.DNSSearch) > 0 {
		search = strings.Join(w.DNSSearch, " ")
	}
	if len(w.DNSOptions) > 0 {
		options = strings.Join(w.DNSOptions, " ")
	}
	var out strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if search != "" && search != "." {
		fmt.Fprintf(&out, "search %s\n", search)
	}
	if options != "" {
		fmt.Fprintf(&out, "options %s\n", options)
	}
	return out.String()
}

// machineAddress is the machine's own address as it is seen from outside: where a container finds
// what the machine serves, since its loopback is closed.
func machineAddress() string {
	c, err := net.Dial("udp4", "192.0.2.255:9") // asks for a route, and sends nothing
	if err != nil {
		return "127.0.0.1"
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).IP.String()
}
