package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Draft is a tree being changed. It ends exactly once: Commit names it, Discard
// removes it. While it lives it holds a lock, so that a store's Remove leaves it
// and its ancestors alone; a draft whose process died is known by its free lock.
type Draft struct {
	store  *Store
	id     ID
	dir    string
	locked *os.File // the draft's directory, flock held
	owners *Owners

	mu      sync.Mutex
	mounts  int // overlay work directories used up
	ended   bool
	meta    meta
	written []byte        // the file of that name
	read    int64         // bytes of the last Apply
	alone   *Snapshot     // see Rebase
	sums    Sums          // see Hashed
	names   []uint64      // see ApplyListing
	travels digest.Digest // see ApplyOutline
}

// NewDraft starts a tree that looks like parent; nil is the empty tree. The
// caller ends it, usually with a deferred Discard.
func (s *Store) NewDraft(parent *Snapshot) (*Draft, error) {
	d := &Draft{store: s, id: newID(), owners: NewOwners()}
	d.dir = s.path("drafts", string(d.id))
	// The shared lock keeps Remove away until the draft holds its own and
	// names its parent.
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if parent != nil {
		if _, err := s.Get(parent.id); err != nil {
			return nil, fmt.Errorf("new draft: %w", err)
		}
		d.meta.parent, d.meta.on = parent.id, parent.as
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("new draft: %w", err)
	}
	if err := d.fill(parent); err != nil {
		d.Discard()
		return nil, fmt.Errorf("new draft: %w", err)
	}
	return d, nil
}

