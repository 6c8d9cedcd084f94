package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a manifest and its config, read-only; layers open on demand. Changing
// it means to give another Config and other layers to Store.PutImage.
type Image struct {
	store    *Store
	target   v1.Descriptor
	desc     v1.Descriptor
	manifest v1.Manifest
	config   Config
}

// Layer is one layer of an image.
type Layer struct {
	store      *Store
	Descriptor v1.Descriptor // as the manifest has it
	DiffID     digest.Digest // of the uncompressed tar
}

// Descriptor describes the manifest.
func (im *Image) Descriptor() v1.Descriptor { return im.desc }

// Target describes what the name stood for that led here: the manifest, or the
// index that it was picked from. It is what a name is given to, and what a push sends.
func (im *Image) Target() v1.Descriptor { return im.target }

// Manifest returns a copy of the manifest.
func (im *Image) Manifest() v1.Manifest {
	m := im.manifest
	m.Layers = slices.Clone(m.Layers)
	return m
}

// Config returns a copy of the config that may be changed.
func (im *Image) Config() Config { return im.config.Clone() }

// ID is the image ID: the digest of the config, as docker and podman print it.
func (im *Image) ID() digest.Digest { return im.manifest.Config.Digest }

// Platform is what the config says the image runs on.
func (im *Image) Platform() v1.Platform { return normalize(im.config.Platform) }

// Layers returns the layers, base first.
func (im *Image) Layers() []Layer {
	out := make([]Layer, len(im.manifest.Layers))
	for i, d := range im.manifest.Layers {
		out[i] = Layer{store: im.store, Descriptor: d, DiffID: im.config.RootFS.DiffIDs[i]}
	}
	return out
}

// Size is what the image takes: manifest, config and layers as the manifest names them, in bytes.
func (im *Image) Size() int64 {
	n := im.desc.Size + im.manifest.Config.Size
	for _, d := range im.manifest.Layers {
		n += d.Size
	}
	return n
}

// RawConfig and RawManifest return the bytes that the digests are of.
func (im *Image) RawConfig(ctx context.Context) ([]byte, error) {
	return im.store.ReadBlob(ctx, im.manifest.Config, MaxConfigSize)
}

// RawManifest returns the manifest's bytes.
func (im *Image) RawManifest(ctx context.Context) ([]byte, error) {
	return im.store.ReadBlob(ctx, im.desc, MaxManifestSize)
}

// Image loads the image of a manifest or index; p picks from an index, nil
// meaning this machine. An image for another platform than p is ErrPlatform.
func (s *Store) Image(ctx context.Context, d v1.Descriptor, p *v1.Platform) (*Image, error) {
	target := plain(d)
	if IsIndex(d.MediaType) {
		ix, err := s.loadIndex(ctx, d)
		if err != nil {
			return nil, err
		}
		picked, ok := SelectPlatform(ix, p)
		if !ok {
			return nil, NoPlatform(d.Digest, ix, p)
		}
		if p == nil { // prefer what is here to what this machine would run
			if picked, err = s.preferPresent(ix, picked); err != nil {
				return nil, err
			}
		}
		d = picked
	}
	im, err := s.loadImage(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", d.Digest, err)
	}
	im.target = target
	if p != nil && target.Digest == d.Digest && platformRank(im.config.Platform, *p) == 0 && im.config.OS != "" {
		return nil, &PlatformError{Digest: d.Digest, Want: p, Have: []v1.Platform{im.Platform()}}
	}
	return im, nil
}

// preferPresent returns picked, or where it is absent the only image of the index that is present.
func (s *Store) preferPresent(ix v1.Index, picked v1.Descriptor) (v1.Descriptor, error) {
	present, err := s.presentImages(ix)
	if err != nil || len(present) != 1 {
		return picked, err
	}
	return present[0], nil
}

// presentImages returns the images of an index whose manifests are in the store, without attestations.
func (s *Store) presentImages(ix v1.Index) ([]v1.Descriptor, error) {
	var present []v1.Descriptor
	for _, d := range ix.Manifests {
		if isAttestation(d) {
			continue
		}
		ok, err := s.Has(d)
		if err != nil {
			return nil, err
		}
		if ok {
			present = append(present, d)
		}
	}
	return present, nil
}

