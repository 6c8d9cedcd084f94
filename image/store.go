package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Store is an OCI image layout on disk: blobs by digest and index.json, whose
// rename commits every change. Its methods may be called by many goroutines and
// processes at once, see the package's page.
type Store struct {
	dir string

	mu      sync.Mutex
	layers  Layers
	fetcher Fetcher

	arriving arriving
}

// Layers makes layers again that have no blob: those built here live as trees.
type Layers interface {
	// OpenLayer returns the uncompressed tar of the layer and its size in bytes,
	// or an error with fs.ErrNotExist when there is no such tree. The store verifies
	// what it reads, and closes it.
	OpenLayer(ctx context.Context, diffID digest.Digest) (io.ReadCloser, int64, error)
}

// Fetcher has blobs from where Sources says they are. registry.Client is one.
type Fetcher interface {
	// FetchLayer brings a blob into the store.
	FetchLayer(ctx context.Context, s *Store, d v1.Descriptor) error
	// OpenLayer gives a blob's bytes as they come, and keeps none. The store verifies
	// what it reads, and closes it.
	OpenLayer(ctx context.Context, s *Store, d v1.Descriptor) (io.ReadCloser, error)
	// ReadPart gives size bytes of a blob from offset on, unverified, and keeps none.
	ReadPart(ctx context.Context, s *Store, d v1.Descriptor, offset, size int64) ([]byte, error)
}

// Tagged is one entry of index.json.
type Tagged struct {
	Name       string // full name, as Reference.String; "" for an image without one
	Descriptor v1.Descriptor
}

// ErrChanged is returned by Replace when another process was first.
var ErrChanged = errors.New("the name was given to something else meanwhile")

// Annotations of a descriptor in index.json, as docker and BuildKit write them.
const (
	annotationName = "io.containerd.image.name"
	annotationTag  = v1.AnnotationRefName
)

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

