package container

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Names answers the containers of one network that ask for each other (DNS, RFC 1035). Every holder
// on a network serves the same at the bridge's address, of the same truth, the store: the kernel
// gives a question to any of them (SO_REUSEPORT), so that none is the one that must not end.
type Names struct {
	// Lookup finds a name, in lower case, for the container that has an address. It gives the name's
	// addresses or, where it is not known, who is to be asked in the machine's network.
	Lookup func(from netip.Addr, name string) (addrs []netip.Addr, known bool, servers []string)
}

// namesAtOnce bounds the questions that one holder works on.
const namesAtOnce = 64

// Serve answers at port 53 of an address of a bridge, until stop.
func (d *Names) Serve(bridge *Network, gateway netip.Addr) (stop func(), err error) {
	at := net.JoinHostPort(gateway.String(), "53")
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
			return cerr
		}
		return err
	}}
	var udp net.PacketConn
	var tcp net.Listener
	err = bridge.within(func() (err error) {
		if udp, err = listen.ListenPacket(context.Background(), "udp4", at); err == nil {
			if tcp, err = listen.Listen(context.Background(), "tcp4", at); err != nil {
				udp.Close()
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve names: %w", err)
	}
	tokens := make(chan struct{}, namesAtOnce)
	go func() {
		for {
			question := make([]byte, 4096)
			n, from, err := udp.ReadFrom(question)
			if err != nil {
				return
			}
			tokens <- struct{}{}
			go func() {
				defer func() { <-tokens }()
				if answer := d.answer("udp", asker(from), question[:n]); answer != nil {
					udp.WriteTo(answer, from)
				}
			}()
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			tokens <- struct{}{}
			go func() {
				defer func() { <-tokens }()
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				if question, err := readFramed(c); err == nil {
					if answer := d.answer("tcp", asker(c.RemoteAddr()), question); answer != nil {
						writeFramed(c, answer)
					}
				}
			}()
		}
	}()
	return func() {
		udp.Close()
		tcp.Close()
	}, nil
}

func asker(a net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr()
}

// Messages over TCP have their length before them.
func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

func writeFramed(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return err
}

// answer answers one message; nil to what is none.
func (d *Names) answer(network string, from netip.Addr, raw []byte) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(raw)
	if err != nil || header.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	addrs, known, servers := d.Lookup(from, name)
	if !known {
		for _, server := range servers {
			if answer, err := forward(network, server, raw); err == nil {
				return answer
			}
		}
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, OpCode: header.OpCode, RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	switch {
	case !known && len(servers) > 0:
		reply.RCode = dnsmessage.RCodeServerFailure // none of them answered
	case !known:
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 1}}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			r.Body = &dnsmessage.AResource{A: a.As4()}
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			r.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
		default:
			continue
		}
		reply.Answers = append(reply.Answers, r)
	}
	out, err := reply.Pack()
	if err != nil {
		return nil
	}
	return out
}

// forward asks another server, in the network of this process.
func forward(network, server string, raw []byte) ([]byte, error) {
	c, err := net.DialTimeout(network, net.JoinHostPort(server, "53"), 2*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if network == "tcp" {
		if err := writeFramed(c, raw); err != nil {
			return nil, err
		}
		return readFramed(c)
	}
	if _, err := c.Write(raw); err != nil {
		return nil, err
	}
	answer := make([]byte, 65535)
	n, err := c.Read(answer)
	return answer[:n], err
}
