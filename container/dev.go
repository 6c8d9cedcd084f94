package container

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// devices are docker's; nobody in a user namespace may make one, so they are bind mounts of the
// machine's.
var devices = []struct {
	name  string
	minor uint32 // of major 1, or 5 for tty
}{{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}, {"tty", 0}}

var devLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
}

// fillDev fills the tmpfs on /dev, which dev is: devices, links, and the directories of what the
// plan mounts there.
func fillDev(dev int) error {
	for _, d := range devices {
		source, err := openDevice(d.name)
		if err != nil {
			return err
		}
		if err := coverFile(dev, d.name, source); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
		unix.Close(source)
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil {
			return fmt.Errorf("make /dev/%s: %w", l[0], err)
		}
	}
	return nil
}

// openDevice opens (O_PATH) a device of the machine, and makes sure that it is the one.
func openDevice(name string) (int, error) {
	fd, err := unix.Open("/dev/"+name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/%s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	for _, d := range devices {
		major := uint32(1)
		if d.name == "tty" {
			major = 5
		}
		if d.name == name && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(major, d.minor) {
			return fd, nil
		}
	}
	unix.Close(fd)
	return -1, fmt.Errorf("/dev/%s of this machine is not the device of that name", name)
}

// coverFile makes an empty file and mounts a copy of source, a file (O_PATH), on it.
func coverFile(dir int, name string, source int) error {
	dst, err := makeAt(dir, name, false)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	mnt, err := unix.OpenTree(source, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	return moveTo(mnt, dst)
}
