package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// attacks.md 1, 4, 8, 9, 10, 11: archives whose paths, links, compression, sizes, documents or digests are attacks. Each
// is refused, and the store is whole and usable afterwards.
func TestHostileArchives(t *testing.T) {
	layout := entry{name: "oci-layout", content: layoutFile}
	index := func(d string) entry {
		return entry{name: "index.json", content: `{"schemaVersion":2,"manifests":[` + d + `]}`}
	}
	descriptor := func(kind, dgst string, size int) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, kind, dgst, size)
	}
	blob := func(content string) entry {
		return entry{name: "blobs/sha256/" + digest.FromString(content).Encoded(), content: content}
	}
	layer := string(layerTar(1, 10))
	config := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + digest.FromString(layer).String() + `"]}}`
	manifest := func(l string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s]}`, descriptor(v1.MediaTypeImageConfig, digest.FromString(config).String(), len(config)), l)
	}
	image := func(m string, more ...entry) []byte {
		return makeTar(t, append(more, layout, blob(config), blob(m), index(descriptor(v1.MediaTypeImageManifest, digest.FromString(m).String(), len(m))))...)
	}
	good := manifest(descriptor(v1.MediaTypeImageLayer, digest.FromString(layer).String(), len(layer)))
	sparse := func() []byte { // 1 TiB of holes
		raw := makeTar(t, entry{name: "x", content: ""})
		copy(raw[156:], "S")
		copy(raw[483:], "000000000000")
		copy(raw[483:495], []byte{0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0})
		fixChecksum(raw[:512])
		return raw
	}
	if got, err := testStore(t).ReadArchiveFrom(ctx, bytes.NewReader(image(good, blob(layer)))); err != nil || len(got) != 1 {
		t.Fatalf("the image that the others are made from: %v", err)
	}
	cases := map[string][]byte{
		"empty":                      nil,
		"not a tar":                  []byte(strings.Repeat("x", 2000)),
		"a tar of something":         makeTar(t, entry{name: "etc/passwd", content: "x"}),
		"climbing entry":             makeTar(t, entry{name: "../../x", content: "x"}),
		"climbing in the middle":     makeTar(t, entry{name: "a/../../b", content: "x"}),
		"absolute entry":             makeTar(t, entry{name: "/etc/cron.d/x", content: "x"}),
		"long name":                  makeTar(t, entry{name: strings.Repeat("a/", 5000) + "x", content: "x"}),
		"blob with a bad digest":     makeTar(t, entry{name: "blobs/sha256/..", content: "x"}),
		"blob of another digest":     image(good, entry{name: blob(layer).name, content: "other"}),
		"missing layer":              image(good),
		"layer outside":              makeTar(t, entry{name: "l", link: "../../etc/passwd", kind: tar.TypeSymlink}),
		"device":                     makeTar(t, entry{name: "d", kind: tar.TypeChar}),
		"two indexes":                makeTar(t, layout, index(""), index("")),
		"index with a bad digest":    makeTar(t, layout, index(descriptor(v1.MediaTypeImageManifest, "sha256:../../x", 1))),
		"foreign layer":              image(manifest(descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", digest.FromString(layer).String(), len(layer))), blob(layer)),
		"more layers than DiffIDs":   image(manifest(strings.Repeat(descriptor(v1.MediaTypeImageLayer, digest.FromString(layer).String(), len(layer))+",", 2)+descriptor(v1.MediaTypeImageLayer, digest.FromString(layer).String(), len(layer))), blob(layer)),
		"wrong size":                 image(manifest(descriptor(v1.MediaTypeImageLayer, digest.FromString(layer).String(), len(layer)-1)), blob(layer)),
		"manifest called an index":   makeTar(t, layout, blob(config), blob(layer), blob(good), index(descriptor(v1.MediaTypeImageIndex, digest.FromString(good).String(), len(good)))),
		"huge index.json":            makeTar(t, layout, entry{name: "index.json", content: `{"schemaVersion":2,"x":"` + strings.Repeat("x", maxArchiveNames) + `"}`}),
		"other layout version":       makeTar(t, entry{name: "oci-layout", content: `{"imageLayoutVersion":"9"}`}, index("")),
		"docker, config missing":     makeTar(t, entry{name: "manifest.json", content: `[{"Config":"c","Layers":[]}]`}),
		"docker, config outside":     makeTar(t, entry{name: "manifest.json", content: `[{"Config":"../../etc/passwd","Layers":[]}]`}),
		"docker, wrong layer":        makeTar(t, entry{name: "c", content: config}, entry{name: "l", content: "x"}, entry{name: "manifest.json", content: `[{"Config":"c","Layers":["l"]}]`}),
		"docker, links in a ring":    makeTar(t, entry{name: "a", link: "b", kind: tar.TypeSymlink}, entry{name: "b", link: "a", kind: tar.TypeSymlink}, entry{name: "manifest.json", content: `[{"Config":"a","Layers":[]}]`}),
		"docker, bad name":           makeTar(t, entry{name: "c", content: `{"rootfs":{}}`}, entry{name: "manifest.json", content: `[{"Config":"c","RepoTags":["../x"],"Layers":[]}]`}),
		"truncated gzip":             gz(image(good, blob(layer)))[:200],
		"truncated tar":              image(good, blob(layer))[:2000],
		"truncated zstd":             zst(t, image(good, blob(layer)))[:200],
		"zstd with a giant window":   {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0, 0, 0, 0, 0, 0, 0, 0},
		"sparse file of a terabyte":  sparse(),
		"indexes in indexes, looped": nested(t, 5),
	}
	for name, raw := range cases {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			got, err := s.ReadArchiveFrom(ctx, bytes.NewReader(raw))
			if err == nil {
				t.Fatalf("was read as %v", got)
			}
			if strings.Contains(err.Error(), "panic") {
				t.Error(err)
			}
			wholesome(t, s)
			if _, err := s.PutImage(ctx, Config{}, nil, PutOptions{}); err != nil {
				t.Errorf("the store afterwards: %v", err)
			}
		})
	}
}

// nested is an index in an index in an index, depth deep.
func nested(t *testing.T, depth int) []byte {
	doc := `{"schemaVersion":2,"manifests":[]}`
	entries := []entry{{name: "oci-layout", content: layoutFile}}
	for range depth {
		entries = append(entries, entry{name: "blobs/sha256/" + digest.FromString(doc).Encoded(), content: doc})
		doc = fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, v1.MediaTypeImageIndex, digest.FromString(doc), len(doc))
	}
	return makeTar(t, append(entries, entry{name: "index.json", content: doc})...)
}

func fixChecksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func FuzzReadArchive(f *testing.F) {
	s, names := sample(f)
	_ = s
	var b bytes.Buffer
	small := testStore(f)
	d := built(f, small, trees{}, HostPlatform(), layerTar(1, 10))
	if err := small.WriteDocker(ctx, &b, []Tagged{{names[0].Name, d}}, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(gz(b.Bytes()))
	f.Add(nested(&testing.T{}, 1))
	dir := f.TempDir()
	into, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		images, err := into.ReadArchiveFrom(ctx, bytes.NewReader(raw))
		if err != nil {
			return
		}
		for _, im := range images {
			if err := into.Tag(im.Name, im.Descriptor); err != nil {
				t.Fatalf("read but not tagged: %v", err)
			}
			into.Remove(im.Descriptor.Digest)
		}
	})
}

func TestForeignLayoutStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	content := `{"schemaVersion":2,"manifests":[]}`
	if err := os.WriteFile(outside, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755)
	os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(layoutFile), 0o644)
	os.WriteFile(filepath.Join(dir, "index.json"), []byte(fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		v1.MediaTypeImageIndex, digest.FromString(content), len(content))), 0o644)
	os.Symlink(outside, filepath.Join(dir, blobPath(digest.FromString(content))))
	if got, err := testStore(t).ReadLayout(ctx, dir, ""); err == nil {
		t.Errorf("followed a link out of the layout: %v", got)
	}
	if err := exec.Command("mkfifo", filepath.Join(dir, "fifo")).Run(); err == nil {
		os.Rename(filepath.Join(dir, "fifo"), filepath.Join(dir, "index.json"))
		if _, err := testStore(t).ReadLayout(ctx, dir, ""); !errors.Is(err, ErrInvalid) {
			t.Errorf("a FIFO: %v", err)
		}
	}
}
