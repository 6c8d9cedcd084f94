package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mk/container"
)

// openRoot is a detached mount of a container's root: of its layer, by mount, or of the directory of
// --rootfs, with what is mounted there. The caller closes it.
func (w *words) openRoot(mount func() (*os.File, error)) (*os.File, error) {
	if w.Rootfs == "" {
		return mount()
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, w.Rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("--rootfs %s: %w", w.Rootfs, err)
	}
	return os.NewFile(uintptr(fd), w.Rootfs), nil
}

// layered refuses what looks at what a container changed, of one that changes a directory itself.
func layered(c *container.Container) error {
	v, err := look(c)
	if err == nil && v.words.Rootfs != "" {
		err = fmt.Errorf("its root is the directory %s itself, and no image is below", v.words.Rootfs)
	}
	return err
}
