package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/container"
)

// network is one that containers of this user share: networks/NAME/network.json of the store, whose
// rename makes it. It is no more than a name and addresses: the namespace is made by the first
// container that starts on it, and goes with the last. networks.lock is held while one starts, so that
// two of them neither make it twice nor take one address.
type network struct {
	Name     string
	ID       string
	Created  time.Time
	Subnet   netip.Prefix
	Gateway  netip.Addr
	Subnet6  netip.Prefix // invalid: no IPv6
	Gateway6 netip.Addr
	Internal bool
	Labels   map[string]string
}

// networks are the networks of a store, and the containers on them.
type networks struct {
	dir        string
	containers *container.Store
}

// openNetworks needs neither a mode nor the store's lock.
func openNetworks() (*networks, error) {
	containers, err := openContainers()
	if err != nil {
		return nil, err
	}
	root, err := rootDir()
	if err != nil {
		return nil, err
	}
	return &networks{filepath.Join(root, "networks"), containers}, nil
}

var errNoNetwork = errors.New("no such network")

// checkNetworkName holds a name to what cannot be taken for something else.
func checkNetworkName(name string) error {
	ok := name != ""
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && strings.ContainsRune("_.-", r))
	}
	if !ok {
		return fmt.Errorf("network %q: want letters, digits, _, . and -, a letter or digit first", name)
	}
	if slices.Contains([]string{networkHost, networkNone, networkPrivate, "bridge", "default", "container"}, name) {
		return fmt.Errorf("network %q: the name has a meaning of its own", name)
	}
	return nil
}

func (s *networks) find(name string) (*network, error) {
	if err := checkNetworkName(name); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(s.dir, name, "network.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, errNoNetwork)
	} else if err != nil {
		return nil, err
	}
	n := new(network)
	if err := json.Unmarshal(text, n); err != nil {
		return nil, fmt.Errorf("read network %s: %w", name, err)
	}
	return n, nil
}

