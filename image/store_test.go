package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var ctx = context.Background()

func TestPutAndOpen(t *testing.T) {
	s := testStore(t)
	content := []byte("hello")
	d := must[v1.Descriptor](t)(s.Put(ctx, bytes.NewReader(content), nil))
	if d.Digest != digest.FromBytes(content) || d.Size != 5 {
		t.Errorf("got %v", d)
	}
	rc := must[io.ReadCloser](t)(s.Open(ctx, d))
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, bad := range map[string]v1.Descriptor{
		"other digest": {Digest: someDigest, Size: 5},
		"too long":     {Digest: d.Digest, Size: 4},
		"too short":    {Digest: d.Digest, Size: 6},
		"escaping":     {Digest: "sha256:../../x", Size: 5},
	} {
		if _, err := s.Put(ctx, bytes.NewReader(content), &bad); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(s.Dir(), "tmp")); len(entries) != 0 {
		t.Errorf("left %v", entries)
	}
	sum512 := digest.SHA512.FromBytes(content)
	must[v1.Descriptor](t)(s.Put(ctx, bytes.NewReader(content), &v1.Descriptor{Digest: sum512, Size: 5}))
	wholesome(t, s)
}

func TestDamagedBlobIsNotRead(t *testing.T) {
	s := testStore(t)
	d := must[v1.Descriptor](t)(s.Put(ctx, strings.NewReader("hello"), nil))
	file := filepath.Join(s.Dir(), blobPath(d.Digest))
	for name, content := range map[string]string{"changed": "hellp", "cut": "hell", "grown": "hello!"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		rc := must[io.ReadCloser](t)(s.Open(ctx, d))
		if _, err := io.ReadAll(rc); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
		rc.Close()
		if problems, _ := s.Check(ctx); len(problems) != 1 || problems[0].Digest != d.Digest {
			t.Errorf("%s: check says %v", name, problems)
		}
	}
	must[v1.Descriptor](t)(s.Put(ctx, strings.NewReader("hello"), nil)) // heals
	wholesome(t, s)
}

func TestTagUntagList(t *testing.T) {
	s, tr := testStore(t), trees{}
	a := built(t, s, tr, HostPlatform(), layerTar(1, 100))
	b := built(t, s, tr, HostPlatform(), layerTar(2, 100))
	tag := func(name string, d v1.Descriptor) {
		t.Helper()
		if err := s.Tag(name, d); err != nil {
			t.Fatal(err)
		}
	}
	names := func() string {
		var out []string
		for _, e := range must[[]Tagged](t)(s.List()) {
			which := map[digest.Digest]string{a.Digest: "a", b.Digest: "b"}[e.Descriptor.Digest]
			out = append(out, which+"="+strings.TrimPrefix(e.Name, "docker.io/library/"))
		}
		return strings.Join(out, " ")
	}
	tag("x", a)
	tag("x", a)
	tag("x:2", a)
	if got := names(); got != "a=x:latest a=x:2" {
		t.Errorf("got %s", got)
	}
	tag("x", b) // a keeps its other name
	if got := names(); got != "a=x:2 b=x:latest" {
		t.Errorf("got %s", got)
	}
	tag("x:2", b) // a has none left and stays without
	if got := names(); got != "b=x:latest a= b=x:2" {
		t.Errorf("got %s", got)
	}
	tag("", a)
	tag("y", a)
	if got := names(); got != "b=x:latest b=x:2 a=y:latest" {
		t.Errorf("got %s", got)
	}
	if d, err := s.Untag("x"); err != nil || d.Digest != b.Digest {
		t.Errorf("got %v, %v", d, err)
	}
	var e *NotFoundError
	if _, err := s.Untag("x"); !errors.As(err, &e) || !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	} else if len(e.Similar) == 0 || e.Similar[0] != "x:2" {
		t.Errorf("similar to x:latest: %v", e.Similar)
	}
	if gone, err := s.Remove(b.Digest); err != nil || len(gone) != 1 {
		t.Errorf("got %v, %v", gone, err)
	}
	if err := s.Tag("z", v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: someDigest, Size: 1}); !errors.Is(err, ErrAbsent) {
		t.Errorf("tagged what is not there: %v", err)
	}
	// The annotations are docker's and BuildKit's.
	var ix v1.Index
	raw := must[[]byte](t)(os.ReadFile(filepath.Join(s.Dir(), "index.json")))
	if err := json.Unmarshal(raw, &ix); err != nil || len(ix.Manifests) != 1 {
		t.Fatalf("%s: %v", raw, err)
	}
	if n := ix.Manifests[0].Annotations; n["io.containerd.image.name"] != "docker.io/library/y:latest" || n["org.opencontainers.image.ref.name"] != "latest" {
		t.Errorf("annotations %v", n)
	}
	wholesome(t, s)
}

