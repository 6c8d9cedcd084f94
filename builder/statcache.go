package builder

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
// The file is a table, sorted and with gaps, read in one piece and used as it stands:
//
//	 0  8  "mkstat2\n"
//	 8  8  places that keys are spread over, little-endian as all numbers
//	16  4  CRC-32C of all that follows the header
//	20  4  length of the path at the end
//	24  8  zero
//	32     slots of 80 bytes: pathKey (0: empty), dev, ino, size, mtime, ctime
//	       (8 bytes each, times in ns), SHA-256 (32). Bit 63 of the size says that
//	       the file has no extended attributes
//	       the path of the file that changed last
//
// A slot is found at the place that its pathKey has among all numbers, or in one of
// those after it: keys ascend, an empty slot ends the search. A torn file fails its CRC and
// counts as empty.
type StatCache struct {
	file string
	load sync.Once

	table  []byte
	places uint64
	last   string        // the path at the end of the file
	used   []atomic.Bool // slots that a lookup found

	mu      sync.RWMutex
	fresh   [][]byte        // slots since the file was read, freshSlots in each piece
	index   map[pathKey]int // of fresh
	newest  string          // path of the one that changed last
	changed int64           // when
	dirty   bool            // there is what the file does not have
	dropped atomic.Bool     // Save has left out slots that no lookup had found yet
}

const (
	statMagic  = "mkstat2\n"
	statHeader = 32
	statSize   = 80
	statPlain  = 1 << 63
	freshSlots = 512 // 40 kB: a map of slots would grow by copying them, and be twice as large
)

// statSlot is one slot's bytes.
type statSlot []byte

func (s statSlot) word(i int) uint64   { return binary.LittleEndian.Uint64(s[8*i:]) }
func (s statSlot) put(i int, v uint64) { binary.LittleEndian.PutUint64(s[8*i:], v) }
func (s statSlot) key() pathKey        { return pathKey(s.word(0)) }
func (s statSlot) sum() []byte         { return s[48:80] }

// is tells whether a slot is of that file as it is.
func (s statSlot) is(st *fileStat) bool {
	return s.word(1) == st.dev && s.word(2) == st.ino && s.word(3)&^statPlain == uint64(st.size) &&
		s.word(4) == uint64(st.mtime) && s.word(5) == uint64(st.ctime)
}

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

// place is where a key is among so many places.
func (k pathKey) place(places uint64) uint64 {
	hi, _ := bits.Mul64(uint64(k), places)
	return hi
}

func (c *StatCache) read() {
	data, err := os.ReadFile(c.file)
	if err != nil || len(data) < statHeader || string(data[:8]) != statMagic {
		return
	}
	le := binary.LittleEndian
	table, last := data[statHeader:], uint64(le.Uint32(data[20:]))
	if uint64(len(table)) < last || (uint64(len(table))-last)%statSize != 0 || crc32.Checksum(table, statCRC) != le.Uint32(data[16:]) {
		return
	}
	end := len(table) - int(last)
	c.places, c.table, c.last = le.Uint64(data[8:]), table[:end], string(table[end:])
	c.used = make([]atomic.Bool, end/statSize)
}

// slot is the table's i-th.
func (c *StatCache) slot(i uint64) statSlot { return c.table[i*statSize:][:statSize] }

