package snapshot

import (
	"os"
	"slices"

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

// names lists the names in the directory, unsorted, each once.
func (d dirs) names() ([]string, error) {
	names, err := readNames(d[0])
	for _, fd := range d[1:] {
		if err != nil {
			break
		}
		var more []string
		if more, err = readNames(fd); len(names) == 0 {
			names = more
		} else if len(more) > 0 {
			names = append(names, more...)
			slices.Sort(names)
			names = slices.Compact(names)
		}
	}
	return names, err
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

// stat is lstat of name, and tells in which of the directories it is.
func (d dirs) stat(name string) (dir int, st unix.Stat_t, err error) {
	for _, dir = range d {
		if st, err = statAt(dir, name); err != unix.ENOENT {
			break
		}
	}
	return dir, st, err
}

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