func (s *networks) list() ([]*network, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []*network
	for _, e := range entries {
		n, err := s.find(e.Name())
		if errors.Is(err, errNoNetwork) {
			continue // being made, or removed
		} else if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// lock keeps others from starting on networks, from making them and from removing them: one lock for
// all, since a container may be on several.
func (s *networks) lock() (unlock func(), err error) {
	f, err := lockFile(s.dir+".lock", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

// members lists the containers that are on networks with names, and run.
func (s *networks) members() ([]seen, error) {
	all, err := s.containers.List()
	if err != nil {
		return nil, err
	}
	var running []seen
	for _, c := range all {
		v, err := look(c)
		if err != nil {
			return nil, err
		}
		if v.status.Running && len(v.words.memberships()) > 0 {
			running = append(running, v)
		}
	}
	return running, nil
}

// on lists the containers that run on a network.
func (s *networks) on(name string) ([]seen, error) {
	all, err := s.members()
	return slices.DeleteFunc(all, func(v seen) bool { return !v.isOn(name) }), err
}

func (v seen) isOn(name string) bool {
	return slices.ContainsFunc(v.words.memberships(), func(m membership) bool { return m.Network == name })
}

// lookup finds the addresses of a name for the container with an address on a network: on all networks
// that it is on. It is the name of a container there, an alias, its ID or its host name. What is not
// known is asked for outside, if a network of the asker's leads there.
func (s *networks) lookup(record *network, from netip.Addr, name string) (addrs []netip.Addr, known bool, servers []string) {
	all, err := s.members()
	if err != nil {
		return nil, false, nil
	}
	mine := []string{record.Name}
	inside := record.Internal
	for _, v := range all {
		if v.network == nil || v.network.Plugs[record.Name].Address.Addr() != from {
			continue
		}
		outside, err := s.wayOut(&v.words)
		inside = err == nil && !outside
		for _, m := range v.words.memberships() {
			if m.Network != record.Name {
				mine = append(mine, m.Network)
			}
		}
	}
	for _, v := range all {
		for _, m := range v.words.memberships() {
			names := append([]string{v.Name, v.ShortID(), v.ID, v.Hostname}, m.Aliases...)
			if v.network == nil || !slices.Contains(mine, m.Network) || !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) }) {
				continue
			}
			plug := v.network.Plugs[m.Network]
			if plug.Address.IsValid() {
				addrs = append(addrs, plug.Address.Addr())
			}
			if plug.Addr6.IsValid() {
				addrs = append(addrs, plug.Addr6.Addr())
			}
		}
	}
	if len(addrs) == 0 && !inside {
		servers = machineServers()
	}
	return addrs, len(addrs) > 0, servers
}

// gateways are the bridge's addresses.
func (n *network) gateways() []netip.Prefix {
	all := []netip.Prefix{netip.PrefixFrom(n.Gateway, n.Subnet.Bits())}
	if n.Subnet6.IsValid() {
		all = append(all, netip.PrefixFrom(n.Gateway6, n.Subnet6.Bits()))
	}
	return all
}

// freePlug finds addresses that no container on the network has: those wanted, or the first.
func (s *networks) freePlug(n *network, m membership) (*container.Plug, error) {
	running, err := s.on(n.Name)
	if err != nil {
		return nil, err
	}
	taken := map[netip.Addr]string{n.Gateway: "the gateway", n.Subnet.Addr(): "the network itself",
		n.Gateway6: "the gateway", n.Subnet6.Addr(): "the network itself"}
	for _, v := range running {
		if v.network != nil {
			p := v.network.Plugs[n.Name]
			taken[p.Address.Addr()], taken[p.Addr6.Addr()] = v.Name, v.Name
		}
	}
	p := &container.Plug{MAC: m.MAC}
	if p.Address, err = freeAddress(n.Subnet, "--ip", m.IP, taken); err != nil {
		return nil, err
	}
	switch {
	case n.Subnet6.IsValid():
		p.Addr6, err = freeAddress(n.Subnet6, "--ip6", m.IP6, taken)
	case m.IP6 != "":
		err = fmt.Errorf("--ip6 %s: network %s has no IPv6: see mk network create --ipv6", m.IP6, n.Name)
	}
	return p, err
}

func freeAddress(subnet netip.Prefix, flag, wanted string, taken map[netip.Addr]string) (netip.Prefix, error) {
	if wanted != "" {
		a, err := netip.ParseAddr(wanted)
		if err == nil && !subnet.Contains(a) {
			err = fmt.Errorf("it is not in %s", subnet)
		}
		if err == nil && taken[a] != "" {
			err = fmt.Errorf("%s has it", taken[a])
		}
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%s %s: %w", flag, wanted, err)
		}
		return netip.PrefixFrom(a, subnet.Bits()), nil
	}
	// The last of a subnet is its broadcast address.
	for a := subnet.Addr().Next(); subnet.Contains(a.Next()); a = a.Next() {
		if taken[a] == "" {
			return netip.PrefixFrom(a, subnet.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("all addresses of %s are taken", subnet)
}

func newNetwork(a *app) *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "Manage networks that containers share"}
	c.AddCommand(newNetworkCreate(a), newNetworkLs(a), newNetworkRm(a), newNetworkInspect(a), newNetworkPrune(a),
		newNetworkConnect(a), newNetworkDisconnect(a))
	return c
}

const networkCreateHelp = `Make a network. Containers that are started with --network NAME find each other
on it by their names and --network-alias, and nobody else is there.`

func newNetworkCreate(a *app) *cobra.Command {
	var driver string
	var internal, ipv6 bool
	var labels, subnets, gateways []string
	c := &cobra.Command{
		Use: "create [flags] NAME", Short: "Make a network", Long: networkCreateHelp, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if driver != "bridge" {
				return fmt.Errorf("--driver %s: there is only bridge", driver)
			}
			s, err := openNetworks()
			if err != nil {
				return err
			}
			n := &network{Name: args[0], ID: container.NewID(), Created: time.Now(), Internal: internal}
			if n.Labels, err = keyValues("--label", labels); err != nil {
				return err
			}
			if err := n.setAddresses(subnets, gateways, ipv6); err != nil {
				return err
			}
			if err := s.create(n); err != nil {
				return &exitError{status: exitFailed, err: fmt.Errorf("create network %s: %w", n.Name, err)}
			}
			fmt.Fprintln(&stdout, n.ID)
			return nil
		},
	}
	c.Flags().Var((*list)(&subnets), "subnet", "its addresses, as 10.89.0.0/24 or fd00:1::/64 (default: a /24 of 10.89.0.0/16 that no other has)")
	c.Flags().Var((*list)(&gateways), "gateway", "the address of its name server (default: the first)")
	c.Flags().BoolVar(&ipv6, "ipv6", false, "give it IPv6 addresses, too: those of --subnet, or a /64 of fd6d:6b:89::/48")
	c.Flags().StringVarP(&driver, "driver", "d", "bridge", "as in docker; there is only bridge")
	c.Flags().BoolVar(&internal, "internal", false, "give its containers no way out")
	c.Flags().Var((*list)(&labels), "label", "label, as KEY=value")
	return c
}

