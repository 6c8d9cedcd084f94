package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// sample is a store with one image of two layers under two names, and the image.
func sample(t testing.TB) (*Store, []Tagged) {
	t.Helper()
	s, tr := testStore(t), trees{}
	d := built(t, s, tr, HostPlatform(), layerTar(1, 3<<20), layerTar(2, 10))
	names := []Tagged{{"docker.io/library/app:v1", d}, {"reg.io:5000/team/app:latest", d}}
	for _, n := range names {
		if err := s.Tag(n.Name, d); err != nil {
			t.Fatal(err)
		}
	}
	return s, names
}

// sameImage checks that d in s has the layers' content and the ID of the original.
func sameImage(t *testing.T, s *Store, d v1.Descriptor, from *Store, original v1.Descriptor) *Image {
	t.Helper()
	got := must[*Image](t)(s.Image(ctx, d, nil))
	want := must[*Image](t)(from.Image(ctx, original, nil))
	if got.ID() != want.ID() {
		t.Errorf("ID %s, was %s", got.ID(), want.ID())
	}
	for i, l := range got.Layers() {
		if l.DiffID != want.Layers()[i].DiffID {
			t.Errorf("layer %d is another", i)
		}
		rc := must[io.ReadCloser](t)(l.Uncompressed(ctx))
		if _, err := io.Copy(io.Discard, rc); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		rc.Close()
	}
	return got
}

func TestArchivesGoRound(t *testing.T) {
	s, names := sample(t)
	for _, c := range []struct {
		opts  WriteOptions
		layer string
	}{
		{WriteOptions{}, v1.MediaTypeImageLayerGzip},
		{WriteOptions{Compression: Gzip, Level: 1}, v1.MediaTypeImageLayerGzip},
		{WriteOptions{Compression: Zstd}, v1.MediaTypeImageLayerZstd},
		{WriteOptions{Compression: Uncompressed}, v1.MediaTypeImageLayer},
		{WriteOptions{Docker: true}, DockerLayerGzip},
	} {
		t.Run(fmt.Sprintf("oci %+v", c.opts), func(t *testing.T) {
			var b, again bytes.Buffer
			must[[]Tagged](t)(s.WriteOCI(ctx, &b, names, c.opts))
			must[[]Tagged](t)(s.WriteOCI(ctx, &again, names, c.opts))
			if !bytes.Equal(b.Bytes(), again.Bytes()) {
				t.Error("the same images made two archives")
			}
			fresh := testStore(t)
			got := must[[]Tagged](t)(fresh.ReadArchiveFrom(ctx, &b))
			if len(got) != 2 || got[0].Name != names[0].Name || got[1].Name != names[1].Name {
				t.Fatalf("names %v", got)
			}
			im := sameImage(t, fresh, got[0].Descriptor, s, names[0].Descriptor)
			if kind := im.Layers()[0].Descriptor.MediaType; kind != c.layer {
				t.Errorf("layers are %s", kind)
			}
			for _, n := range got {
				if err := fresh.Tag(n.Name, n.Descriptor); err != nil {
					t.Error(err)
				}
			}
			wholesome(t, fresh)

			// As a directory, twice: the second time nothing changes.
			dir := t.TempDir()
			for range 2 {
				must[[]Tagged](t)(s.WriteOCIDir(ctx, dir, names, c.opts))
			}
			got = must[[]Tagged](t)(testStore(t).ReadArchive(ctx, dir))
			if len(got) != 2 || got[0].Descriptor.Digest != im.Descriptor().Digest {
				t.Errorf("directory: %v", got)
			}
			// And forced back to no compression: the same manifest as at first, but for docker's types.
			var plain bytes.Buffer
			must[[]Tagged](t)(fresh.WriteOCI(ctx, &plain, []Tagged{{"x", im.Descriptor()}}, WriteOptions{Compression: Uncompressed, ForceCompression: true}))
			got = must[[]Tagged](t)(testStore(t).ReadArchiveFrom(ctx, &plain))
			if !c.opts.Docker && got[0].Descriptor.Digest != names[0].Descriptor.Digest {
				t.Errorf("uncompressed again: %s, was %s", got[0].Descriptor.Digest, names[0].Descriptor.Digest)
			}
		})
	}
	t.Run("docker", func(t *testing.T) {
		var b bytes.Buffer
		if err := s.WriteDocker(ctx, &b, names, nil); err != nil {
			t.Fatal(err)
		}
		raw := b.Bytes()
		for name, packed := range map[string][]byte{"plain": raw, "gzip": gz(raw), "zstd": zst(t, raw)} {
			fresh := testStore(t)
			got, err := fresh.ReadArchiveFrom(ctx, bytes.NewReader(packed))
			if err != nil || len(got) != 2 || got[0].Name != names[0].Name {
				t.Fatalf("%s: %v, %v", name, got, err)
			}
			sameImage(t, fresh, got[0].Descriptor, s, names[0].Descriptor)
		}
		// Only manifest.json, as podman and old dockers write it.
		old := rewriteTar(t, raw, func(h *tar.Header) bool { return h.Name != "index.json" && h.Name != "oci-layout" })
		fresh := testStore(t)
		got := must[[]Tagged](t)(fresh.ReadArchiveFrom(ctx, bytes.NewReader(old)))
		if len(got) != 2 || got[1].Name != names[1].Name {
			t.Fatalf("got %v", got)
		}
		sameImage(t, fresh, got[0].Descriptor, s, names[0].Descriptor)
	})
}

