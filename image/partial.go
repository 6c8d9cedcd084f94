package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Partial is a blob that is arriving, and what there was of it before: bytes of a transfer that broke
// off stay in partial/<alg>/<hex>, and the next one, of this process or another, goes on behind them. It ends
// exactly once: Commit makes it a blob, Close keeps its bytes for another time. One writer at a time holds the
// file's lock; whoever comes meanwhile waits as long as the file grows, and else gets one of its own.
type Partial struct {
	store *Store
	blob  v1.Descriptor
	file  *os.File
	temp  *temp // instead of a kept file; nil: file is in partial
	hash  hash.Hash
	size  int64
	found int64 // bytes of earlier transfers

	// Changed under the store's arriving.mu: followers look at them, and at size.
	done  bool
	whole bool
}

// Resume opens what is there of d, or begins it. The caller ends it.
func (s *Store) Resume(ctx context.Context, d v1.Descriptor) (*Partial, error) {
	if err := CheckDescriptor(d); err != nil {
		return nil, err
	}
	p := &Partial{store: s, blob: d, hash: d.Digest.Algorithm().Hash()}
	f, err := s.lockPartial(ctx, d)
	if err != nil {
		return nil, err
	}
	if f == nil {
		if p.temp, err = s.temp(); err != nil {
			return nil, err
		}
		p.file = p.temp.File
		s.arriving.begin(p)
		return p, nil
	}
	p.file = f
	n, err := copyContext(ctx, p.hash, io.LimitReader(f, d.Size+1))
	if err == nil && n > d.Size { // of no use to anybody
		n = 0
		p.hash.Reset()
		if err = f.Truncate(0); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	if p.size, p.found = n, n; n == 0 {
		s.arriving.begin(p)
	}
	return p, nil
}

// patience is how long another process's transfer may stand still before this one begins its own.
const patience = 5 * time.Second

// lockPartial opens and locks the file of d; nil when another process has it and gets nowhere.
func (s *Store) lockPartial(ctx context.Context, d v1.Descriptor) (*os.File, error) {
	name := s.partialPath(d)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	size, since := int64(-1), time.Now()
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
		var mine, there os.FileInfo
		if err == nil || errors.Is(err, unix.EWOULDBLOCK) {
			var statErr error
			if mine, statErr = f.Stat(); statErr != nil {
				err = statErr
			}
		}
		if err == nil { // between opening and locking, another may have made it a blob, or dropped it
			if there, err = os.Lstat(name); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
			f.Close()
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("image store: lock %s: %w", name, err)
		}
		if mine.Size() != size {
			size, since = mine.Size(), time.Now()
		}
		if time.Since(since) > patience {
			return nil, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Store) partialPath(d v1.Descriptor) string {
	return s.path("partial" + strings.TrimPrefix(blobPath(d.Digest), "blobs"))
}

// Size is how many bytes are there.
func (p *Partial) Size() int64 { return p.size }

// Resumed reports whether bytes were there from the beginning: if they turn out wrong, another try without them may be right.
func (p *Partial) Resumed() bool { return p.found > 0 }

// Write adds bytes. What a full disk refuses is not kept: its bytes would only stay in the way.
func (p *Partial) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	p.hash.Write(b[:n])
	p.store.arriving.grow(p, n)
	if err != nil {
		p.drop()
	}
	return n, err
}

// Commit makes it a blob if it is d whole and right; else its bytes go, and the error is ErrDigest.
func (p *Partial) Commit() error {
	got := digest.NewDigest(p.blob.Digest.Algorithm(), p.hash)
	if err := compare(p.blob.Digest, p.blob.Size, got, p.size); err != nil {
		p.drop()
		return err
	}
	if p.temp != nil {
		err := p.store.promote(p.temp, p.blob.Digest)
		p.store.arriving.end(p, err == nil)
		return err
	}
	to := p.store.path(blobPath(p.blob.Digest))
	err := os.Rename(p.file.Name(), to)
	if errors.Is(err, fs.ErrNotExist) { // the first blob of another algorithm
		if err = os.MkdirAll(filepath.Dir(to), 0o700); err == nil {
			err = os.Rename(p.file.Name(), to)
		}
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	p.store.arriving.end(p, true)
	return p.file.Close()
}

// Close keeps the bytes, and does nothing after Commit.
func (p *Partial) Close() error {
	if p.done {
		return nil
	}
	if p.temp != nil || p.size == 0 {
		p.drop()
		return nil
	}
	p.store.arriving.end(p, false)
	return p.file.Close()
}

// drop removes the bytes.
func (p *Partial) drop() {
	if p.done {
		return
	}
	p.store.arriving.end(p, false)
	if p.temp != nil {
		p.temp.discard()
		return
	}
	os.Remove(p.file.Name()) // while it is locked: nobody else has begun on it
	p.file.Close()
}

// dropPartials removes what broken transfers left and nobody goes on with.
func (s *Store) dropPartials() (bytes int64, err error) {
	err = s.eachDigestFile("partial", func(_ digest.Digest, _ fs.DirEntry, name string) error {
		bytes += dropUnlocked(name)
		return nil
	})
	return bytes, err
}
