package registry

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"mk/image"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// PushOptions say how an image is sent. The zero value compresses uncompressed layers with gzip.
type PushOptions struct {
	Write    image.WriteOptions // its Jobs are the client's
	Progress Progress
}

// Push sends an image or index to ref and returns what it is there: d, unless layers were compressed.
// Blobs that the repository has are not sent, those that another repository of the same
// registry has are mounted from it, and layers are compressed on their way, never in memory or on disk
// as a whole. The tag, if ref has one, is set last; a ref with only a digest must be d's.
func (c *Client) Push(ctx context.Context, store *image.Store, d v1.Descriptor, ref image.Reference, opts PushOptions) (v1.Descriptor, error) {
	out, err := c.push(ctx, store, d, ref, opts)
	if err != nil {
		return out, what("push", ref, err)
	}
	return out, nil
}

func (c *Client) push(ctx context.Context, store *image.Store, d v1.Descriptor, ref image.Reference, opts PushOptions) (v1.Descriptor, error) {
	s, err := c.open(ctx, upstream(ref.Domain()), ref.Path(), transport.PushScope, c.mountable(ctx, store, d, ref))
	if err != nil {
		return v1.Descriptor{}, err
	}
	opts.Write.Jobs = cmp.Or(c.Jobs, 4)
	p := &pusher{session: s, store: store, ref: ref, progress: serialize(opts.Progress), there: map[digest.Digest]bool{}}
	out, err := store.Export(ctx, d, p, opts.Write)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if ref.Digest() != "" && ref.Digest() != out.Digest {
		return out, fmt.Errorf("image is %s there: %w", out.Digest, image.ErrDigest)
	}
	return out, p.flush(ctx, cmp.Or(ref.Tag(), out.Digest.String()))
}

// mountable lists the repositories of the same registry that may have blobs of the
// image, for the token must name them. At most a few: some servers refuse long lists.
func (c *Client) mountable(ctx context.Context, store *image.Store, d v1.Descriptor, ref image.Reference) []string {
	manifests := []v1.Descriptor{d}
	if image.IsIndex(d.MediaType) {
		ix, err := store.Index(ctx, d)
		if err != nil {
			return nil // the push itself will say so
		}
		manifests = ix.Manifests
	}
	var out []string
	for _, m := range manifests {
		im, err := store.Image(ctx, m, nil)
		if err != nil {
			continue // an artifact, or one that is not here: nothing is mounted
		}
		for _, l := range im.Layers() {
			for _, d := range append(store.CompressedForms(l.DiffID), l.Descriptor) {
				for _, from := range sameRegistry(store, d.Digest, ref) {
					if !slices.Contains(out, from) && len(out) < 4 {
						out = append(out, from)
					}
				}
			}
		}
	}
	return out
}

// sameRegistry returns the paths of other repositories of ref's registry that have the blob.
func sameRegistry(store *image.Store, d digest.Digest, ref image.Reference) []string {
	var out []string
	for _, source := range store.Sources(d) {
		from, err := image.ParseReference(source)
		if err == nil && from.Domain() == ref.Domain() && from.Path() != ref.Path() {
			out = append(out, from.Path())
		}
	}
	return out
}

// pusher is the image.Sink of one repository.
type pusher struct {
	session  *session
	store    *image.Store
	ref      image.Reference
	progress Progress

	mu    sync.Mutex
	there map[digest.Digest]bool // blobs that the repository has, asked or sent

	// The last manifest waits until it is known whether it is the root, which is
	// put under its tag and not twice.
	pending v1.Descriptor
	raw     []byte
}

var (
	_ image.Sink    = (*pusher)(nil)
	_ image.Mounter = (*pusher)(nil)
)

// Has asks the repository. One that refuses to say is sent the blob: credentials may be for pushing
// only, and where they are not, the answer to an upload has the registry's message and that to a HEAD has none.
func (p *pusher) Has(ctx context.Context, d v1.Descriptor) (bool, error) {
	p.mu.Lock()
	has := p.there[d.Digest]
	p.mu.Unlock()
	if has {
		return true, nil
	}
	resp, err := p.session.do(ctx, request{method: http.MethodHead, url: p.session.root + "/blobs/" + d.Digest.String()}, http.StatusOK)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	p.arrived(d, Exists)
	return true, nil
}

// arrived notes that the repository has a blob, here and in the store's records.
func (p *pusher) arrived(d v1.Descriptor, how State) {
	p.mu.Lock()
	p.there[d.Digest] = true
	p.mu.Unlock()
	_ = p.store.AddSource(d.Digest, p.ref.Repository()) // a record that cannot be written saves no work later
	p.progress(Event{State: how, Digest: d.Digest, Done: d.Size, Total: d.Size})
}

// Blob uploads a blob, or has it mounted.
func (p *pusher) Blob(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	out := d
	err := p.session.retry(ctx, func() error {
		upload, mounted, err := p.begin(ctx, d)
		if err != nil {
			return err
		}
		if mounted {
			p.arrived(d, Mounted)
			return nil
		}
		if out, err = p.upload(ctx, upload, d, open); err != nil {
			return err
		}
		p.arrived(out, Complete)
		return nil
	})
	return out, err
}

