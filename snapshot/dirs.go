package snapshot

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dirs is one directory of a layer, open in each of the layer's trees that has it, topmost first:
// most layers have one tree (see Amend). What the upper ones have hides what the lower ones have
// of that name, as in an overlay.
type dirs []int

// openDirs opens the top directories of trees. The caller closes them.
func openDirs(trees []string) (dirs, error) {
	var all dirs
	for _, tree := range trees {
		fd, err := openAt(unix.AT_FDCWD, tree, oDir, 0)
		if err != nil {
			all.close()
			return nil, &os.PathError{Op: "open", Path: tree, Err: err}
		}
		all = append(all, fd)
	}
	return all, nil
}

func (d dirs) close() {
	for _, fd := range d {
		unix.Close(fd)
	}
}

// named is a name in a directory of a layer.
type named struct {
	name string
	dir  int   // the topmost of the directories that have it
	kind uint8 // DT_REG, …, or DT_UNKNOWN, as in getdents(2)
}

// names lists the names in the directory, sorted, each once.
func (d dirs) names() ([]named, error) {
	var names []named
	buf := make([]byte, 32<<10)
	for _, fd := range d {
		var err error
		if names, err = appendNames(names, fd, buf); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(names, func(a, b named) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(names, func(a, b named) bool { return a.name == b.name }), nil
}

// appendNames lists one directory.
func appendNames(names []named, fd int, buf []byte) ([]named, error) {
	for {
		n, err := readDirents(fd, buf)
		if err != nil || n == 0 {
			return names, err
		}
		all := string(buf[:n]) // one piece of memory for all names
		for at := 0; at < n; {
			// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name NUL.
			length := int(binary.NativeEndian.Uint16(buf[at+16:]))
			name := all[at+19 : at+length]
			name = name[:strings.IndexByte(name, 0)]
			if name != "." && name != ".." {
				names = append(names, named{name, fd, buf[at+18]})
			}
			at += length
		}
	}
}

// rewind has names list them again.
func (d dirs) rewind() error {
	for _, fd := range d {
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return err
		}
	}
	return nil
}

// stat is lstat of it.
func (n *named) stat() (unix.Stat_t, error) { return statAt(n.dir, n.name) }

// open opens the directory called name, and those that it lies on. The caller closes them.
func (d dirs) open(name string) (dirs, error) {
	var all dirs
	for i, dir := range d {
		fd, err := openAt(dir, name, oDir, 0)
		switch {
		case err == nil:
			all = append(all, fd)
		case err == unix.ENOENT:
			continue
		case len(all) > 0 && (err == unix.ENOTDIR || err == unix.ELOOP):
			return all, nil // a file, or a whiteout: what is below is not to be seen
		default:
			all.close()
			return nil, err
		}
		if i+1 < len(d) && isOpaque(fd) {
			return all, nil
		}
	}
	if all == nil {
		return nil, unix.ENOENT
	}
	return all, nil
}

// isOpaque tells whether the directory hides what is below the layer.
func (d dirs) isOpaque() bool { return isOpaque(d[len(d)-1]) }