// Images loads every image that a manifest or index stands for and that is in the store,
// attestations left out.
func (s *Store) Images(ctx context.Context, d v1.Descriptor) ([]*Image, error) {
	found := []v1.Descriptor{d}
	if IsIndex(d.MediaType) {
		ix, err := s.loadIndex(ctx, d)
		if err == nil {
			found, err = s.presentImages(ix)
		}
		if err != nil {
			return nil, err
		}
	}
	var all []*Image
	for _, d := range found {
		im, err := s.loadImage(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", d.Digest, err)
		}
		all = append(all, im)
	}
	return all, nil
}

// Index loads an index, to be looked at.
func (s *Store) Index(ctx context.Context, d v1.Descriptor) (v1.Index, error) {
	return s.loadIndex(ctx, d)
}

func (s *Store) loadIndex(ctx context.Context, d v1.Descriptor) (v1.Index, error) {
	raw, err := s.ReadBlob(ctx, d, MaxManifestSize)
	if err != nil {
		return v1.Index{}, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	ix, err := ParseIndex(raw, d.MediaType)
	if err != nil {
		return v1.Index{}, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	return ix, nil
}

func (s *Store) loadImage(ctx context.Context, d v1.Descriptor) (*Image, error) {
	im := &Image{store: s, desc: plain(d), target: plain(d)}
	raw, err := s.ReadBlob(ctx, d, MaxManifestSize)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if im.manifest, err = ParseManifest(raw, d.MediaType); err != nil {
		return nil, err
	}
	if raw, err = s.ReadBlob(ctx, im.manifest.Config, MaxConfigSize); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if im.config, err = ParseConfig(raw); err != nil {
		return nil, err
	}
	return im, checkLayers(im.manifest, im.config)
}

// checkLayers holds manifest and config together: as many layers here as DiffIDs there.
func checkLayers(m v1.Manifest, c Config) error {
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return fmt.Errorf("manifest has %d layers and config %d: %w", len(m.Layers), len(c.RootFS.DiffIDs), ErrInvalid)
	}
	for i, d := range m.Layers {
		how, ok := layerCompression(d.MediaType)
		if !ok {
			return fmt.Errorf("layer %s has media type %q: %w", d.Digest, d.MediaType, ErrInvalid)
		}
		if how == Uncompressed && d.Digest != c.RootFS.DiffIDs[i] && d.Digest.Algorithm() == c.RootFS.DiffIDs[i].Algorithm() {
			return fmt.Errorf("layer %s is uncompressed and has DiffID %s: %w", d.Digest, c.RootFS.DiffIDs[i], ErrInvalid)
		}
	}
	return nil
}

// Open returns the layer's bytes as the manifest names them, verified at EOF.
func (l Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	return l.store.Open(ctx, l.Descriptor)
}

// Present reports whether the layer's blob is in the store.
func (l Layer) Present() (bool, error) { return l.store.Has(l.Descriptor) }

// Fetch brings the layer's blob into the store if it would be fetched when the layer is opened.
func (l Layer) Fetch(ctx context.Context) error {
	if present, err := l.Present(); present || err != nil {
		return err
	}
	layers, fetcher := l.store.hooks()
	if layers != nil {
		if tree, err := openTree(ctx, layers, l.DiffID); err == nil {
			return tree.Close()
		}
	}
	if fetcher == nil || len(l.store.Sources(l.Descriptor.Digest)) == 0 {
		return nil // opening it will say what is wrong
	}
	return fetcher.FetchLayer(ctx, l.store, l.Descriptor)
}

// LayerDescriptor describes the uncompressed tar of a built layer, as the
// manifest of a built image names it: no blob has to exist.
func LayerDescriptor(diffID digest.Digest, size int64) v1.Descriptor {
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: diffID, Size: size}
}

// PutOptions say more about an image or index than its content.
type PutOptions struct {
	Annotations  map[string]string // of the manifest or index
	ArtifactType string
	Subject      *v1.Descriptor
	Docker       bool // docker's schema 2 media types
}

