package main

import (
	"crypto/rand"
	"encoding/hex"
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
// container that starts on it, and goes with the last. The lock beside it is held while one starts,
// so that two of them neither make it twice nor take one address.
type network struct {
	Name     string
	ID       string
	Created  time.Time
	Subnet   netip.Prefix
	Gateway  netip.Addr
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

// lock keeps others from starting on a network, and from removing it.
func (s *networks) lock(name string) (unlock func(), err error) {
	if err := checkNetworkName(name); err != nil {
		return nil, err
	}
	f, err := lockFile(filepath.Join(s.dir, name, "lock"), unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, errNoNetwork)
	} else if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

// on lists the containers that run on a network.
func (s *networks) on(name string) ([]seen, error) {
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
		if v.status.Running && v.words.Network == name {
			running = append(running, v)
		}
	}
	return running, nil
}

// lookup finds the addresses of a name on a network: the containers that have it, or ask for it by
// --network-alias, or whose ID it is.
func (s *networks) lookup(network, name string) (addrs []netip.Addr, known bool) {
	running, err := s.on(network)
	if err != nil {
		return nil, false
	}
	for _, v := range running {
		names := append([]string{v.Name, v.ShortID(), v.ID, v.Hostname}, v.words.Aliases...)
		if v.network != nil && slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) }) {
			addrs = append(addrs, v.network.Address.Addr())
		}
	}
	return addrs, len(addrs) > 0
}

// freeAddress is one that no container on the network has: wanted, or the first.
func (s *networks) freeAddress(n *network, wanted string) (netip.Prefix, error) {
	running, err := s.on(n.Name)
	if err != nil {
		return netip.Prefix{}, err
	}
	taken := map[netip.Addr]string{n.Gateway: "the gateway", n.Subnet.Addr(): "the network itself"}
	for _, v := range running {
		if v.network != nil {
			taken[v.network.Address.Addr()] = v.Name
		}
	}
	if wanted != "" {
		a, err := netip.ParseAddr(wanted)
		if err == nil && !n.Subnet.Contains(a) {
			err = fmt.Errorf("it is not in %s", n.Subnet)
		}
		if err == nil && taken[a] != "" {
			err = fmt.Errorf("%s has it", taken[a])
		}
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("--ip %s: %w", wanted, err)
		}
		return netip.PrefixFrom(a, n.Subnet.Bits()), nil
	}
	// The last of a subnet is its broadcast address.
	for a := n.Subnet.Addr().Next(); n.Subnet.Contains(a.Next()); a = a.Next() {
		if taken[a] == "" {
			return netip.PrefixFrom(a, n.Subnet.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("network %s: all addresses of %s are taken", n.Name, n.Subnet)
}

func newNetwork(a *app) *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "Manage networks that containers share"}
	c.AddCommand(newNetworkCreate(a), newNetworkLs(a), newNetworkRm(a), newNetworkInspect(a), newNetworkPrune(a))
	return c
}

const networkCreateHelp = `Make a network. Containers that are started with --network NAME find each other
on it by their names and --network-alias, and nobody else is there.`

func newNetworkCreate(a *app) *cobra.Command {
	var subnet, gateway, driver string
	var internal bool
	var labels []string
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
			if err := n.setAddresses(subnet, gateway); err != nil {
				return err
			}
			if err := s.create(n); err != nil {
				return &exitError{status: exitFailed, err: fmt.Errorf("create network %s: %w", n.Name, err)}
			}
			fmt.Println(n.ID)
			return nil
		},
	}
	c.Flags().StringVar(&subnet, "subnet", "", "its addresses, as 10.89.0.0/24 (default: a /24 of 10.89.0.0/16 that no other has)")
	c.Flags().StringVar(&gateway, "gateway", "", "the address of its name server (default: the first)")
	c.Flags().StringVarP(&driver, "driver", "d", "bridge", "as in docker; there is only bridge")
	c.Flags().BoolVar(&internal, "internal", false, "give its containers no way out")
	c.Flags().Var((*list)(&labels), "label", "label, as KEY=value")
	return c
}

