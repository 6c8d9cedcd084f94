package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// WriteOptions say in what form images leave the store. The zero value compresses
// layers that are not compressed with gzip, and leaves the others as they are.
type WriteOptions struct {
	Compression      Compression // of layers that have none; "" is gzip
	Level            int         // 0: the default of the compression
	ForceCompression bool        // of the other layers too
	Docker           bool        // docker's schema 2 media types instead of OCI's
	Jobs             int         // layers at once; 0: one
}

// Sink takes an image apart from the store: an archive, a directory, a repository.
// Blobs come before the manifest that names them, and manifests before their index.
// Blob may be called by WriteOptions.Jobs goroutines at once.
type Sink interface {
	// Has reports whether the blob is there already and needs no Blob.
	Has(ctx context.Context, d v1.Descriptor) (bool, error)
	// Blob takes a blob. open may be called again after an error. Without a d.Digest (a layer being
	// compressed) digest and size come out at the end; they are in the result.
	Blob(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error)
	Manifest(ctx context.Context, d v1.Descriptor, raw []byte) error
}

// Mounter is a Sink that may get a blob from elsewhere than the store; ok tells whether it did.
type Mounter interface {
	Mount(ctx context.Context, d v1.Descriptor) (ok bool, err error)
}

// Export sends an image or index to a sink and returns what it became there:
// the same descriptor, unless layers took another form. Of an index of which only
// one platform is in the store, that image is sent, as docker does; of one of
// which several but not all are, none (ErrAbsent).
func (s *Store) Export(ctx context.Context, d v1.Descriptor, sink Sink, opts WriteOptions) (v1.Descriptor, error) {
	var err error
	if opts.Compression, err = ParseCompression(string(opts.Compression)); err != nil {
		return v1.Descriptor{}, err
	}
	if opts.Docker && opts.Compression == Zstd {
		return v1.Descriptor{}, errors.New("docker's media types have no zstd layers: use OCI's, or gzip")
	}
	e := exporter{store: s, sink: sink, opts: opts}
	out, err := e.document(ctx, d)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("image %s: %w", d.Digest, err)
	}
	return out, nil
}

// Rewrite gives an image or index the form that the options want, as blobs of the store itself.
func (s *Store) Rewrite(ctx context.Context, d v1.Descriptor, opts WriteOptions) (v1.Descriptor, error) {
	out, err := s.Export(ctx, d, ownSink{s}, opts)
	out.Annotations = d.Annotations // of its place in an index or a layout
	return out, err
}

// ownSink is the store as a Sink.
type ownSink struct{ store *Store }

func (o ownSink) Has(_ context.Context, d v1.Descriptor) (bool, error) { return o.store.Has(d) }

func (o ownSink) Blob(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	rc, err := open(ctx)
	if err != nil {
		return d, err
	}
	defer rc.Close()
	var expect *v1.Descriptor
	if d.Digest != "" {
		expect = &d
	}
	got, err := o.store.Put(ctx, rc, expect)
	d.Digest, d.Size = got.Digest, got.Size
	return d, err
}

func (o ownSink) Manifest(ctx context.Context, d v1.Descriptor, raw []byte) error {
	_, err := o.store.Put(ctx, bytes.NewReader(raw), &d)
	return err
}

type exporter struct {
	store *Store
	sink  Sink
	opts  WriteOptions
	dry   bool // nothing is to be fetched
}

// Predict tells what Export would make of an image or index, as far as that is known
// without reading a layer; an error says that it is not.
func (s *Store) Predict(ctx context.Context, d v1.Descriptor, opts WriteOptions) (v1.Descriptor, error) {
	var err error
	if opts.Compression, err = ParseCompression(string(opts.Compression)); err != nil {
		return v1.Descriptor{}, err
	}
	e := exporter{store: s, sink: foresight{}, opts: opts, dry: true}
	return e.document(ctx, d)
}

// foresight is the sink of Predict: a place that has everything.
type foresight struct{}

func (foresight) Has(context.Context, v1.Descriptor) (bool, error) { return true, nil }

func (foresight) Blob(_ context.Context, d v1.Descriptor, _ func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	return d, errors.New("a layer has not been compressed yet")
}

func (foresight) Manifest(context.Context, v1.Descriptor, []byte) error { return nil }

func (e exporter) document(ctx context.Context, d v1.Descriptor) (v1.Descriptor, error) {
	if IsIndex(d.MediaType) {
		return e.index(ctx, d)
	}
	return e.manifest(ctx, d, nil)
}

