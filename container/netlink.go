package container

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// netlink is a socket of rtnetlink(7) in one network namespace: what ip(8) does, as far as a
// container's network takes it. Every request is answered before the next is sent.
type netlink int

// openNetlink makes the socket in the network namespace of this thread; it stays in that.
func openNetlink() (netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open a netlink socket: %w", err)
	}
	return netlink(fd), nil
}

func (l netlink) close() { unix.Close(int(l)) }

// ask sends one request, a header of its type and attributes, and waits for the answer.
func (l netlink) ask(kind, flags uint16, body []byte) error {
	const header = unix.SizeofNlMsghdr
	msg := make([]byte, header, header+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(header+len(body)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	if err := unix.Sendto(int(l), append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(int(l), answer, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n < header+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
			return fmt.Errorf("netlink answered %d bytes that are no answer", n)
		}
		if errno := int32(binary.NativeEndian.Uint32(answer[header:])); errno != 0 {
			return unix.Errno(-errno)
		}
		return nil
	}
}

// attr is one attribute, of a value or of other attributes.
func attr(kind uint16, parts ...[]byte) []byte {
	out := make([]byte, unix.SizeofRtAttr)
	for _, p := range parts {
		out = append(out, p...)
	}
	binary.NativeEndian.PutUint16(out, uint16(len(out)))
	binary.NativeEndian.PutUint16(out[2:], kind)
	for len(out)%unix.RTA_ALIGNTO != 0 {
		out = append(out, 0)
	}
	return out
}

func cString(s string) []byte { return append([]byte(s), 0) }

func word32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// join puts pieces of a request behind each other.
func joinBytes(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// ifinfo is struct ifinfomsg, of an interface by index (0: by name); up raises IFF_UP.
func ifinfo(index uint32, up bool) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	if up {
		binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	}
	return b
}

// up sets an interface up, with an MTU unless that is 0.
func (l netlink) up(name string, mtu uint32) error {
	body := joinBytes(ifinfo(0, true), attr(unix.IFLA_IFNAME, cString(name)))
	if mtu != 0 {
		body = append(body, attr(unix.IFLA_MTU, word32(mtu))...)
	}
	if err := l.ask(unix.RTM_NEWLINK, 0, body); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// remove removes an interface.
func (l netlink) remove(name string) error {
	if err := l.ask(unix.RTM_DELLINK, 0, joinBytes(ifinfo(0, false), attr(unix.IFLA_IFNAME, cString(name)))); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// address gives an interface an address. Nobody else can have it: there is no detection of
// duplicates, which for IPv6 would take a second.
func (l netlink) address(index int, a netip.Prefix) error {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family(a.Addr()), byte(a.Bits())
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	ip := a.Addr().AsSlice()
	err := l.ask(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, joinBytes(b,
		attr(unix.IFA_LOCAL, ip), attr(unix.IFA_ADDRESS, ip), attr(unix.IFA_FLAGS, word32(unix.IFA_F_NODAD))))
	if err != nil {
		return fmt.Errorf("set address %s: %w", a, err)
	}
	return nil
}

// addresses gives an interface several.
func (l netlink) addresses(index int, all []netip.Prefix) error {
	for _, a := range all {
		if err := l.address(index, a); err != nil {
			return err
		}
	}
	return nil
}

// defaultRoute sends what has no other way to a gateway.
func (l netlink) defaultRoute(index int, gateway netip.Addr) error {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[4], b[5], b[7] = family(gateway), unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RTN_UNICAST
	err := l.ask(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, joinBytes(b,
		attr(unix.RTA_GATEWAY, gateway.AsSlice()), attr(unix.RTA_OIF, word32(uint32(index)))))
	if err != nil {
		return fmt.Errorf("set the route to %s: %w", gateway, err)
	}
	return nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