// setAddresses reads --subnet and --gateway; without a subnet, create finds one.
func (n *network) setAddresses(subnet, gateway string) (err error) {
	if subnet != "" {
		if n.Subnet, err = netip.ParsePrefix(subnet); err != nil || !n.Subnet.Addr().Is4() || n.Subnet.Bits() > 29 {
			return fmt.Errorf("--subnet %s: want IPv4 addresses, as 10.89.0.0/24, eight at least", subnet)
		}
		n.Subnet = n.Subnet.Masked()
	}
	if gateway == "" {
		return nil
	}
	if n.Gateway, err = netip.ParseAddr(gateway); err != nil || !n.Subnet.Contains(n.Gateway) {
		return fmt.Errorf("--gateway %s: want an address in --subnet", gateway)
	}
	return nil
}

// create makes a network; the rename of its file is the commit point.
func (s *networks) create(n *network) error {
	if err := checkNetworkName(n.Name); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	all, err := lockFile(s.dir+".lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer all.Close()
	others, err := s.list()
	if err != nil {
		return err
	}
	overlaps := func(p netip.Prefix) *network {
		for _, o := range others {
			if o.Subnet.Overlaps(p) {
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
	if !n.Gateway.IsValid() {
		n.Gateway = n.Subnet.Addr().Next()
	}
	dir := filepath.Join(s.dir, n.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	var unique [4]byte
	rand.Read(unique[:])
	draft := filepath.Join(dir, ".new-"+hex.EncodeToString(unique[:]))
	if err := os.WriteFile(draft, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(draft, filepath.Join(dir, "network.json"))
}

// remove removes a network that nothing runs on.
func (s *networks) remove(name string) error {
	unlock, err := s.lock(name)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.find(name); err != nil {
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
	return os.RemoveAll(filepath.Join(s.dir, name))
}

func newNetworkLs(a *app) *cobra.Command {
	var quiet bool
	var format string
	c := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		s, err := openNetworks()
		if err != nil {
			return err
		}
		all, err := s.list()
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
			rows = append(rows, row{n.ID[:12], n.Name, "bridge", "local", n.Created.Local().String(), fmt.Sprint(n.Internal), strings.Join(labels, ",")})
		}
		switch {
		case quiet:
			format = "{{.ID}}"
		case format == "" || format == "table":
			format = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
		}
		return printRows(os.Stdout, format, rows, map[string]string{"ID": "NETWORK ID"})
	}}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
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

func newNetworkPrune(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{Use: "prune", Short: "Remove the networks that no container has", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		s, err := openNetworks()
		if err != nil {
			return err
		}
		all, err := s.list()
		if err != nil {
			return err
		}
		containers, err := s.containers.List()
		if err != nil {
			return err
		}
		for _, n := range all {
			used := false
			for _, c := range containers {
				v, err := look(c)
				if err != nil {
					return err
				}
				used = used || v.words.Network == n.Name
			}
			if used {
				continue
			}
			if err := s.remove(n.Name); err != nil {
				return fmt.Errorf("remove network %s: %w", n.Name, err)
			}
			fmt.Println(n.Name)
		}
		return nil
	}}
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk prune never asks")
	return c
}

// networkRecord is a network as docker's inspect prints it.
type networkRecord struct {
	Name, Id, Created, Scope, Driver string
	Internal                         bool
	IPAM                             struct {
		Config []struct{ Subnet, Gateway string }
	}
	Containers map[string]networkMember
	Labels     map[string]string
}

type networkMember struct{ Name, MacAddress, IPv4Address string }

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
			running, err := s.on(name)
			if err != nil {
				return err
			}
			for _, v := range running {
				if v.network != nil {
					d.Containers[v.ID] = networkMember{v.Name, v.network.MAC, v.network.Address.String()}
				}
			}
			docs = append(docs, d)
		}
		return printDocuments(docs, format)
	}}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template over the document")
	return c
}
