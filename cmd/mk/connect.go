package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"mk/container"
	"mk/userns"
)

// membership is what a container is to be on one network with a name.
type membership struct {
	Network string
	Aliases []string `json:",omitempty"`
	IP, IP6 string   `json:",omitempty"` // "": a free one
	MAC     string   `json:",omitempty"`
}

// networkFlag is --network: the first says what the container's network is; those that follow
// are more networks with names.
type networkFlag struct{ w *networking }

func (f networkFlag) String() string { return f.w.Network }
func (f networkFlag) Type() string   { return "string" }

// Set reads NAME, docker's name=NAME,alias=…,ip=… and podman's NAME:alias=…,ip=….
func (f networkFlag) Set(text string) error {
	m := membership{Network: text}
	fields := ""
	if strings.HasPrefix(text, "name=") {
		m.Network, fields = "", text
	} else if name, more, ok := strings.Cut(text, ":"); ok && !strings.HasPrefix(text, ofContainer) {
		m.Network, fields = name, more
	}
	for field := range strings.SplitSeq(fields, ",") {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "name":
			m.Network = value
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "ip", "ip6":
			if a, err := netip.ParseAddr(value); err == nil && a.Is6() {
				m.IP6 = value
			} else {
				m.IP = value
			}
		case "mac", "mac-address":
			m.MAC = value
		case "":
		default:
			return fmt.Errorf("unknown field %q: want alias, ip, ip6 or mac-address", key)
		}
	}
	if f.w.Network == "" {
		// --network-alias, --ip and their like may have come before.
		f.w.Network, f.w.Aliases = m.Network, append(f.w.Aliases, m.Aliases...)
		f.w.IP, f.w.IP6, f.w.MAC = cmp.Or(m.IP, f.w.IP), cmp.Or(m.IP6, f.w.IP6), cmp.Or(m.MAC, f.w.MAC)
		return nil
	}
	f.w.Joined = append(f.w.Joined, m)
	return nil
}

// memberships are those of a container.
func (w *networking) memberships() []membership {
	if !isNamed(w.Network) {
		return w.Joined
	}
	return append([]membership{{Network: w.Network, Aliases: w.Aliases, IP: w.IP, IP6: w.IP6, MAC: w.MAC}}, w.Joined...)
}

// networks are the names of a container's networks, the first first.
func (w *networking) networks() []string {
	all := []string{w.Network}
	for _, m := range w.Joined {
		all = append(all, m.Network)
	}
	return all
}

// joinNetwork adds a network, and leaveNetwork takes one away.
func (w *networking) joinNetwork(m membership) {
	if w.Network == networkNone {
		w.Network, w.Aliases, w.IP, w.IP6, w.MAC = m.Network, m.Aliases, m.IP, m.IP6, m.MAC
		return
	}
	w.Joined = append(w.Joined, m)
}

func (w *networking) leaveNetwork(name string) {
	if w.Network != name {
		w.Joined = slices.DeleteFunc(w.Joined, func(m membership) bool { return m.Network == name })
		return
	}
	next := membership{Network: networkNone}
	if len(w.Joined) > 0 {
		next, w.Joined = w.Joined[0], w.Joined[1:]
	}
	w.Network, w.Aliases, w.IP, w.IP6, w.MAC = next.Network, next.Aliases, next.IP, next.IP6, next.MAC
}

// socket is where a holder's runs plug in: what all of them have of networks that are shared.
type socket struct {
	given map[string]*os.File // of neighbours

	mu      sync.Mutex
	plugged map[string]*plugged // by network; since the first run that was on it
	network *container.Network  // of this run
}

// plugged is a place on a network.
type plugged struct {
	record *network
	bridge *container.Network
	plug   container.Plug
	close  func()
}

// plugIn connects a container's network with one that it shares, which its first container makes.
// given is the bridge of who is on it; nil: nobody is, and nobody comes meanwhile.
func (s *networks) plugIn(n *container.Network, c *container.Container, m membership, record *network, at *socket, given *os.File) error {
	p := at.plugged[m.Network]
	if p == nil {
		plug, err := s.freePlug(record, m)
		if err != nil {
			return err
		}
		var bridge *container.Network
		if given != nil {
			bridge, err = container.OpenNetwork(given)
		} else {
			bridge, err = container.NewBridge(record.gateways()...)
		}
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s runs in another user namespace than those on it, which the kernel keeps apart: stop it, connect it, and start it", c.Name)
		} else if err != nil {
			return err
		}
		names := &container.Names{Lookup: func(from netip.Addr, name string) ([]netip.Addr, bool, []string) {
			return s.lookup(record, from, name)
		}}
		stop, err := names.Serve(bridge, record.Gateway)
		if err != nil {
			bridge.Close()
			return err
		}
		p = &plugged{record: record, bridge: bridge, plug: *plug, close: func() { stop(); bridge.Close() }}
	}
	if err := n.Plug(p.bridge, c.ID, &p.plug); err != nil {
		if at.plugged[m.Network] == nil {
			p.close()
		}
		return err
	}
	if at.plugged == nil {
		at.plugged = map[string]*plugged{}
	}
	at.plugged[m.Network] = p
	s.say("connect", record, c)
	return nil
}

