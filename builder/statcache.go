package builder

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// StatCache remembers the digests of a context's files by what stat says of
// them, as git's index does: a file whose path, device, inode, size, mtime and
// ctime are the ones at which it was hashed has the bytes that it had. A file
// written to at about the time at which it was hashed could be written to again
// without its times showing it: such an entry is never kept, so that the file is
// hashed again the next time. It is safe for many goroutines; many processes may
// use one file, of which the last to save wins and none is ever wrong.
//
// The file is a hash table, read in one piece and used as it stands:
//
//	 0  8  "mkstat1\n"
//	 8  8  number of slots, little-endian as all numbers
//	16  4  CRC-32C of the slots
//	20 12  zero
//	32     slots of 96 bytes: pathKey (0: empty), dev, ino, size, mtime, ctime
//	       (8 bytes each, times in ns), flags (8: bit 0, the file has no extended
//	       attributes), SHA-256 (32), zero (8)
//
// A slot is found at pathKey's place or in one of those after it, up to the
// first empty one. A torn file fails its CRC and counts as empty.
type StatCache struct {
	file string
	load sync.Once

	table []byte
	slots uint64
	used  []atomic.Bool // slots that a lookup found

	mu    sync.RWMutex
	fresh map[pathKey]statSlot // since the file was read
	dirty bool                 // fresh holds what the file does not
}

const (
	statMagic  = "mkstat1\n"
	statHeader = 32
	statSize   = 96
)

type statSlot [statSize]byte

var statCRC = crc32.MakeTable(crc32.Castagnoli)

// OpenStatCache is the cache of one context, an absolute path, in directory dir.
// It is read when first asked.
func OpenStatCache(dir, context string) *StatCache {
	sum := sha256.Sum256([]byte(context))
	return &StatCache{file: filepath.Join(dir, hex.EncodeToString(sum[:16]))}
}

// pathKey is FNV-1a of a path. Two paths with one key are told apart by their
// inodes; the path is there because some file systems give an inode number to
// another file after a remount.
type pathKey uint64

func keyOfPath(path string) pathKey {
	key := pathKey(14695981039346656037)
	parts := pathParts(path)
	for i := len(parts) - 1; i >= 0; i-- {
		key = key.child(parts[i])
	}
	return key
}

func (k pathKey) child(name string) pathKey {
	const prime = 1099511628211
	k = (k ^ '/') * prime
	for i := 0; i < len(name); i++ {
		k = (k ^ pathKey(name[i])) * prime
	}
	return max(k, 1)
}

func (c *StatCache) read() {
	data, err := os.ReadFile(c.file)
	if err != nil || len(data) < statHeader || string(data[:8]) != statMagic {
		return
	}
	slots := binary.LittleEndian.Uint64(data[8:])
	table := data[statHeader:]
	if slots == 0 || uint64(len(table))/statSize != slots || uint64(len(table))%statSize != 0 ||
		crc32.Checksum(table, statCRC) != binary.LittleEndian.Uint32(data[16:]) {
		return
	}
	c.table, c.slots, c.used = table, slots, make([]atomic.Bool, slots)
}

// encode fills in everything but flags and digest.
func (s *statSlot) encode(k pathKey, st *fileStat) {
	le := binary.LittleEndian
	le.PutUint64(s[0:], uint64(k))
	le.PutUint64(s[8:], st.dev)
	le.PutUint64(s[16:], st.ino)
	le.PutUint64(s[24:], uint64(st.size))
	le.PutUint64(s[32:], uint64(st.mtime))
	le.PutUint64(s[40:], uint64(st.ctime))
}

const statIdentity = 48 // bytes of a slot that say which file it is of

