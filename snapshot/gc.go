package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Remove deletes every snapshot that keep does not want and nobody needs: an
// ancestor of one that is kept stays, and so does an ancestor of a living draft.
// Drafts whose process is dead go too. It returns how many snapshots and drafts
// went and how many bytes of disk came free.
//
// A snapshot that was committed a moment ago and is named nowhere yet looks like
// garbage: the caller holds the exclusive lock of mk's root, while whoever
// builds or reads holds it shared.
func (s *Store) Remove(keep func(ID) bool) (removed int, bytes int64, err error) {
	dead, err := s.condemn(keep)
	if err != nil {
		return 0, 0, fmt.Errorf("remove snapshots: %w", err)
	}
	// From here on the store may be used again: what is dead stays dead.
	for _, dir := range dead {
		n, ok, err := bury(dir)
		bytes += n
		if err != nil {
			return removed, bytes, fmt.Errorf("remove snapshots: %w", err)
		}
		if ok {
			removed++
		}
	}
	return removed, bytes, nil
}

// bury removes the directory of a dead draft, unless another Remove is at it.
func bury(dir string) (bytes int64, ok bool, err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, err
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return 0, false, nil
	}
	bytes, err = removeCounting(dir)
	return bytes, err == nil, err
}

// condemn decides what goes, takes it out of everybody's sight, and lists the
// directories that are to be removed.
func (s *Store) condemn(keep func(ID) bool) (dead []string, err error) {
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	needed := make(map[ID]bool)
	need := func(id ID) error {
		for id != "" && !needed[id] {
			needed[id] = true
			m, err := readMeta(s.path("snapshots", string(id), "meta"))
			if errors.Is(err, fs.ErrNotExist) {
				return nil // its child is broken, and Check says so
			} else if err != nil {
				return err
			}
			id = m.parent
		}
		return nil
	}
	if dead, err = s.deadDrafts(need); err != nil {
		return nil, err
	}
	ids, err := s.Snapshots()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if keep(id) {
			if err := need(id); err != nil {
				return nil, err
			}
		}
	}
	var garbage []ID
	for _, id := range ids {
		if !needed[id] {
			garbage = append(garbage, id)
		}
	}
	if err := s.dropRecords(ids, needed); err != nil {
		return nil, err
	}
	for _, id := range childrenFirst(s, garbage) {
		// By a rename a snapshot becomes a draft of nobody: should we die here,
		// the next Remove goes on, and no half of a snapshot is ever seen.
		draft := s.path("drafts", string(id))
		if err := os.Rename(s.path("snapshots", string(id)), draft); err != nil {
			return nil, err
		}
		s.mu.Lock()
		delete(s.known, id)
		s.mu.Unlock()
		dead = append(dead, draft)
	}
	return dead, nil
}

// deadDrafts lists the directories of drafts whose lock is free, and calls need
// for the parents of the others.
func (s *Store) deadDrafts(need func(ID) error) (dead []string, err error) {
	ids, err := listIDs(s.path("drafts"))
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		dir := s.path("drafts", string(id))
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // committed or discarded meanwhile
		} else if err != nil {
			return nil, err
		}
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
		f.Close()
		switch err {
		case nil:
			dead = append(dead, dir)
			continue
		case unix.EWOULDBLOCK:
		default:
			return nil, fmt.Errorf("look at lock of draft %s: %w", id, err)
		}
		m, err := readMeta(filepath.Join(dir, "meta"))
		if errors.Is(err, fs.ErrNotExist) {
			// Committed meanwhile: among the snapshots, and keep's to judge.
			continue
		} else if err != nil {
			return nil, err
		}
		if err := need(m.parent); err != nil {
			return nil, err
		}
	}
	return dead, nil
}

// childrenFirst orders snapshots so that none is removed before one that has it
// as parent.
func childrenFirst(s *Store, ids []ID) []ID {
	depth := func(id ID) (n int) {
		for id != "" {
			m, err := readMeta(s.path("snapshots", string(id), "meta"))
			if err != nil {
				break
			}
			id, n = m.parent, n+1
		}
		return n
	}
	byDepth := make(map[int][]ID)
	deepest := 0
	for _, id := range ids {
		n := depth(id)
		byDepth[n] = append(byDepth[n], id)
		deepest = max(deepest, n)
	}
	var order []ID
	for n := deepest; n >= 0; n-- {
		order = append(order, byDepth[n]...)
	}
	return order
}

// dropRecords removes the look-up records of what is not needed, before the
// snapshots go; one that another snapshot can stand in for is given to it.
func (s *Store) dropRecords(ids []ID, needed map[ID]bool) error {
	heirs := map[string]map[digest.Digest]ID{"chains": {}, "outlines": {}, "diffids": {}}
	for _, id := range ids {
		if !needed[id] {
			continue
		}
		snap, err := s.Get(id)
		if err != nil {
			continue // broken, and Check says so
		}
		d, ok := snap.Recorded()
		if !ok {
			continue // not computed
		}
		heirs[snap.chains()][d.Chain] = id
		if snap.meta.layer == "" {
			heirs["diffids"][d.DiffID] = id
		}
	}
	for kind, heirs := range heirs {
		entries, err := os.ReadDir(s.path(kind, "sha256"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			p := s.path(kind, "sha256", e.Name())
			id, err := readRecord(p) // an error: half written by the dead
			if err == nil && needed[id] {
				continue
			}
			if heir, ok := heirs[digest.NewDigestFromEncoded(digest.SHA256, e.Name())]; ok {
				err = writeAtomic(p, []byte(string(heir)+"\n"))
			} else {
				err = os.Remove(p)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove record: %w", err)
			}
		}
	}
	return nil
}
