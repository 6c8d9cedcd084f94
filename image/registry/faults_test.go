package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mk/image"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var ctx = context.Background()

// faulty is an in-process registry on loopback behind a proxy that the test can spoil.
type faulty struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests []string // "GET /v2/…"
	fault    func(w http.ResponseWriter, r *http.Request, n int) (handled bool)
	count    map[string]int // of "METHOD kind": "GET blobs"
}

// newFaulty starts a registry. fault sees each request, and n counts those of its method and kind from 0.
func newFaulty(t testing.TB, fault func(w http.ResponseWriter, r *http.Request, n int) bool) *faulty {
	t.Helper()
	return wrap(t, httptest.NewServer, ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), fault)
}

func wrap(t testing.TB, start func(http.Handler) *httptest.Server, inner http.Handler, fault func(http.ResponseWriter, *http.Request, int) bool) *faulty {
	f := &faulty{fault: fault, count: map[string]int{}}
	f.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Method + " " + kindOf(r)
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
		n := f.count[key]
		f.count[key]++
		fault := f.fault
		f.mu.Unlock()
		if fault != nil && fault(w, r, n) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	f.host = strings.TrimPrefix(strings.TrimPrefix(f.URL, "http://"), "https://")
	return f
}

// kindOf is "blobs", "uploads", "manifests", "ping" or "tags".
func kindOf(r *http.Request) string {
	for _, kind := range []string{"uploads", "blobs", "manifests", "tags"} {
		if strings.Contains(r.URL.Path, "/"+kind+"/") {
			return kind
		}
	}
	return "ping"
}

func (f *faulty) spoil(fault func(w http.ResponseWriter, r *http.Request, n int) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.requests, f.count = fault, nil, map[string]int{}
}

func (f *faulty) counted(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[key]
}

func (f *faulty) ref(t testing.TB, name string) image.Reference {
	t.Helper()
	ref, err := image.ParseReference(f.host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// quick is a client that does not wait.
func quick() *Client {
	return &Client{Backoff: time.Millisecond, Stall: 200 * time.Millisecond, Keychain: fileKeychain{}}
}

func testStore(t testing.TB) *image.Store {
	t.Helper()
	// Nobody's credentials but the test's own.
	if t, ok := t.(*testing.T); ok {
		t.Setenv("HOME", t.TempDir())
		t.Setenv("DOCKER_CONFIG", "")
		t.Setenv("REGISTRY_AUTH_FILE", "")
		t.Setenv("XDG_RUNTIME_DIR", "")
		t.Setenv("XDG_CONFIG_HOME", "")
	}
	s, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// trees plays the snapshot store.
type trees map[digest.Digest][]byte

func (tr trees) OpenLayer(_ context.Context, d digest.Digest) (io.ReadCloser, int64, error) {
	raw, ok := tr[d]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

func layerTar(seed uint64, size int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= size; i += 8 {
		copy(content[i:], fmt.Sprintf("%08x", r.Uint32()))
	}
	w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file-%d", seed), Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg})
	w.Write(content)
	w.Close()
	return b.Bytes()
}

// built puts an image whose layers are trees.
func built(t testing.TB, s *image.Store, p v1.Platform, layers ...[]byte) v1.Descriptor {
	t.Helper()
	tr := trees{}
	c := image.Config{}
	c.Platform = p
	var ds []v1.Descriptor
	for _, raw := range layers {
		d := image.LayerDescriptor(digest.FromBytes(raw), int64(len(raw)))
		tr[d.Digest] = raw
		ds = append(ds, d)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, d.Digest)
	}
	s.SetLayers(tr)
	d, err := s.PutImage(ctx, c, ds, image.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func wholesome(t testing.TB, s *image.Store) {
	t.Helper()
	problems, err := s.Check(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("check: %s", p)
	}
}

// pushed is a registry that has app:v1 of two layers, and its descriptor there.
func pushed(t testing.TB) (*faulty, image.Reference, v1.Descriptor) {
	t.Helper()
	f := newFaulty(t, nil)
	s := testStore(t)
	d := built(t, s, image.HostPlatform(), layerTar(1, 3<<20), layerTar(2, 500))
	ref := f.ref(t, "team/app:v1")
	out, err := quick().Push(ctx, s, d, ref, PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.spoil(nil)
	return f, ref, out
}

// readable fails the test unless every layer of the image can be read to its verified end.
func readable(t testing.TB, s *image.Store, d v1.Descriptor) {
	t.Helper()
	im, err := s.Image(ctx, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range im.Layers() {
		rc, err := l.Uncompressed(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			t.Error(err)
		}
		rc.Close()
	}
}

// backends remembers the registry behind a request that a fault answers.
var backends sync.Map

// rotten makes layers of the right size and other bytes.
type rotten struct{}

func (rotten) OpenLayer(_ context.Context, d digest.Digest) (io.ReadCloser, int64, error) {
	return io.NopCloser(bytes.NewReader(make([]byte, 2<<20))), 2 << 20, nil
}