// lookup gives the digest of a file; plain tells that it has no extended
// attributes. A nil cache knows nothing.
func (c *StatCache) lookup(k pathKey, st *fileStat, sum *[32]byte) (plain, known bool) {
	if c == nil {
		return false, false
	}
	c.load.Do(c.read)
	var want statSlot
	want.encode(k, st)
	hit := func(slot []byte) bool {
		if string(slot[:statIdentity]) != string(want[:statIdentity]) {
			return false
		}
		plain, known = slot[48]&1 != 0, true
		copy(sum[:], slot[56:88])
		return true
	}
	for i, n := uint64(k)%max(c.slots, 1), uint64(0); n < c.slots; i, n = (i+1)%c.slots, n+1 {
		slot := c.table[i*statSize:][:statSize]
		key := binary.LittleEndian.Uint64(slot)
		if key == 0 {
			break
		}
		if key == uint64(k) && hit(slot) {
			c.used[i].Store(true)
			return plain, known
		}
	}
	c.mu.RLock()
	slot, ok := c.fresh[k]
	c.mu.RUnlock()
	if ok {
		hit(slot[:])
	}
	return plain, known
}

// store keeps a digest that was begun to be made at time started.
func (c *StatCache) store(k pathKey, st *fileStat, sum *[32]byte, plain bool, started int64) {
	if c == nil || isRecent(st, started) {
		return
	}
	var slot statSlot
	slot.encode(k, st)
	if plain {
		slot[48] = 1
	}
	copy(slot[56:88], sum[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fresh == nil {
		c.fresh = make(map[pathKey]statSlot)
	}
	c.fresh[k] = slot
	c.dirty = true
}

// clock is the time in ns that file systems stamp files with.
func clock() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts) != nil {
		return time.Now().UnixNano()
	}
	return ts.Nano()
}

// isRecent tells whether the file could change after now without its times
// changing: the kernel's clock for files ticks every 1 to 10 ms, and some file
// systems only keep seconds, FAT every other.
func isRecent(st *fileStat, now int64) bool {
	tick := int64(20e6)
	if st.mtime%1e9 == 0 && st.ctime%1e9 == 0 {
		tick = 2.1e9
	}
	// An mtime in the future was set by hand; a write will set it to now.
	return st.ctime+tick >= now || st.mtime+tick >= now && st.mtime <= now+tick
}

// Save writes what was learned, if anything was. The rename is the commit point.
// Entries of files that this process did not meet are kept, until they are more
// than twice those that it met.
func (c *StatCache) Save() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return nil
	}
	c.load.Do(c.read)
	met, unmet := len(c.fresh), 0
	for i := range c.used {
		if c.used[i].Load() {
			met++
		} else if binary.LittleEndian.Uint64(c.table[i*statSize:]) != 0 {
			unmet++
		}
	}
	keepUnmet := unmet <= 2*met+10000
	slots := uint64(met)
	if keepUnmet {
		slots += uint64(unmet)
	}
	slots += slots/3 + 1
	data := make([]byte, statHeader+slots*statSize)
	table := data[statHeader:]
	put := func(slot []byte) {
		key := binary.LittleEndian.Uint64(slot)
		i := key % slots
		for binary.LittleEndian.Uint64(table[i*statSize:]) != 0 {
			i = (i + 1) % slots
		}
		copy(table[i*statSize:], slot)
	}
	for _, slot := range c.fresh {
		put(slot[:])
	}
	for i := range c.used {
		slot := c.table[i*statSize:][:statSize]
		key := binary.LittleEndian.Uint64(slot)
		if _, superseded := c.fresh[pathKey(key)]; key != 0 && !superseded && (keepUnmet || c.used[i].Load()) {
			put(slot)
		}
	}
	copy(data, statMagic)
	binary.LittleEndian.PutUint64(data[8:], slots)
	binary.LittleEndian.PutUint32(data[16:], crc32.Checksum(table, statCRC))
	if err := c.replace(data); err != nil {
		return fmt.Errorf("save stat cache: %w", err)
	}
	c.dirty = false
	return nil
}

func (c *StatCache) replace(data []byte) error {
	dir := filepath.Dir(c.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // nothing to remove after the rename
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), c.file)
}
