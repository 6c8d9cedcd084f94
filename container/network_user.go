package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// The interface of a container's way out, and its MTU: the most that pasta and slirp4netns take.
const (
	tapName = "eth0"
	tapMTU  = 65520
)

// attachLimit is how long a program may take to attach itself to the interface; they need 10 ms.
const attachLimit = 5 * time.Second

// Connect gives the network a way out: an interface whose packets pasta, or slirp4netns where there
// is no pasta, makes into connections of an ordinary user. The machine's loopback is closed to it.
// The error is why there is none, with advice; the network is then as it was.
//
// The interface is made and configured here, and is there without the program: that has only to
// attach itself. So one that ends is started again, and the container sees no more than a cable
// that was out for a moment.
func (n *Network) Connect(ctx context.Context) error {
	drivers := n.drivers()
	if len(drivers) == 0 {
		return userns.Explain(userns.OpWayOut, "", errNoWayOut)
	}
	if err := n.makeTap(); err != nil {
		return userns.Explain(userns.OpTun, "/dev/net/tun", err)
	}
	var failed []error
	for _, d := range drivers {
		err := n.attach(ctx, d)
		if err == nil {
			return nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", d.name, err))
	}
	n.configure(func(l netlink) error { return l.remove(tapName) })
	return errors.Join(failed...)
}

// userDriver is a program that can be the way out.
type userDriver struct {
	name, path string
	args       []string
	ipv6       bool
}

// drivers are those that are installed, the best first.
func (n *Network) drivers() []userDriver {
	var list []userDriver
	ipv6 := hasIPv6()
	// Descriptor 3 is the namespace.
	if path, err := exec.LookPath("pasta"); err == nil {
		args := []string{
			"--foreground", "--quiet", "--ns-ifname", tapName, "--mtu", fmt.Sprint(tapMTU),
			"--netns-only", "--no-netns-quit", "--netns", "/proc/self/fd/3",
			// Nothing is passed on by itself, in or out, and no address leads to the machine's loopback.
			"--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", "--no-map-gw",
			"--address", ownAddress.Addr().String(), "--netmask", fmt.Sprint(ownAddress.Bits()),
			"--gateway", wayOut.String(), "--dns-forward", wayOutDNS.String(),
		}
		if ipv6 {
			args = append(args, "--address", ownAddress6.Addr().String(), "--gateway", wayOut6.String())
		} else {
			args = append(args, "--ipv4-only")
		}
		if os.Geteuid() == 0 {
			args = append(args, "--runas", "0:0") // of our namespace: what it may do is what we may
		}
		list = append(list, userDriver{"pasta", path, args, ipv6})
	}
	if path, err := exec.LookPath("slirp4netns"); err == nil {
		args := []string{
			"--mtu", fmt.Sprint(tapMTU), "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp",
			"--netns-type", "path",
		}
		if ipv6 {
			args = append(args, "--enable-ipv6")
		}
		list = append(list, userDriver{"slirp4netns", path, append(args, "/proc/self/fd/3", tapName), ipv6})
	}
	return list
}

// hasIPv6 tells whether the machine has IPv6 to anywhere: without, an address of it makes programs
// try, and wait. The interface must have a link-local address, too, or pasta has no IPv6, and that of
// Debian 12 (2023-03-09) ends by SIGSEGV when it is sent some.
func hasIPv6() bool {
	text, err := os.ReadFile("/proc/net/ipv6_route")
	if err != nil {
		return false
	}
	const anywhere = "00000000000000000000000000000000"
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 10 && f[0] == anywhere && f[1] == "00" && f[4] != anywhere && hasLinkLocal(f[9]) {
			return true
		}
	}
	return false
}

func hasLinkLocal(name string) bool {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return false
	}
	addrs, err := i.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		ip, ok := a.(*net.IPNet)
		return ok && ip.IP.To4() == nil && ip.IP.IsLinkLocalUnicast()
	})
}

// makeTap makes the interface, which stays without anybody attached to it.
func (n *Network) makeTap() error {
	return n.within(func() error {
		tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(tun)
		req, err := unix.NewIfreq(tapName)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, req); err != nil {
			return err
		}
		return unix.IoctlSetInt(tun, unix.TUNSETPERSIST, 1)
	})
}

