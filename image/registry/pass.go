package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"mk/image"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// passing is a blob on its way through mk, from one registry to another: what is read is
// asked of the repositories that have it, and nothing is stored. Where one place gives up, or
// has not got the blob after all, the next goes on behind the last byte.
type passing struct {
	ctx    context.Context
	client *Client
	blob   v1.Descriptor

	places []place // the first is read from
	from   *download
	n      int64 // bytes read
	err    error // of the places before
}

// place is a repository of a registry or mirror.
type place struct {
	at         endpoint
	repository string
}

// OpenLayer gives the bytes of one blob, unverified, from the repositories that are recorded as
// its sources, and from their mirrors. It makes no request before the first Read.
func (c *Client) OpenLayer(ctx context.Context, store *image.Store, d v1.Descriptor) (io.ReadCloser, error) {
	places, err := c.places(store, d)
	if err != nil {
		return nil, err
	}
	return &passing{ctx: ctx, client: c, blob: d, places: places}, nil
}

// places lists who may have a blob, mirrors before their registries; ErrAbsent where nobody is known.
func (c *Client) places(store *image.Store, d v1.Descriptor) ([]place, error) {
	var places []place
	for _, repository := range store.Sources(d.Digest) {
		ref, err := image.ParseReference(repository)
		if err != nil {
			return nil, err
		}
		endpoints, err := c.endpoints(ref.Domain())
		if err != nil {
			return nil, err
		}
		for _, e := range endpoints {
			places = append(places, place{e, ref.Path()})
		}
	}
	if len(places) == 0 {
		return nil, fmt.Errorf("fetch layer %s: no source is known: %w", d.Digest, image.ErrAbsent)
	}
	return places, nil
}

func (p *passing) Read(b []byte) (int, error) {
	for len(p.places) > 0 {
		n, err := p.read(b)
		p.n += int64(n)
		if n > 0 || err == nil || err == io.EOF {
			return n, err
		}
		p.next(err)
	}
	return 0, p.err
}

// read reads from the first place.
func (p *passing) read(b []byte) (int, error) {
	if p.from == nil {
		at := p.places[0]
		s, err := p.client.open(p.ctx, at.at, at.repository, transport.PullScope, nil)
		if err != nil {
			return 0, err
		}
		p.from = &download{ctx: p.ctx, session: s, blob: p.blob, n: p.n}
	}
	return p.from.Read(b)
}

// next leaves the first place, which ended with err, for the one after it.
func (p *passing) next(err error) {
	p.Close()
	p.from, p.places = nil, p.places[1:]
	switch {
	case p.ctx.Err() != nil:
		p.err, p.places = context.Cause(p.ctx), nil
	case p.err == nil:
		p.err = fmt.Errorf("fetch layer %s: %w", p.blob.Digest, err)
	default: // what the first one said is not lost behind the last one
		p.err = fmt.Errorf("%w; then %w", p.err, err)
	}
}

func (p *passing) Close() error {
	if p.from == nil {
		return nil
	}
	return p.from.Close()
}

// ReadPart gives a part of a blob, from the first place that serves parts.
func (c *Client) ReadPart(ctx context.Context, store *image.Store, d v1.Descriptor, offset, size int64) ([]byte, error) {
	places, err := c.places(store, d)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, at := range places {
		s, err := c.open(ctx, at.at, at.repository, transport.PullScope, nil)
		if err == nil {
			var part []byte
			if part, err = s.part(ctx, d, offset, size); err == nil {
				return part, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

// part asks for a part of a blob (RFC 9110, section 14.2).
func (s *session) part(ctx context.Context, d v1.Descriptor, offset, size int64) (part []byte, err error) {
	ask := request{method: http.MethodGet, url: s.root + "/blobs/" + d.Digest.String(),
		header: http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", offset, offset+size-1)}}}
	err = s.retry(ctx, func() error {
		resp, err := s.once(ctx, ask, http.StatusPartialContent, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusPartialContent || !contentRange(resp.Header, offset) {
			return fmt.Errorf("GET %s: the registry does not serve parts of blobs", ask.url)
		}
		if part, err = io.ReadAll(io.LimitReader(resp.Body, size)); err == nil && int64(len(part)) < size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return &netError{method: http.MethodGet, url: ask.url, err: err}
		}
		return nil
	})
	return part, err
}