// setAddresses reads --subnet, --gateway and --ipv6; where a subnet is not said, create finds one.
func (n *network) setAddresses(subnets, gateways []string, ipv6 bool) error {
	for _, text := range subnets {
		p, err := netip.ParsePrefix(text)
		p = p.Masked()
		switch {
		case err != nil || p.Addr().Is4() && p.Bits() > 29 || p.Addr().Is6() && p.Bits() > 120:
			return fmt.Errorf("--subnet %s: want addresses as 10.89.0.0/24 or fd00:1::/64, eight at least, of IPv6 256", text)
		case p.Addr().Is4() && !n.Subnet.IsValid():
			n.Subnet = p
		case p.Addr().Is6() && !n.Subnet6.IsValid():
			n.Subnet6 = p
		default:
			return fmt.Errorf("--subnet %s: a network has one subnet of IPv4 and one of IPv6", text)
		}
	}
	for _, text := range gateways {
		a, err := netip.ParseAddr(text)
		switch {
		case err == nil && n.Subnet.IsValid() && n.Subnet.Contains(a):
			n.Gateway = a
		case err == nil && n.Subnet6.IsValid() && n.Subnet6.Contains(a):
			n.Gateway6 = a
		default:
			return fmt.Errorf("--gateway %s: want an address in --subnet", text)
		}
	}
	if ipv6 && !n.Subnet6.IsValid() {
		n.Subnet6 = anySubnet6
	}
	return nil
}

// anySubnet6 stands for one that no other network has; /64s of it are given out. It is a private
// prefix (RFC 4193) with the letters "mk" in it.
var anySubnet6 = netip.MustParsePrefix("fd6d:6b:89::/48")

