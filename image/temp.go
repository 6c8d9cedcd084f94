package image

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// temp is a file being written under tmp/. It is locked as long as this process
// holds it open, and ends by rename or discard; one whose writer died is found by
// its free lock (dropDeadTemps).
type temp struct {
	*os.File
	done bool
}

// temp makes a temporary file. Between creating and locking it, GC may
// have taken it for dead: then its link count is 0, and another one is made.
func (s *Store) temp() (*temp, error) {
	for {
		f, err := os.CreateTemp(s.path("tmp"), "")
		if err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
		var st unix.Stat_t
		err = flock(f, unix.LOCK_SH)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("image store: lock %s: %w", f.Name(), err)
		}
		if st.Nlink > 0 {
			return &temp{File: f}, nil
		}
		f.Close()
	}
}

// rename moves the file to its place and closes it.
func (t *temp) rename(to string) error {
	if err := os.Rename(t.Name(), to); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	t.done = true
	return t.Close()
}

// discard removes the file, and does nothing after rename.
func (t *temp) discard() {
	if !t.done {
		t.done = true
		os.Remove(t.Name())
		t.Close()
	}
}

// dropDeadTemps removes the temporary files that nobody holds.
func (s *Store) dropDeadTemps() (bytes int64, err error) {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return 0, fmt.Errorf("image store: %w", err)
	}
	for _, e := range entries {
		bytes += dropUnlocked(filepath.Join(s.path("tmp"), e.Name()))
	}
	return bytes, nil
}

// dropUnlocked removes a file that nobody holds and returns its size; 0 for one that stays.
func dropUnlocked(name string) (bytes int64) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0 // gone by itself
	}
	defer f.Close()
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return 0
	}
	if info, err := f.Stat(); err == nil && os.Remove(name) == nil {
		return info.Size()
	}
	return 0
}
