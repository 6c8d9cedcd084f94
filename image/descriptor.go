package image

import (
	"crypto/sha256"
	_ "crypto/sha512" // digests by sha384 and sha512 are valid in OCI
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits on what a stranger's image may cost before it is refused. Registries
// refuse manifests over 4 MiB; configs and layer counts seen in the wild are
// far below.
const (
	MaxManifestSize = 4 << 20
	MaxConfigSize   = 16 << 20
	maxLayers       = 4096
	maxManifests    = 4096 // in one index
)

// Media types of docker's schema 2, which registries still serve.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociForeignLayer    = "application/vnd.oci.image.layer.nondistributable."
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+"
)

var (
	// ErrDigest is in the chain of every error that says: these bytes are not
	// the ones that were asked for.
	ErrDigest = errors.New("content does not match its digest")
	// ErrInvalid is in the chain of every refusal of a malformed or hostile
	// manifest, index, config or archive.
	ErrInvalid = errors.New("invalid image")
	// ErrAbsent is returned when a blob is not in the store and neither Layers
	// nor the Fetcher could bring it.
	ErrAbsent = errors.New("blob is not in the store")
)

// checkDigest validates before a digest becomes a path or a URL: this is what
// stands between "sha256:../../x" and the file system.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("bad digest %.100q: %w", string(d), ErrInvalid)
	}
	return nil
}

// CheckDescriptor refuses a descriptor that must not be followed: a malformed
// digest, a negative size, or content that lives at a URL of the image's choosing.
func CheckDescriptor(d v1.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return fmt.Errorf("%s has size %d: %w", d.Digest, d.Size, ErrInvalid)
	}
	if len(d.URLs) > 0 || isForeign(d.MediaType) {
		return fmt.Errorf("%s is a foreign layer, to be fetched from elsewhere: mk does not: %w", d.Digest, ErrInvalid)
	}
	return nil
}

func isForeign(mediaType string) bool {
	return strings.HasPrefix(mediaType, dockerForeignLayer) || strings.HasPrefix(mediaType, ociForeignLayer)
}

// IsIndex reports whether a media type is that of an index or manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == DockerManifestList
}

// IsManifest reports whether a media type is that of one image's manifest.
func IsManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == DockerManifest
}

// IsLayer reports whether a media type is that of a file system layer that mk can apply.
func IsLayer(mediaType string) bool {
	_, ok := layerCompression(mediaType)
	return ok
}

// layerCompression tells how a layer of this media type says it is compressed.
func layerCompression(mediaType string) (Compression, bool) {
	switch mediaType {
	case v1.MediaTypeImageLayer, DockerLayer:
		return Uncompressed, true
	case v1.MediaTypeImageLayerGzip, DockerLayerGzip:
		return Gzip, true
	case v1.MediaTypeImageLayerZstd, DockerLayerZstd:
		return Zstd, true
	}
	return "", false
}

// ParseManifest reads a manifest that came with the given media type ("" when
// nothing was said). A document that could also be read as an index is refused
// (CVE-2021-41190): two clients would see two images under one digest.
func ParseManifest(raw []byte, mediaType string) (v1.Manifest, error) {
	var m v1.Manifest
	kind, err := sniffDocument(raw, mediaType)
	if err != nil {
		return m, err
	}
	if !IsManifest(kind) {
		return m, fmt.Errorf("media type %q is not a manifest's: %w", kind, ErrInvalid)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("manifest: %w: %w", err, ErrInvalid)
	}
	m.MediaType = kind
	if m.SchemaVersion != 2 {
		return m, fmt.Errorf("manifest has schema version %d, not 2: %w", m.SchemaVersion, ErrInvalid)
	}
	if len(m.Layers) > maxLayers {
		return m, fmt.Errorf("manifest has %d layers, more than %d: %w", len(m.Layers), maxLayers, ErrInvalid)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := CheckDescriptor(d); err != nil {
			return m, err
		}
	}
	return m, nil
}

