package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	"github.com/ulikunitz/xz"
)

// Compression of a layer.
type Compression string

const (
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
	Uncompressed Compression = "uncompressed"
)

// ParseCompression reads a name; "" is gzip. estargz is refused by name.
func ParseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case "":
		return Gzip, nil
	case Gzip, Zstd, Uncompressed:
		return c, nil
	case "estargz", "zstd:chunked":
		return "", fmt.Errorf("compression %s is not supported: use gzip, zstd or uncompressed", s)
	}
	return "", fmt.Errorf("unknown compression %q: use gzip, zstd or uncompressed", s)
}

// gzipBlock is what one goroutine compresses at a time. The bytes of the result depend on
// it and on the level, never on how many goroutines there are; changing it changes
// the digests of all layers that are compressed from then on.
const gzipBlock = 1 << 20

// maxZstdWindow is what zstd itself decodes without being asked for more (--long=27);
// a frame can ask for 2^41 bytes.
const maxZstdWindow = 128 << 20

// newCompressor returns a writer that compresses to w. level 0 is the default (gzip 6, zstd 3).
// Equal input gives equal bytes on every machine, for one version of the modules.
func newCompressor(w io.Writer, how Compression, level int) (io.WriteCloser, error) {
	switch how {
	case Gzip:
		if level == 0 {
			level = 6
		}
		z, err := pgzip.NewWriterLevel(w, level)
		if err != nil {
			return nil, fmt.Errorf("compression level %d: gzip has 1 to 9", level)
		}
		return z, z.SetConcurrency(gzipBlock, runtime.GOMAXPROCS(0)+1)
	case Zstd:
		if level == 0 {
			level = 3
		}
		if level < 1 || level > 22 {
			return nil, fmt.Errorf("compression level %d: zstd has 1 to 22", level)
		}
		// Blocks are cut by size and not by time, so that the concurrency does not show in the bytes.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(8<<20))
	case Uncompressed:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", how)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

	xzMagic    = []byte("\xfd7zXZ\x00")
	bzip2Magic = []byte("BZh")
)

// decompress returns the uncompressed bytes of r, told by their first bytes and not by
// what anyone says they are: registries hold gzip under the type of a plain tar. Closing does not close r.
func decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		z, err := pgzip.NewReaderN(b, 256<<10, 4) // decompresses ahead, at most 1 MiB
		if err != nil {
			return nil, "", fmt.Errorf("gzip: %w", err)
		}
		return z, Gzip, nil
	case bytes.HasPrefix(magic, zstdMagic):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, "", fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), Zstd, nil
	case bytes.HasPrefix(magic, xzMagic[:4]), bytes.HasPrefix(magic, bzip2Magic):
		// Neither is a layer's compression; an xz header may ask for 4 GiB of memory.
		return nil, "", fmt.Errorf("compressed by xz or bzip2, not gzip or zstd: %w", ErrInvalid)
	}
	return io.NopCloser(b), Uncompressed, nil
}

// DecompressArchive returns the uncompressed bytes of an archive that a person gave: what decompress
// knows, and xz and bzip2 besides, which are no layer's compression. Closing does not close r.
func DecompressArchive(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 128<<10)
	head, err := b.Peek(64)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, bzip2Magic):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(head, xzMagic):
		if err := checkXzWindow(head); err != nil {
			return nil, err
		}
		z, err := xz.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		return io.NopCloser(z), nil
	}
	z, _, err := decompress(b)
	return z, err
}

// checkXzWindow refuses an xz stream whose first block wants more memory than xz -9 does, twice over:
// the format has 4 GiB. (The .xz File Format 1.1.0, sections 2.1.1 and 5.3.1.)
func checkXzWindow(head []byte) error {
	block := head[12:] // behind the stream's header
	if len(block) < 2 || block[0] == 0 {
		return nil // no block at all
	}
	at := 2
	for _, optional := range []byte{0x40, 0x80} { // compressed and uncompressed size
		if block[1]&optional != 0 {
			for at < len(block) && block[at]&0x80 != 0 {
				at++
			}
			at++
		}
	}
	if at+2 >= len(block) || block[at] != 0x21 {
		return nil // cut short, or a filter that the reader refuses
	}
	if bits := block[at+2] & 0x3f; bits > 30 { // 30 is 128 MiB
		return fmt.Errorf("xz: wants more memory than 128 MiB: %w", ErrInvalid)
	}
	return nil
}

// Uncompressed returns the layer's tar. At EOF both the bytes that were read from
// the store and the tar have been verified. A layer that is absent as a blob
// comes from its tree, or through the Fetcher.
func (l Layer) Uncompressed(ctx context.Context) (io.ReadCloser, error) {
	return l.uncompressed(ctx, true)
}

// uncompressed is Uncompressed; keep says whether the store keeps what it has to fetch.
func (l Layer) uncompressed(ctx context.Context, keep bool) (io.ReadCloser, error) {
	present, err := l.Present()
	if err != nil {
		return nil, err
	}
	if layers, _ := l.store.hooks(); !present && layers != nil {
		rc, err := openTree(ctx, layers, l.DiffID)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return rc, err
		}
	}
	raw, err := l.store.open(ctx, l.Descriptor, keep)
	if err != nil {
		return nil, err
	}
	return newUncompressed(raw, l.DiffID, -1)
}

// newUncompressed decompresses a verified reader and verifies the result; size -1 is not known. It owns raw.
func newUncompressed(raw io.ReadCloser, diffID digest.Digest, size int64) (io.ReadCloser, error) {
	z, _, err := decompress(raw)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return newVerifier(&uncompressed{z: z, raw: raw}, diffID, size), nil
}

type uncompressed struct {
	z   io.ReadCloser
	raw io.ReadCloser
}

// Read passes decompressed bytes on, and at their end reads what is left of
// the compressed ones: only the last of them is answered with the verdict on all.
func (u *uncompressed) Read(p []byte) (int, error) {
	n, err := u.z.Read(p)
	if err == io.EOF {
		if _, rest := io.Copy(io.Discard, u.raw); rest != nil {
			return n, rest
		}
	}
	return n, err
}

func (u *uncompressed) Close() error {
	u.z.Close()
	return u.raw.Close()
}
