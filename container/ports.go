package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin"
	"golang.org/x/sys/unix"

	"mk/userns"
)

// Port is a port of the machine that leads to one of the container.
type Port struct {
	IP        string `json:",omitempty"` // to listen on; "": all addresses, of IPv4 and IPv6
	Host      uint16 // 0: a free one
	HostEnd   uint16 `json:",omitempty"` // the first free one from Host to this
	Container uint16
	Proto     string // tcp or udp
}

// ParsePorts reads docker's [[ip:][host]:]container[/protocol], where host and container may be
// ranges. Two ranges are of the same length; a range for one port of the container means any of it.
func ParsePorts(text string) ([]Port, error) {
	rest, proto, given := strings.Cut(text, "/")
	if !given {
		proto = "tcp"
	}
	if proto = strings.ToLower(proto); proto != "tcp" && proto != "udp" {
		return nil, fmt.Errorf("protocol %q: want tcp or udp", proto)
	}
	var p Port
	p.Proto = proto
	host, inside := "", rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, inside = rest[:i], rest[i+1:]
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host[:i], "["), "]"))
			if err != nil {
				return nil, fmt.Errorf("%q is not an IP address", host[:i])
			}
			p.IP, host = ip.String(), host[i+1:]
		}
	}
	first, last, err := portRange(inside)
	if err != nil {
		return nil, err
	}
	var from, to uint16
	if host != "" {
		if from, to, err = portRange(host); err != nil {
			return nil, err
		}
	}
	switch {
	case host == "", to-from == last-first:
		var all []Port
		for i := uint16(0); ; i++ {
			one := p
			one.Container = first + i
			if host != "" {
				one.Host = from + i
			}
			if all = append(all, one); i == last-first {
				return all, nil
			}
		}
	case first == last:
		p.Host, p.HostEnd, p.Container = from, to, first
		return []Port{p}, nil
	}
	return nil, fmt.Errorf("%d ports cannot lead to %d", int(to-from)+1, int(last-first)+1)
}

func portRange(text string) (first, last uint16, err error) {
	a, b, isRange := strings.Cut(text, "-")
	if !isRange {
		b = a
	}
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || x == 0 || y < x {
		return 0, 0, fmt.Errorf("%q is not a port from 1 to 65535, nor a range of such", text)
	}
	return uint16(x), uint16(y), nil
}

// Publish opens ports of the machine that lead to the network's address, by rootlesskit's port
// driver: one half of it listens here, the other dials in the namespace. Both are in this process,
// and find each other by a socket in dir, which is the container's own directory. The result
// says which ports were taken. It is called once.
func (n *Network) Publish(dir string, ports []Port) (taken []Port, err error) {
	if len(ports) == 0 {
		return nil, nil
	}
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	n.stops = append(n.stops, func() { at.Close() })
	short := fmt.Sprintf("/proc/self/fd/%d", at.Fd()) // an address of a socket has 107 bytes
	clean := func() {
		for _, name := range []string{".bp.sock", ".bp-ready.pipe"} {
			os.Remove(filepath.Join(short, name))
		}
	}
	clean() // what a killed holder left
	listening, err := builtin.NewParentDriver(io.Discard, short, false, "")
	if err != nil {
		return nil, fmt.Errorf("publish ports: %w", err)
	}
	dialing := builtin.NewChildDriver(io.Discard)
	quit, ready, failed := make(chan struct{}), make(chan struct{}, 1), make(chan error, 2)
	var halves sync.WaitGroup
	halves.Go(func() {
		failed <- dialing.RunChildDriver(listening.OpaqueForChild(), quit, fmt.Sprintf("/proc/self/fd/%d", n.file.Fd()))
	})
	halves.Go(func() { failed <- listening.RunParentDriver(ready, quit, nil) })
	select {
	case <-ready:
	case err := <-failed:
		return nil, fmt.Errorf("publish ports: %w", err)
	}
	n.stops = append(n.stops, func() {
		close(quit)
		halves.Wait()
		clean()
	})
	for _, p := range ports {
		if p, err = n.listen(listening, p); err != nil {
			return nil, fmt.Errorf("publish port %d: %w", p.Container, err)
		}
		taken = append(taken, p)
	}
	return taken, nil
}

// listen takes one port.
func (n *Network) listen(driver port.ParentDriver, p Port) (Port, error) {
	first, last := p.Host, max(p.Host, p.HostEnd)
	for tries := 0; ; tries++ {
		try := first
		if first == 0 {
			var err error
			if try, err = freePort(p.IP, p.Proto); err != nil {
				return p, err
			}
		}
		status, err := driver.AddPort(context.Background(), port.Spec{
			Proto: p.Proto, ParentIP: p.IP, ParentPort: int(try),
			ChildIP: n.Address.Addr().String(), ChildPort: int(p.Container),
		})
		if err == nil {
			n.stops = append(n.stops, func() { driver.RemovePort(context.Background(), status.ID) })
			p.Host, p.HostEnd = try, 0
			return p, nil
		}
		var op *net.OpError // without the driver's own advice
		if errors.As(err, &op) {
			err = op.Err
		}
		switch {
		case errors.Is(err, unix.EADDRINUSE) && first == 0 && tries < 10: // somebody was faster
		case errors.Is(err, unix.EADDRINUSE) && first != 0 && first < last:
			first++
		default:
			return p, userns.Explain(userns.OpListen, strconv.Itoa(int(try)), err)
		}
	}
}

// freePort asks the kernel for a port that nobody has.
func freePort(ip, proto string) (uint16, error) {
	address := net.JoinHostPort(ip, "0")
	if proto == "udp" {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), nil
}