// create makes a network; the rename of its file is the commit point.
func (s *networks) create(n *network) error {
	if err := checkNetworkName(n.Name); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	others, err := s.list()
	if err != nil {
		return err
	}
	overlaps := func(p netip.Prefix) *network {
		for _, o := range others {
			if o.Subnet.Overlaps(p) || o.Subnet6.Overlaps(p) {
				return o
			}
		}
		return nil
	}
	if slices.ContainsFunc(others, func(o *network) bool { return o.Name == n.Name }) {
		return errors.New("there is one already")
	}
	if !n.Subnet.IsValid() {
		for i := 0; ; i++ {
			if i == 256 {
				return errors.New("all of 10.89.0.0/16 is taken: give it a --subnet")
			}
			n.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 89, byte(i), 0}), 24)
			if overlaps(n.Subnet) == nil {
				break
			}
		}
	} else if o := overlaps(n.Subnet); o != nil {
		return fmt.Errorf("network %s has addresses of %s", o.Name, n.Subnet)
	}
	for i := 0; n.Subnet6 == anySubnet6 && i < 1<<16; i++ {
		a := anySubnet6.Addr().As16()
		a[6], a[7] = byte(i>>8), byte(i)
		if p := netip.PrefixFrom(netip.AddrFrom16(a), 64); overlaps(p) == nil {
			n.Subnet6 = p
		}
	}
	if n.Subnet6.IsValid() {
		if o := overlaps(n.Subnet6); o != nil {
			return fmt.Errorf("network %s has addresses of %s", o.Name, n.Subnet6)
		}
		if !n.Gateway6.IsValid() {
			n.Gateway6 = n.Subnet6.Addr().Next()
		}
	}
	if !n.Gateway.IsValid() {
		n.Gateway = n.Subnet.Addr().Next()
	}
	dir := filepath.Join(s.dir, n.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := container.WriteJSON(filepath.Join(dir, "network.json"), n); err != nil {
		return err
	}
	s.say("create", n, nil)
	return nil
}

// say tells mk events what happened to a network; c is the container it happened with, or nil.
func (s *networks) say(action string, n *network, c *container.Container) {
	attributes := map[string]string{"name": n.Name, "type": "bridge"}
	if c != nil {
		attributes["container"] = c.ID
	}
	s.containers.Tell(container.Event{Type: "network", Action: action, Actor: container.Actor{ID: n.ID, Attributes: attributes}})
}

// remove removes a network that nothing runs on.
func (s *networks) remove(name string) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	n, err := s.find(name)
	if err != nil {
		return err
	}
	running, err := s.on(name)
	if err != nil {
		return err
	}
	if len(running) > 0 {
		return fmt.Errorf("container %s runs on it", running[0].Name)
	}
	if err := os.Remove(filepath.Join(s.dir, name, "network.json")); err != nil {
		return err
	}
	s.say("destroy", n, nil)
	return os.RemoveAll(filepath.Join(s.dir, name))
}

func newNetworkLs(a *app) *cobra.Command {
	var quiet, noTrunc bool
	var format string
	var filters []string
	c := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		s, err := openNetworks()
		if err != nil {
			return err
		}
		all, err := s.list()
		if err != nil {
			return err
		}
		keep, err := filterOf(filters, map[string]func(*network, string) bool{
			"id":     func(n *network, value string) bool { return strings.HasPrefix(n.ID, value) },
			"name":   func(n *network, value string) bool { return strings.Contains(n.Name, value) },
			"label":  func(n *network, value string) bool { return labelled(n.Labels, value) },
			"driver": func(_ *network, value string) bool { return value == "bridge" },
		})
		if err != nil {
			return err
		}
		type row struct{ ID, Name, Driver, Scope, CreatedAt, Internal, Labels string }
		var rows []row
		for _, n := range all {
			var labels []string
			for k, v := range n.Labels {
				labels = append(labels, k+"="+v)
			}
			slices.Sort(labels)
			if !keep.keeps(n) {
				continue
			}
			id := n.ID
			if !noTrunc {
				id = id[:12]
			}
			rows = append(rows, row{id, n.Name, "bridge", "local", n.Created.Local().String(), fmt.Sprint(n.Internal), strings.Join(labels, ",")})
		}
		switch {
		case quiet:
			format = "{{.ID}}"
		case format == "" || format == "table":
			format = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
		}
		return printRows(&stdout, format, rows, map[string]string{"ID": "NETWORK ID"})
	}}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	c.Flags().VarP((*list)(&filters), "filter", "f", "list only these: id=, name=, label=KEY[=value] or driver=")
	c.Flags().StringVar(&format, "format", "", "Go template, \"table\" with one, or json")
	return c
}