func (e exporter) index(ctx context.Context, d v1.Descriptor) (v1.Descriptor, error) {
	raw, err := e.store.ReadBlob(ctx, d, MaxManifestSize)
	if err != nil {
		return d, err
	}
	ix, err := ParseIndex(raw, d.MediaType)
	if err != nil {
		return d, err
	}
	var absent []v1.Descriptor
	for _, m := range ix.Manifests {
		if ok, err := e.store.Has(m); err != nil {
			return d, err
		} else if !ok {
			absent = append(absent, m)
		}
	}
	if len(absent) > 0 {
		present, err := e.store.presentImages(ix)
		if err != nil {
			return d, err
		}
		if len(present) == 1 {
			return e.manifest(ctx, present[0], nil)
		}
		missing := absent[0].Digest.String()
		if p := absent[0].Platform; p != nil {
			missing = FormatPlatform(*p)
		}
		return d, fmt.Errorf("%d of %d manifests, %s first: %w", len(absent), len(ix.Manifests), missing, ErrAbsent)
	}
	became := map[digest.Digest]v1.Descriptor{}
	changed := false
	for _, i := range imagesFirst(ix.Manifests) {
		m := ix.Manifests[i]
		out, err := e.child(ctx, m, became)
		if err != nil {
			return d, fmt.Errorf("%s: %w", m.Digest, err)
		}
		became[m.Digest] = out
		m.MediaType, m.Digest, m.Size = out.MediaType, out.Digest, out.Size
		if subject, ok := became[digest.Digest(m.Annotations[annotationSubject])]; ok {
			m.Annotations[annotationSubject] = subject.Digest.String()
		}
		changed = changed || m.Digest != ix.Manifests[i].Digest
		ix.Manifests[i] = m
	}
	if e.opts.Docker && ix.MediaType != DockerManifestList {
		ix.MediaType, changed = DockerManifestList, true
	}
	if changed {
		if raw, err = json.MarshalIndent(ix, "", "  "); err != nil {
			return d, err
		}
	}
	out := bytesDescriptor(ix.MediaType, raw)
	if !changed {
		out.Digest = d.Digest // of any algorithm
	}
	return out, e.sink.Manifest(ctx, out, raw)
}

func (e exporter) child(ctx context.Context, d v1.Descriptor, became map[digest.Digest]v1.Descriptor) (v1.Descriptor, error) {
	switch {
	case IsIndex(d.MediaType):
		return e.index(ctx, d)
	case isAttestation(d):
		return e.attestation(ctx, d, became)
	}
	return e.manifest(ctx, d, became)
}

// imagesFirst is the order in which an index's manifests are sent: what an
// attestation is about must be known before it.
func imagesFirst(list []v1.Descriptor) []int {
	var order, later []int
	for i, d := range list {
		if isAttestation(d) {
			later = append(later, i)
		} else {
			order = append(order, i)
		}
	}
	return append(order, later...)
}