// The first dockers to have manifest.json named layers by directory, wrote one that
// occurs twice as a link, and kept others compressed.
func TestOldDockerArchive(t *testing.T) {
	one, two := layerTar(1, 100), layerTar(2, 100)
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q,%q,%q]}}`,
		digest.FromBytes(one), digest.FromBytes(two), digest.FromBytes(one))
	archive := makeTar(t,
		entry{name: "aaa/VERSION", content: "1.0"},
		entry{name: "aaa/layer.tar", content: string(one)},
		entry{name: "bbb/layer.tar", content: string(gz(two))},
		entry{name: "ccc/layer.tar", link: "../aaa/layer.tar", kind: tar.TypeSymlink},
		entry{name: "./config.json", content: config},
		entry{name: "manifest.json", content: `[{"Config":"config.json","RepoTags":null,"Layers":["aaa/layer.tar","bbb/layer.tar","ccc/layer.tar"]}]`},
	)
	s := testStore(t)
	got := must[[]Tagged](t)(s.ReadArchiveFrom(ctx, bytes.NewReader(archive)))
	if len(got) != 1 || got[0].Name != "" {
		t.Fatalf("got %v", got)
	}
	im := must[*Image](t)(s.Image(ctx, got[0].Descriptor, nil))
	if im.ID() != digest.FromString(config) || im.Layers()[1].Descriptor.MediaType != v1.MediaTypeImageLayerGzip {
		t.Errorf("%+v", im.Manifest())
	}
	if err := s.Tag("", got[0].Descriptor); err != nil {
		t.Error(err)
	}
	wholesome(t, s)
}

type entry struct {
	name, content, link string
	kind                byte
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Size: int64(len(e.content)), Mode: 0o644}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.content)
	}
	w.Close()
	return b.Bytes()
}

func rewriteTar(t *testing.T, raw []byte, keep func(*tar.Header) bool) []byte {
	t.Helper()
	var b bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(raw)), tar.NewWriter(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if keep(h) {
			w.WriteHeader(h)
			io.Copy(w, r)
		}
	}
	w.Close()
	return b.Bytes()
}

func gz(raw []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(raw)
	z.Close()
	return b.Bytes()
}

func zst(t testing.TB, raw []byte) []byte {
	var b bytes.Buffer
	z := must[*zstd.Encoder](t)(zstd.NewWriter(&b))
	z.Write(raw)
	z.Close()
	return b.Bytes()
}

func TestReadLayoutByName(t *testing.T) {
	s, names := sample(t)
	dir := t.TempDir()
	must[[]Tagged](t)(s.WriteOCIDir(ctx, dir, names, WriteOptions{}))
	for name, want := range map[string]int{"": 2, "v1": 1, "latest": 1, "docker.io/library/app:v1": 1} {
		got, err := testStore(t).ReadLayout(ctx, dir, name)
		if err != nil || len(got) != want {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	if _, err := testStore(t).ReadLayout(ctx, dir, "nope"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestIndexGoesRound(t *testing.T) {
	s, tr := testStore(t), trees{}
	var children []v1.Descriptor
	for i, arch := range []string{"amd64", "arm64"} {
		p := v1.Platform{OS: "linux", Architecture: arch}
		d := built(t, s, tr, p, layerTar(uint64(i), 1000))
		d.Platform = &p
		children = append(children, d)
	}
	subject := NewSubject("pkg:docker/multi", children[0].Digest)
	att := must[v1.Descriptor](t)(s.PutAttestations(ctx, children[0].Digest, []Statement{
		{Type: StatementType, PredicateType: "one", Subject: []Subject{subject, {Name: "other", Digest: map[string]string{"sha1": "1"}}}, Predicate: json.RawMessage(`{"a":"<&>"}`)},
		{Type: StatementType, PredicateType: "two"},
	}))
	index := must[v1.Descriptor](t)(s.PutIndex(ctx, append(children, att), PutOptions{Annotations: map[string]string{"a": "b"}}))
	if err := s.Tag("multi", index); err != nil {
		t.Fatal(err)
	}
	wholesome(t, s)
	var b bytes.Buffer
	must[[]Tagged](t)(s.WriteOCI(ctx, &b, []Tagged{{"multi", index}}, WriteOptions{}))
	fresh := testStore(t)
	got := must[[]Tagged](t)(fresh.ReadArchiveFrom(ctx, &b))
	ix := must[v1.Index](t)(fresh.Index(ctx, got[0].Descriptor))
	if len(ix.Manifests) != 3 || ix.Annotations["a"] != "b" || ix.Manifests[2].Annotations[annotationSubject] != ix.Manifests[0].Digest.String() {
		t.Errorf("%+v", ix)
	}
	// The layers were compressed on the way: the statements name the image that came of it.
	said := must[[]Statement](t)(fresh.Attestations(ctx, ix, ix.Manifests[0].Digest))
	if len(said) != 2 || said[0].PredicateType != "one" || string(said[0].Predicate) != `{"a":"<&>"}` || said[1].PredicateType != "two" ||
		said[0].Subject[0].Digest["sha256"] != ix.Manifests[0].Digest.Encoded() || said[0].Subject[1].Digest["sha1"] != "1" {
		t.Errorf("%+v", said)
	}
	if ix.Manifests[0].Digest == children[0].Digest {
		t.Error("the image's digest is the old one: nothing was shown")
	}
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	if im, err := fresh.Image(ctx, got[0].Descriptor, &arm); err != nil || im.Platform().Architecture != "arm64" {
		t.Errorf("%v, %v", im, err)
	}
	if err := fresh.Tag("multi", got[0].Descriptor); err != nil {
		t.Error(err)
	}
	wholesome(t, fresh)
	var d bytes.Buffer
	if err := s.WriteDocker(ctx, &d, []Tagged{{"multi", index}}, &arm); err != nil {
		t.Error(err)
	}
}

// skopeo and umoci read what is written here, and what they write is read.
func TestOutsiders(t *testing.T) {
	s, names := sample(t)
	dir := filepath.Join(t.TempDir(), "layout")
	must[[]Tagged](t)(s.WriteOCIDir(ctx, dir, names[:1], WriteOptions{}))
	docker := filepath.Join(t.TempDir(), "docker.tar")
	f := must[*os.File](t)(os.Create(docker))
	if err := s.WriteDocker(ctx, f, names, nil); err != nil {
		t.Fatal(err)
	}
	f.Close()
	archive := filepath.Join(t.TempDir(), "oci.tar")
	f = must[*os.File](t)(os.Create(archive))
	must[[]Tagged](t)(s.WriteOCI(ctx, f, names[:1], WriteOptions{Compression: Zstd}))
	f.Close()
	t.Run("skopeo", func(t *testing.T) {
		run := outsider(t, "skopeo")
		for _, from := range []string{"oci:" + dir + ":v1", "docker-archive:" + docker + ":app:v1", "oci-archive:" + archive + ":v1"} {
			var doc struct{ Layers []string }
			if err := json.Unmarshal(run("inspect", from), &doc); err != nil || len(doc.Layers) != 2 {
				t.Errorf("%s: %v, %v", from, doc, err)
			}
			for _, to := range []string{"oci:", "oci-archive:", "docker-archive:"} {
				file := filepath.Join(t.TempDir(), "out")
				name := ":latest"
				if to == "docker-archive:" {
					if strings.HasPrefix(from, "oci-archive:") {
						continue // zstd, which skopeo does not put into docker's formats
					}
					name = ":docker.io/library/back:v2"
				}
				run("--insecure-policy", "copy", "-q", from, to+file+name)
				fresh := testStore(t)
				got, err := fresh.ReadArchive(ctx, file)
				if err != nil || len(got) != 1 {
					t.Errorf("%s → %s: %v, %v", from, to, got, err)
					continue
				}
				if to == "docker-archive:" && got[0].Name != "docker.io/library/back:v2" {
					t.Errorf("name %q", got[0].Name)
				}
				if strings.HasPrefix(from, "docker") == strings.HasPrefix(to, "docker") { // else skopeo writes the config anew
					sameImage(t, fresh, got[0].Descriptor, s, names[0].Descriptor)
				}
			}
		}
		// The store itself is a layout: a compressed or pulled image in it can be read as it stands.
		fresh := testStore(t)
		got := must[[]Tagged](t)(fresh.ReadArchive(ctx, dir))
		if err := fresh.Tag(got[0].Name, got[0].Descriptor); err != nil {
			t.Fatal(err)
		}
		run("inspect", "oci:"+fresh.Dir()+":v1")
	})
	t.Run("umoci", func(t *testing.T) {
		run := outsider(t, "umoci")
		bundle := filepath.Join(t.TempDir(), "bundle")
		run("unpack", "--rootless", "--image", dir+":v1", bundle)
		if _, err := os.Stat(filepath.Join(bundle, "rootfs", "file-1")); err != nil {
			t.Error(err)
		}
		run("gc", "--layout", dir)
		run("stat", "--image", dir+":v1")
	})
}

// outsider runs a program that the machine may have.
func outsider(t *testing.T, name string) func(args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	return func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command(name, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
		}
		return out
	}
}
