package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"mk/image"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// blob brings a blob into the store, unless it is there.
func (s *session) blob(ctx context.Context, store *image.Store, d v1.Descriptor, progress Progress) error {
	ok, err := store.Has(d)
	if err != nil {
		return err
	}
	if ok {
		progress(Event{State: Exists, Digest: d.Digest, Done: d.Size, Total: d.Size})
		return nil
	}
	resumed, err := s.fill(ctx, store, d, progress)
	if resumed && errors.Is(err, image.ErrDigest) { // what an earlier transfer left was at fault, perhaps
		_, err = s.fill(ctx, store, d, progress)
	}
	if err != nil {
		return err // names the blob already, by URL or digest
	}
	progress(Event{State: Complete, Digest: d.Digest, Done: d.Size, Total: d.Size})
	return nil
}

// fill downloads what the store has not of a blob; resumed tells that it had a part.
func (s *session) fill(ctx context.Context, store *image.Store, d v1.Descriptor, progress Progress) (resumed bool, err error) {
	p, err := store.Resume(ctx, d)
	if err != nil {
		return false, err
	}
	defer p.Close()                                // keeps what came, and is a no-op after Commit
	if ok, err := store.Has(d); ok || err != nil { // another process was at it
		return false, err
	}
	r := &download{ctx: ctx, session: s, blob: d, n: p.Size()}
	defer r.Close()
	count := &counter{r: r, progress: progress, event: Event{State: Moving, Digest: d.Digest, Done: p.Size(), Total: d.Size}}
	if _, err := io.CopyBuffer(p, io.LimitReader(count, d.Size-p.Size()+1), make([]byte, 256<<10)); err != nil {
		return p.Resumed(), err
	}
	return p.Resumed(), p.Commit()
}

// download reads a blob over as many requests as it takes: a connection that
// breaks or stalls is followed by a request for the rest (Range). It gives up after Retries
// breaks in a row without a byte between them.
type download struct {
	ctx     context.Context
	session *session
	blob    v1.Descriptor

	body   io.ReadCloser // nil: the next Read asks
	cancel context.CancelFunc
	stall  *time.Timer // runs while somebody waits for bytes
	n      int64       // bytes read
	barren int         // breaks since the last byte
	whole  bool        // the registry refused a Range: ask for all of it
}

func (r *download) Read(p []byte) (int, error) {
	for {
		if r.n >= r.blob.Size && r.body == nil {
			return 0, io.EOF
		}
		if r.body == nil {
			if err := r.open(); err != nil {
				return 0, err
			}
		}
		r.stall.Reset(r.patience())
		n, err := r.body.Read(p)
		r.stall.Stop() // whoever has them may send them on slowly
		r.n += int64(n)
		if n > 0 {
			r.barren = 0
			if err != nil {
				r.hangUp() // the error, if it is one, shows in the next Read
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		r.hangUp()
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		if err == io.EOF && r.n >= r.blob.Size {
			return 0, io.EOF
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if r.barren++; r.barren > r.session.retries {
			return 0, &netError{method: http.MethodGet, url: r.url(), err: err}
		}
	}
}

func (r *download) url() string { return r.session.root + "/blobs/" + r.blob.Digest.String() }

func (r *download) patience() time.Duration { return cmp.Or(r.session.client.Stall, time.Minute) }

// open asks for what is missing. The timer ends a request whose bytes stop coming.
func (r *download) open() error {
	ctx, cancel := context.WithCancel(r.ctx)
	req := request{method: http.MethodGet, url: r.url()}
	want := []int{http.StatusOK}
	if r.n > 0 && !r.whole {
		req.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", r.n, r.blob.Size-1)}}
		want = append(want, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	}
	resp, err := r.session.do(ctx, req, want...)
	if err != nil {
		cancel()
		return err
	}
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		resp.Body.Close()
		cancel()
		r.whole = true
		return r.open()
	}
	r.body, r.cancel = resp.Body, cancel
	r.stall = time.AfterFunc(r.patience(), cancel)
	if resp.StatusCode == http.StatusPartialContent {
		if !contentRange(resp.Header, r.n) {
			return fmt.Errorf("GET %s: asked for bytes from %d on, got %q", r.url(), r.n, clean(resp.Header.Get("Content-Range")))
		}
		return nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != r.blob.Size {
		return fmt.Errorf("GET %s: %d bytes where %d were expected: %w", r.url(), resp.ContentLength, r.blob.Size, image.ErrDigest)
	}
	if r.n == 0 {
		return nil
	}
	// The registry does not know Range: what was read already is passed over. A
	// break here costs an attempt like any other.
	skip := r.n
	if _, err := io.CopyN(io.Discard, stallReader{r}, skip); err != nil {
		r.hangUp()
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		if r.barren++; r.barren > r.session.retries {
			return &netError{method: http.MethodGet, url: r.url(), err: err}
		}
		return r.open()
	}
	return nil
}

// stallReader reads the body of a download with its timer running anew.
type stallReader struct{ r *download }

func (s stallReader) Read(p []byte) (int, error) {
	s.r.stall.Reset(s.r.patience())
	return s.r.body.Read(p)
}

func (r *download) hangUp() {
	if r.body != nil {
		r.stall.Stop()
		r.cancel()
		r.body.Close()
		r.body = nil
	}
}

func (r *download) Close() error {
	r.hangUp()
	return nil
}

func decodeJSON(r io.Reader, v any) error {
	return json.NewDecoder(io.LimitReader(r, image.MaxManifestSize)).Decode(v)
}