func newNetworkRm(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove networks that nothing runs on", Args: cobra.MinimumNArgs(1)}
	c.RunE = func(_ *cobra.Command, args []string) error {
		s, err := openNetworks()
		if err != nil {
			return err
		}
		return each(args, func(name string) error {
			if err := s.remove(name); err != nil && !(force && errors.Is(err, errNoNetwork)) {
				return fmt.Errorf("remove network %s: %w", name, err)
			}
			return nil
		})
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "say nothing of missing ones")
	return c
}

// prune removes the networks that no container has, and prints their names.
func (s *networks) prune(filters []string) error {
	all, err := s.list()
	if err != nil {
		return err
	}
	containers, err := s.containers.List()
	if err != nil {
		return err
	}
	keep, err := pruneFilter(filters, func(n *network) map[string]string { return n.Labels }, func(n *network) time.Time { return n.Created })
	if err != nil {
		return err
	}
	for _, n := range all {
		used := !keep.keeps(n)
		for _, c := range containers {
			v, err := look(c)
			if err != nil {
				return err
			}
			used = used || v.isOn(n.Name)
		}
		if used {
			continue
		}
		if err := s.remove(n.Name); err != nil {
			return fmt.Errorf("remove network %s: %w", n.Name, err)
		}
		fmt.Fprintln(&stdout, n.Name)
	}
	return nil
}

func newNetworkPrune(a *app) *cobra.Command {
	var force bool
	var filters []string
	c := &cobra.Command{Use: "prune", Short: "Remove the networks that no container has", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		s, err := openNetworks()
		if err != nil {
			return err
		}
		return s.prune(filters)
	}}
	c.Flags().Var((*list)(&filters), "filter", "remove only these: label[!]=KEY[=value], or until=TIME: made before that time or duration")
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk prune never asks")
	return c
}

// networkRecord is a network as docker's inspect prints it.
type networkRecord struct {
	Name, Id, Created, Scope, Driver string
	EnableIPv6, Internal             bool
	IPAM                             struct {
		Config []struct{ Subnet, Gateway string }
	}
	Containers map[string]networkMember
	Labels     map[string]string
}

type networkMember struct{ Name, MacAddress, IPv4Address, IPv6Address string }

func newNetworkInspect(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{Use: "inspect NAME...", Short: "Print all that is known of networks, as JSON", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		s, err := openNetworks()
		if err != nil {
			return err
		}
		docs := []networkRecord{}
		for _, name := range args {
			n, err := s.find(name)
			if err != nil {
				return &exitError{status: exitFailed, err: fmt.Errorf("inspect network %w", err)}
			}
			d := networkRecord{Name: n.Name, Id: n.ID, Created: n.Created.UTC().Format(time.RFC3339Nano), Scope: "local", Driver: "bridge",
				Internal: n.Internal, Containers: map[string]networkMember{}, Labels: n.Labels}
			d.IPAM.Config = append(d.IPAM.Config, struct{ Subnet, Gateway string }{n.Subnet.String(), n.Gateway.String()})
			if d.EnableIPv6 = n.Subnet6.IsValid(); d.EnableIPv6 {
				d.IPAM.Config = append(d.IPAM.Config, struct{ Subnet, Gateway string }{n.Subnet6.String(), n.Gateway6.String()})
			}
			running, err := s.on(name)
			if err != nil {
				return err
			}
			for _, v := range running {
				if v.network == nil {
					continue
				}
				p := v.network.Plugs[name]
				m := networkMember{Name: v.Name, MacAddress: p.MAC, IPv4Address: p.Address.String()}
				if p.Addr6.IsValid() {
					m.IPv6Address = p.Addr6.String()
				}
				d.Containers[v.ID] = m
			}
			docs = append(docs, d)
		}
		return printDocuments(docs, format)
	}}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template over the document")
	return c
}
