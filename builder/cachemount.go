package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CacheMounts are the directories behind RUN --mount=type=cache. They outlive
// builds, and several processes may use them at once:
//
//	cache/<mode>/<name>/info     what the cache is, as text; its mtime is that of the last use
//	cache/<mode>/<name>/0        what the steps see
//	cache/<mode>/<name>/0.lock   flock: shared by steps that share, exclusive for one that does not
//	cache/<mode>/<name>/1 …      more of the kind, for sharing=private while 0 is in use
//	cache/<mode>/<name>/0.new    on its way to becoming 0, under the exclusive lock; else garbage
//
// <name> is the hash of info, so that no ID, whatever is in it, is a path. info is
//
//	mk cache 1
//	id "apt"
//	from sha256:…       if it was begun with files, their digest
//	mode 0751           these, if the recipe gives them
//	uid 1001
//	gid 1002
//
// A directory appears complete, by a rename. Steps see only directories called 0,
// 1 …, each alone: nothing they do moves what lies above them. Whoever removes a
// cache holds the store's exclusive lock.
type CacheMounts struct{ dir string }

// OpenCacheMounts returns the caches in dir, which is made when there is one.
func OpenCacheMounts(dir string) *CacheMounts { return &CacheMounts{dir} }

const cacheFormat = "mk cache 1"

// CacheMount says which cache. Different ones never share a directory.
type CacheMount struct {
	ID             string // as in the recipe, with its namespace
	From           string // digest of the files it was begun with; "" for none
	Mode, UID, GID *uint64
}

func (m CacheMount) info() string {
	text := fmt.Sprintf("%s\nid %q\n", cacheFormat, m.ID)
	if m.From != "" {
		text += "from " + m.From + "\n"
	}
	for _, f := range []struct {
		name  string
		value *uint64
		form  string
	}{{"mode", m.Mode, "%#o"}, {"uid", m.UID, "%d"}, {"gid", m.GID, "%d"}} {
		if f.value != nil {
			text += fmt.Sprintf("%s "+f.form+"\n", f.name, *f.value)
		}
	}
	return text
}

// Name is the name of the cache's directory.
func (m CacheMount) Name() string {
	sum := sha256.Sum256([]byte(m.info()))
	return hex.EncodeToString(sum[:16])
}

func parseCacheInfo(text string) (m CacheMount, err error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != cacheFormat {
		return m, fmt.Errorf("format %q, this mk reads %q", lines[0], cacheFormat)
	}
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, " ")
		var n uint64
		switch name {
		case "id":
			m.ID, err = strconv.Unquote(value)
		case "from":
			m.From = value
		case "mode":
			n, err = strconv.ParseUint(value, 0, 32)
			m.Mode = &n
		case "uid":
			n, err = strconv.ParseUint(value, 10, 32)
			m.UID = &n
		case "gid":
			n, err = strconv.ParseUint(value, 10, 32)
			m.GID = &n
		default:
			err = errors.New("not understood")
		}
		if err != nil {
			return m, fmt.Errorf("%q: %w", l, err)
		}
	}
	return m, nil
}

// cacheUse says how a cache is wanted.
type cacheUse struct {
	sharing string // shared, private or locked
	renew   bool   // begin anew: what was there goes
	// fill puts into a new directory what it begins with, and gives it its owner
	// and mode.
	fill func(dir *os.File) error
}