// lookup gives the digest of a file; plain tells that it has no extended
// attributes. A nil cache knows nothing.
func (c *StatCache) lookup(k pathKey, st *fileStat, sum *[32]byte) (plain, known bool) {
	if c == nil {
		return false, false
	}
	c.load.Do(c.read)
	hit := func(slot statSlot) {
		plain, known = slot.word(3)&statPlain != 0, true
		copy(sum[:], slot.sum())
	}
	for i := k.place(c.places); i < uint64(len(c.used)); i++ {
		slot := c.slot(i)
		if slot.key() == 0 || slot.key() > k {
			break
		}
		if slot.key() == k && slot.is(st) {
			c.use(i)
			hit(slot)
			return plain, known
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if i, ok := c.index[k]; ok && c.freshSlot(i).is(st) {
		hit(c.freshSlot(i))
	}
	return plain, known
}

// use notes that a lookup found a slot of the table.
func (c *StatCache) use(i uint64) {
	if !c.used[i].Swap(true) && c.dropped.Load() {
		c.mu.Lock()
		c.dirty = true
		c.mu.Unlock()
	}
}

func (c *StatCache) freshSlot(i int) statSlot {
	return c.fresh[i/freshSlots][i%freshSlots*statSize:][:statSize]
}

// store keeps a digest that was begun to be made at time started. The path is dir and name.
func (c *StatCache) store(k pathKey, dir, name string, st *fileStat, sum *[32]byte, plain bool, started int64) {
	if c == nil || isRecent(st, started) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.index[k]
	if !ok {
		i = len(c.index)
		if c.index == nil {
			c.index = make(map[pathKey]int)
		}
		c.index[k] = i
		if i%freshSlots == 0 {
			c.fresh = append(c.fresh, make([]byte, freshSlots*statSize))
		}
	}
	size := uint64(st.size)
	if plain {
		size |= statPlain
	}
	slot := c.freshSlot(i)
	for i, v := range [...]uint64{uint64(k), st.dev, st.ino, size, uint64(st.mtime), uint64(st.ctime)} {
		slot.put(i, v)
	}
	copy(slot.sum(), sum[:])
	if st.ctime >= c.changed {
		c.newest, c.changed = joinPath(strings.TrimSuffix(dir, "/"), name), st.ctime
	}
	c.dirty = true
}

// lastChanged is the path of the file that had changed last when the cache was last saved: who works
// on a file builds, and changes it again. "" is none.
func (c *StatCache) lastChanged() string {
	c.load.Do(c.read)
	return c.last
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
	fresh := make([]int, 0, len(c.index))
	for _, i := range c.index {
		fresh = append(fresh, i)
	}
	slices.SortFunc(fresh, func(a, b int) int { return cmp.Compare(c.freshSlot(a).key(), c.freshSlot(b).key()) })
	met, unmet := len(fresh), 0
	for i := range c.used {
		if c.used[i].Load() {
			met++
		} else if c.slot(uint64(i)).key() != 0 {
			unmet++
		}
	}
	drop := unmet > 2*met+10000
	w := statWriter{places: uint64(met)}
	if !drop {
		w.places += uint64(unmet)
	}
	w.places += w.places/4 + 1
	err := c.replace(func(f *os.File) error {
		w.file = f
		w.out = bufio.NewWriterSize(io.MultiWriter(io.NewOffsetWriter(f, statHeader), &w.crc), 64<<10)
		next := 0
		for i := range c.used {
			old := c.slot(uint64(i))
			if old.key() == 0 || drop && !c.used[i].Load() {
				continue
			}
			for ; next < len(fresh) && c.freshSlot(fresh[next]).key() < old.key(); next++ {
				w.slot(c.freshSlot(fresh[next]))
			}
			if _, superseded := c.index[old.key()]; !superseded {
				w.slot(old)
			}
		}
		for ; next < len(fresh); next++ {
			w.slot(c.freshSlot(fresh[next]))
		}
		return w.end(cmp.Or(c.newest, c.last))
	})
	if err != nil {
		return fmt.Errorf("save stat cache: %w", err)
	}
	c.dirty = false
	c.dropped.Store(drop)
	return nil
}

// statWriter writes the file of a cache, slot after slot of ascending keys, so that no second table is in memory.
type statWriter struct {
	file   *os.File
	out    *bufio.Writer // behind the header; it says itself whether a write has failed
	crc    crcWriter
	places uint64
	at     uint64 // slots written
}

type crcWriter uint32

func (c *crcWriter) Write(p []byte) (int, error) {
	*c = crcWriter(crc32.Update(uint32(*c), statCRC, p))
	return len(p), nil
}

func (w *statWriter) slot(s statSlot) {
	for place := s.key().place(w.places); w.at < place; w.at++ {
		var empty [statSize]byte
		w.out.Write(empty[:])
	}
	w.out.Write(s)
	w.at++
}

func (w *statWriter) end(last string) error {
	w.out.WriteString(last)
	if err := w.out.Flush(); err != nil {
		return err
	}
	var header [statHeader]byte
	copy(header[:], statMagic)
	binary.LittleEndian.PutUint64(header[8:], w.places)
	binary.LittleEndian.PutUint32(header[16:], uint32(w.crc))
	binary.LittleEndian.PutUint32(header[20:], uint32(len(last)))
	_, err := w.file.WriteAt(header[:], 0)
	return err
}

// replace writes another file in place of the cache's.
func (c *StatCache) replace(write func(*os.File) error) error {
	dir := filepath.Dir(c.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, unfinished)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // nothing to remove after the rename
	err = write(tmp)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), c.file)
}

// PruneStatCaches removes from dir what killed processes left, and with all the caches too. The caller holds
// the store's exclusive lock.
func PruneStatCaches(dir string, all bool) error {
	if all {
		return os.RemoveAll(dir)
	}
	return removeUnfinished(dir)
}