func TestOpenRefusesOtherLayouts(t *testing.T) {
	for _, content := range []string{`{"imageLayoutVersion":"2.0.0"}`, `{}`, `x`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestResolve(t *testing.T) {
	s, tr := testStore(t), trees{}
	a := built(t, s, tr, HostPlatform(), layerTar(1, 100))
	b := built(t, s, tr, HostPlatform(), layerTar(2, 100))
	other := built(t, s, tr, v1.Platform{OS: "linux", Architecture: "s390x"}, layerTar(3, 100))
	host := HostPlatform()
	foreign := v1.Platform{OS: "linux", Architecture: "s390x"}
	ad, od := a, other
	ad.Platform, od.Platform = &host, &foreign
	index := must[v1.Descriptor](t)(s.PutIndex(ctx, []v1.Descriptor{ad, od}, PutOptions{}))
	for name, d := range map[string]v1.Descriptor{"app": a, "reg.io/team/app:v1": b, "multi": index, "s390": other} {
		if err := s.Tag(name, d); err != nil {
			t.Fatal(err)
		}
	}
	idOf := func(name string) string { return must[*Image](t)(s.Resolve(name, nil)).ID().String() }
	idA, idB := idOf("app"), idOf("reg.io/team/app:v1")
	for typed, want := range map[string]string{
		"app": idA, "docker.io/library/app:latest": idA, idA: idA, idA[7:]: idA, idA[7:20]: idA, idA[:20]: idA,
		"app@" + a.Digest.String(): idA, "app:latest@" + a.Digest.String(): idA, a.Digest.String(): idA, "multi": idA,
		"multi@" + index.Digest.String(): idA, "multi@" + a.Digest.String(): idA, idB[7:19]: idB, "reg.io/team/app:v1": idB,
	} {
		im, err := s.Resolve(typed, nil)
		if err != nil || im.ID().String() != want {
			t.Errorf("%s: %v, %v", typed, im, err)
		}
	}
	if im, err := s.Resolve("multi", &foreign); err != nil || im.Descriptor().Digest != other.Digest || im.Target().Digest != index.Digest {
		t.Errorf("multi for s390x: %v, %v", im, err)
	}
	if im, err := s.Resolve("s390", nil); err != nil || im.Platform().Architecture != "s390x" {
		t.Errorf("an image of another platform, none asked for: %v", err)
	}
	arm := v1.Platform{OS: "linux", Architecture: "riscv64"}
	for typed, want := range map[string]error{
		"nothing": ErrNotFound, "sha256:" + strings.Repeat("0", 64): ErrNotFound, "app@" + b.Digest.String(): ErrNotFound,
		"reg.io/team/app@" + a.Digest.String(): ErrNotFound, "UPPER": ErrInvalid, "": ErrInvalid, "sha256:../x": ErrNotFound,
	} {
		if _, err := s.Resolve(typed, nil); !errors.Is(err, want) {
			t.Errorf("%q: %v", typed, err)
		}
	}
	for _, typed := range []string{"multi", "app"} {
		if _, err := s.Resolve(typed, &arm); !errors.Is(err, ErrPlatform) {
			t.Errorf("%s for riscv64: %v", typed, err)
		}
	}
	var e *NotFoundError
	if _, err := s.Resolve("ap", nil); !errors.As(err, &e) || len(e.Similar) == 0 || e.Similar[0] != "app:latest" {
		t.Errorf("meant app: %v", e)
	}
	if _, err := s.byPrefix(must[*v1.Index](t)(s.readIndex()), "", ""); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("everything: %v", err)
	}
	sums := must[[]Summary](t)(s.Summaries(ctx))
	if len(sums) != 4 {
		t.Fatalf("got %d lines", len(sums))
	}
	for _, line := range sums {
		if line.Err != nil || line.Size == 0 || line.Created.IsZero() {
			t.Errorf("%+v", line)
		}
		if line.Reference.Familiar() == "multi:latest" && len(line.Platforms) != 2 {
			t.Errorf("multi: %v", line.Platforms)
		}
	}
	wholesome(t, s)
}

func TestLayersWithoutBlobs(t *testing.T) {
	s, tr := testStore(t), trees{}
	raw := layerTar(1, 1000)
	d := built(t, s, tr, HostPlatform(), raw)
	if err := s.Tag("x", d); err != nil {
		t.Fatal(err)
	}
	im := must[*Image](t)(s.Resolve("x", nil))
	for _, open := range []func(context.Context) (io.ReadCloser, error){im.Layers()[0].Open, im.Layers()[0].Uncompressed} {
		rc := must[io.ReadCloser](t)(open(ctx))
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%v", err)
		}
		rc.Close()
	}
	wholesome(t, s)
	tr[im.Layers()[0].DiffID] = layerTar(2, 1000) // the tree rotted
	rc := must[io.ReadCloser](t)(im.Layers()[0].Open(ctx))
	if _, err := io.ReadAll(rc); !errors.Is(err, ErrDigest) {
		t.Errorf("a changed tree: %v", err)
	}
	rc.Close()
	delete(tr, im.Layers()[0].DiffID)
	if _, err := im.Layers()[0].Open(ctx); !errors.Is(err, ErrAbsent) {
		t.Errorf("no tree: %v", err)
	}
	if problems, _ := s.Check(ctx); len(problems) != 1 || problems[0].Name != "x:latest" {
		t.Errorf("check says %v", problems)
	}
	if err := s.AddSource(im.Layers()[0].Descriptor.Digest, "reg.io/x"); err != nil {
		t.Fatal(err)
	}
	wholesome(t, s)
	if _, err := im.Layers()[0].Open(ctx); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "reg.io/x") {
		t.Errorf("known elsewhere: %v", err)
	}
}