// Mount has a blob mounted that the store need not have, if another repository of the registry is known to have it.
func (p *pusher) Mount(ctx context.Context, d v1.Descriptor) (bool, error) {
	if len(sameRegistry(p.store, d.Digest, p.ref)) == 0 {
		return false, nil
	}
	upload, mounted, err := p.begin(ctx, d)
	if err != nil {
		return false, nil //nolint:nilerr // sending it will say what is wrong, if something is
	}
	if mounted {
		p.arrived(d, Mounted)
		return true, nil
	}
	if resp, err := p.session.once(ctx, request{method: http.MethodDelete, url: upload.String()}, http.StatusNoContent, http.StatusAccepted); err == nil {
		resp.Body.Close()
	} // else the registry forgets an upload that nothing comes of by itself
	return false, nil
}

// begin opens an upload, unless the registry can mount the blob from where it is known to be.
func (p *pusher) begin(ctx context.Context, d v1.Descriptor) (upload *url.URL, mounted bool, err error) {
	at := p.session.root + "/blobs/uploads/"
	var from []string
	if d.Digest != "" {
		from = sameRegistry(p.store, d.Digest, p.ref)
	}
	if len(from) > 0 {
		at += "?" + url.Values{"mount": {d.Digest.String()}, "from": {p.session.at.prefix + from[0]}}.Encode()
	}
	resp, err := p.session.once(ctx, request{method: http.MethodPost, url: at}, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return nil, false, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusCreated && d.Digest != "" {
		return nil, true, nil
	}
	upload, err = location(resp)
	return upload, false, err
}

// upload sends the bytes with one PATCH and ends with a PUT of their digest, as docker does;
// every registry knows that way, for blobs of unknown size too.
func (p *pusher) upload(ctx context.Context, at *url.URL, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	rc, err := open(ctx)
	if err != nil {
		return d, err
	}
	defer rc.Close()
	size := d.Size
	if d.Digest == "" {
		size = -1
	}
	hash := digest.SHA256.Hash()
	source := &localReader{r: io.TeeReader(rc, hash)}
	count := &counter{r: source, progress: p.progress, event: Event{State: Moving, Digest: d.Digest, Total: size}}
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	body := func() (io.Reader, error) { return io.NopCloser(count), nil }
	if size == 0 {
		body = func() (io.Reader, error) { return http.NoBody, nil }
	}
	resp, err := p.session.once(ctx, request{method: http.MethodPatch, url: at.String(), header: header, body: body, size: size},
		http.StatusAccepted, http.StatusNoContent, http.StatusCreated)
	if local := source.failed(); local != nil {
		return d, fmt.Errorf("%w: %w", errLocal, local) // no other attempt reads better
	}
	if err != nil {
		return d, err
	}
	resp.Body.Close()
	if at, err = location(resp); err != nil {
		return d, err
	}
	if d.Digest == "" {
		d.Digest, d.Size = digest.NewDigest(digest.SHA256, hash), count.event.Done
	}
	query := at.Query()
	query.Set("digest", d.Digest.String())
	at.RawQuery = query.Encode()
	resp, err = p.session.once(ctx, request{method: http.MethodPut, url: at.String(), header: header,
		body: func() (io.Reader, error) { return http.NoBody, nil }}, http.StatusCreated, http.StatusNoContent, http.StatusAccepted)
	if err != nil {
		return d, err
	}
	resp.Body.Close()
	return d, nil
}

// localReader remembers how reading the store ended, which net/http would wrap in an error of the connection.
type localReader struct {
	r io.Reader

	mu  sync.Mutex
	err error
}

func (l *localReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err != nil && err != io.EOF {
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
	}
	return n, err
}

func (l *localReader) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// location is where an upload goes on, which may be relative and on another host.
func location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %d without a usable Location", resp.Request.Method, redact(resp.Request.URL), resp.StatusCode)
	}
	return u, nil
}

// Manifest puts the manifest before this one by its digest; this one waits.
func (p *pusher) Manifest(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if p.pending.Digest != "" {
		if err := p.flush(ctx, p.pending.Digest.String()); err != nil {
			return err
		}
	}
	p.pending, p.raw = d, raw
	return nil
}

// flush puts the waiting manifest under a tag or digest, unless it is there.
func (p *pusher) flush(ctx context.Context, under string) error {
	at := p.session.root + "/manifests/" + under
	resp, err := p.session.do(ctx, request{method: http.MethodHead, url: at, header: http.Header{"Accept": {strings.Join(acceptManifests, ", ")}}}, http.StatusOK)
	if err == nil {
		resp.Body.Close()
		if resp.Header.Get("Docker-Content-Digest") == p.pending.Digest.String() {
			return p.store.AddSource(p.pending.Digest, p.ref.Repository())
		}
	}
	resp, err = p.session.do(ctx, request{method: http.MethodPut, url: at, header: http.Header{"Content-Type": {p.pending.MediaType}},
		body: func() (io.Reader, error) { return bytes.NewReader(p.raw), nil }, size: int64(len(p.raw))}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if err := p.session.refer(ctx, resp, p.pending, p.raw); err != nil {
		return err
	}
	said := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if said.Validate() == nil && said.Algorithm() == p.pending.Digest.Algorithm() && said != p.pending.Digest {
		return fmt.Errorf("PUT %s: registry has it as %s, not %s: %w", at, said, p.pending.Digest, image.ErrDigest)
	}
	return p.store.AddSource(p.pending.Digest, p.ref.Repository())
}
