package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compressed bytes depend on the input and the level; not on the number of
// processors, nor on how the input is cut into writes.
func TestCompressionIsDeterministic(t *testing.T) {
	raw := layerTar(1, 3<<20+12345)
	for _, how := range []Compression{Gzip, Zstd} {
		for _, level := range []int{0, 1} {
			var first []byte
			for _, procs := range []int{1, 4} {
				for _, chunk := range []int{1 << 20, 4099, len(raw)} {
					old := runtime.GOMAXPROCS(procs)
					var b bytes.Buffer
					z := must[io.WriteCloser](t)(newCompressor(&b, how, level))
					for rest := raw; len(rest) > 0; {
						n := min(chunk, len(rest))
						z.Write(rest[:n])
						rest = rest[n:]
					}
					if err := z.Close(); err != nil {
						t.Fatal(err)
					}
					runtime.GOMAXPROCS(old)
					if first == nil {
						first = b.Bytes()
					}
					if !bytes.Equal(first, b.Bytes()) {
						t.Fatalf("%s level %d: %d processors, writes of %d bytes: other bytes", how, level, procs, chunk)
					}
				}
			}
			z, got, err := decompress(iotest.HalfReader(bytes.NewReader(first)))
			if err != nil || got != how {
				t.Fatalf("%s: %s, %v", how, got, err)
			}
			if back, err := io.ReadAll(z); err != nil || !bytes.Equal(back, raw) {
				t.Errorf("%s level %d does not come back: %v", how, level, err)
			}
			z.Close()
		}
	}
	for _, c := range []struct {
		how   Compression
		level int
	}{{Gzip, 10}, {Zstd, 23}, {"x", 0}} {
		if _, err := newCompressor(io.Discard, c.how, c.level); err == nil {
			t.Errorf("%s level %d", c.how, c.level)
		}
	}
	for s, ok := range map[string]bool{"": true, "gzip": true, "zstd": true, "uncompressed": true, "estargz": false, "lz4": false} {
		if _, err := ParseCompression(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// A blob whose compressed bytes are right and whose tar is not the DiffID's is found out at EOF;
// so is one that is not what its media type says.
func TestUncompressedIsVerified(t *testing.T) {
	s := testStore(t)
	raw := layerTar(1, 2<<20)
	for name, c := range map[string]struct {
		blob []byte
		kind string
		ok   bool
	}{
		"gzip":                  {gz(raw), v1.MediaTypeImageLayerGzip, true},
		"gzip called zstd":      {gz(raw), v1.MediaTypeImageLayerZstd, true},
		"gzip in two members":   {append(gz(raw[:1000]), gz(raw[1000:])...), v1.MediaTypeImageLayerGzip, true},
		"zstd":                  {zst(t, raw), v1.MediaTypeImageLayerZstd, true},
		"none called gzip":      {raw, v1.MediaTypeImageLayerGzip, true},
		"another layer":         {gz(layerTar(2, 2<<20)), v1.MediaTypeImageLayerGzip, false},
		"cut":                   {gz(raw)[:1000], v1.MediaTypeImageLayerGzip, false},
		"cut zstd":              {zst(t, raw)[:1000], v1.MediaTypeImageLayerZstd, false},
		"garbage after gzip":    {append(gz(raw), "garbage"...), v1.MediaTypeImageLayerGzip, false},
		"more after the tar":    {gz(append(raw[:len(raw):len(raw)], "x"...)), v1.MediaTypeImageLayerGzip, false},
		"a bomb":                {gz(make([]byte, 64<<20)), v1.MediaTypeImageLayerGzip, false},
		"a magic and no more":   {[]byte{0x1f, 0x8b}, v1.MediaTypeImageLayerGzip, false},
		"nothing":               {nil, v1.MediaTypeImageLayerGzip, false},
		"zstd's giant window":   {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0, 0, 0, 0, 0, 0}, v1.MediaTypeImageLayerZstd, false},
		"zstd's endless header": {append([]byte{0x28, 0xb5, 0x2f, 0xfd}, make([]byte, 100)...), v1.MediaTypeImageLayerZstd, false},
	} {
		d := must[v1.Descriptor](t)(s.Put(ctx, bytes.NewReader(c.blob), nil))
		d.MediaType = c.kind
		tr := trees{}
		l := Layer{store: s, Descriptor: d, DiffID: tr.add(raw).Digest}
		rc, err := l.Uncompressed(ctx)
		if err == nil {
			_, err = io.Copy(io.Discard, rc)
			rc.Close()
		}
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Closing a layer before its end leaves no reader behind that touches the file.
func TestUncompressedClosedEarly(t *testing.T) {
	s := testStore(t)
	raw := layerTar(1, 8<<20)
	for _, blob := range [][]byte{gz(raw), zst(t, raw)} {
		d := must[v1.Descriptor](t)(s.Put(ctx, bytes.NewReader(blob), nil))
		tr := trees{}
		l := Layer{store: s, Descriptor: d, DiffID: tr.add(raw).Digest}
		for range 20 {
			rc := must[io.ReadCloser](t)(l.Uncompressed(ctx))
			rc.Read(make([]byte, 10))
			rc.Close()
		}
	}
}

// memorySink keeps blobs, and counts what it is given.
type memorySink struct {
	blobs map[string][]byte
	given int
	fail  error
}

func (m *memorySink) Has(_ context.Context, d v1.Descriptor) (bool, error) {
	_, ok := m.blobs[d.Digest.String()]
	return ok, nil
}

func (m *memorySink) Blob(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (v1.Descriptor, error) {
	m.given++
	rc, err := open(ctx)
	if err != nil {
		return d, err
	}
	defer rc.Close()
	if m.fail != nil {
		rc.Read(make([]byte, 100))
		return d, m.fail
	}
	var b bytes.Buffer
	got, err := copyVerified(ctx, &b, rc, nil)
	got.MediaType = d.MediaType
	m.blobs[got.Digest.String()] = b.Bytes()
	return got, err
}

func (m *memorySink) Manifest(_ context.Context, d v1.Descriptor, raw []byte) error {
	m.blobs[d.Digest.String()] = raw
	return nil
}

// A layer that was compressed once is not compressed again for a sink that has the result.
func TestCompressedFormIsRemembered(t *testing.T) {
	s, names := sample(t)
	sink := &memorySink{blobs: map[string][]byte{}}
	first := must[v1.Descriptor](t)(s.Export(ctx, names[0].Descriptor, sink, WriteOptions{}))
	if sink.given != 3 {
		t.Errorf("%d blobs given, not config and two layers", sink.given)
	}
	sink.given = 0
	s.SetLayers(nil) // nobody can make the layers again, and nobody has to
	second := must[v1.Descriptor](t)(s.Export(ctx, names[0].Descriptor, sink, WriteOptions{}))
	if sink.given != 0 || second.Digest != first.Digest {
		t.Errorf("%d blobs given again", sink.given)
	}
	if _, err := s.Export(ctx, names[0].Descriptor, sink, WriteOptions{Compression: Zstd}); !errors.Is(err, ErrAbsent) {
		t.Errorf("another compression, and no layers: %v", err)
	}
}

func TestExportStopsAtErrors(t *testing.T) {
	s, names := sample(t)
	full := errors.New("no space left on device")
	if _, err := s.Export(ctx, names[0].Descriptor, &memorySink{blobs: map[string][]byte{}, fail: full}, WriteOptions{}); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	layers, _ := s.hooks()
	for d := range layers.(trees) {
		layers.(trees)[d] = []byte("rot")
	}
	if _, err := s.Export(ctx, names[0].Descriptor, &memorySink{blobs: map[string][]byte{}}, WriteOptions{}); !errors.Is(err, ErrDigest) {
		t.Errorf("rotten trees: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Export(cancelled, names[0].Descriptor, &memorySink{blobs: map[string][]byte{}}, WriteOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.Export(ctx, names[0].Descriptor, &memorySink{}, WriteOptions{Compression: "estargz"}); err == nil || !strings.Contains(err.Error(), "estargz") {
		t.Errorf("estargz: %v", err)
	}
}