// ParseIndex reads an index or manifest list, by the same rules as ParseManifest.
func ParseIndex(raw []byte, mediaType string) (v1.Index, error) {
	var ix v1.Index
	kind, err := sniffDocument(raw, mediaType)
	if err != nil {
		return ix, err
	}
	if !IsIndex(kind) {
		return ix, fmt.Errorf("media type %q is not an index's: %w", kind, ErrInvalid)
	}
	if err := json.Unmarshal(raw, &ix); err != nil {
		return ix, fmt.Errorf("index: %w: %w", err, ErrInvalid)
	}
	ix.MediaType = kind
	if ix.SchemaVersion != 2 {
		return ix, fmt.Errorf("index has schema version %d, not 2: %w", ix.SchemaVersion, ErrInvalid)
	}
	if len(ix.Manifests) > maxManifests {
		return ix, fmt.Errorf("index has %d manifests, more than %d: %w", len(ix.Manifests), maxManifests, ErrInvalid)
	}
	for _, d := range ix.Manifests {
		if err := CheckDescriptor(d); err != nil {
			return ix, err
		}
	}
	return ix, nil
}

// sniffDocument decides what a document is, by its fields, its own mediaType and
// the one it came with; all that speak must agree.
func sniffDocument(raw []byte, outer string) (string, error) {
	if len(raw) > MaxManifestSize {
		return "", fmt.Errorf("manifest of %d bytes, more than %d: %w", len(raw), MaxManifestSize, ErrInvalid)
	}
	if strings.HasPrefix(outer, dockerSchema1) {
		return "", fmt.Errorf("docker's schema 1 is too old (no digests of content): %w", ErrInvalid)
	}
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", fmt.Errorf("manifest: %w: %w", err, ErrInvalid)
	}
	if doc.FSLayers != nil {
		return "", fmt.Errorf("docker's schema 1 is too old (no digests of content): %w", ErrInvalid)
	}
	index, manifest := doc.Manifests != nil, doc.Config != nil || doc.Layers != nil
	if index && manifest {
		return "", fmt.Errorf("document is both a manifest and an index: %w", ErrInvalid)
	}
	if doc.MediaType != "" && outer != "" && doc.MediaType != outer {
		return "", fmt.Errorf("document says media type %q and came as %q: %w", doc.MediaType, outer, ErrInvalid)
	}
	kind := doc.MediaType
	if kind == "" {
		kind = outer
	}
	switch {
	case kind == "" && index:
		return v1.MediaTypeImageIndex, nil
	case kind == "" && manifest:
		return v1.MediaTypeImageManifest, nil
	case IsIndex(kind) && manifest, IsManifest(kind) && index:
		return "", fmt.Errorf("document of media type %q has the fields of another: %w", kind, ErrInvalid)
	}
	return kind, nil
}

// blobPath is the path of a blob inside a layout. The digest was checked.
func blobPath(d digest.Digest) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded())
}

// bytesDescriptor describes raw.
func bytesDescriptor(mediaType string, raw []byte) v1.Descriptor {
	return v1.Descriptor{
		MediaType: mediaType,
		Digest:    digest.NewDigestFromBytes(digest.SHA256, sum256(raw)),
		Size:      int64(len(raw)),
	}
}

func sum256(raw []byte) []byte {
	sum := sha256.Sum256(raw)
	return sum[:]
}

// plain is d without what belongs to the place it was found in, so that
// descriptors of the same content are equal.
func plain(d v1.Descriptor) v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform, ArtifactType: d.ArtifactType}
}

// readLimited reads all of r, refusing more than limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, ErrInvalid)
	}
	return raw, nil
}

// DocumentType tells whether raw is a manifest or an index, by the rules of
// ParseManifest, and returns its media type; outer is what it came as, "" when nothing was said.
func DocumentType(raw []byte, outer string) (string, error) {
	kind, err := sniffDocument(raw, outer)
	if err == nil && !IsIndex(kind) && !IsManifest(kind) {
		err = fmt.Errorf("media type %.100q is neither a manifest's nor an index's: %w", kind, ErrInvalid)
	}
	return kind, err
}
