package snapshot

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// recorded caches the digests file: once written it does not change.
type recorded struct{ p atomic.Pointer[Digests] }

// ContentOfChain is the Content of a snapshot whose layers were all applied
// unchanged from an image with that ChainID. It needs no tree, so the steps
// after FROM have keys before anything is unpacked.
func ContentOfChain(chain digest.Digest) digest.Digest {
	return digest.FromString("mk content of chain 1\n" + chain.String() + "\n")
}

// AsImage gives a snapshot as the tree of the image with that ChainID: what is made on it has the Content that it
// has wherever it is made on that image, also where the image was built, and its layers have another.
func (s *Snapshot) AsImage(chain digest.Digest) *Snapshot {
	content := ContentOfChain(chain)
	if d, ok := s.Recorded(); ok && d.Content == content {
		return s
	}
	// s is everybody's who asks the store for it.
	return &Snapshot{store: s.store, id: s.id, parent: s.parent, meta: s.meta, as: content}
}

// seen gives the parent's digests as they count for s: see AsImage.
func (s *Snapshot) seen(parent *Digests) *Digests {
	if s.meta.on == "" || parent == nil {
		return parent
	}
	is := *parent
	is.Content = s.meta.on
	return &is
}

// chainID is OCI's: the chain of a base is its DiffID.
func chainID(parent *Digests, diffID digest.Digest) digest.Digest {
	if parent == nil {
		return diffID
	}
	return digest.FromString(parent.Chain.String() + " " + diffID.String())
}

// Recorded returns the digests if somebody has computed them. It reads one small
// file and needs no namespace.
func (s *Snapshot) Recorded() (Digests, bool) {
	if d := s.recorded.p.Load(); d != nil {
		return *d, true
	}
	d, err := readDigests(filepath.Join(s.Dir(), "digests"))
	if err != nil {
		return Digests{}, false
	}
	s.recorded.p.Store(&d)
	return d, true
}

// Digests returns the recorded digests, or computes and records them, reading
// each file of the layer once, and those of the ancestors first. It may run
// beside anything else; of several callers, also in other processes, one
// computes and the others wait.
func (s *Snapshot) Digests(ctx context.Context) (Digests, error) {
	d, ok := s.Recorded()
	if ok {
		return d, nil
	}
	var below *Digests
	for _, l := range s.Layers() {
		var err error
		if d, err = l.digests(ctx, below); err != nil {
			return Digests{}, fmt.Errorf("digests of snapshot %s: %w", l.id, err)
		}
		below = &d
	}
	return d, nil
}

func (s *Snapshot) digests(ctx context.Context, parent *Digests) (Digests, error) {
	if d, ok := s.Recorded(); ok {
		return d, nil
	}
	dir, err := os.Open(s.Dir())
	if err != nil {
		return Digests{}, err
	}
	defer dir.Close() // frees the lock
	if err := waitForLock(ctx, dir); err != nil {
		return Digests{}, err
	}
	if d, ok := s.Recorded(); ok {
		return d, nil // by whom we waited for
	}
	d, err := s.compute(ctx, parent)
	if err != nil {
		return Digests{}, err
	}
	s.sums = nil // and what it holds; we have the lock
	return d, s.record(d)
}