// status is the network of a run, with all of its plugs.
func (at *socket) status(ports []container.Port) *container.NetworkStatus {
	status := at.network.Status()
	status.Ports, status.Plugs = ports, map[string]container.Plug{}
	for name, p := range at.plugged {
		status.Plugs[name] = p.plug
	}
	return &status
}

// bridge gives a copy of a network that the container is on.
func (at *socket) bridge(name string) (*os.File, error) {
	at.mu.Lock()
	defer at.mu.Unlock()
	p := at.plugged[name]
	if p == nil {
		return nil, fmt.Errorf("it is not on network %s", name)
	}
	fd, err := unix.FcntlInt(p.bridge.File().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "bridge"), nil
}

// settleNames says who answers the container's questions: its first network with a name, or the way out.
func (at *socket) settleNames(s *networks, w *words) error {
	for _, m := range w.memberships() {
		record, err := s.find(m.Network)
		if err != nil {
			return err
		}
		at.network.DNS = record.Gateway
		return nil
	}
	return nil
}

// wayOut tells whether the container's networks are to lead anywhere.
func (s *networks) wayOut(w *words) (bool, error) {
	if w.Network == networkPrivate {
		return true, nil
	}
	for _, m := range w.memberships() {
		record, err := s.find(m.Network)
		if err != nil || !record.Internal {
			return err == nil, err
		}
	}
	return false, nil
}

// connectNetwork gives a run a way out. That there is none to give is a notice, and no error.
func connectNetwork(ctx context.Context, n *container.Network) (notices []string, err error) {
	err = n.Connect(ctx)
	if err == nil || ctx.Err() != nil {
		return nil, err
	}
	notices = []string{fmt.Sprintf("the container's network leads nowhere: %v", err)}
	if h := userns.Advice(err); h != "" {
		notices = append(notices, "hint: "+h)
	}
	return notices, nil
}

// rewire is mk network connect and disconnect in the holder. What is written down of the container is
// whoever asks' to write, after.
func (s *store) rewire(c *container.Container, at *socket, r container.Request, files []*os.File) (notices []string, err error) {
	var change rewiring
	if err := json.Unmarshal(r.Words, &change); err != nil {
		return nil, err
	}
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.network == nil {
		return nil, container.ErrNotRunning
	}
	networks := &networks{filepath.Join(s.root, "networks"), s.containers}
	name := change.Member.Network
	before, err := c.Network()
	if err != nil {
		return nil, err
	}
	if r.Op == "connect" {
		record, err := networks.find(name)
		if err != nil {
			return nil, err
		}
		var given *os.File
		if len(files) > 0 {
			given = files[0]
		}
		if err := networks.plugIn(at.network, c, change.Member, record, at, given); err != nil {
			return nil, err
		}
	} else if p := at.plugged[name]; p != nil {
		if err := at.network.Unplug(&p.plug); err != nil {
			return nil, err
		}
		p.close()
		delete(at.plugged, name)
		networks.say("disconnect", p.record, c)
	}
	if err := at.settleNames(networks, &change.After); err != nil {
		return nil, err
	}
	outside, err := networks.wayOut(&change.After)
	if err == nil && outside && at.network.Driver == "" {
		notices, err = connectNetwork(context.Background(), at.network)
	} else if err == nil && !outside {
		err = at.network.Disconnect()
	}
	if err != nil {
		return nil, err
	}
	var ports []container.Port
	if before != nil {
		ports = before.Ports
	}
	if err := s.writeNames(c, &change.After, at.network); err != nil {
		return nil, err
	}
	return notices, c.SetNetwork(at.status(ports))
}

// rewiring is a change of a running container's networks.
type rewiring struct {
	Member membership
	After  words // what the container's will be
}