func (d *Draft) fill(parent *Snapshot) (err error) {
	if d.locked, err = os.Open(d.dir); err != nil {
		return err
	}
	if err := flock(d.locked, unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	d.written = d.meta.text()
	if err := os.WriteFile(filepath.Join(d.dir, "meta"), d.written, 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(d.Upper(), 0o755); err != nil {
		return err
	}
	// The root of an overlay is that of its topmost layer: what it should look
	// like is handed from layer to layer.
	from := ""
	if parent != nil {
		from = parent.tree()
	}
	return copyRoot(from, d.Upper())
}

// ID is the name that the snapshot will have.
func (d *Draft) ID() ID { return d.id }

// Parent is the snapshot being changed, or nil.
func (d *Draft) Parent() *Snapshot {
	if d.meta.parent == "" {
		return nil
	}
	p, _ := d.store.ancestor(d.meta.parent) // seen by NewDraft, kept by our lock
	return p
}

// Upper is the directory that holds the changes, in overlay's form. It may be
// written to directly while no mount of the draft exists.
func (d *Draft) Upper() string { return filepath.Join(d.dir, "tree") }

// Owners is the table of this draft's remembered owners, saved by Commit.
func (d *Draft) Owners() *Owners { return d.owners }

// Mount returns a detached mount of the tree: an overlay of the changes on the
// parent, or on an empty directory when there is none, so that the same things
// work in both cases. The caller closes it, which unmounts it unless it was
// moved somewhere; changes stay. Two mounts at once is one too many.
func (d *Draft) Mount() (*os.File, error) { return d.MountOn("") }

// Open is Mount for a caller that makes files and runs nothing: without a parent it is the directory
// of the changes itself, since an overlay of that alone is half of the work of making small files.
// There, the caller sees to it that nothing is made that means something to overlay.
func (d *Draft) Open() (*os.File, error) {
	if d.meta.parent != "" {
		return d.Mount()
	}
	fd, err := openAt(unix.AT_FDCWD, d.Upper(), oDir, 0)
	if err != nil {
		return nil, fmt.Errorf("open draft: %w", err)
	}
	return os.NewFile(uintptr(fd), d.Upper()), nil
}

// MountOn is Mount with one more directory at the very bottom, unless it is "": what is in it shows
// where the tree has nothing of that name, and is no part of the tree. It lies on the store's file
// system and never changes.
func (d *Draft) MountOn(bottom string) (*os.File, error) {
	// A volatile overlay marks its work directory as spent: each mount gets
	// its own.
	d.mu.Lock()
	d.mounts++
	work := filepath.Join(d.dir, "work"+strconv.Itoa(d.mounts))
	d.mu.Unlock()
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	return mountStack(stack{store: d.store, lower: d.Parent(), upper: d.Upper(), work: work, bottom: bottom})
}

// SetEpoch makes WriteLayer write newer modification times as t: the rule of
// SOURCE_DATE_EPOCH. The files themselves keep their times. nil is no limit.
func (d *Draft) SetEpoch(t *time.Time) { d.meta.epoch = t }

// Sums tells the sha256 of a layer's regular file by its path in the root; nil is that it is not known.
type Sums func(path string) *[sha256.Size]byte

// Hashed says that the caller has hashed files of this draft on their way here: Digests need not
// do it again for Content. DiffID is always of the bytes that are read from the tree.
func (d *Draft) Hashed(sums Sums) { d.sums = sums }

// SetLayer says that this draft, as it is and as it will be committed, is the
// layer with that DiffID: the caller has applied it, and verified its bytes.
// Commit then records the digests, and the snapshot is found by its chain at
// once, without anybody reading the tree. WriteLayer of such a snapshot gives
// the same tree in other bytes; the original layer is the image store's to keep.
func (d *Draft) SetLayer(diffID digest.Digest) {
	d.meta.layer, d.meta.size = diffID, d.read
}

// SetOutline is SetLayer of a draft to which not the layer was applied but a listing of it
// (ApplyListing): directories and links are the layer's, files are not shown. The snapshot, and
// those made on it, are outlines: Snapshot.Outline says so.
func (d *Draft) SetOutline(diffID digest.Digest) {
	d.SetLayer(diffID)
	d.meta.outline = true
}

// SetOutlineOf is SetOutline of a layer that a step made, by whose record the tree has that Content.
func (d *Draft) SetOutlineOf(diffID, content digest.Digest) {
	d.SetOutline(diffID)
	d.meta.content = content
}

// Commit ends the draft and returns the snapshot it became. Mounts of the draft
// must be gone. It does not wait for a hash, nor for the disk: a snapshot
// survives any death of the process, but after a crash of the machine Check
// tells whether it is whole.
func (d *Draft) Commit() (*Snapshot, error) {
	if d.ended {
		return nil, errors.New("commit draft: it has ended already")
	}
	snap, err := d.commit()
	if err != nil {
		return nil, fmt.Errorf("commit draft %s: %w", d.id, err)
	}
	return snap, nil
}

func (d *Draft) commit() (*Snapshot, error) {
	parent := d.Parent()
	for n := range d.mounts {
		work := filepath.Join(d.dir, "work"+strconv.Itoa(n+1))
		if err := os.RemoveAll(work); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(d.checkHidden(parent), d.writeNames()); err != nil {
		return nil, err
	}
	told := d.owners.Paths() // by Apply or COPY; of what a step left, the marks tell
	if d.mounts > 0 {        // a step ran: what it removed, and what overlay copied up
		err := pruneOwners(d.Upper(), d.owners)
		if err == nil {
			told = d.owners.Paths()
			err = inheritOwners(d.Upper(), parent, d.owners, d.store.remember)
		}
		if err != nil {
			return nil, fmt.Errorf("owners: %w", err)
		}
	}
	if d.store.remember {
		if err := markPaths(d.Upper(), d.owners, told); err != nil {
			return nil, fmt.Errorf("owners: %w", err)
		}
	}
	if d.owners.Len() > 0 {
		f, err := os.OpenFile(filepath.Join(d.dir, "owners"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		err = d.owners.write(f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, fmt.Errorf("owners: %w", err)
		}
	}
	if text := d.meta.text(); string(text) != string(d.written) {
		if err := writeAtomic(filepath.Join(d.dir, "meta"), text); err != nil {
			return nil, err
		}
	}
	snap := &Snapshot{store: d.store, id: d.id, parent: parent, meta: d.meta, alone: d.alone, sums: d.sums}
	// The rename is the commit point: before it the directory is garbage as
	// soon as our lock is free, after it the tree must never change again.
	if err := os.Rename(d.dir, snap.Dir()); err != nil {
		return nil, err
	}
	d.ended = true
	d.locked.Close()
	snap = d.store.remembered(snap)
	// A layer whose digest is known need not be read. Should this fail, or we
	// die here, Digests does it later from meta.
	snap.recordApplied()
	return snap, nil
}

// Discard removes the draft. After Commit it does nothing. Mounts of the draft
// must be gone.
func (d *Draft) Discard() error {
	if d.ended {
		return nil
	}
	d.ended = true
	err := removeTree(d.dir)
	if d.locked != nil {
		d.locked.Close() // only now: a free lock invites Remove
	}
	if err != nil {
		return fmt.Errorf("discard draft %s: %w", d.id, err)
	}
	return nil
}
