package container

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// bridgeName is the interface that containers of one network meet at, and plugName theirs.
const (
	bridgeName = "br0"
	plugName   = "eth1"
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
// with the gateway's address. It is there as long as a holder has it open.
func NewBridge(gateway netip.Prefix) (*Network, error) {
	n, err := NewNetwork()
	if err != nil {
		return nil, err
	}
	err = n.configure(func(l netlink) error {
		err := l.ask(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, joinBytes(ifinfo(0, true),
			attr(unix.IFLA_IFNAME, cString(bridgeName)), attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("bridge")))))
		if err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		bridge, err := index(bridgeName)
		if err != nil {
			return err
		}
		return l.address(bridge, gateway)
	})
	if err != nil {
		n.Close()
		return nil, err
	}
	n.Address = gateway
	return n, nil
}

// Plug connects a container's network with a bridge, by a cable (veth(4)) whose end there is named
// after the container's ID. It goes with the namespace.
func (n *Network) Plug(bridge *Network, id string, address netip.Prefix) error {
	const peerInfo = 1 // VETH_INFO_PEER of linux/veth.h
	there := "v" + id[:12]
	mac := append([]byte{0x02, 0x42}, address.Addr().AsSlice()...) // local, and as docker has it
	err := n.configure(func(l netlink) error {
		peer := joinBytes(ifinfo(0, false), attr(unix.IFLA_IFNAME, cString(there)),
			attr(unix.IFLA_NET_NS_FD, word32(uint32(bridge.file.Fd()))))
		err := l.ask(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, joinBytes(ifinfo(0, true),
			attr(unix.IFLA_IFNAME, cString(plugName)), attr(unix.IFLA_ADDRESS, mac),
			attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("veth")), attr(unix.IFLA_INFO_DATA, attr(peerInfo, peer)))))
		if err != nil {
			return fmt.Errorf("make a cable to the bridge: %w", err)
		}
		plug, err := index(plugName)
		if err != nil {
			return err
		}
		return l.address(plug, address)
	})
	if err != nil {
		return err
	}
	n.Address, n.MAC, n.bridge = address, net.HardwareAddr(mac).String(), bridge
	return bridge.configure(func(l netlink) error {
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