// waitForLock takes the exclusive lock of a directory. It asks again and again,
// since a thread that waits in flock(2) does not hear of ctx.
func waitForLock(ctx context.Context, dir *os.File) error {
	for {
		err := flock(dir, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// record writes the digests down: first the look-up records, which are true
// whatever happens next, then the file whose rename is the commit point.
func (s *Snapshot) record(d Digests) error {
	// Remove takes what is half written for garbage.
	unlock, err := s.store.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	if s.meta.layer == "" { // see SetLayer: other bytes than WriteLayer's
		if err := s.store.writeRecord("diffids", d.DiffID, s.id); err != nil {
			return err
		}
	}
	if err := s.store.writeRecord(s.chains(), d.Chain, s.id); err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(s.Dir(), "digests"), d.text()); err != nil {
		return err
	}
	s.recorded.p.Store(&d)
	return nil
}

// recordApplied records the digests of an applied layer, if those of the parent
// are known too.
func (s *Snapshot) recordApplied() {
	if s.meta.layer == "" {
		return
	}
	var below *Digests
	if s.parent != nil {
		d, ok := s.parent.Recorded()
		if !ok {
			return
		}
		below = &d
	}
	s.record(s.applied(below))
}

// applied gives the digests of a snapshot that is an image's layer, unread.
func (s *Snapshot) applied(parent *Digests) Digests {
	chain := chainID(parent, s.meta.layer)
	content := s.meta.content
	if content == "" {
		content = ContentOfChain(chain)
	}
	return Digests{Content: content, DiffID: s.meta.layer, Size: s.meta.size, Chain: chain}
}

// compute finds the digests. An applied layer is not read, nor one whose digests
// without a parent are known.
func (s *Snapshot) compute(ctx context.Context, parent *Digests) (Digests, error) {
	parent = s.seen(parent)
	if s.meta.layer != "" {
		return s.applied(parent), nil
	}
	if s.alone == nil {
		return s.hashTree(ctx, parent, s.sums)
	}
	d, err := s.alone.Digests(ctx)
	if err != nil || !s.alone.Outline() {
		return rebased(d, parent), err
	}
	is, err := s.hashTree(ctx, parent, nil)
	if err == nil && is.Content != d.Content {
		err = fmt.Errorf("laid on the tree, snapshot %s is not the layer that it was on the outline", s.alone.id)
	}
	return is, err
}

// listing hashes a text of a line for each item, which is what Content is:
//
//	mk content 1
//	parent sha256:…                                   empty for a base
//	file "etc/motd" 644 0 0 12 9f86d08… "user.a"="b"
//	dir "etc" 755 0 0
//	link "etc/motd2" "etc/motd"
//	symlink "bin" 777 0 0 "usr/bin"
//	char "dev/null" 666 0 0 1:3
//	gone "etc/old"
//	emptied "var/cache"
type listing struct {
	h     hash.Hash
	items int
	line  []byte
}

func (l *listing) begin(parent digest.Digest) {
	fmt.Fprintf(l.h, "mk content 1\nparent %s\n", parent)
}

func (l *listing) add(it *item, sum []byte) {
	l.items++
	b := l.line[:0]
	word := func(w string) { b = append(append(b, w...), ' ') }
	quoted := func(w string) { b = append(strconv.AppendQuote(b, w), ' ') }
	number := func(n int64, base int) { b = append(strconv.AppendInt(b, n, base), ' ') }
	common := func(w string) {
		word(w)
		quoted(it.path)
		number(int64(it.mode&0o7777), 8)
		number(int64(it.uid), 10)
		number(int64(it.gid), 10)
	}
	switch {
	case it.kind == gone:
		word("gone")
		quoted(it.path)
	case it.kind == emptied:
		word("emptied")
		quoted(it.path)
	case it.linkTo != "":
		word("link")
		quoted(it.path)
		quoted(it.linkTo)
	default:
		switch it.fileType() {
		case unix.S_IFREG:
			common("file")
			number(it.size, 10)
			b = append(hex.AppendEncode(b, sum), ' ')
		case unix.S_IFDIR:
			common("dir")
		case unix.S_IFLNK:
			common("symlink")
			quoted(it.target)
		case unix.S_IFIFO:
			common("fifo")
		case unix.S_IFCHR, unix.S_IFBLK:
			common(map[uint32]string{unix.S_IFCHR: "char", unix.S_IFBLK: "block"}[it.fileType()])
			word(fmt.Sprintf("%d:%d", unix.Major(it.rdev), unix.Minor(it.rdev)))
		}
		for _, a := range it.attrs {
			b = strconv.AppendQuote(b, a.name)
			b = append(b, '=')
			quoted(a.value)
		}
	}
	b[len(b)-1] = '\n'
	l.h.Write(b)
	l.line = b
}
