package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Problem is an invariant of the store that does not hold.
type Problem struct {
	Name   string        // image that has it, familiar; "" when it is nobody's
	Digest digest.Digest // of the blob at fault; "" when the problem is elsewhere
	Err    error
}

func (p Problem) String() string {
	if p.Name == "" {
		return p.Err.Error()
	}
	return p.Name + ": " + p.Err.Error()
}

// Check reads the whole store and reports each invariant of the package's page that is broken:
// every blob's digest, what index.json names, what manifests name. A layer
// without a blob is in order when Layers opens it or a source is known. The error
// is for a store that could not be read through.
func (s *Store) Check(ctx context.Context) ([]Problem, error) {
	ix, err := s.readIndex()
	if errors.Is(err, ErrInvalid) {
		return []Problem{{Err: err}}, nil
	}
	if err != nil {
		return nil, err
	}
	c := &checker{store: s, bad: map[digest.Digest]error{}, seen: map[digest.Digest]bool{}}
	if err := c.blobs(ctx); err != nil {
		return nil, err
	}
	for _, d := range ix.Manifests {
		c.name = ""
		if ref, err := ParseReference(d.Annotations[annotationName]); err == nil {
			c.name = ref.Familiar()
		} else if d.Annotations[annotationName] != "" {
			c.problem(d.Digest, fmt.Errorf("index.json: %w", err))
		}
		c.document(ctx, d, true)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return c.problems, nil
}

type checker struct {
	store    *Store
	name     string
	bad      map[digest.Digest]error // blobs whose content is wrong
	seen     map[digest.Digest]bool
	problems []Problem
}

func (c *checker) problem(d digest.Digest, err error) {
	c.problems = append(c.problems, Problem{Name: c.name, Digest: d, Err: err})
}

// blobs hashes every blob.
func (c *checker) blobs(ctx context.Context) error {
	return c.store.EachBlob(func(d digest.Digest, size int64) error {
		f, err := os.Open(c.store.path(blobPath(d)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = copyContext(ctx, io.Discard, newVerifier(f, d, -1))
		if errors.Is(err, ErrDigest) {
			c.bad[d] = err
			c.problem(d, fmt.Errorf("blob %w", err))
			return nil
		}
		return err
	})
}

// document checks a manifest or index and all that it names.
func (c *checker) document(ctx context.Context, d v1.Descriptor, mustExist bool) (present bool) {
	if c.seen[d.Digest] {
		return true
	}
	ok, err := c.store.Has(d)
	if err == nil && !ok {
		err = ErrAbsent
	}
	if err != nil {
		if mustExist {
			c.problem(d.Digest, fmt.Errorf("manifest %s: %w", d.Digest, err))
		}
		return false
	}
	c.seen[d.Digest] = true
	if c.bad[d.Digest] != nil {
		return true // said already
	}
	raw, err := c.store.ReadBlob(ctx, d, MaxManifestSize)
	if err != nil {
		c.problem(d.Digest, fmt.Errorf("manifest %w", err))
		return true
	}
	if IsIndex(d.MediaType) {
		c.index(ctx, d, raw)
		return true
	}
	m, err := ParseManifest(raw, d.MediaType)
	if err != nil {
		c.problem(d.Digest, fmt.Errorf("manifest %s: %w", d.Digest, err))
		return true
	}
	c.manifest(ctx, d, m)
	return true
}

func (c *checker) index(ctx context.Context, d v1.Descriptor, raw []byte) {
	ix, err := ParseIndex(raw, d.MediaType)
	if err != nil {
		c.problem(d.Digest, fmt.Errorf("index %s: %w", d.Digest, err))
		return
	}
	present := 0
	for _, m := range ix.Manifests {
		if c.document(ctx, m, false) {
			present++
		}
	}
	if present == 0 && len(ix.Manifests) > 0 {
		c.problem(d.Digest, fmt.Errorf("index %s: none of its manifests: %w", d.Digest, ErrAbsent))
	}
}

func (c *checker) manifest(ctx context.Context, d v1.Descriptor, m v1.Manifest) {
	raw, err := c.store.ReadBlob(ctx, m.Config, MaxConfigSize)
	if err != nil {
		if c.bad[m.Config.Digest] == nil {
			c.problem(m.Config.Digest, fmt.Errorf("config %w", err))
		}
		return
	}
	if isImageConfig(m.Config.MediaType) && m.ArtifactType == "" && onlyLayers(m) {
		config, err := ParseConfig(raw)
		if err == nil {
			err = checkLayers(m, config)
		}
		if err != nil {
			c.problem(d.Digest, fmt.Errorf("manifest %s: %w", d.Digest, err))
		}
	}
	for _, l := range m.Layers {
		if err := c.layer(ctx, l); err != nil && c.bad[l.Digest] == nil {
			c.problem(l.Digest, fmt.Errorf("layer %w", err))
		}
	}
}

// layer opens a layer that has no blob, without reading it: its tree is the
// snapshot store's to check.
func (c *checker) layer(ctx context.Context, d v1.Descriptor) error {
	if ok, err := c.store.Has(d); ok || err != nil {
		return err
	}
	if info, err := os.Stat(c.store.path(blobPath(d.Digest))); err == nil {
		return fmt.Errorf("%s: manifest says %d bytes, blob has %d: %w", d.Digest, d.Size, info.Size(), ErrDigest)
	}
	layers, _ := c.store.hooks()
	if how, ok := layerCompression(d.MediaType); ok && how == Uncompressed && layers != nil {
		rc, size, err := layers.OpenLayer(ctx, d.Digest)
		if err == nil {
			rc.Close()
			if size != d.Size {
				return fmt.Errorf("%s: manifest says %d bytes, tree makes %d: %w", d.Digest, d.Size, size, ErrDigest)
			}
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", d.Digest, err)
		}
	}
	if len(c.store.Sources(d.Digest)) > 0 {
		return nil
	}
	for _, form := range c.store.forms(d.Digest) {
		if ok, err := c.store.Has(form); ok && err == nil || len(c.store.Sources(form.Digest)) > 0 {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", d.Digest, ErrAbsent)
}

func isImageConfig(mediaType string) bool {
	return mediaType == v1.MediaTypeImageConfig || mediaType == DockerConfig
}

// onlyLayers reports whether all of a manifest's layers are file system layers:
// attestations and other artifacts use image configs too.
func onlyLayers(m v1.Manifest) bool {
	for _, l := range m.Layers {
		if !IsLayer(l.MediaType) {
			return false
		}
	}
	return true
}
