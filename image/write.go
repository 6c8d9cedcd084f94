package image

import (
	"archive/tar"
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
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// WriteOCI writes images as a tar of an OCI layout: one descriptor for each name.
// Annotations of a Tagged's descriptor are written with it. The bytes depend on
// the images and options only.
func (s *Store) WriteOCI(ctx context.Context, w io.Writer, images []Tagged, opts WriteOptions) ([]Tagged, error) {
	opts.Jobs = 1 // a tar has one writing place; compression is parallel by itself
	t := s.newTarSink(w)
	out, err := s.exportAll(ctx, images, t, opts)
	if err != nil {
		return nil, err
	}
	return out, t.finish(layoutIndex(nil, out), nil)
}

// WriteOCIDir writes images into an OCI layout directory. One that exists gains the
// images: other names in it stay, equal names are replaced.
func (s *Store) WriteOCIDir(ctx context.Context, dir string, images []Tagged, opts WriteOptions) ([]Tagged, error) {
	sink := dirSink{dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("write OCI layout: %w", err)
	}
	var old []v1.Descriptor
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	switch {
	case err == nil:
		ix, err := parseLayoutIndex(raw)
		if err != nil {
			return nil, fmt.Errorf("write OCI layout: %s: %w", filepath.Join(dir, "index.json"), err)
		}
		old = ix.Manifests
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("write OCI layout: %w", err)
	}
	out, err := s.exportAll(ctx, images, sink, opts)
	if err != nil {
		return nil, err
	}
	if err := sink.file("oci-layout", []byte(layoutFile)); err != nil {
		return nil, fmt.Errorf("write OCI layout: %w", err)
	}
	raw, err = json.Marshal(layoutIndex(old, out))
	if err == nil {
		err = sink.file("index.json", raw) // last: its rename makes the images visible
	}
	if err != nil {
		return nil, fmt.Errorf("write OCI layout: %w", err)
	}
	return out, nil
}

// WriteDocker writes images as `docker save` does since docker 25: an OCI layout with
// uncompressed layers, and beside it manifest.json and repositories, which every
// docker and podman loads. p picks from multi-platform images.
func (s *Store) WriteDocker(ctx context.Context, w io.Writer, images []Tagged, p *v1.Platform) error {
	t := s.newTarSink(w)
	out, more, err := s.exportDocker(ctx, images, p, t)
	if err != nil {
		return err
	}
	return t.finish(layoutIndex(nil, out), more)
}

// WriteDockerDir is WriteDocker into a directory, which may be there: its index.json is replaced.
func (s *Store) WriteDockerDir(ctx context.Context, dir string, images []Tagged, p *v1.Platform) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return fmt.Errorf("write docker layout: %w", err)
	}
	sink := dirSink{dir}
	out, files, err := s.exportDocker(ctx, images, p, sink)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(layoutIndex(nil, out))
	if err != nil {
		return err
	}
	files = append(files, tarFile{"oci-layout", []byte(layoutFile)}, tarFile{"index.json", raw}) // last: it makes the images visible
	for _, f := range files {
		if err := sink.file(f.name, f.raw); err != nil {
			return fmt.Errorf("write docker layout: %w", err)
		}
	}
	return nil
}