// attach configures the interface for a program, starts that, and returns when it is attached. It
// is started again whenever it ends, until the network is closed.
func (n *Network) attach(ctx context.Context, d userDriver) error {
	own6, out6 := ownAddress6, wayOut6
	if d.name == "slirp4netns" {
		own6, out6 = slirpOwn6, slirpOut6
	}
	err := n.configure(func(l netlink) error {
		if err := l.up(tapName, tapMTU); err != nil {
			return err
		}
		tap, err := index(tapName)
		if err != nil {
			return err
		}
		if err := l.address(tap, ownAddress); err != nil {
			return err
		}
		if err := l.defaultRoute(tap, wayOut); err != nil || !d.ipv6 {
			return err
		}
		if err := l.address(tap, own6); err != nil {
			return err
		}
		return l.defaultRoute(tap, out6)
	})
	if err != nil {
		return err
	}
	program, err := n.startDriver(d)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(attachLimit); ; time.Sleep(time.Millisecond) {
		running, err := n.carrier()
		if err == nil && running {
			break
		}
		select {
		case <-program.ended:
			return program.why()
		case <-ctx.Done():
			program.end()
			return context.Cause(ctx)
		default:
		}
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("it did not attach itself in %v", attachLimit)
		}
		if err != nil {
			program.end()
			return err
		}
	}
	n.Driver, n.Gateway = d.name, wayOut
	if !n.Address.IsValid() {
		n.Address, n.DNS = ownAddress, wayOutDNS
	}
	if d.ipv6 && !n.Addr6.IsValid() {
		n.Addr6 = own6
	}
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		n.keepDriver(d, program, quit)
	}()
	n.leave = func() {
		close(quit)
		<-over
	}
	return nil
}

// Disconnect takes the way out away.
func (n *Network) Disconnect() error {
	if n.leave == nil {
		return nil
	}
	n.leave()
	n.leave = nil
	n.Driver, n.Gateway = "", netip.Addr{}
	if n.Address == ownAddress {
		n.Address, n.DNS = netip.Prefix{}, netip.Addr{}
	}
	if n.Addr6 == ownAddress6 || n.Addr6 == slirpOwn6 {
		n.Addr6 = netip.Prefix{}
	}
	return n.configure(func(l netlink) error { return l.remove(tapName) })
}

// keepDriver watches a program, and starts it again when it ends, less and less often.
func (n *Network) keepDriver(d userDriver, p *program, quit <-chan struct{}) {
	wait := 100 * time.Millisecond
	for {
		began := time.Now()
		select {
		case <-quit:
			p.end()
			return
		case <-p.ended:
		}
		if time.Since(began) > time.Minute {
			wait = 100 * time.Millisecond
		}
		for again := false; !again; {
			select {
			case <-quit:
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, time.Minute)
			if next, err := n.startDriver(d); err == nil {
				p, again = next, true
			}
		}
	}
}

// carrier tells whether a program is attached to the interface.
func (n *Network) carrier() (running bool, err error) {
	err = n.within(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		req, err := unix.NewIfreq(tapName)
		if err != nil {
			return err
		}
		err = unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, req)
		running = req.Uint16()&unix.IFF_RUNNING != 0
		return err
	})
	return running, err
}

// program is one run of a driver.
type program struct {
	cmd   *exec.Cmd
	said  firstWords
	ended chan struct{}
	err   error
}

func (n *Network) startDriver(d userDriver) (*program, error) {
	p := &program{ended: make(chan struct{})}
	p.cmd = exec.Command(d.path, d.args...)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	p.cmd.Dir = "/"
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	p.cmd.WaitDelay = time.Second
	p.cmd.ExtraFiles = []*os.File{n.file}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	_, err := onSpawner(func() (*os.Process, error) { return nil, p.cmd.Start() })
	if err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// end ends the program, and waits for that.
func (p *program) end() {
	p.cmd.Process.Kill()
	<-p.ended
}

// firstWords keeps the beginning of what a program says, which may be going to speak for weeks.
type firstWords struct{ bytes.Buffer }

func (w *firstWords) Write(p []byte) (int, error) {
	w.Buffer.Write(p[:min(len(p), max(0, 4096-w.Len()))])
	return len(p), nil
}

// why is what an ended program said last.
func (p *program) why() error {
	lines := strings.Split(strings.TrimSpace(p.said.String()), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return errors.New(last)
	}
	if p.err == nil {
		return errors.New("it ended at once")
	}
	return p.err
}
