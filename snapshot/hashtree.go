package snapshot

import (
	"context"
	"crypto/sha256"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// hashTree reads the tree once, into pieces of its tar. Reading, hashing the tar for DiffID, and hashing
// what it holds of each file for Content, unless sums tells, go on beside each other.
func (s *Snapshot) hashTree(ctx context.Context, parent *Digests, sums Sums) (Digests, error) {
	list := listing{h: sha256.New()}
	if parent != nil {
		list.begin(parent.Content)
	} else {
		list.begin("")
	}
	tar := sha256.New()
	var hashing sync.WaitGroup
	free := make(chan *piece, piecesAhead)
	use := func(hash func(*piece)) chan<- *piece {
		full := make(chan *piece, piecesAhead)
		hashing.Go(func() {
			for p := range full {
				if hash(p); p.users.Add(-1) == 0 {
					free <- p
				}
			}
		})
		return full
	}
	toTar, toList := use(func(p *piece) { tar.Write(p.tar) }), use(list.hasher())
	pieces := 0
	next := func() *piece {
		select {
		case p := <-free:
			return p
		default:
		}
		if pieces == piecesAhead {
			return <-free
		}
		pieces++
		return &piece{tar: make([]byte, 0, streamBuffer)}
	}
	now := next()
	out := &stream{buf: now.tar}
	out.flush = func(b []byte) ([]byte, error) {
		now.tar = b
		now.users.Store(2)
		toTar <- now
		toList <- now
		now = next()
		now.parts = now.parts[:0]
		return now.tar, nil
	}
	noted := func(b []byte) { now.parts = append(now.parts, part{bytes: b}) }
	err := s.items(ctx, func(it *item) error {
		end := part{it: it}
		if it.fd >= 0 && sums != nil {
			end.sum = sums(it.path)
		}
		if out.read = noted; end.sum != nil {
			out.read = nil
		}
		err := out.item(ctx, it, s.meta.epoch)
		now.parts = append(now.parts, end)
		return err
	})
	if err == nil {
		err = out.end()
	}
	close(toTar)
	close(toList)
	hashing.Wait()
	if err != nil {
		return Digests{}, err
	}
	content := digest.NewDigest(digest.SHA256, list.h)
	if list.items == 0 && parent != nil {
		content = parent.Content // nothing changed: steps after this one need not run again
	}
	diffID := digest.NewDigest(digest.SHA256, tar)
	return Digests{Content: content, DiffID: diffID, Size: out.total, Chain: chainID(parent, diffID)}, nil
}

// piecesAhead is how many pieces there are at most: one is filled while others are hashed. Together they stay in a
// processor's cache.
const piecesAhead = 4

// piece is a part of a layer's tar on its way to the digests.
type piece struct {
	tar   []byte
	parts []part       // of what it holds of files, in order
	users atomic.Int32 // who have not hashed it yet
}

// part is some bytes of a file, in the tar of its piece, or the item when there are no more, with the sha256 of a
// file's bytes where that was known, and they are no parts.
type part struct {
	bytes []byte
	it    *item
	sum   *[sha256.Size]byte
}

// hasher adds the items of pieces to the listing.
func (l *listing) hasher() func(*piece) {
	content := sha256.New()
	var sum [sha256.Size]byte
	return func(p *piece) {
		for _, some := range p.parts {
			switch {
			case some.it == nil:
				content.Write(some.bytes)
			case some.sum != nil:
				l.add(some.it, some.sum[:])
			case some.it.linkTo == "" && some.it.fileType() == unix.S_IFREG:
				l.add(some.it, content.Sum(sum[:0]))
				content.Reset()
			default:
				l.add(some.it, nil)
			}
		}
	}
}