// exportDocker sends images with uncompressed layers to a sink, and returns what docker wants beside them.
func (s *Store) exportDocker(ctx context.Context, images []Tagged, p *v1.Platform, sink Sink) ([]Tagged, []tarFile, error) {
	single := make([]Tagged, len(images))
	loaded := map[digest.Digest]*Image{}
	for i, tagged := range images {
		im, err := s.Image(ctx, tagged.Descriptor, p)
		if err != nil {
			return nil, nil, fmt.Errorf("save %s: %w", tagged.Name, err)
		}
		single[i] = Tagged{Name: tagged.Name, Descriptor: im.Descriptor()}
		loaded[im.Descriptor().Digest] = im
	}
	out, err := s.exportAll(ctx, single, sink, WriteOptions{Compression: Uncompressed, ForceCompression: true})
	if err != nil {
		return nil, nil, err
	}
	var entries []dockerEntry
	at := map[digest.Digest]int{}
	repositories := map[string]map[string]string{}
	for _, tagged := range single {
		im := loaded[tagged.Descriptor.Digest]
		i, ok := at[im.desc.Digest]
		if !ok {
			i = len(entries)
			at[im.desc.Digest] = i
			entry := dockerEntry{Config: blobPath(im.ID()), RepoTags: []string{}, Layers: []string{}}
			for _, d := range im.config.RootFS.DiffIDs {
				entry.Layers = append(entry.Layers, blobPath(d))
			}
			entries = append(entries, entry)
		}
		ref, err := ParseReference(tagged.Name)
		if err != nil || ref.Tag() == "" {
			continue // no name, or a digest, which the format has no place for
		}
		name := ref.FamiliarRepository()
		entries[i].RepoTags = append(entries[i].RepoTags, name+":"+ref.Tag())
		if layers := im.config.RootFS.DiffIDs; len(layers) > 0 {
			if repositories[name] == nil {
				repositories[name] = map[string]string{}
			}
			repositories[name][ref.Tag()] = layers[len(layers)-1].Encoded()
		}
	}
	manifest, err := json.Marshal(entries)
	if err != nil {
		return nil, nil, err
	}
	repos, err := json.Marshal(repositories)
	if err != nil {
		return nil, nil, err
	}
	return out, []tarFile{{"manifest.json", manifest}, {"repositories", repos}}, nil
}

// dockerEntry is an image in manifest.json of a docker archive.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// exportAll exports each image once, whatever the number of its names.
func (s *Store) exportAll(ctx context.Context, images []Tagged, sink Sink, opts WriteOptions) ([]Tagged, error) {
	done := map[digest.Digest]v1.Descriptor{}
	out := make([]Tagged, len(images))
	for i, im := range images {
		d, ok := done[im.Descriptor.Digest]
		if !ok {
			var err error
			if d, err = s.Export(ctx, im.Descriptor, sink, opts); err != nil {
				return nil, fmt.Errorf("write %s: %w", im.Name, err)
			}
			done[im.Descriptor.Digest] = d
		}
		d.Annotations = im.Descriptor.Annotations
		if d.Platform == nil {
			d.Platform = im.Descriptor.Platform
		}
		out[i] = Tagged{Name: im.Name, Descriptor: d}
	}
	return out, nil
}

// layoutIndex is index.json with images added to old ones, whose names they take.
func layoutIndex(old []v1.Descriptor, images []Tagged) v1.Index {
	ix := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	ix.SchemaVersion = 2
	for _, d := range old {
		replaced := slices.ContainsFunc(images, func(im Tagged) bool {
			if im.Name != d.Annotations[annotationName] {
				return false
			}
			tag := im.Descriptor.Annotations[annotationTag]
			return im.Name != "" || im.Descriptor.Digest == d.Digest || tag != "" && tag == d.Annotations[annotationTag]
		})
		if !replaced {
			ix.Manifests = append(ix.Manifests, d)
		}
	}
	for _, im := range images {
		d := im.Descriptor
		annotations := map[string]string{}
		for k, v := range d.Annotations {
			annotations[k] = v
		}
		if ref, err := ParseReference(im.Name); err == nil {
			annotations[annotationName], annotations[annotationTag] = ref.String(), refName(ref)
		}
		d.Annotations = nil
		if len(annotations) > 0 {
			d.Annotations = annotations
		}
		ix.Manifests = append(ix.Manifests, d)
	}
	return ix
}

// tarSink writes blobs into a tar as they come.
type tarSink struct {
	store   *Store
	tar     *tar.Writer
	written map[digest.Digest]bool
	dirs    map[string]bool
}

func (s *Store) newTarSink(w io.Writer) *tarSink {
	return &tarSink{store: s, tar: tar.NewWriter(w), written: map[digest.Digest]bool{}, dirs: map[string]bool{}}
}

