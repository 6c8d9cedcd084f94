package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Limits on an archive, against those made to cost.
const (
	maxArchiveEntries = 100_000
	maxArchiveNames   = 8 << 20 // bytes of index.json, manifest.json, … each
)

// ReadArchive puts the images of an archive into the store and returns them with
// the names that the archive gives them. It sets no names: whether a name may be taken
// from another image is for the caller to say, by Tag. file is a tar, perhaps
// compressed by gzip, zstd, xz or bzip2, of an OCI layout or of `docker save`; or an OCI layout directory.
func (s *Store) ReadArchive(ctx context.Context, file string) ([]Tagged, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	if info.IsDir() {
		return s.ReadLayout(ctx, file, "")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	defer f.Close()
	images, err := s.ReadArchiveFrom(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return images, nil
}

// ReadArchiveFrom is ReadArchive of a stream, which is read once. Blobs that no image of
// the archive names stay in the store until GC.
func (s *Store) ReadArchiveFrom(ctx context.Context, r io.Reader) ([]Tagged, error) {
	plainTar, err := DecompressArchive(contextReader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	defer plainTar.Close()
	a := archive{store: s, blobs: map[string]v1.Descriptor{}, links: map[string]string{}, names: map[string][]byte{}}
	if err := a.scan(ctx, tar.NewReader(plainTar)); err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	images, err := a.images(ctx)
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	return images, nil
}

// archive is what a scan of a tar found.
type archive struct {
	store *Store
	blobs map[string]v1.Descriptor // path in the archive: what was stored of it
	links map[string]string        // path: path that it stands for
	names map[string][]byte        // index.json and its like
}

// scan stores what may be a blob and keeps what names them.
func (a *archive) scan(ctx context.Context, t *tar.Reader) error {
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF && n > 0 {
			return nil
		}
		if err == io.EOF || errors.Is(err, tar.ErrHeader) && n == 0 {
			return fmt.Errorf("not a tar archive: %w", ErrInvalid)
		}
		if err != nil {
			return err
		}
		if n >= maxArchiveEntries {
			return fmt.Errorf("more than %d entries: %w", maxArchiveEntries, ErrInvalid)
		}
		name, err := archivePath(h.Name)
		if err != nil {
			return err
		}
		if err := a.entry(ctx, t, h, name); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
}

func (a *archive) entry(ctx context.Context, t *tar.Reader, h *tar.Header, name string) error {
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	case tar.TypeSymlink, tar.TypeLink: // docker once wrote a layer that occurs twice as a link
		target := h.Linkname
		if h.Typeflag == tar.TypeSymlink {
			target = path.Join(path.Dir(name), target)
		}
		target, err := archivePath(target)
		a.links[name] = target
		return err
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return fmt.Errorf("sparse file in an image archive: %w", ErrInvalid)
			}
		}
	default:
		return fmt.Errorf("entry of type %q in an image archive: %w", h.Typeflag, ErrInvalid)
	}
	switch name {
	case "oci-layout", "index.json", "manifest.json", "repositories":
		if _, twice := a.names[name]; twice {
			return fmt.Errorf("occurs twice: %w", ErrInvalid)
		}
		raw, err := readLimited(t, maxArchiveNames)
		a.names[name] = raw
		return err
	}
	if base := path.Base(name); base == "VERSION" || base == "json" {
		return nil // of docker's format before 1.10, never needed
	}
	var expect *v1.Descriptor
	if rest, ok := strings.CutPrefix(name, "blobs/"); ok {
		d := digest.Digest(strings.Replace(rest, "/", ":", 1))
		if err := checkDigest(d); err != nil {
			return err
		}
		expect = &v1.Descriptor{Digest: d, Size: h.Size}
	}
	d, err := a.store.Put(ctx, t, expect)
	a.blobs[name] = d
	return err
}

// archivePath cleans a path of an archive, refusing one that leaves it.
func archivePath(name string) (string, error) {
	if len(name) > 512 || path.IsAbs(name) || slices.Contains(strings.Split(name, "/"), "..") && !fs.ValidPath(path.Clean(name)) {
		return "", fmt.Errorf("path %.200q leaves the archive: %w", name, ErrInvalid)
	}
	return path.Clean(name), nil
}

// images reads what the names name: an OCI layout's index.json before docker's
// manifest.json, where an archive has both they describe the same images.
func (a *archive) images(ctx context.Context) ([]Tagged, error) {
	if raw, ok := a.names["index.json"]; ok && a.names["oci-layout"] != nil {
		if err := checkLayout(a.names["oci-layout"]); err != nil {
			return nil, err
		}
		return a.store.importIndex(ctx, raw, "", importer{store: a.store})
	}
	raw, ok := a.names["manifest.json"]
	if !ok {
		return nil, fmt.Errorf("neither an OCI layout (index.json) nor a docker archive (manifest.json): %w", ErrInvalid)
	}
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("manifest.json: %w: %w", err, ErrInvalid)
	}
	var images []Tagged
	for _, e := range entries {
		d, err := a.dockerImage(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: %w", err)
		}
		for _, tag := range e.RepoTags {
			ref, err := ParseReference(tag)
			if err != nil {
				return nil, fmt.Errorf("manifest.json: %w: %w", err, ErrInvalid)
			}
			images = append(images, Tagged{Name: ref.String(), Descriptor: d})
		}
		if len(e.RepoTags) == 0 {
			images = append(images, Tagged{Descriptor: d})
		}
	}
	return images, nil
}

