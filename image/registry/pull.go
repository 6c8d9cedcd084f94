package registry

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"mk/image"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// acceptManifests are the documents that mk reads.
var acceptManifests = []string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, image.DockerManifestList, image.DockerManifest}

// Resolve asks the registry what a name stands for now: an index or a manifest.
func (c *Client) Resolve(ctx context.Context, ref image.Reference) (v1.Descriptor, error) {
	var d v1.Descriptor
	err := c.eachPlace(ctx, ref, func(s *session) error {
		var err error
		d, err = s.head(ctx, ref)
		return err
	})
	if err != nil {
		return d, what("resolve", ref, err)
	}
	return d, nil
}

// Pull brings an image into the store and returns what its name stands for. Of a
// multi-platform image, p is brought (nil: this machine's), with the index. It sets no name: Tag does.
// A name with a digest that this repository is known to have and that is in the store whole makes no request.
func (c *Client) Pull(ctx context.Context, ref image.Reference, store *image.Store, p *v1.Platform, progress Progress) (v1.Descriptor, error) {
	d, err := c.pull(ctx, ref, store, pullPlan{platform: p, layers: true, progress: serialize(progress)})
	if err != nil {
		return d, what("pull", ref, err)
	}
	return d, nil
}

// PullAll is Pull of every platform, attestations included.
func (c *Client) PullAll(ctx context.Context, ref image.Reference, store *image.Store, progress Progress) (v1.Descriptor, error) {
	d, err := c.pull(ctx, ref, store, pullPlan{all: true, layers: true, progress: serialize(progress)})
	if err != nil {
		return d, what("pull", ref, err)
	}
	return d, nil
}

// Manifest is Pull without the layers: manifest and config come into the store,
// and the repository is recorded as the layers' source. FetchLayer brings one when it is needed.
func (c *Client) Manifest(ctx context.Context, ref image.Reference, store *image.Store, p *v1.Platform) (*image.Image, error) {
	d, err := c.pull(ctx, ref, store, pullPlan{platform: p, progress: serialize(nil)})
	if err == nil {
		var im *image.Image
		if im, err = store.Image(ctx, d, p); err == nil {
			return im, nil
		}
	}
	return nil, what("pull", ref, err)
}

// Manifests is Manifest of every platform that a name stands for; attestations are left out.
func (c *Client) Manifests(ctx context.Context, ref image.Reference, store *image.Store) ([]*image.Image, error) {
	d, err := c.Documents(ctx, ref, store)
	if err != nil {
		return nil, err
	}
	all, err := store.Images(ctx, d)
	if err != nil {
		return nil, what("pull", ref, err)
	}
	return all, nil
}

// Documents is PullAll without the layers: an index, its manifests and their configs come into the store.
func (c *Client) Documents(ctx context.Context, ref image.Reference, store *image.Store) (v1.Descriptor, error) {
	d, err := c.pull(ctx, ref, store, pullPlan{all: true, progress: serialize(nil)})
	if err != nil {
		return d, what("pull", ref, err)
	}
	return d, nil
}

// Document returns the index or manifest that a name stands for, and stores nothing.
func (c *Client) Document(ctx context.Context, ref image.Reference) (d v1.Descriptor, raw []byte, err error) {
	err = c.eachPlace(ctx, ref, func(s *session) error {
		d, raw, err = s.manifest(ctx, manifestName(ref), v1.Descriptor{Digest: ref.Digest()})
		return err
	})
	if err != nil {
		return d, nil, what("read manifest of", ref, err)
	}
	return d, raw, nil
}

// FetchLayer brings one blob into the store from the repositories that are
// recorded as its sources. Callers that want the same blob at once share one download.
func (c *Client) FetchLayer(ctx context.Context, store *image.Store, d v1.Descriptor) error {
	defer c.alone(d.Digest)()
	progress := c.told
	err := fmt.Errorf("no source is known: %w", image.ErrAbsent)
	for _, repository := range store.Sources(d.Digest) {
		if ok, hasErr := store.Has(d); ok || hasErr != nil {
			return hasErr
		}
		ref, refErr := image.ParseReference(repository)
		if refErr != nil {
			return refErr
		}
		err = c.eachPlace(ctx, ref, func(s *session) error { return s.blob(ctx, store, d, progress) })
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("fetch layer %s: %w", d.Digest, err)
	}
	return nil
}

// told passes an event of FetchLayer on, one at a time.
func (c *Client) told(e Event) {
	if c.Progress != nil {
		c.telling.Lock()
		defer c.telling.Unlock()
		c.Progress(e)
	}
}

