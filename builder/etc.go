package builder

import (
	"errors"
	"fmt"
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

// Mounts puts the three files in their places.
func (e *Etc) Mounts() []container.Mount {
	var m []container.Mount
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		m = append(m, container.Mount{Type: container.Bind, Source: filepath.Join(e.dir, name), Dest: "/etc/" + name})
	}
	return m
}
