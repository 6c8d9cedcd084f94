package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// ErrCacheBusy says that a step holds a cache.
var ErrCacheBusy = errors.New("a build is using it")

// Info is what the cache is, in the words of its info file; ParseCacheMount reads them.
func (m CacheMount) Info() string { return m.info() }

// ParseCacheMount reads an Info, which may come from a stranger.
func ParseCacheMount(info string) (CacheMount, error) {
	m, err := parseCacheInfo(info)
	if err == nil && m.info() != info {
		err = errors.New("not as mk writes it")
	}
	if err != nil {
		return m, fmt.Errorf("read cache: %w", err)
	}
	return m, nil
}

// Hold keeps every step away from a cache until release. It waits for those that are
// at work; who takes several goes by Name, as steps do.
func (c *CacheMounts) Hold(ctx context.Context, m CacheMount) (dir string, release func() error, err error) {
	top := filepath.Join(c.dir, m.Name())
	if err := c.begin(top, m); err != nil {
		return "", nil, err
	}
	lock, err := c.lock(top, 0)
	if err != nil {
		return "", nil, err
	}
	if err := waitLock(ctx, lock, unix.LOCK_EX); err != nil {
		lock.Close()
		return "", nil, err
	}
	return filepath.Join(top, "0"), lock.Close, nil
}

func (c *CacheMounts) lock(top string, n int) (*os.File, error) {
	return os.OpenFile(filepath.Join(top, strconv.Itoa(n)+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
}

// Replace makes a cache what a layer's tar holds, read to its end, in place of what it
// held. Steps see the old or the new.
func (c *CacheMounts) Replace(ctx context.Context, trees *snapshot.Store, m CacheMount, layer io.Reader) error {
	dir, release, err := c.Hold(ctx, m)
	if err != nil {
		return err
	}
	defer release()
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := trees.ReadDir(ctx, layer, fresh); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(fresh, dir) // the commit point
}

// Remove empties a cache: the next step begins it anew. It returns how many bytes that
// freed. Its name and its locks stay, for a step may be waiting for one; prune takes them.
// ErrCacheBusy: a step holds it, and nothing was removed.
func (c *CacheMounts) Remove(m CacheMount) (bytes int64, err error) {
	top := filepath.Join(c.dir, m.Name())
	var dirs []string
	numbers, err := cacheDirs(top)
	if err != nil {
		return 0, err
	}
	for _, n := range numbers {
		dir := filepath.Join(top, strconv.Itoa(n))
		lock, err := c.lock(top, n)
		if err != nil {
			return 0, err
		}
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			return 0, ErrCacheBusy
		} else if err != nil {
			return 0, fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		n, err := removeCounting(dir)
		if bytes += n; err != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// Bytes is what the files of a cache hold.
func (i CacheInfo) Bytes() (bytes int64, err error) {
	for _, dir := range i.Dirs {
		n, err := dirBytes(dir)
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}

// removeCounting removes a file or a directory, and tells how many bytes that freed; a missing one is none.
func removeCounting(path string) (freed int64, err error) {
	if freed, err = dirBytes(path); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(path); err != nil {
		return 0, err
	}
	return freed, nil
}

// dirBytes adds up regular files, each once. What a step removes meanwhile counts or not.
func dirBytes(dir string) (bytes int64, err error) {
	linked := map[uint64]bool{} // inodes with several names
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var st fs.FileInfo
			if st, err = d.Info(); err != nil {
				return missing(err)
			}
			if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
				if linked[sys.Ino] {
					return nil
				}
				linked[sys.Ino] = true
			}
			bytes += st.Size()
		}
		return missing(err)
	})
	return bytes, err
}

// missing forgives that a file went away.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