// find follows links to a stored file.
func (a *archive) find(name string) (v1.Descriptor, error) {
	at, err := archivePath(name)
	for hops := 0; err == nil && hops < 40; hops++ {
		if d, ok := a.blobs[at]; ok {
			return d, nil
		}
		target, ok := a.links[at]
		if !ok {
			break
		}
		at = target
	}
	if err == nil {
		err = fmt.Errorf("%.200q is not in the archive: %w", name, ErrInvalid)
	}
	return v1.Descriptor{}, err
}

// dockerImage gives an image of a docker archive a manifest. Its config, and so its ID, stays.
func (a *archive) dockerImage(ctx context.Context, e dockerEntry) (v1.Descriptor, error) {
	d, err := a.find(e.Config)
	if err != nil {
		return d, err
	}
	raw, err := a.store.ReadBlob(ctx, d, MaxConfigSize)
	if err != nil {
		return d, err
	}
	config, err := ParseConfig(raw)
	if err != nil {
		return d, err
	}
	if len(e.Layers) != len(config.RootFS.DiffIDs) {
		return d, fmt.Errorf("%d layers, and config has %d: %w", len(e.Layers), len(config.RootFS.DiffIDs), ErrInvalid)
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{}}
	m.SchemaVersion = 2
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d.Digest, Size: d.Size}
	for i, name := range e.Layers {
		l, err := a.find(name)
		if err != nil {
			return d, err
		}
		if l.MediaType, err = a.store.layerType(ctx, l, config.RootFS.DiffIDs[i]); err != nil {
			return d, fmt.Errorf("layer %.200q: %w", name, err)
		}
		m.Layers = append(m.Layers, l)
	}
	out, err := a.store.PutManifest(ctx, m)
	platform := normalize(config.Platform)
	out.Platform = &platform
	return out, err
}

// layerType finds out how a layer file is compressed, and that it is the layer diffID.
func (s *Store) layerType(ctx context.Context, d v1.Descriptor, diffID digest.Digest) (string, error) {
	if d.Digest == diffID {
		return v1.MediaTypeImageLayer, nil
	}
	raw, err := s.openFile(d)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	z, how, err := decompress(raw)
	if err != nil {
		return "", err
	}
	defer z.Close()
	_, err = copyContext(ctx, io.Discard, newVerifier(z, diffID, -1))
	return ociLayerType(how), err
}

// ReadLayout is ReadArchive of an OCI layout directory. With name, only the
// images that have it as their tag or full name are read; ErrNotFound when none has.
func (s *Store) ReadLayout(ctx context.Context, dir, name string) ([]Tagged, error) {
	return s.readLayout(ctx, dir, name, false)
}

// PeekLayout is ReadLayout without the layers, which stay where they are: only manifests
// and configs come into the store. ReadLayoutBlob brings one.
func (s *Store) PeekLayout(ctx context.Context, dir, name string) ([]Tagged, error) {
	return s.readLayout(ctx, dir, name, true)
}

// ReadLayoutBlob brings one blob of an OCI layout directory into the store, unless it is there.
func (s *Store) ReadLayoutBlob(ctx context.Context, dir string, d v1.Descriptor) error {
	if err := CheckDescriptor(d); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	defer root.Close()
	im := importer{store: s, open: func(d v1.Descriptor) (io.ReadCloser, error) { return openRootFile(root, blobPath(d.Digest)) }}
	if err := im.blob(ctx, d); err != nil {
		return fmt.Errorf("read layer: %s: %w", dir, err)
	}
	return nil
}

func (s *Store) readLayout(ctx context.Context, dir, name string, peek bool) ([]Tagged, error) {
	root, err := os.OpenRoot(dir) // a link in a stranger's layout leads nowhere else
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	defer root.Close()
	layout, err := readRootFile(root, "oci-layout")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read images: %s: not an OCI layout: no oci-layout in it: %w", dir, ErrInvalid)
	}
	if err == nil {
		err = checkLayout(layout)
	}
	var raw []byte
	if err == nil {
		raw, err = readRootFile(root, "index.json")
	}
	if err != nil {
		return nil, fmt.Errorf("read images: %s: %w", dir, err)
	}
	images, err := s.importIndex(ctx, raw, name, importer{store: s, peek: peek, open: func(d v1.Descriptor) (io.ReadCloser, error) {
		return openRootFile(root, blobPath(d.Digest))
	}})
	if err != nil {
		return nil, fmt.Errorf("read images: %s: %w", dir, err)
	}
	return images, nil
}

// openRootFile opens a regular file, without waiting for the writer of a FIFO.
func openRootFile(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file: %w", name, ErrInvalid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readRootFile(root *os.Root, name string) ([]byte, error) {
	f, err := openRootFile(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, maxArchiveNames)
}