func (t *tarSink) Has(_ context.Context, d v1.Descriptor) (bool, error) {
	return t.written[d.Digest], nil
}

// Blob writes a blob of known size at once. One whose size is not known yet goes through a
// temporary file of the store, because a tar has the size in front.
func (t *tarSink) Blob(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	rc, err := open(ctx)
	if err != nil {
		return d, err
	}
	defer rc.Close()
	if d.Digest != "" {
		return d, t.write(ctx, d, rc)
	}
	spool, err := t.store.temp()
	if err != nil {
		return d, err
	}
	defer spool.discard()
	got, err := copyVerified(ctx, spool, rc, nil)
	if err != nil {
		return d, err
	}
	d.Digest, d.Size = got.Digest, got.Size
	if t.written[d.Digest] {
		return d, nil
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return d, err
	}
	return d, t.write(ctx, d, spool)
}

func (t *tarSink) Manifest(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if t.written[d.Digest] {
		return nil
	}
	return t.write(ctx, d, strings.NewReader(string(raw)))
}

func (t *tarSink) write(ctx context.Context, d v1.Descriptor, r io.Reader) error {
	name := blobPath(d.Digest)
	if err := t.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	if err := t.tar.WriteHeader(tarHeader(name, d.Size)); err != nil {
		return err
	}
	n, err := copyContext(ctx, t.tar, r)
	if err == nil && n != d.Size {
		err = compare(d.Digest, d.Size, d.Digest, n)
	}
	t.written[d.Digest] = true
	return err
}

func (t *tarSink) mkdirs(dir string) error {
	if dir == "." || t.dirs[dir] {
		return nil
	}
	if err := t.mkdirs(path.Dir(dir)); err != nil {
		return err
	}
	t.dirs[dir] = true
	return t.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
}

type tarFile struct {
	name string
	raw  []byte
}

// finish writes what names the blobs, and the end of the tar.
func (t *tarSink) finish(ix v1.Index, more []tarFile) error {
	raw, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	files := append([]tarFile{{"oci-layout", []byte(layoutFile)}, {"index.json", raw}}, more...)
	for _, f := range files {
		if err := t.tar.WriteHeader(tarHeader(f.name, int64(len(f.raw)))); err != nil {
			return err
		}
		if _, err := t.tar.Write(f.raw); err != nil {
			return err
		}
	}
	return t.tar.Close()
}

// tarHeader says nothing of who wrote the archive, or when.
func tarHeader(name string, size int64) *tar.Header {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if size >= 1<<33 {
		h.Format = tar.FormatPAX // ustar ends at 8 GiB
	}
	return h
}

// dirSink writes blobs into a layout directory of the user's.
type dirSink struct{ dir string }

func (s dirSink) Has(_ context.Context, d v1.Descriptor) (bool, error) {
	info, err := os.Stat(filepath.Join(s.dir, blobPath(d.Digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Size() == d.Size, err
}

func (s dirSink) Blob(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	rc, err := open(ctx)
	if err != nil {
		return d, err
	}
	defer rc.Close()
	var expect *v1.Descriptor
	if d.Digest != "" {
		expect = &d
	}
	f, err := os.CreateTemp(s.dir, ".mk-")
	if err != nil {
		return d, err
	}
	defer os.Remove(f.Name()) // no more there after the rename
	defer f.Close()
	got, err := copyVerified(ctx, f, rc, expect)
	if err != nil {
		return d, err
	}
	d.Digest, d.Size = got.Digest, got.Size
	return d, s.place(f, blobPath(d.Digest))
}

func (s dirSink) Manifest(ctx context.Context, d v1.Descriptor, raw []byte) error {
	return s.file(blobPath(d.Digest), raw)
}

// file writes a whole file by a rename.
func (s dirSink) file(name string, raw []byte) error {
	f, err := os.CreateTemp(s.dir, ".mk-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(raw); err != nil {
		return err
	}
	return s.place(f, name)
}

func (s dirSink) place(f *os.File, name string) error {
	to := filepath.Join(s.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}