// PutImage stores config and manifest and returns the manifest's descriptor, with the
// config's platform. layers are base first; each must match its DiffID in
// config.RootFS. The image has no name until Tag.
func (s *Store) PutImage(ctx context.Context, config Config, layers []v1.Descriptor, opts PutOptions) (v1.Descriptor, error) {
	if config.RootFS.Type == "" {
		config.RootFS.Type = "layers"
	}
	if config.RootFS.DiffIDs == nil {
		config.RootFS.DiffIDs = []digest.Digest{} // null is not an array to every reader
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Annotations: opts.Annotations, ArtifactType: opts.ArtifactType, Subject: opts.Subject}
	m.SchemaVersion = 2
	m.Layers = append([]v1.Descriptor{}, layers...)
	if err := checkLayers(m, config); err != nil {
		return v1.Descriptor{}, fmt.Errorf("store image: %w", err)
	}
	for _, d := range layers {
		if err := s.obtainable(d); err != nil {
			return v1.Descriptor{}, fmt.Errorf("store image: layer %w", err)
		}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("store image: config: %w", err)
	}
	configType := v1.MediaTypeImageConfig
	if opts.Docker {
		configType, m.MediaType = DockerConfig, DockerManifest
		for i := range m.Layers {
			m.Layers[i].MediaType = dockerLayerType(m.Layers[i].MediaType)
		}
	}
	if m.Config, err = s.putBytes(configType, raw); err != nil {
		return v1.Descriptor{}, err
	}
	d, err := s.PutManifest(ctx, m)
	platform := normalize(config.Platform)
	d.Platform = &platform
	return d, err
}

// PutManifest stores a manifest whose config blob is in the store: PutImage's
// second half, for artifacts and rewritten images.
func (s *Store) PutManifest(ctx context.Context, m v1.Manifest) (v1.Descriptor, error) {
	if ok, err := s.Has(m.Config); err != nil || !ok {
		return v1.Descriptor{}, fmt.Errorf("store manifest: config %s: %w", m.Config.Digest, orAbsent(err))
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		_, err = ParseManifest(raw, m.MediaType) // what mk would not read, it does not write
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("store manifest: %w", err)
	}
	d, err := s.putBytes(m.MediaType, raw)
	d.ArtifactType = m.ArtifactType
	return d, err
}

// PutIndex stores an index of manifests that are in the store.
func (s *Store) PutIndex(ctx context.Context, manifests []v1.Descriptor, opts PutOptions) (v1.Descriptor, error) {
	ix := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: append([]v1.Descriptor{}, manifests...),
		Annotations: opts.Annotations, ArtifactType: opts.ArtifactType, Subject: opts.Subject}
	ix.SchemaVersion = 2
	if opts.Docker {
		ix.MediaType = DockerManifestList
	}
	for _, d := range manifests {
		if ok, err := s.Has(d); err != nil || !ok {
			return v1.Descriptor{}, fmt.Errorf("store index: manifest %s: %w", d.Digest, orAbsent(err))
		}
	}
	raw, err := json.MarshalIndent(ix, "", "  ")
	if err == nil {
		_, err = ParseIndex(raw, ix.MediaType)
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("store index: %w", err)
	}
	return s.putBytes(ix.MediaType, raw)
}

// obtainable says whether the layer can be had later: by blob, tree or source.
func (s *Store) obtainable(d v1.Descriptor) error {
	if err := CheckDescriptor(d); err != nil {
		return err
	}
	if ok, err := s.Has(d); ok || err != nil {
		return err
	}
	layers, _ := s.hooks()
	if how, ok := layerCompression(d.MediaType); ok && how == Uncompressed && layers != nil {
		return nil // opening it here would make a whole tar to throw it away
	}
	if len(s.Sources(d.Digest)) > 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", d.Digest, ErrAbsent)
}

func orAbsent(err error) error {
	if err == nil {
		return ErrAbsent
	}
	return err
}

// dockerLayerType is the docker media type for an OCI one.
func dockerLayerType(mediaType string) string {
	switch how, _ := layerCompression(mediaType); how {
	case Uncompressed:
		return DockerLayer
	case Gzip:
		return DockerLayerGzip
	case Zstd:
		return DockerLayerZstd
	}
	return mediaType
}

// ociLayerType is the OCI media type for a compression.
func ociLayerType(how Compression) string {
	switch how {
	case Gzip:
		return v1.MediaTypeImageLayerGzip
	case Zstd:
		return v1.MediaTypeImageLayerZstd
	}
	return v1.MediaTypeImageLayer
}