// Open opens the store in dir, and creates it when there is none. The directory is
// readable by its owner only.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	s.arriving.news.L = &s.arriving.mu
	raw, err := os.ReadFile(s.path("oci-layout"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, s.create()
	case err != nil:
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := checkLayout(raw); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

func checkLayout(raw []byte) error {
	var layout v1.ImageLayout
	if err := json.Unmarshal(raw, &layout); err != nil {
		return fmt.Errorf("oci-layout: %w: %w", err, ErrInvalid)
	}
	if layout.Version != v1.ImageLayoutVersion {
		return fmt.Errorf("oci-layout: version %q, not %s: %w", layout.Version, v1.ImageLayoutVersion, ErrInvalid)
	}
	return nil
}

// create makes an empty layout. oci-layout comes last: without it the next Open starts again,
// and two that create at once write the same.
func (s *Store) create() error {
	for _, dir := range []string{"blobs/sha256", "compressed", "sources", "tmp"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return fmt.Errorf("create image store: %w", err)
		}
	}
	err := s.changeIndex(func(ix *v1.Index) (bool, error) { return true, nil })
	if err == nil {
		err = s.replace("oci-layout", []byte(layoutFile))
	}
	if err != nil {
		return fmt.Errorf("create image store: %w", err)
	}
	return nil
}

// Dir returns the directory of the store, an OCI layout.
func (s *Store) Dir() string { return s.dir }

// SetLayers says who makes the layers again that have no blob. nil: nobody.
func (s *Store) SetLayers(l Layers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers = l
}

// SetFetcher says who brings blobs that are absent and known to be in a
// repository, the first time that they are opened. nil: nobody, and Open says ErrAbsent.
func (s *Store) SetFetcher(f Fetcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetcher = f
}

func (s *Store) hooks() (Layers, Fetcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers, s.fetcher
}

// path is a file of the store. rel is a constant, or made by blobPath of a checked digest.
func (s *Store) path(rel string) string { return filepath.Join(s.dir, filepath.FromSlash(rel)) }

// List returns the entries of index.json, in the order in which they were added.
func (s *Store) List() ([]Tagged, error) {
	ix, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	out := make([]Tagged, 0, len(ix.Manifests))
	for _, d := range ix.Manifests {
		out = append(out, Tagged{Name: d.Annotations[annotationName], Descriptor: plain(d)})
	}
	return out, nil
}

// Tag makes name stand for d, whose blob must be in the store, and takes it from
// the image that had it; that one stays without a name, as with docker, if it has no other.
// The empty name keeps d in the store without one. Tag of what is so already writes nothing.
func (s *Store) Tag(name string, d v1.Descriptor) error {
	var ref Reference
	if name != "" {
		var err error
		if ref, err = ParseReference(name); err != nil {
			return err
		}
	}
	if !IsManifest(d.MediaType) && !IsIndex(d.MediaType) {
		return fmt.Errorf("tag %s: media type %q is not an image's: %w", name, d.MediaType, ErrInvalid)
	}
	ok, err := s.Has(d)
	if err == nil && !ok {
		err = ErrAbsent
	}
	if err != nil {
		return fmt.Errorf("tag %s: %s: %w", name, d.Digest, err)
	}
	return s.changeIndex(func(ix *v1.Index) (bool, error) { return setName(ix, ref, plain(d)), nil })
}

// Replace makes name, which stands for old, stand for d. old leaves the index if it has no other
// name. The error is ErrChanged when name stands for something else by now.
func (s *Store) Replace(name string, old digest.Digest, d v1.Descriptor) error {
	ref, err := ParseReference(name)
	if err != nil {
		return err
	}
	if ok, err := s.Has(d); err != nil || !ok {
		return fmt.Errorf("tag %s: %s: %w", name, d.Digest, orAbsent(err))
	}
	return s.changeIndex(func(ix *v1.Index) (bool, error) {
		for i, m := range ix.Manifests {
			if m.Annotations[annotationName] == ref.String() {
				if m.Digest != old {
					return false, fmt.Errorf("%s: %w", ref.Familiar(), ErrChanged)
				}
				ix.Manifests = append(ix.Manifests[:i], ix.Manifests[i+1:]...)
				setName(ix, ref, plain(d))
				return true, nil
			}
		}
		return false, notFound(ix, ref.Familiar())
	})
}

// Untag takes a name from its image and returns what it stood for. An image
// that has no name left leaves the index; its blobs stay until GC. ErrNotFound when there is no such name.
func (s *Store) Untag(name string) (v1.Descriptor, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var was v1.Descriptor
	err = s.changeIndex(func(ix *v1.Index) (bool, error) {
		for i, d := range ix.Manifests {
			if d.Annotations[annotationName] == ref.String() {
				was = plain(d)
				ix.Manifests = append(ix.Manifests[:i], ix.Manifests[i+1:]...)
				return true, nil
			}
		}
		return false, notFound(ix, ref.Familiar())
	})
	return was, err
}

// Remove takes every name from the image with this manifest or index digest,
// and the image from the index. It returns the names that went.
func (s *Store) Remove(d digest.Digest) ([]string, error) {
	var names []string
	err := s.changeIndex(func(ix *v1.Index) (bool, error) {
		kept := ix.Manifests[:0]
		found := false
		for _, m := range ix.Manifests {
			if m.Digest != d {
				kept = append(kept, m)
				continue
			}
			found = true
			if name := m.Annotations[annotationName]; name != "" {
				names = append(names, name)
			}
		}
		ix.Manifests = kept
		if !found {
			return false, notFound(ix, d.String())
		}
		return true, nil
	})
	return names, err
}

// setName changes ix so that ref stands for d, and reports whether it had to.
func setName(ix *v1.Index, ref Reference, d v1.Descriptor) bool {
	name := ref.String()
	var lost v1.Descriptor // the image that loses the name
	named := map[digest.Digest]int{}
	kept := ix.Manifests[:0:0]
	for _, m := range ix.Manifests {
		has := m.Annotations[annotationName]
		switch {
		case has == name && m.Digest == d.Digest && m.MediaType == d.MediaType:
			return false
		case name == "" && m.Digest == d.Digest:
			return false // has a name already
		case has == name && name != "":
			lost = plain(m)
			continue
		case has == "" && m.Digest == d.Digest:
			continue // it gets a name now
		}
		named[m.Digest]++
		kept = append(kept, m)
	}
	if lost.Digest != "" && named[lost.Digest] == 0 && lost.Digest != d.Digest {
		kept = append(kept, lost)
	}
	if name != "" {
		d.Annotations = map[string]string{annotationName: name, annotationTag: refName(ref)}
	}
	ix.Manifests = append(kept, d)
	return true
}

// refName is what org.opencontainers.image.ref.name holds: the tag, or where there is none the digest.
func refName(ref Reference) string {
	if ref.Tag() != "" {
		return ref.Tag()
	}
	return ref.Digest().String()
}

func (s *Store) readIndex() (*v1.Index, error) {
	raw, err := os.ReadFile(s.path("index.json"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	ix, err := parseLayoutIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("image store: %s: %w", s.path("index.json"), err)
	}
	return ix, nil
}

// parseLayoutIndex reads an index.json, which has no limit on its entries but must be sound.
func parseLayoutIndex(raw []byte) (*v1.Index, error) {
	var ix v1.Index
	if err := json.Unmarshal(raw, &ix); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if ix.SchemaVersion != 2 {
		return nil, fmt.Errorf("schema version %d, not 2: %w", ix.SchemaVersion, ErrInvalid)
	}
	for _, d := range ix.Manifests {
		if err := CheckDescriptor(d); err != nil {
			return nil, err
		}
	}
	return &ix, nil
}

// changeIndex reads index.json, lets change change it, and renames the new one
// into place, all under index.lock: no process loses a name that another one set. The rename is the commit point.
func (s *Store) changeIndex(change func(*v1.Index) (changed bool, err error)) error {
	lock, err := os.OpenFile(s.path("index.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer lock.Close() // closing releases the lock
	if err := flock(lock, unix.LOCK_EX); err != nil {
		return fmt.Errorf("image store: lock %s: %w", lock.Name(), err)
	}
	ix, err := s.readIndex()
	if errors.Is(err, fs.ErrNotExist) { // only while the store is created
		ix = &v1.Index{MediaType: v1.MediaTypeImageIndex}
		ix.SchemaVersion = 2
	} else if err != nil {
		return err
	}
	changed, err := change(ix)
	if err != nil || !changed {
		return err
	}
	if ix.Manifests == nil {
		ix.Manifests = []v1.Descriptor{} // the spec wants [] and not null
	}
	raw, err := json.MarshalIndent(ix, "", "  ")
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return s.replace("index.json", append(raw, '\n'))
}

// flock waits for a lock on an open file; closing the file releases it.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// replace puts a whole file in the place of name by a rename.
func (s *Store) replace(name string, content []byte) error {
	t, err := s.temp()
	if err != nil {
		return err
	}
	defer t.discard()
	if _, err := t.Write(content); err != nil {
		return err
	}
	return t.rename(s.path(name))
}