// importIndex brings what an index.json names into the store and returns the images by
// the names it gives them.
func (s *Store) importIndex(ctx context.Context, raw []byte, name string, im importer) ([]Tagged, error) {
	ix, err := parseLayoutIndex(bytes.TrimSpace(raw))
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(ix.Manifests) > maxManifests {
		return nil, fmt.Errorf("index.json: more than %d entries: %w", maxManifests, ErrInvalid)
	}
	var images []Tagged
	for _, d := range ix.Manifests {
		full := layoutName(d.Annotations)
		if name != "" && name != d.Annotations[annotationTag] && name != full {
			continue
		}
		if err := im.document(ctx, d, 0); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
		images = append(images, Tagged{Name: full, Descriptor: plain(d)})
	}
	if name != "" && len(images) == 0 {
		return nil, &NotFoundError{Name: name}
	}
	return images, nil
}

// layoutName is the full name that a layout gives an image. skopeo and umoci put what they are
// told into the tag's annotation: a bare tag names no repository.
func layoutName(annotations map[string]string) string {
	for _, name := range []string{annotations[annotationName], annotations[annotationTag]} {
		ref, err := ParseReference(name)
		if err == nil && (name == annotations[annotationName] || strings.ContainsAny(name, "/:")) {
			return ref.String()
		}
	}
	return ""
}

// importer copies from a layout, children before parents.
type importer struct {
	store *Store
	open  func(v1.Descriptor) (io.ReadCloser, error) // nil: all is in the store already
	peek  bool                                       // layers stay where they are
}

func (im importer) document(ctx context.Context, d v1.Descriptor, depth int) error {
	if depth > 2 {
		return fmt.Errorf("indexes within indexes within indexes: %w", ErrInvalid)
	}
	if !IsIndex(d.MediaType) && !IsManifest(d.MediaType) {
		return fmt.Errorf("media type %q is not an image's: %w", d.MediaType, ErrInvalid)
	}
	raw, err := im.read(ctx, d)
	if err != nil {
		return err
	}
	if IsIndex(d.MediaType) {
		ix, err := ParseIndex(raw, d.MediaType)
		if err != nil {
			return err
		}
		present := 0
		for _, c := range ix.Manifests {
			err := im.document(ctx, c, depth+1)
			if errors.Is(err, ErrAbsent) && c.Digest != "" {
				continue // a layout may hold some of the platforms
			}
			if err != nil {
				return err
			}
			present++
		}
		if present == 0 && len(ix.Manifests) > 0 {
			return fmt.Errorf("none of its manifests: %w", ErrAbsent)
		}
		return im.bytes(d, raw)
	}
	m, err := ParseManifest(raw, d.MediaType)
	if err != nil {
		return err
	}
	blobs := []v1.Descriptor{m.Config}
	if !im.peek {
		blobs = append(blobs, m.Layers...)
	}
	for _, c := range blobs {
		if err := im.blob(ctx, c); err != nil {
			return fmt.Errorf("names %s: %w", c.Digest, noLonger(err))
		}
	}
	if isImageConfig(m.Config.MediaType) && m.ArtifactType == "" && onlyLayers(m) {
		config, err := im.store.ReadBlob(ctx, m.Config, MaxConfigSize)
		if err != nil {
			return err
		}
		c, err := ParseConfig(config)
		if err == nil {
			err = checkLayers(m, c)
		}
		if err != nil {
			return err
		}
	}
	return im.bytes(d, raw)
}

// noLonger turns the absence of a part into a fault of the whole: only a whole manifest may be absent.
func noLonger(err error) error {
	if errors.Is(err, ErrAbsent) {
		return fmt.Errorf("which is missing: %w", ErrInvalid)
	}
	return err
}

// read returns a manifest or index, verified, without storing it yet.
func (im importer) read(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Size > MaxManifestSize {
		return nil, fmt.Errorf("%d bytes, more than %d: %w", d.Size, MaxManifestSize, ErrInvalid)
	}
	if im.open == nil {
		return im.store.ReadBlob(ctx, d, MaxManifestSize)
	}
	f, err := im.source(d)
	if err != nil {
		return nil, err
	}
	rc := newVerifier(f, d.Digest, d.Size)
	defer rc.Close()
	return io.ReadAll(rc)
}

func (im importer) bytes(d v1.Descriptor, raw []byte) error {
	if ok, err := im.store.Has(d); ok || err != nil {
		return err
	}
	_, err := im.store.Put(context.Background(), bytes.NewReader(raw), &d)
	return err
}

// blob copies a blob unless the store has it.
func (im importer) blob(ctx context.Context, d v1.Descriptor) error {
	ok, err := im.store.Has(d)
	if ok || err != nil {
		return err
	}
	if im.open == nil {
		return im.store.obtainable(d)
	}
	f, err := im.source(d)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = im.store.Put(ctx, f, &d)
	return err
}

func (im importer) source(d v1.Descriptor) (io.ReadCloser, error) {
	f, err := im.open(d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d.Digest, ErrAbsent)
	}
	return f, err
}