// take locks a cache for one step, waiting for those that do not share it, and
// opens its directory. release closes and unlocks both.
func (c *CacheMounts) take(ctx context.Context, m CacheMount, use cacheUse) (dir *os.File, release func() error, err error) {
	top := filepath.Join(c.dir, m.Name())
	if err := c.begin(top, m); err != nil {
		return nil, nil, err
	}
	how := unix.LOCK_EX
	if use.sharing == "shared" && !use.renew {
		how = unix.LOCK_SH
	}
	for n := 0; ; n++ {
		name := strconv.Itoa(n)
		lock, err := os.OpenFile(filepath.Join(top, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, nil, err
		}
		if use.sharing == "private" {
			if err := unix.Flock(int(lock.Fd()), how|unix.LOCK_NB); err == unix.EWOULDBLOCK {
				lock.Close()
				continue
			}
		}
		dir, err := openCache(ctx, lock, how, filepath.Join(top, name), use)
		if err == nil && use.sharing == "shared" && use.renew {
			err = waitLock(ctx, lock, unix.LOCK_SH) // what was begun anew is for others too
		}
		if err != nil {
			lock.Close()
			return nil, nil, err
		}
		return dir, func() error { return errors.Join(dir.Close(), lock.Close()) }, nil
	}
}

// begin makes a cache's directory and says in it what it is.
func (c *CacheMounts) begin(top string, m CacheMount) error {
	info := filepath.Join(top, "info")
	now := time.Now()
	if err := os.Chtimes(info, now, now); err == nil {
		return nil
	}
	if err := os.MkdirAll(top, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(top, ".tmp-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(m.info())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), info)
	}
	return err
}

// openCache opens a cache's directory with its lock held as how says. A new one
// is made under the exclusive lock, by whoever gets that first.
func openCache(ctx context.Context, lock *os.File, how int, path string, use cacheUse) (*os.File, error) {
	for {
		if err := waitLock(ctx, lock, how); err != nil {
			return nil, err
		}
		if !use.renew {
			dir, err := openCacheDir(path)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return dir, err
			}
		}
		// Asking for more gives up the shared lock first, so that of several who
		// ask one gets it; the others find its directory when they look again.
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			time.Sleep(time.Millisecond)
			continue
		} else if err != nil {
			return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		if _, err := os.Lstat(path); err == nil && !use.renew {
			continue
		}
		if err := makeCache(path, use.fill); err != nil {
			return nil, err
		}
		use.renew = false
	}
}

func openCacheDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// makeCache makes the directory of a cache in place of what is there.
func makeCache(path string, fill func(*os.File) error) error {
	fresh := path + ".new"
	for _, old := range []string{fresh, path} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(fresh)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := fill(dir); err != nil {
		return err
	}
	return os.Rename(fresh, path) // the commit point
}

// waitLock takes a lock. It asks again and again, since a wait in the kernel
// could not be ended by the context.
func waitLock(ctx context.Context, lock *os.File, how int) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), how|unix.LOCK_NB)
		switch err {
		case nil:
			return nil
		case unix.EWOULDBLOCK, unix.EINTR:
		default:
			return fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// CacheInfo is one cache, as List finds it.
type CacheInfo struct {
	CacheMount
	Name string
	Dirs []string // what steps see: the first is the shared one
	Used time.Time
}

// List finds all caches, also those that nobody named lately. What is in the
// directory and no cache is not listed.
func (c *CacheMounts) List() ([]CacheInfo, error) {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []CacheInfo
	for _, e := range entries {
		top := filepath.Join(c.dir, e.Name())
		text, err := os.ReadFile(filepath.Join(top, "info"))
		if err != nil {
			continue
		}
		info := CacheInfo{Name: e.Name()}
		if info.CacheMount, err = parseCacheInfo(string(text)); err != nil {
			continue
		}
		if st, err := os.Stat(filepath.Join(top, "info")); err == nil {
			info.Used = st.ModTime()
		}
		numbers, err := cacheDirs(top)
		if err != nil {
			return nil, err
		}
		for _, n := range numbers {
			info.Dirs = append(info.Dirs, filepath.Join(top, strconv.Itoa(n)))
		}
		list = append(list, info)
	}
	return list, nil
}

// cacheDirs lists the numbers of the directories that steps see, in order. A killed Remove leaves gaps.
func cacheDirs(top string) (numbers []int, err error) {
	entries, err := os.ReadDir(top)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n >= 0 && e.IsDir() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// Forget removes a cache with its name and its locks. The caller is in the stage inside, as the files' owner, and
// holds the store's exclusive lock. Killed, it leaves what Sweep removes.
func (c *CacheMounts) Forget(m CacheMount) error {
	top := filepath.Join(c.dir, m.Name())
	if err := os.Remove(filepath.Join(top, "info")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cache %s: %w", m.ID, err)
	}
	if err := os.RemoveAll(top); err != nil {
		return fmt.Errorf("remove cache %s: %w", m.ID, err)
	}
	return nil
}

// Sweep removes what killed processes left, and tells how many bytes that were; the caller is as Forget's.
func (c *CacheMounts) Sweep() (bytes int64, err error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var litter []string
	for _, e := range entries {
		top := filepath.Join(c.dir, e.Name())
		if _, err := os.Lstat(filepath.Join(top, "info")); errors.Is(err, fs.ErrNotExist) {
			litter = append(litter, top)
			continue
		}
		inside, err := os.ReadDir(top)
		if err != nil {
			return 0, err
		}
		for _, e := range inside {
			if strings.HasSuffix(e.Name(), ".new") || strings.HasPrefix(e.Name(), unfinished) {
				litter = append(litter, filepath.Join(top, e.Name()))
			}
		}
	}
	for _, path := range litter {
		n, err := removeCounting(path)
		if bytes += n; err != nil {
			return bytes, fmt.Errorf("remove what is left of caches: %w", err)
		}
	}
	return bytes, nil
}

// RemoveAll removes every cache and returns how many bytes that freed. The caller
// is in the stage inside, as the files' owner, and holds the store's exclusive lock.
func (c *CacheMounts) RemoveAll() (bytes int64, err error) {
	if bytes, err = removeCounting(c.dir); err != nil {
		return 0, fmt.Errorf("remove caches: %w", err)
	}
	return bytes, nil
}