// alone waits until nobody else in this process fetches d.
func (c *Client) alone(d digest.Digest) (unlock func()) {
	c.mu.Lock()
	if c.flights == nil {
		c.flights = map[digest.Digest]*sync.Mutex{}
	}
	m := c.flights[d]
	if m == nil {
		m = &sync.Mutex{}
		c.flights[d] = m
	}
	c.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// Tags lists the tags of a repository, as the registry orders them.
func (c *Client) Tags(ctx context.Context, ref image.Reference) ([]string, error) {
	var all []string
	err := c.eachPlace(ctx, ref, func(s *session) error {
		all = nil
		return s.tags(ctx, &all)
	})
	if err != nil {
		return nil, what("list tags of", ref, err)
	}
	return all, nil
}

// eachPlace tries f with the mirrors and then the registry itself, until one serves.
// When none does, the registry's own error is the one that is told.
func (c *Client) eachPlace(ctx context.Context, ref image.Reference, f func(*session) error) error {
	places, err := c.endpoints(ref.Domain())
	if err != nil {
		return err
	}
	var refused error // what the first place said
	for _, e := range places {
		var s *session
		if s, err = c.open(ctx, e, ref.Path(), transport.PullScope, nil); err == nil {
			err = f(s)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		if refused == nil {
			refused = err
		}
	}
	if refused != nil && len(places) > 1 { // a mirror's answer is not lost behind an unreachable registry
		return fmt.Errorf("%w; then %w", refused, err)
	}
	return err
}

// pullPlan says what of an image is wanted.
type pullPlan struct {
	platform *v1.Platform
	all      bool // platforms
	layers   bool
	progress Progress
}

func (c *Client) pull(ctx context.Context, ref image.Reference, store *image.Store, plan pullPlan) (v1.Descriptor, error) {
	if d, ok := c.pinned(ctx, ref, store, plan); ok {
		return d, nil
	}
	var d v1.Descriptor
	err := c.eachPlace(ctx, ref, func(s *session) error {
		p := puller{session: s, store: store, plan: plan, repository: ref.Repository()}
		root, raw, err := s.manifest(ctx, manifestName(ref), v1.Descriptor{Digest: ref.Digest()})
		if err != nil {
			return err
		}
		d = root
		return p.document(ctx, root, raw)
	})
	return d, err
}

// manifestName is the last part of a manifest's URL: a digest wins over a tag.
func manifestName(ref image.Reference) string {
	return cmp.Or(ref.Digest().String(), ref.Tag())
}

// pinned finds an image by digest in the store. That the bytes are here is not enough: this
// repository must be known to have them, or a name could be given to another's image.
func (c *Client) pinned(ctx context.Context, ref image.Reference, store *image.Store, plan pullPlan) (v1.Descriptor, bool) {
	if ref.Digest() == "" || plan.all || !slices.Contains(store.Sources(ref.Digest()), ref.Repository()) {
		return v1.Descriptor{}, false
	}
	d, err := store.Document(ctx, ref.Digest())
	if err != nil {
		return d, false
	}
	im, err := store.Image(ctx, d, plan.platform)
	if err != nil {
		return d, false
	}
	for _, l := range im.Layers() {
		if ok, err := l.Present(); plan.layers && (err != nil || !ok) {
			return d, false
		}
	}
	return d, true
}

// puller brings one image from one place.
type puller struct {
	session    *session
	store      *image.Store
	plan       pullPlan
	repository string
}

// document stores an index or manifest after what it names.
func (p puller) document(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if !image.IsIndex(d.MediaType) {
		return p.image(ctx, d, raw)
	}
	ix, err := image.ParseIndex(raw, d.MediaType)
	if err != nil {
		return err
	}
	wanted := ix.Manifests
	if !p.plan.all {
		picked, ok := image.SelectPlatform(ix, p.plan.platform)
		if !ok {
			return image.NoPlatform(d.Digest, ix, p.plan.platform)
		}
		wanted = []v1.Descriptor{picked}
	}
	for _, m := range wanted {
		child, raw, err := p.session.manifest(ctx, m.Digest.String(), m)
		if err != nil {
			return err
		}
		if image.IsIndex(child.MediaType) {
			return fmt.Errorf("index %s names an index, %s: %w", d.Digest, m.Digest, image.ErrInvalid)
		}
		if err := p.image(ctx, child, raw); err != nil {
			return err
		}
	}
	return p.put(ctx, d, raw)
}

// image stores config, layers, manifest.
func (p puller) image(ctx context.Context, d v1.Descriptor, raw []byte) error {
	m, err := image.ParseManifest(raw, d.MediaType)
	if err != nil {
		return err
	}
	blobs := []v1.Descriptor{m.Config}
	for _, l := range m.Layers {
		if err := p.store.AddSource(l.Digest, p.repository); err != nil {
			return err
		}
		if p.plan.layers && !slices.ContainsFunc(blobs, func(b v1.Descriptor) bool { return b.Digest == l.Digest }) {
			blobs = append(blobs, l)
			p.plan.progress(Event{State: Waiting, Digest: l.Digest, Total: l.Size})
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, cmp.Or(p.session.client.Jobs, 4)))
	for _, b := range blobs {
		g.Go(func() error {
			defer p.session.client.alone(b.Digest)()
			return p.session.blob(gctx, p.store, b, p.plan.progress)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return p.put(ctx, d, raw)
}

func (p puller) put(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if _, err := p.store.Put(ctx, bytes.NewReader(raw), &d); err != nil {
		return err
	}
	return p.store.AddSource(d.Digest, p.repository)
}

// head asks what a name stands for; registries that do not say it all are asked for the document itself.
func (s *session) head(ctx context.Context, ref image.Reference) (v1.Descriptor, error) {
	resp, err := s.do(ctx, request{method: http.MethodHead, url: s.root + "/manifests/" + manifestName(ref),
		header: http.Header{"Accept": {strings.Join(acceptManifests, ", ")}}}, http.StatusOK)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return v1.Descriptor{}, err
	}
	if err == nil {
		resp.Body.Close()
		d := v1.Descriptor{MediaType: mediaType(resp.Header), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
		known := image.IsIndex(d.MediaType) || image.IsManifest(d.MediaType)
		if known && image.CheckDescriptor(d) == nil && (ref.Digest() == "" || ref.Digest() == d.Digest) {
			return d, nil
		}
	}
	d, _, err := s.manifest(ctx, manifestName(ref), v1.Descriptor{Digest: ref.Digest()})
	return d, err // a 404 to HEAD has no message; GET's has
}

// manifest gets a manifest or index. expect's digest, size and media type are
// held against what came, where they are set.
func (s *session) manifest(ctx context.Context, name string, expect v1.Descriptor) (v1.Descriptor, []byte, error) {
	var raw []byte
	var header http.Header
	err := s.retry(ctx, func() error {
		resp, err := s.once(ctx, request{method: http.MethodGet, url: s.root + "/manifests/" + name,
			header: http.Header{"Accept": {strings.Join(acceptManifests, ", ")}}}, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		header = resp.Header
		raw, err = io.ReadAll(io.LimitReader(resp.Body, image.MaxManifestSize+1))
		if err != nil {
			return &netError{method: http.MethodGet, url: redact(resp.Request.URL), err: err}
		}
		return nil
	})
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	want := expect.Digest
	if said := digest.Digest(header.Get("Docker-Content-Digest")); want == "" && said.Validate() == nil {
		want = said
	}
	got := digest.FromBytes(raw)
	if want != "" {
		got = want.Algorithm().FromBytes(raw)
	}
	if want != "" && got != want {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %s: got %s: %w", want, got, image.ErrDigest)
	}
	if expect.Size > 0 && expect.Size != int64(len(raw)) {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %s: %d bytes where %d were expected: %w", got, len(raw), expect.Size, image.ErrDigest)
	}
	kind, err := image.DocumentType(raw, cmp.Or(expect.MediaType, mediaType(header)))
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", got, err)
	}
	return v1.Descriptor{MediaType: kind, Digest: got, Size: int64(len(raw)), Platform: expect.Platform}, raw, nil
}

// mediaType is the Content-Type of a manifest, "" when it is one that says nothing.
func mediaType(h http.Header) string {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	switch kind = strings.TrimSpace(kind); kind {
	case "application/json", "text/plain", "application/octet-stream":
		return ""
	}
	return kind
}

func (s *session) tags(ctx context.Context, all *[]string) error {
	next := s.root + "/tags/list?n=1000"
	for range 1000 { // pages
		var page struct {
			Tags []string `json:"tags"`
		}
		resp, err := s.do(ctx, request{method: http.MethodGet, url: next}, http.StatusOK)
		if err != nil {
			return err
		}
		err = decodeJSON(resp.Body, &page)
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("GET %s: %w", next, err)
		}
		*all = append(*all, page.Tags...)
		if next, err = nextPage(resp); err != nil || next == "" {
			return err
		}
	}
	return fmt.Errorf("more than 1000 pages of tags")
}

// nextPage is where a list goes on, "" for nowhere: </v2/…/tags/list?last=x&n=1000>; rel="next"
func nextPage(resp *http.Response) (string, error) {
	link := resp.Header.Get("Link")
	target, rest, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.Contains(rest, "next") {
		return "", nil
	}
	u, err := resp.Request.URL.Parse(target)
	if err != nil {
		return "", fmt.Errorf("GET %s: bad Link %q", redact(resp.Request.URL), clean(link))
	}
	return u.String(), nil
}

// contentRange reports whether a 206 begins where it was asked to.
func contentRange(h http.Header, from int64) bool {
	rest, ok := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	start, _, dash := strings.Cut(rest, "-")
	at, err := strconv.ParseInt(start, 10, 64)
	return ok && dash && err == nil && at == from
}
