package image

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Arrival is a layer's blob on its way into the store, which can be read as it comes: the bytes
// go to the disk at the network's speed, and a reader follows them there. One goroutine calls
// Fetch; others may call Uncompressed before it, and Wait.
type Arrival struct {
	layer Layer

	// Guarded by the store's arriving.mu.
	ended bool
	err   error
	early bool // Uncompressed gave bytes that had not been verified
}

// arriving are the transfers of this process, of blobs that it has from the first byte on. One that
// goes on behind what an earlier one left is none of them: where that was wrong, it begins anew.
type arriving struct {
	mu   sync.Mutex
	news sync.Cond // a transfer began, grew or ended, or an Arrival did
	of   map[digest.Digest]*Partial
}

// Expect begins nothing yet: Fetch does.
func (l Layer) Expect() *Arrival { return &Arrival{layer: l} }

// Fetch is Layer.Fetch, called once.
func (a *Arrival) Fetch(ctx context.Context) {
	err := a.layer.Fetch(ctx)
	w := &a.layer.store.arriving
	w.mu.Lock()
	defer w.mu.Unlock()
	a.ended, a.err = true, err
	w.news.Broadcast()
}

// Wait waits until Fetch has ended and returns its error.
func (a *Arrival) Wait(ctx context.Context) error {
	w := &a.layer.store.arriving
	defer w.wake(ctx)()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !a.ended && ctx.Err() == nil {
		w.news.Wait()
	}
	if !a.ended {
		return context.Cause(ctx)
	}
	return a.err
}

// Early tells whether Uncompressed gave bytes before they were verified. An error after
// that, with none of Wait, may be due to a transfer that another replaced: what came in
// the end has to be read from its beginning, by Layer.Uncompressed.
func (a *Arrival) Early() bool {
	w := &a.layer.store.arriving
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.early
}

// Uncompressed is Layer.Uncompressed that does not wait for the end of the transfer to give the
// first bytes. It gives io.EOF only after the whole blob was verified, and the tar, too.
func (a *Arrival) Uncompressed(ctx context.Context) (io.ReadCloser, error) {
	raw, err := a.follow(ctx)
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return a.layer.Uncompressed(ctx)
	}
	return newUncompressed(raw, a.layer.DiffID, -1)
}

// follow waits until there is something to follow; nil: the blob need not come, or has.
func (a *Arrival) follow(ctx context.Context) (io.ReadCloser, error) {
	w := &a.layer.store.arriving
	defer w.wake(ctx)()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		p := w.of[a.layer.Descriptor.Digest]
		switch {
		case a.ended:
			return nil, a.err
		case p != nil:
			fd, err := unix.FcntlInt(p.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, os.NewSyscallError("dup", err)
			}
			a.early = true
			return &follower{ctx: ctx, from: w, partial: p, file: os.NewFile(uintptr(fd), p.file.Name())}, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		w.news.Wait()
	}
}

// wake has waiters look at ctx when it is done; the caller calls stop.
func (w *arriving) wake(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.news.Broadcast()
	})
}

// begin lets p be followed.
func (w *arriving) begin(p *Partial) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[digest.Digest]*Partial{}
	}
	w.of[p.blob.Digest] = p
	w.news.Broadcast()
}

// grow says that p has n bytes more on the disk.
func (w *arriving) grow(p *Partial, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.size += int64(n)
	w.news.Broadcast()
}

// end says that p gets no more; whole: it is a blob now, verified.
func (w *arriving) end(p *Partial, whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.done, p.whole = true, whole
	if w.of[p.blob.Digest] == p {
		delete(w.of, p.blob.Digest)
	}
	w.news.Broadcast()
}

// errGivenUp is what a follower reads behind the last byte of a transfer that failed.
var errGivenUp = errors.New("the transfer failed")

// follower reads a transfer's file behind its writer.
type follower struct {
	ctx     context.Context
	from    *arriving
	partial *Partial
	file    *os.File // its own descriptor: the writer's is closed at the end
	n       int64
}

func (f *follower) Read(b []byte) (int, error) {
	ready, err := f.wait()
	if err != nil {
		return 0, err
	}
	n, err := f.file.ReadAt(b[:min(int64(len(b)), ready)], f.n)
	f.n += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// wait waits for bytes behind those that were read and tells how many there are; io.EOF if there
// will be none and the blob is whole.
func (f *follower) wait() (int64, error) {
	w, p := f.from, f.partial
	defer w.wake(f.ctx)()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case p.done && !p.whole:
			return 0, errGivenUp
		case f.n < p.size:
			return p.size - f.n, nil
		case p.done:
			return 0, io.EOF
		case f.ctx.Err() != nil:
			return 0, context.Cause(f.ctx)
		}
		w.news.Wait()
	}
}

func (f *follower) Close() error { return f.file.Close() }
