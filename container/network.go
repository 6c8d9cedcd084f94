package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Network is a network namespace that is made before a container and given to it (Spec.Network):
// so that everything is in place when its command starts.
//
//	n, err := container.NewNetwork()      // lo, and nothing else
//	err = n.Connect(ctx)                  // a way out, by pasta or slirp4netns
//	err = n.Plug(bridge, id, plug)        // a way to other containers
//	err = n.Alone()                       // or neither, and no more than an address
//	ports, err = n.Publish(dir, ports)    // ways in, from ports of the machine
//	spec.Network = n
//	…                                     // when the container has ended
//	n.Close()
//
// All of it is this process's, in stage inside, and ends with it: the kernel ends the programs
// (PR_SET_PDEATHSIG), closes the sockets, and the namespace goes with its last process.
//
// What comes in by a published port comes to an address that is not 127.0.0.1: a server that trusts
// its own loopback trusts nobody else (CVE-2021-20199).
type Network struct {
	file *os.File    // the namespace
	work chan func() // for the thread that is in it

	Address netip.Prefix // IPv4; invalid: none but 127.0.0.1
	Addr6   netip.Prefix // invalid: none
	Gateway netip.Addr   // invalid: there is no way out
	DNS     netip.Addr   // who answers for the machine's resolvers; invalid: nobody
	Driver  string       // "pasta", "slirp4netns" or ""
	MAC     string       // of the interface at a bridge; "": there is none

	plugs []*Plug
	stops []func() // what Close does, last first
	leave func()   // ends the way out; nil: there is none
}

// The addresses of a container's way out. They are those of slirp4netns; each container has them to
// itself. The prefix for IPv6 is a private one (RFC 4193) with the letters "mk" in it, but for
// slirp4netns, which has but one.
var (
	ownAddress  = netip.MustParsePrefix("10.0.2.100/24")
	wayOut      = netip.MustParseAddr("10.0.2.2")
	wayOutDNS   = netip.MustParseAddr("10.0.2.3")
	ownAddress6 = netip.MustParsePrefix("fd6d:6b::100/64")
	wayOut6     = netip.MustParseAddr("fd6d:6b::2")
	slirpOwn6   = netip.MustParsePrefix("fd00::100/64")
	slirpOut6   = netip.MustParseAddr("fd00::2")
)

// NewNetwork makes a network namespace with lo, which is up. The caller closes it.
func NewNetwork() (*Network, error) {
	n := new(Network)
	if err := n.enter(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := n.configure(func(l netlink) error { return l.up("lo", 0) }); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Alone gives a network that leads nowhere an address besides 127.0.0.1.
func (n *Network) Alone() error {
	n.Address = netip.PrefixFrom(ownAddress.Addr(), 32)
	return n.configure(func(l netlink) error { return l.address(1, n.Address) }) // lo is always the first
}

// enter starts the network's thread, by a call that takes it into the namespace. There is no way
// back out for a thread, since the machine's own network is not ours; and init is born of this one,
// so that it has to stay until the container has ended (see spawner).
func (n *Network) enter(join func() error) error {
	n.work = make(chan func())
	joined := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err := join()
		joined <- err
		for err == nil {
			f, ok := <-n.work
			if !ok {
				return
			}
			f()
		}
	}()
	return <-joined
}

// Close ends what goes on for the network.
func (n *Network) Close() error {
	if n.leave != nil {
		n.leave()
	}
	for len(n.stops) > 0 {
		last := len(n.stops) - 1
		n.stops[last]()
		n.stops = n.stops[:last]
	}
	close(n.work)
	return n.file.Close()
}

// within calls f in the namespace, on the network's thread.
func (n *Network) within(f func() error) error {
	done := make(chan error)
	n.work <- func() { done <- f() }
	return <-done
}

// spawn starts a process in the namespace.
func (n *Network) spawn(start func() (*os.Process, error)) (proc *os.Process, err error) {
	err = n.within(func() error {
		proc, err = start()
		return err
	})
	return proc, err
}

func (n *Network) configure(f func(netlink) error) error {
	return n.within(func() error {
		l, err := openNetlink()
		if err != nil {
			return err
		}
		defer l.close()
		return f(l)
	})
}

// index is the number of an interface of the thread's namespace.
func index(name string) (int, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	return i.Index, nil
}

var errNoWayOut = fmt.Errorf("neither pasta nor slirp4netns is installed: %w", exec.ErrNotFound)

// NetworkStatus is what the network of a running container is, for those who ask: network.json.
type NetworkStatus struct {
	Address netip.Prefix
	Addr6   netip.Prefix
	Gateway netip.Addr
	MAC     string `json:",omitempty"`
	Driver  string `json:",omitempty"` // of the way out; "": there is none
	Ports   []Port `json:",omitempty"` // as they were taken

	Plugs map[string]Plug `json:",omitempty"` // by the names of networks
}

// Status describes the network.
func (n *Network) Status() NetworkStatus {
	return NetworkStatus{Address: n.Address, Addr6: n.Addr6, Gateway: n.Gateway, MAC: n.MAC, Driver: n.Driver}
}

// SetNetwork writes down what the container's network is; nil: it has none of its own any more.
func (c *Container) SetNetwork(s *NetworkStatus) error {
	if s == nil {
		return os.Remove(c.Path("network.json"))
	}
	return WriteJSON(c.Path("network.json"), s)
}

// Network tells what the container's network is; nil when it does not run or has the machine's.
func (c *Container) Network() (*NetworkStatus, error) {
	if running, err := c.Running(); err != nil || !running {
		return nil, err
	}
	text, err := os.ReadFile(c.Path("network.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	s := new(NetworkStatus)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", c.Path("network.json"), err)
	}
	return s, nil
}