// manifest sends config, layers and then the manifest. became is where an index's
// earlier images went, for attestations that name their subject.
func (e exporter) manifest(ctx context.Context, d v1.Descriptor, became map[digest.Digest]v1.Descriptor) (v1.Descriptor, error) {
	raw, err := e.store.ReadBlob(ctx, d, MaxManifestSize)
	if err != nil {
		return d, err
	}
	m, err := ParseManifest(raw, d.MediaType)
	if err != nil {
		return d, err
	}
	before := m
	before.Layers = slices.Clone(m.Layers)
	diffIDs, err := e.diffIDs(ctx, m)
	if err != nil {
		return d, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, e.opts.Jobs))
	g.Go(func() error { return e.asIs(gctx, m.Config) })
	first := map[digest.Digest]int{} // a layer may occur twice: it is sent once
	for i, l := range before.Layers {
		if _, twice := first[l.Digest]; twice {
			continue
		}
		first[l.Digest] = i
		g.Go(func() error {
			layer := Layer{store: e.store, Descriptor: l}
			if diffIDs != nil {
				layer.DiffID = diffIDs[i]
			}
			out, err := e.layer(gctx, layer)
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			m.Layers[i].MediaType, m.Layers[i].Digest, m.Layers[i].Size = out.MediaType, out.Digest, out.Size
			if out.Digest != l.Digest {
				m.Layers[i].Annotations = unlisted(l.Annotations)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return d, err
	}
	for i, l := range before.Layers {
		m.Layers[i] = m.Layers[first[l.Digest]]
	}
	if m.Subject != nil {
		if s, ok := became[m.Subject.Digest]; ok {
			m.Subject = &s
		}
	}
	if e.opts.Docker && diffIDs != nil {
		toDocker(&m)
	}
	out := v1.Descriptor{MediaType: before.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform, ArtifactType: d.ArtifactType}
	if !sameManifest(before, m) {
		if raw, err = json.MarshalIndent(m, "", "  "); err != nil {
			return d, err
		}
		platform := out.Platform
		out = bytesDescriptor(m.MediaType, raw)
		out.Platform, out.ArtifactType = platform, d.ArtifactType
	}
	return out, e.sink.Manifest(ctx, out, raw)
}

// diffIDs returns the DiffIDs of an image's layers, nil for an artifact, whose blobs keep their form.
func (e exporter) diffIDs(ctx context.Context, m v1.Manifest) ([]digest.Digest, error) {
	if !isImageConfig(m.Config.MediaType) || !onlyLayers(m) {
		return nil, nil
	}
	raw, err := e.store.ReadBlob(ctx, m.Config, MaxConfigSize)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	config, err := ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	return config.RootFS.DiffIDs, checkLayers(m, config)
}

// asIs sends a blob unchanged, unless it is there.
func (e exporter) asIs(ctx context.Context, d v1.Descriptor) error {
	if ok, err := e.sink.Has(ctx, d); ok || err != nil {
		return err
	}
	_, err := e.sink.Blob(ctx, d, func(ctx context.Context) (io.ReadCloser, error) { return e.store.Pass(ctx, d) })
	if errors.Is(err, ErrDigest) { // one place gave wrong bytes: Open asks the others, too
		_, err = e.sink.Blob(ctx, d, func(ctx context.Context) (io.ReadCloser, error) { return e.store.Open(ctx, d) })
	}
	return err
}

// layer sends a layer in the form that the options want, with the least work: not
// at all where the sink has it, from a blob where there is one, compressed on the way else.
func (e exporter) layer(ctx context.Context, l Layer) (v1.Descriptor, error) {
	has, ok := layerCompression(l.Descriptor.MediaType)
	want := has
	if has == Uncompressed || e.opts.ForceCompression {
		want = e.opts.Compression
	}
	if l.DiffID == "" || !ok || want == has {
		return l.Descriptor, e.asIs(ctx, l.Descriptor)
	}
	if has == Uncompressed && !e.dry && len(e.store.claims(l.DiffID)) > 0 {
		if err := e.store.Obtain(ctx, l.Descriptor); err != nil {
			return l.Descriptor, err
		}
	}
	level := strconv.Itoa(e.opts.Level)
	if want != Uncompressed {
		for _, known := range e.store.compressedForms(l.DiffID) {
			if known.MediaType != ociLayerType(want) || known.level != level && (known.level != unknownLevel || e.opts.Level != 0) {
				continue
			}
			if ok, err := e.sink.Has(ctx, known.Descriptor); err != nil {
				return l.Descriptor, err
			} else if ok {
				return known.Descriptor, nil
			}
			if m, can := e.sink.(Mounter); can { // cheaper than compressing it again
				if ok, err := m.Mount(ctx, known.Descriptor); err != nil {
					return l.Descriptor, err
				} else if ok {
					return known.Descriptor, nil
				}
			}
			if ok, err := e.store.Has(known.Descriptor); err == nil && ok {
				return known.Descriptor, e.asIs(ctx, known.Descriptor)
			}
		}
	}
	d := v1.Descriptor{MediaType: ociLayerType(want)}
	open := func(ctx context.Context) (io.ReadCloser, error) { return l.compressed(ctx, want, e.opts.Level) }
	if want == Uncompressed {
		open = func(ctx context.Context) (io.ReadCloser, error) { return l.uncompressed(ctx, false) }
	}
	out, err := e.sink.Blob(ctx, d, open)
	if err != nil || want == Uncompressed {
		return out, err
	}
	return out, e.store.addCompressed(l.DiffID, compressed{Descriptor: out, level: level})
}

// compressed returns the layer compressed on the fly. An error of the layer, a
// wrong digest among them, is the error of the last Read.
func (l Layer) compressed(ctx context.Context, how Compression, level int) (io.ReadCloser, error) {
	src, err := l.uncompressed(ctx, false)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	z, err := newCompressor(w, how, level)
	if err != nil {
		src.Close()
		return nil, err
	}
	go func() {
		defer src.Close()
		_, err := copyContext(ctx, z, src)
		if closed := z.Close(); err == nil {
			err = closed
		}
		w.CloseWithError(err) // nil is io.EOF
	}()
	return r, nil
}

// toDocker gives a manifest docker's media types.
func toDocker(m *v1.Manifest) {
	m.MediaType = DockerManifest
	m.Config.MediaType = DockerConfig
	m.Annotations, m.ArtifactType = nil, "" // schema 2 has neither
	for i := range m.Layers {
		m.Layers[i].MediaType = dockerLayerType(m.Layers[i].MediaType)
	}
}

// sameManifest reports whether rewriting would change nothing that matters.
func sameManifest(a, b v1.Manifest) bool {
	same := func(a, b v1.Descriptor) bool {
		return a.Digest == b.Digest && a.MediaType == b.MediaType && a.Size == b.Size
	}
	return a.MediaType == b.MediaType && same(a.Config, b.Config) && slices.EqualFunc(a.Layers, b.Layers, same) &&
		(a.Subject == nil || b.Subject == nil || same(*a.Subject, *b.Subject))
}