// rewire changes which networks a container is on.
func (s *networks) rewire(op, name string, c *container.Container, change func(*words) (membership, error)) error {
	unlock, err := s.lock() // first, as at a start
	if err != nil {
		return err
	}
	defer unlock()
	unlockContainer, err := c.Change()
	if err != nil {
		return err
	}
	defer unlockContainer()
	record, err := s.find(name)
	if err != nil {
		return err
	}
	return c.Amend(func(r *container.Record) error {
		var w words
		if err := json.Unmarshal(r.Words, &w); err != nil {
			return err
		}
		m, err := change(&w)
		if err != nil {
			return err
		}
		switch told, err := s.tell(op, name, c, rewiring{m, w}); {
		case err != nil:
			return err
		case !told && op == "connect":
			if _, err := s.freePlug(record, m); err != nil {
				return err
			}
		}
		r.Words, err = json.Marshal(w)
		return err
	})
}

// rewireWithin is how long a container may be between two runs, or ending.
const rewireWithin = 5 * time.Second

// tell has the holder of a container change its networks; false when it does not run.
func (s *networks) tell(op, name string, c *container.Container, change rewiring) (told bool, err error) {
	request := container.Request{Op: op}
	if request.Words, err = json.Marshal(change); err != nil {
		return false, err
	}
	for until := time.Now().Add(rewireWithin); ; time.Sleep(20 * time.Millisecond) {
		if running, err := c.Running(); err != nil || !running {
			return false, err
		}
		var bridge []*os.File
		if op == "connect" {
			if bridge, err = s.bridgeOf(name); err != nil {
				return false, err
			}
		}
		reply, _, err := c.Ask(request, bridge...)
		for _, f := range bridge {
			f.Close()
		}
		if (errors.Is(err, container.ErrNotRunning) || errors.Is(err, container.ErrKilled)) && time.Now().Before(until) {
			continue // it is just ending, or starting again
		}
		for _, n := range reply.Notices {
			fmt.Fprintln(os.Stderr, "mk:", n)
		}
		return err == nil, err
	}
}

// bridgeOf asks who is on a network for its bridge; nobody may be.
func (s *networks) bridgeOf(name string) ([]*os.File, error) {
	running, err := s.on(name)
	if err != nil {
		return nil, err
	}
	for _, v := range running {
		if _, files, err := v.Ask(container.Request{Op: "share", Streams: []string{"bridge:" + name}}); err == nil {
			return files, nil // else it is just ending
		}
	}
	return nil, nil
}

const networkConnectHelp = `Put a container on another network, running or not. One that runs has it at once, as
another interface.`

func newNetworkConnect(*app) *cobra.Command {
	var m membership
	c := &cobra.Command{Use: "connect [flags] NETWORK CONTAINER", Short: "Put a container on a network", Long: networkConnectHelp, Args: cobra.ExactArgs(2)}
	c.RunE = func(_ *cobra.Command, args []string) error {
		return onNetwork("connect", args, func(w *words) (membership, error) {
			m.Network = args[0]
			switch {
			case w.Network == networkHost:
				return m, errors.New("it has the machine's network: start it with --network private, none, or the name of one")
			case strings.HasPrefix(w.Network, ofContainer):
				return m, fmt.Errorf("its network is that of %s: connect that one", strings.TrimPrefix(w.Network, ofContainer))
			case slices.ContainsFunc(w.memberships(), func(o membership) bool { return o.Network == m.Network }):
				return m, errors.New("it is on it already")
			}
			w.joinNetwork(m)
			return m, nil
		})
	}
	fl := c.Flags()
	fl.Var((*list)(&m.Aliases), "alias", "another name on the network")
	m.define(fl)
	return c
}

// define adds the flags about addresses.
func (m *membership) define(fl *pflag.FlagSet) {
	fl.StringVar(&m.IP, "ip", "", "address on the network")
	fl.StringVar(&m.IP6, "ip6", "", "IPv6 address on the network")
}

func newNetworkDisconnect(*app) *cobra.Command {
	var force bool
	c := &cobra.Command{Use: "disconnect [flags] NETWORK CONTAINER", Short: "Take a container off a network", Args: cobra.ExactArgs(2)}
	c.RunE = func(_ *cobra.Command, args []string) error {
		return onNetwork("disconnect", args, func(w *words) (membership, error) {
			m := membership{Network: args[0]}
			if !slices.ContainsFunc(w.memberships(), func(o membership) bool { return o.Network == m.Network }) {
				return m, errors.New("it is not on it")
			}
			w.leaveNetwork(m.Network)
			return m, nil
		})
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk always takes it off")
	return c
}

func onNetwork(op string, args []string, change func(*words) (membership, error)) error {
	s, err := openNetworks()
	if err != nil {
		return err
	}
	c, err := s.containers.Find(args[1])
	if err == nil {
		err = s.rewire(op, args[0], c, change)
	}
	if err != nil {
		return &exitError{status: exitFailed, err: fmt.Errorf("network %s %s %s: %w", op, args[0], args[1], err)}
	}
	return nil
}
