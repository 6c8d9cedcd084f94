package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestMain makes the test binary a helper process where the environment says so:
// see processes_test.go.
func TestMain(m *testing.M) {
	if what := os.Getenv("IMAGE_TEST_HELPER"); what != "" {
		helper(what)
	}
	os.Exit(m.Run())
}

func testStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// layerTar is a layer with one file of size bytes, which differ with the seed.
func layerTar(seed uint64, size int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i, bits := 0, uint64(0); i < size; i++ {
		if i%21 == 0 {
			bits = r.Uint64()
		}
		content[i] = "abcdefgh"[bits&7] // compressible
		bits >>= 3
	}
	w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file-%d", seed), Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)})
	w.Write(content)
	w.Close()
	return b.Bytes()
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

func (tr trees) add(raw []byte) v1.Descriptor {
	d := digest.FromBytes(raw)
	tr[d] = raw
	return LayerDescriptor(d, int64(len(raw)))
}

// built puts an image whose layers are trees only, as a build does.
func built(t testing.TB, s *Store, tr trees, p v1.Platform, layers ...[]byte) v1.Descriptor {
	t.Helper()
	s.SetLayers(tr)
	created := time.Unix(1700000000, 0).UTC()
	c := Config{}
	c.Platform, c.Created = p, &created
	c.Config.Cmd = []string{"/bin/sh"}
	var ds []v1.Descriptor
	for _, raw := range layers {
		d := tr.add(raw)
		ds = append(ds, d)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, d.Digest)
		c.History = append(c.History, v1.History{Created: &created, CreatedBy: "RUN test"})
	}
	d, err := s.PutImage(context.Background(), c, ds, PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// wholesome fails the test when Check finds anything.
func wholesome(t testing.TB, s *Store) {
	t.Helper()
	problems, err := s.Check(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("check: %s", p)
	}
}
