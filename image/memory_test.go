package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// stream is a tree whose layer has size bytes that are nowhere at once.
type stream struct{ size int64 }

func (s stream) open() io.Reader {
	return io.LimitReader(&pattern{}, s.size)
}

func (s stream) OpenLayer(context.Context, digest.Digest) (io.ReadCloser, int64, error) {
	return io.NopCloser(s.open()), s.size, nil
}

// pattern is endless, cheap to make and compresses well.
type pattern struct{ n uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.n*p.n>>20) & 0x3f
		p.n++
	}
	return len(b), nil
}

// sendAndReceive moves a layer of 128 MB out of one store as an archive and into
// another, and unpacks it: what any process does with any layer.
func sendAndReceive() error {
	ctx := context.Background()
	dir := os.Getenv("IMAGE_TEST_STORE")
	from, err := Open(dir + "/from")
	if err != nil {
		return err
	}
	into, err := Open(dir + "/into")
	if err != nil {
		return err
	}
	tree := stream{128 << 20}
	from.SetLayers(tree)
	diffID, err := digest.FromReader(tree.open())
	if err != nil {
		return err
	}
	var c Config
	c.RootFS.DiffIDs = []digest.Digest{diffID}
	d, err := from.PutImage(ctx, c, []v1.Descriptor{LayerDescriptor(diffID, tree.size)}, PutOptions{})
	if err != nil {
		return err
	}
	for _, how := range []Compression{Gzip, Zstd} {
		r, w := io.Pipe()
		go func() {
			_, err := from.WriteOCI(ctx, w, []Tagged{{"x", d}}, WriteOptions{Compression: how, Level: 1})
			w.CloseWithError(err)
		}()
		images, err := into.ReadArchiveFrom(ctx, r)
		if err != nil {
			return err
		}
		im, err := into.Image(ctx, images[0].Descriptor, nil)
		if err != nil {
			return err
		}
		rc, err := im.Layers()[0].Uncompressed(ctx)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			return err
		}
		rc.Close()
	}
	fmt.Println(peakMemory())
	return nil
}

// peakMemory is this process's VmHWM in KiB.
func peakMemory() (kib int) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			fmt.Sscan(rest, &kib)
		}
	}
	return kib
}

// A layer is never in memory as a whole.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	s := testStore(t)
	cmd := child(t, s, "memory", "")
	out, err := io.ReadAll(cmd.out)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var kib int
	if _, scanned := fmt.Sscan(string(out), &kib); err != nil || scanned != nil {
		t.Fatalf("%q, %v, %v", out, err, scanned)
	}
	t.Logf("peak of a 128 MB layer out and in, gzip and zstd: %d MiB", kib/1024)
	if kib == 0 || kib > 120<<10 {
		t.Errorf("peak memory is %d KiB", kib)
	}
}
