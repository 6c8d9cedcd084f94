package snapshot

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// ID names one snapshot of one store: random, hexadecimal, never used twice.
// It says nothing about the content; that is what Digests are for.
type ID string

// idBytes is how much randomness an ID has.
const idBytes = 12

func newID() ID {
	var b [idBytes]byte
	rand.Read(b[:]) // never fails
	return ID(hex.EncodeToString(b[:]))
}

// valid tells whether an ID may become a file name.
func (id ID) valid() bool {
	b, err := hex.DecodeString(string(id))
	return err == nil && len(b) == idBytes
}

// Store is a directory of snapshots. Any number of processes may use it at
// once on one machine; it must not be on NFS.
type Store struct {
	dir      string
	remember bool

	mu    sync.Mutex
	known map[ID]*Snapshot // parents already read: a snapshot never changes
}

// Open opens the store at dir, an absolute path, and creates what is missing.
//
// With remember, an owner that the kernel refuses to set is kept in the
// snapshot's owners table instead (mode single, where one ID is mapped);
// without it the refusal is an error.
func Open(dir string, remember bool) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open snapshot store %q: not an absolute path", dir)
	}
	s := &Store{dir: dir, remember: remember, known: make(map[ID]*Snapshot)}
	for _, d := range []string{"snapshots", "drafts", "chains/sha256", "outlines/sha256", "diffids/sha256", "empty"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("open snapshot store: %w", err)
		}
	}
	return s, nil
}

// Remembers tells whether owners that cannot be set are kept in tables: mode single.
func (s *Store) Remembers() bool { return s.remember }

// Dir is the directory that Open was given.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// lock takes the store's lock: shared to make a draft, exclusive to delete.
// It is held for moments only; what lives longer is protected by the lock of
// a draft. The caller calls unlock.
func (s *Store) lock(how int) (unlock func(), err error) {
	f, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock snapshot store: %w", err)
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// Get returns the snapshot called id; an error that is fs.ErrNotExist when
// there is none. It reads one small file, and one more for each ancestor that
// this Store has not seen.
func (s *Store) Get(id ID) (*Snapshot, error) {
	if !id.valid() {
		return nil, fmt.Errorf("snapshot %q: %w", id, fs.ErrNotExist)
	}
	m, err := readMeta(s.path("snapshots", string(id), "meta"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("snapshot %s: %w", id, fs.ErrNotExist)
	} else if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	s.mu.Lock()
	known := s.known[id]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	snap := &Snapshot{store: s, id: id, meta: m}
	if m.parent != "" {
		if snap.parent, err = s.ancestor(m.parent); err != nil {
			return nil, fmt.Errorf("parent of snapshot %s: %w", id, err)
		}
	}
	return s.remembered(snap), nil
}

// ancestor is Get without looking at the disk for what was seen before: a
// parent outlives its children.
func (s *Store) ancestor(id ID) (*Snapshot, error) {
	s.mu.Lock()
	known := s.known[id]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	return s.Get(id)
}

// remembered enters snap among the known ones, or returns the one that was
// there first.
func (s *Store) remembered(snap *Snapshot) *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.known[snap.id]; known != nil {
		return known
	}
	s.known[snap.id] = snap
	return snap
}

// ByChain returns a snapshot whose layers, base first, have the given OCI
// ChainID; an error that is fs.ErrNotExist when none is recorded.
func (s *Store) ByChain(chain digest.Digest) (*Snapshot, error) {
	return s.byRecord("chains", chain)
}

// OutlineByChain is ByChain of outlines, which that never returns.
func (s *Store) OutlineByChain(chain digest.Digest) (*Snapshot, error) {
	return s.byRecord("outlines", chain)
}

// ByDiffID returns a snapshot whose WriteLayer writes the layer with the given
// DiffID; an error that is fs.ErrNotExist when none is recorded. A snapshot
// that was applied from an image is never found here (see Draft.SetLayer).
func (s *Store) ByDiffID(diffID digest.Digest) (*Snapshot, error) {
	return s.byRecord("diffids", diffID)
}

func (s *Store) byRecord(kind string, d digest.Digest) (*Snapshot, error) {
	p, err := s.recordPath(kind, d)
	if err != nil {
		return nil, err
	}
	id, err := readRecord(p)
	if err != nil {
		return nil, fmt.Errorf("snapshot with %s: %w", d, err)
	}
	return s.Get(id)
}

// Snapshots lists the IDs of all snapshots, sorted.
func (s *Store) Snapshots() ([]ID, error) {
	return listIDs(s.path("snapshots"))
}

// listIDs lists the entries of dir that are IDs, sorted. What is not an ID is
// not ours and stays out of the list.
func listIDs(dir string) ([]ID, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	ids := make([]ID, 0, len(entries))
	for _, e := range entries {
		if id := ID(e.Name()); id.valid() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
