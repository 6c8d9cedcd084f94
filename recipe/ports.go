package recipe

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ParsePorts makes the words of an expanded EXPOSE into the keys of docker's
// ExposedPorts: "80" → "80/tcp", "8000-8001/udp" → two. The order is that of the
// words, which Parse has sorted: it is the order that history shows. A word may
// have docker's "ip:host:" before the port, for nothing but a lint warning.
func ParsePorts(words []string) ([]string, error) {
	var ports []string
	for _, w := range words {
		p, err := parsePort(w)
		if err != nil {
			return nil, err
		}
		for n := p.first; n <= p.last; n++ {
			ports = append(ports, strconv.Itoa(n)+"/"+strings.ToLower(p.proto))
		}
	}
	return ports, nil
}

// port is one word of EXPOSE.
type port struct {
	ip, host    string // not for EXPOSE: lint says so
	first, last int
	proto       string // as written
}

func parsePort(word string) (port, error) {
	var p port
	container := word
	if i := strings.LastIndexByte(container, ':'); i >= 0 {
		p.host, container = container[:i], container[i+1:]
		if i := strings.LastIndexByte(p.host, ':'); i >= 0 {
			p.ip, p.host = p.host[:i], p.host[i+1:]
		}
	}
	container, p.proto, _ = strings.Cut(container, "/")
	if container == "" {
		return p, fmt.Errorf("invalid port: %q: no port specified", word)
	}
	switch strings.ToLower(p.proto) {
	case "":
		p.proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return p, fmt.Errorf("invalid port: %q: invalid proto: %s", word, p.proto)
	}
	ip := p.ip
	if strings.HasPrefix(ip, "[") {
		bare, _, err := net.SplitHostPort(ip + ":")
		if err != nil {
			return p, fmt.Errorf("invalid IP address %v: %w", ip, err)
		}
		ip = bare
	}
	if ip != "" && net.ParseIP(ip) == nil {
		return p, errors.New("invalid IP address: " + ip)
	}
	var err error
	if p.first, p.last, err = portRange(container); err != nil {
		return p, errors.New("invalid containerPort: " + container)
	}
	if p.host == "" {
		return p, nil
	}
	first, last, err := portRange(p.host)
	if err != nil {
		return p, errors.New("invalid hostPort: " + p.host)
	}
	if last-first != p.last-p.first && p.first != p.last {
		return p, fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", container, p.host)
	}
	return p, nil
}

// portRange reads "80" or "8000-8005".
func portRange(s string) (first, last int, err error) {
	start, end, isRange := strings.Cut(s, "-")
	if first, err = portNumber(start); err != nil || !isRange {
		return first, first, err
	}
	if last, err = portNumber(end); err == nil && last < first {
		err = errors.New("invalid port range: " + s)
	}
	return first, last, err
}

func portNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err == nil && (n < 0 || n > 65535) {
		err = errors.New("value out of range (0–65535)")
	}
	return n, err
}
