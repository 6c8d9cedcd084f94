package builder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"mk/container"
)

// Etc are the files that mk puts into a container without their ever being
// part of a layer: /etc/hosts, /etc/hostname and /etc/resolv.conf. They are in
// a tmpfs that only this process's own mount namespace knows, so nothing is
// left of them however the process ends.
type Etc struct {
	Hostname string
	dir      string
}

// NewEtc mounts the tmpfs over dir, which is made if it is not there, and
// writes the files. hosts are more lines of /etc/hosts.
func NewEtc(dir, hostname string, hosts []string) (*Etc, error) {
	e := &Etc{Hostname: hostname, dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs for /etc/hosts and /etc/resolv.conf: %w", err)
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	text := "127.0.0.1\tlocalhost " + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, line := range hosts {
		text += line + "\n"
	}
	for name, text := range map[string]string{"resolv.conf": string(resolv), "hosts": text, "hostname": hostname + "\n"} {
		if _, err := e.Add(name, text, 0o644); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// Add puts one more file there and returns its path.
func (e *Etc) Add(name, text string, mode os.FileMode) (string, error) {
	p := filepath.Join(e.dir, name)
	if err := os.WriteFile(p, []byte(text), mode); err != nil {
		return "", err
	}
	return p, os.Chmod(p, mode) // whatever the umask
}

// temp makes a file there that is nobody else's, 0600. The caller removes it.
func (e *Etc) temp(kind string) (*os.File, error) { return os.CreateTemp(e.dir, kind+"-") }

// listen makes a socket there, 0600 until the caller says otherwise, and returns
// its path, which the caller removes.
func (e *Etc) listen(kind string) (string, net.Listener, error) {
	f, err := e.temp(kind)
	if err != nil {
		return "", nil, err
	}
	f.Close()
	if err := os.Remove(f.Name()); err != nil { // its name is what is wanted
		return "", nil, err
	}
	// An address has at most 107 bytes, and a store may lie deeper than that.
	dir, err := os.Open(e.dir)
	if err != nil {
		return "", nil, err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(f.Name()))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return "", nil, err
	}
	l.SetUnlinkOnClose(false)
	return f.Name(), l, nil
}

// Attach mounts a detached tree there, where only this process finds it, so that
// parts of it can be bound. The tree stays the caller's to close.
func (e *Etc) Attach(tree *os.File) (detach func() error, err error) {
	dir, err := os.MkdirTemp(e.dir, "tree-")
	if err != nil {
		return nil, err
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		os.Remove(dir)
		return nil, fmt.Errorf("attach a tree: %w", err)
	}
	return func() error {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("detach a tree: %w", err)
		}
		return os.Remove(dir)
	}, nil
}

// Mounts puts the three files in their places.
func (e *Etc) Mounts() []container.Mount {
	var m []container.Mount
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		m = append(m, container.Mount{Type: container.Bind, Source: filepath.Join(e.dir, name), Dest: "/etc/" + name})
	}
	return m
}
