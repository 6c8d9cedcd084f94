package container

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// bridgeName is the interface that containers of one network meet at; theirs is eth1, or the next.
const (
	bridgeName = "br0"
	firstPlug  = 1
)

// OpenNetwork joins a network namespace that another holder made, in the user namespace that this
// process shares with it. file stays the caller's.
func OpenNetwork(file *os.File) (*Network, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	n := &Network{file: os.NewFile(uintptr(fd), "network namespace")}
	if err := n.enter(func() error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
		n.file.Close()
		return nil, fmt.Errorf("join a network namespace: %w", err)
	}
	return n, nil
}

// NewBridge makes a namespace that is the network between containers: a bridge and nothing else,
// with the gateway's addresses. It is there as long as a holder has it open.
func NewBridge(gateways ...netip.Prefix) (*Network, error) {
	n, err := NewNetwork()
	if err != nil {
		return nil, err
	}
	err = n.configure(func(l netlink) error {
		// An address that is not given is the lowest of the cables', and changes when one comes or goes:
		// whoever remembers it (ARP) then talks to nobody for a while.
		err := l.ask(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, joinBytes(ifinfo(0, true),
			attr(unix.IFLA_IFNAME, cString(bridgeName)), attr(unix.IFLA_ADDRESS, macOf(gateways[0].Addr())), attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("bridge")))))
		if err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		bridge, err := index(bridgeName)
		if err != nil {
			return err
		}
		return l.addresses(bridge, gateways)
	})
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// File is the namespace, which stays the network's.
func (n *Network) File() *os.File { return n.file }

// Plug is a network's place at a bridge.
type Plug struct {
	Interface string       // in the network; chosen by Network.Plug
	MAC       string       // "": docker's, made of the address
	Address   netip.Prefix // IPv4
	Addr6     netip.Prefix // invalid: none
}

func (p *Plug) addresses() []netip.Prefix {
	if p.Addr6.IsValid() {
		return []netip.Prefix{p.Address, p.Addr6}
	}
	return []netip.Prefix{p.Address}
}

// macOf makes a MAC address of an IPv4 address: a local one, as docker has it.
func macOf(a netip.Addr) net.HardwareAddr {
	return append([]byte{0x02, 0x42}, a.AsSlice()...)
}

// Plug connects a container's network with a bridge, by a cable (veth(4)) whose end there is named
// after the container's ID. It goes with the namespace, or by Unplug. The first one gives the network
// its address, where it has none.
func (n *Network) Plug(bridge *Network, id string, p *Plug) error {
	const peerInfo = 1 // VETH_INFO_PEER of linux/veth.h
	there := "v" + id[:12]
	mac := macOf(p.Address.Addr())
	if p.MAC != "" {
		var err error
		if mac, err = net.ParseMAC(p.MAC); err != nil || len(mac) != 6 {
			return fmt.Errorf("%q is no MAC address", p.MAC)
		}
	}
	p.MAC = mac.String()
	// The kernel takes a namespace away a while after its last process, and this one's last cable with it.
	bridge.configure(func(l netlink) error { return l.remove(there) })
	err := n.configure(func(l netlink) error {
		for i := firstPlug; ; i++ {
			p.Interface = fmt.Sprintf("eth%d", i)
			if _, err := index(p.Interface); err != nil {
				break
			}
		}
		peer := joinBytes(ifinfo(0, false), attr(unix.IFLA_IFNAME, cString(there)),
			attr(unix.IFLA_NET_NS_FD, word32(uint32(bridge.file.Fd()))))
		err := l.ask(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, joinBytes(ifinfo(0, true),
			attr(unix.IFLA_IFNAME, cString(p.Interface)), attr(unix.IFLA_ADDRESS, mac),
			attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("veth")), attr(unix.IFLA_INFO_DATA, attr(peerInfo, peer)))))
		if err != nil {
			return fmt.Errorf("make a cable to the bridge: %w", err)
		}
		plug, err := index(p.Interface)
		if err != nil {
			return err
		}
		return l.addresses(plug, p.addresses())
	})
	if err == nil {
		err = bridge.configure(func(l netlink) error {
			master, err := index(bridgeName)
			if err != nil {
				return err
			}
			err = l.ask(unix.RTM_NEWLINK, 0, joinBytes(ifinfo(0, true),
				attr(unix.IFLA_IFNAME, cString(there)), attr(unix.IFLA_MASTER, word32(uint32(master)))))
			if err != nil {
				return fmt.Errorf("put the cable into the bridge: %w", err)
			}
			return nil
		})
	}
	if err != nil {
		n.Unplug(p)
		return err
	}
	n.plugs = append(n.plugs, p)
	if !n.Address.IsValid() {
		n.Address, n.MAC = p.Address, p.MAC
		if p.Addr6.IsValid() {
			n.Addr6 = p.Addr6
		}
	}
	return nil
}

// Unplug takes a cable out, with both of its ends.
func (n *Network) Unplug(p *Plug) error {
	n.plugs = slices.DeleteFunc(n.plugs, func(q *Plug) bool { return q == p })
	if n.Address == p.Address {
		n.Address, n.MAC = netip.Prefix{}, ""
	}
	if n.Addr6 == p.Addr6 {
		n.Addr6 = netip.Prefix{}
	}
	return n.configure(func(l netlink) error { return l.remove(p.Interface) })
}

// Own are the network's addresses, by which a container knows itself: at bridges or, where there is
// none, its other.
func (n *Network) Own() (own []netip.Addr) {
	for _, p := range n.plugs {
		for _, a := range p.addresses() {
			own = append(own, a.Addr())
		}
	}
	if len(own) == 0 && n.Address.IsValid() {
		own = append(own, n.Address.Addr())
	}
	return own
}