func TestPutImageRefusesMismatch(t *testing.T) {
	s := testStore(t)
	s.SetLayers(trees{})
	layer := LayerDescriptor(someDigest, 1)
	var c Config
	if _, err := s.PutImage(ctx, c, []v1.Descriptor{layer}, PutOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("more layers than DiffIDs: %v", err)
	}
	c.RootFS.DiffIDs = []digest.Digest{digest.FromString("x")}
	if _, err := s.PutImage(ctx, c, []v1.Descriptor{layer}, PutOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a DiffID that is not the layer's: %v", err)
	}
	c.RootFS.DiffIDs = []digest.Digest{someDigest}
	layer.MediaType = v1.MediaTypeImageLayerGzip
	if _, err := s.PutImage(ctx, c, []v1.Descriptor{layer}, PutOptions{}); !errors.Is(err, ErrAbsent) {
		t.Errorf("a layer that nobody has: %v", err)
	}
}

func TestConfigKeepsUnknownFields(t *testing.T) {
	in := `{"created":"2024-01-02T03:04:05Z","architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Healthcheck":{"Test":["NONE"],"Interval":30000000000},
		"OnBuild":["RUN x"],"Shell":["/bin/bash","-c"],"ArgsEscaped":true,"StopSignal":"SIGINT","Hostname":"h","Memory":12},"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]},
		"docker_version":"1.2","moby.buildkit.buildinfo.v1":"eA==","container_config":{"Cmd":["<x>"]}}`
	c := must[Config](t)(ParseConfig([]byte(in)))
	if c.Config.Healthcheck == nil || c.Config.OnBuild[0] != "RUN x" || c.Config.Shell[0] != "/bin/bash" || !c.Config.ArgsEscaped || c.Created == nil {
		t.Errorf("%+v", c)
	}
	raw := must[[]byte](t)(json.Marshal(c))
	var want, got map[string]any
	json.Unmarshal([]byte(in), &want)
	json.Unmarshal(raw, &got)
	if w, g := must[[]byte](t)(json.Marshal(want)), must[[]byte](t)(json.Marshal(got)); !bytes.Equal(w, g) {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	if again := must[[]byte](t)(json.Marshal(c.Clone())); !bytes.Equal(raw, again) {
		t.Errorf("clone differs: %s", again)
	}
	c.Unknown, c.UnknownRun = nil, nil
	if raw := must[[]byte](t)(json.Marshal(c)); bytes.Contains(raw, []byte("docker_version")) || bytes.Contains(raw, []byte("Hostname")) {
		t.Errorf("still there: %s", raw)
	}
}

// attacks.md 10 (CVE-2021-41190): a document that could be read as two things is refused.
func TestMediaTypeConfusion(t *testing.T) {
	d := `{"mediaType":"x","digest":"` + someDigest + `","size":1}`
	manifest := `{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `]}`
	index := `{"schemaVersion":2,"manifests":[` + d + `]}`
	for name, c := range map[string]struct{ raw, kind string }{
		"both kinds of fields":           {`{"schemaVersion":2,"config":` + d + `,"layers":[],"manifests":[]}`, v1.MediaTypeImageManifest},
		"index as manifest":              {index, v1.MediaTypeImageManifest},
		"manifest as index":              {manifest, v1.MediaTypeImageIndex},
		"two media types":                {strings.Replace(manifest, "{", `{"mediaType":"`+v1.MediaTypeImageIndex+`",`, 1), v1.MediaTypeImageManifest},
		"schema 1":                       {`{"schemaVersion":1,"fsLayers":[]}`, ""},
		"foreign layer":                  {strings.Replace(manifest, `"mediaType":"x"`, `"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"`, 2), v1.MediaTypeImageManifest},
		"URLs":                           {strings.Replace(manifest, `"size":1`, `"size":1,"urls":["http://evil/"]`, 2), v1.MediaTypeImageManifest},
		"digest that climbs":             {strings.Replace(manifest, someDigest, "sha256:../../../etc/passwd", 2), v1.MediaTypeImageManifest},
		"digest of the wrong length":     {strings.Replace(manifest, someDigest, "sha512:"+someDigest[7:], 2), v1.MediaTypeImageManifest},
		"negative size":                  {strings.Replace(manifest, `"size":1`, `"size":-1`, 2), v1.MediaTypeImageManifest},
		"not JSON":                       {"x", v1.MediaTypeImageManifest},
		"an array":                       {"[]", v1.MediaTypeImageManifest},
		"neither":                        {"{}", v1.MediaTypeImageManifest},
		"something else":                 {manifest, "text/html"},
		"too many layers":                {`{"schemaVersion":2,"config":` + d + `,"layers":[` + strings.Repeat(d+",", maxLayers) + d + `]}`, v1.MediaTypeImageManifest},
		"gigantic":                       {manifest + strings.Repeat(" ", MaxManifestSize), v1.MediaTypeImageManifest},
		"fields of another by case only": {`{"schemaVersion":2,"config":` + d + `,"layers":[],"Manifests":[]}`, v1.MediaTypeImageManifest},
	} {
		if _, err := ParseManifest([]byte(c.raw), c.kind); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s, as a manifest: %v", name, err)
		}
		if _, err := ParseIndex([]byte(c.raw), c.kind); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s, as an index: %v", name, err)
		}
	}
	if _, err := ParseManifest([]byte(manifest), ""); err != nil {
		t.Error(err)
	}
	if _, err := ParseIndex([]byte(index), DockerManifestList); err != nil {
		t.Error(err)
	}
}

func FuzzManifestAndIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","size":1}]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+someDigest+`","size":1},"layers":[]}`), v1.MediaTypeImageManifest)
	f.Fuzz(func(t *testing.T, raw []byte, kind string) {
		_, asManifest := ParseManifest(raw, kind)
		_, asIndex := ParseIndex(raw, kind)
		if asManifest == nil && asIndex == nil {
			t.Fatalf("one document, two meanings: %s", raw)
		}
		if c, err := ParseConfig(raw); err == nil {
			if _, err := json.Marshal(c); err != nil {
				t.Fatalf("read but not written: %v", err)
			}
		}
		parseLayoutIndex(raw)
	})
}

