package container

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symlinks one path may lead through, as in the kernel.
const maxLinks = 40

// reach opens path (O_PATH) as a process with this root would, and makes what is missing: parents
// as directories, the last component as a directory or an empty file. made is called before each of
// them with the descriptor of its parent, which is only lent.
//
// It goes one component at a time and never lets the kernel follow anything: a symlink is read and
// walked from the root, ".." goes back to a descriptor that was open already. So a container that
// renames or swaps what lies on the way (CVE-2021-30465) can make reach end elsewhere in its own
// root, and nowhere else; the descriptor, not the path, is what gets mounted on. openat2 could
// look a path up as safely, but cannot tell which components are missing.
func reach(root int, path string, dir bool, made func(parent int, name string) error) (_ int, err error) {
	var stack []int // open directories below root, the innermost last
	top := func() int {
		if len(stack) == 0 {
			return root
		}
		return stack[len(stack)-1]
	}
	pop := func() {
		unix.Close(stack[len(stack)-1])
		stack = stack[:len(stack)-1]
	}
	defer func() {
		for len(stack) > 0 {
			pop()
		}
	}()

	todo := split(path)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			if len(stack) > 0 {
				pop()
			}
			continue
		}
		fd, err := unix.Openat(top(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			if err = made(top(), name); err == nil {
				fd, err = makeAt(top(), name, dir || len(todo) > 0)
			}
			if err == unix.EEXIST { // a cache that another step is making its mount points in
				fd, err = unix.Openat(top(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			}
		}
		if err != nil {
			return -1, fmt.Errorf("%s of %s: %w", name, path, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			stack = append(stack, fd)
			continue
		}
		target, err := readlink(fd)
		unix.Close(fd)
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			return -1, fmt.Errorf("%s of %s: %w", name, path, err)
		}
		if strings.HasPrefix(target, "/") {
			for len(stack) > 0 {
				pop()
			}
		}
		todo = append(split(target), todo...)
	}
	if len(stack) == 0 {
		return unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 3)
	}
	fd := top()
	stack = stack[:len(stack)-1]
	return fd, nil
}

// split is the components of path, without empty ones and dots.
func split(path string) []string {
	var out []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			out = append(out, name)
		}
	}
	return out
}

// makeAt makes a directory or an empty file, and opens it (O_PATH). The umask does not count.
func makeAt(parent int, name string, dir bool) (int, error) {
	if dir {
		if err := unix.Mkdirat(parent, name, 0o755); err != nil {
			return -1, err
		}
		if err := unix.Fchmodat(parent, name, 0o755, 0); err != nil {
			return -1, err
		}
	} else if err := unix.Mknodat(parent, name, unix.S_IFREG|0o644, 0); err != nil {
		return -1, err
	}
	return unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// readlink reads the symlink that fd is.
func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
