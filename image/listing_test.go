package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// parts is a registry with one blob.
type parts []byte

func (p parts) FetchLayer(context.Context, *Store, v1.Descriptor) error { return ErrAbsent }

func (p parts) OpenLayer(context.Context, *Store, v1.Descriptor) (io.ReadCloser, error) {
	return nil, ErrAbsent
}

func (p parts) ReadPart(_ context.Context, _ *Store, _ v1.Descriptor, offset, size int64) ([]byte, error) {
	return p[offset : offset+size], nil
}

// listedLayer is a layer that ends with that table.
func listedLayer(t testing.TB, table string) Layer {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := z.EncodeAll([]byte(table), nil)
	blob := append([]byte("the layer"), raw...)
	s.SetFetcher(parts(blob))
	return Layer{store: s, Descriptor: v1.Descriptor{
		MediaType: v1.MediaTypeImageLayerZstd, Digest: digest.FromBytes(blob), Size: int64(len(blob)),
		Annotations: map[string]string{
			listingDigest[0]: digest.FromBytes(raw).String(),
			listingPlace[0]:  fmt.Sprintf("9:%d:%d:1", len(raw), len(table)),
		}}}
}

func TestListing(t *testing.T) {
	l := listedLayer(t, `{"version":1,"entries":[
{"type":"dir","name":"etc/","mode":16877,"uid":3,"gid":4,"modtime":"2026-01-02T03:04:05.000000006Z","xattrs":{"user.a":"YgA="}},
{"type":"reg","name":"etc/a","mode":420,"size":5,"digest":"sha256:00","offset":1,"endOffset":9,"chunkSize":3},
{"type":"chunk","name":"etc/a","offset":5,"chunkOffset":3},
{"type":"reg","name":"etc/b","mode":2541,"size":7},
{"type":"reg","name":"b","mode":2541,"size":7},
{"type":"reg","name":".wh.c"},
{"type":"hardlink","name":"d","linkName":"b"},
{"type":"symlink","name":"e","linkName":"etc/a","mode":511},
{"type":"char","name":"f","mode":438,"devMajor":1,"devMinor":3},
{"type":"fifo","name":"g","mode":384}],"tarSplitDigest":"sha256:00"}`)
	if l.Listed() == 0 {
		t.Fatal("not listed")
	}
	rc, err := l.Listing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var got strings.Builder
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%c %s %q %o %d:%d %d:%d %d.%d %q\n", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid,
			h.Devmajor, h.Devminor, h.ModTime.Unix(), h.ModTime.Nanosecond(), h.PAXRecords["SCHILY.xattr.user.a"])
	}
	if want := `5 etc/ "" 755 3:4 0:0 1767323045.6 "b\x00"
0 etc/a "" 644 0:0 0:0 0.0 ""
0 etc/b "" 644 0:0 0:0 0.0 ""
0 b "" 644 0:0 0:0 0.0 ""
0 .wh.c "" 644 0:0 0:0 0.0 ""
1 d "b" 0 0:0 0:0 0.0 ""
2 e "etc/a" 777 0:0 0:0 0.0 ""
3 f "" 666 0:0 1:3 0.0 ""
6 g "" 600 0:0 0:0 0.0 ""
`; got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

func TestListingsThatAreNone(t *testing.T) {
	for table, want := range map[string]string{
		"":                           "EOF",
		"[]":                         "[ where { should be",
		`{"entries":{}}`:             "{ where [ should be",
		`{"entries":[{"type":"dir"`:  "EOF",
		`{"version":2}`:              "version 2",
		`{"entries":[{"type":"x"}]}`: `type "x"`,
		`{"entries":[{"name":"` + strings.Repeat("x", 5<<20) + `"}]}`:                            "in one entry",
		`{"entries":[{"type":"dir","name":"a","xattrs":{"` + strings.Repeat("=", 9) + `":""}}]}`: "",
	} {
		rc, err := listedLayer(t, table).Listing(t.Context())
		if err != nil {
			t.Errorf("%.40s: %v", table, err)
			continue
		}
		_, err = io.Copy(io.Discard, rc)
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40s: %v", table, err)
		}
		rc.Close()
	}
	l := listedLayer(t, `{"entries":[]}`)
	l.store.SetFetcher(parts(bytes.Repeat([]byte{1}, 100)))
	if _, err := l.Listing(t.Context()); err == nil || !strings.Contains(err.Error(), ErrDigest.Error()) {
		t.Errorf("wrong bytes: %v", err)
	}
	place := l.Descriptor.Annotations[listingPlace[0]]
	for _, other := range []string{"", "1:2:3", "-1:2:3:1", "9:2:3:2", "9:1000:3:1", "9:99999999999:3:1", "9223372036854775807:5:3:1", "9:5:99999999999999:1", "9:a:3:1"} {
		l.Descriptor.Annotations[listingPlace[0]] = other
		if l.Listed() != 0 {
			t.Errorf("%q is not where a table can be", other)
		}
	}
	l.Descriptor.Annotations[listingPlace[0]] = place
	l.Descriptor.MediaType = v1.MediaTypeImageLayerGzip
	if l.Listed() != 0 {
		t.Error("gzip has no frames to skip")
	}
}