func TestGC(t *testing.T) {
	s, tr := testStore(t), trees{}
	a := built(t, s, tr, HostPlatform(), layerTar(1, 100))
	b := built(t, s, tr, HostPlatform(), layerTar(2, 100))
	loose := must[v1.Descriptor](t)(s.Put(ctx, strings.NewReader("loose"), nil))
	kept := must[v1.Descriptor](t)(s.Put(ctx, strings.NewReader("kept"), nil))
	if err := s.Tag("a", a); err != nil {
		t.Fatal(err)
	}
	must[struct{}](t)(struct{}{}, s.AddSource(loose.Digest, "reg.io/x"))
	must[struct{}](t)(struct{}{}, s.AddSource(kept.Digest, "reg.io/x"))
	dead := filepath.Join(s.Dir(), "tmp", "dead")
	if err := os.WriteFile(dead, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	live := must[*temp](t)(s.temp())
	defer live.discard()
	freed := must[Freed](t)(s.GC(ctx, func(d digest.Digest) bool { return d == kept.Digest }))
	if freed.Blobs != 3 { // b's manifest and config, and loose
		t.Errorf("freed %+v", freed)
	}
	for _, c := range []struct {
		d    v1.Descriptor
		want bool
	}{{a, true}, {b, false}, {loose, false}, {kept, true}} {
		if ok, err := s.Has(c.d); ok != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.d.Digest, ok, err)
		}
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("a dead writer's file stayed")
	}
	if _, err := os.Stat(live.Name()); err != nil {
		t.Error("a live writer's file went")
	}
	if len(s.Sources(loose.Digest)) != 0 || len(s.Sources(kept.Digest)) != 1 {
		t.Error("records do not follow their blobs")
	}
	wholesome(t, s)
}
