package registry

import (
	"errors"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"mk/image"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPushAndPull(t *testing.T) {
	f, ref, sent := pushed(t)
	if sent.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("sent %v", sent)
	}
	s := testStore(t)
	var events []Event
	d, err := quick().Pull(ctx, ref, s, nil, func(e Event) { events = append(events, e) })
	if err != nil || d.Digest != sent.Digest {
		t.Fatalf("%v, %v", d, err)
	}
	if err := s.Tag(ref.String(), d); err != nil {
		t.Fatal(err)
	}
	readable(t, s, d)
	wholesome(t, s)
	done := 0
	for _, e := range events {
		if e.State == Complete {
			done++
		}
	}
	if done != 3 {
		t.Errorf("%d blobs completed: %v", done, events)
	}
	// Again: blobs are there.
	f.spoil(nil)
	if _, err := quick().Pull(ctx, ref, s, nil, nil); err != nil || f.counted("GET blobs") != 0 {
		t.Errorf("%v, %d blobs fetched again", err, f.counted("GET blobs"))
	}
	// By digest: nothing is asked.
	f.spoil(nil)
	if _, err := quick().Pull(ctx, ref.WithDigest(d.Digest), s, nil, nil); err != nil || len(f.requests) != 0 {
		t.Errorf("%v, requests %v", err, f.requests)
	}
	// But another repository is asked whether it has it.
	if _, err := quick().Pull(ctx, f.ref(t, "other/app").WithDigest(d.Digest), s, nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("another repository: %v", err)
	}
	if got, err := quick().Resolve(ctx, ref); err != nil || got.Digest != d.Digest || got.Size != d.Size {
		t.Errorf("%v, %v", got, err)
	}
	if tags, err := quick().Tags(ctx, ref); err != nil || !slices.Equal(tags, []string{"v1"}) {
		t.Errorf("%v, %v", tags, err)
	}
}

func TestPushSkipsAndMounts(t *testing.T) {
	f := newFaulty(t, nil)
	s := testStore(t)
	d := built(t, s, image.HostPlatform(), layerTar(1, 100_000), layerTar(2, 500))
	c := quick()
	first, err := c.Push(ctx, s, d, f.ref(t, "a:1"), PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.spoil(nil)
	again, err := c.Push(ctx, s, d, f.ref(t, "a:1"), PushOptions{})
	if err != nil || again.Digest != first.Digest || f.counted("PATCH uploads")+f.counted("PUT manifests") != 0 {
		t.Errorf("%v; sent again: %v", err, f.requests)
	}
	f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.Method == http.MethodHead && kindOf(r) == "blobs" {
			w.WriteHeader(http.StatusNotFound) // go-containerregistry's registry has no repositories
			return true
		}
		if r.Method == http.MethodPost && r.URL.Query().Get("mount") != "" {
			if r.URL.Query().Get("from") != "a" {
				t.Errorf("mount from %s", r.URL)
			}
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	})
	c = quick()
	if _, err := c.Push(ctx, s, first, f.ref(t, "b:1"), PushOptions{}); !errors.Is(err, image.ErrAbsent) {
		t.Errorf("a manifest that is only there: %v", err)
	}
	pulled := testStore(t)
	f.spoil(nil)
	got, err := c.Pull(ctx, f.ref(t, "a:1"), pulled, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.Method == http.MethodHead && kindOf(r) == "blobs" {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		if r.Method == http.MethodPost && r.URL.Query().Get("mount") != "" {
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	})
	var mounted int
	if _, err := c.Push(ctx, pulled, got, f.ref(t, "b:1"), PushOptions{Progress: func(e Event) {
		if e.State == Mounted {
			mounted++
		}
	}}); err != nil || mounted != 2 {
		t.Errorf("%v, %d layers mounted; %v", err, mounted, f.requests)
	}
}

func TestCompressionsOfAPush(t *testing.T) {
	f := newFaulty(t, nil)
	s := testStore(t)
	d := built(t, s, image.HostPlatform(), layerTar(1, 2<<20), layerTar(2, 500), nil)
	for how, kind := range map[image.Compression]string{image.Gzip: v1.MediaTypeImageLayerGzip, image.Zstd: v1.MediaTypeImageLayerZstd, image.Uncompressed: v1.MediaTypeImageLayer} {
		ref := f.ref(t, "app:"+string(how))
		if _, err := quick().Push(ctx, s, d, ref, PushOptions{Write: image.WriteOptions{Compression: how}}); err != nil {
			t.Errorf("%s: %v", how, err)
			continue
		}
		fresh := testStore(t)
		got, err := quick().Pull(ctx, ref, fresh, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", how, err)
			continue
		}
		readable(t, fresh, got)
		im, _ := fresh.Image(ctx, got, nil)
		if im.Layers()[0].Descriptor.MediaType != kind {
			t.Errorf("%s: %s", how, im.Layers()[0].Descriptor.MediaType)
		}
	}
	docker, err := quick().Push(ctx, s, d, f.ref(t, "app:docker"), PushOptions{Write: image.WriteOptions{Docker: true}})
	if err != nil || docker.MediaType != image.DockerManifest {
		t.Errorf("%v, %v", docker, err)
	}
	fresh := testStore(t)
	if got, err := quick().Pull(ctx, f.ref(t, "app:docker"), fresh, nil, nil); err != nil {
		t.Error(err)
	} else {
		readable(t, fresh, got)
	}
}

func TestLayersComeWhenNeeded(t *testing.T) {
	f, ref, sent := pushed(t)
	s := testStore(t)
	c := quick()
	im, err := c.Manifest(ctx, ref, s, nil)
	if err != nil || im.Descriptor().Digest != sent.Digest || f.counted("GET blobs") != 1 {
		t.Fatalf("%v, %v, %d blobs", im, err, f.counted("GET blobs"))
	}
	if err := s.Tag(ref.String(), im.Target()); err != nil {
		t.Fatal(err)
	}
	wholesome(t, s)
	l := im.Layers()[0]
	if _, err := l.Open(ctx); !errors.Is(err, image.ErrAbsent) || !strings.Contains(err.Error(), ref.Repository()) {
		t.Errorf("nobody to fetch: %v", err)
	}
	if err := c.FetchLayer(ctx, s, l.Descriptor); err != nil {
		t.Fatal(err)
	}
	if ok, _ := l.Present(); !ok {
		t.Error("not there")
	}
	s.SetFetcher(c)
	readable(t, s, im.Descriptor())
	// A base that was never fetched is pushed on by mounting, without a byte of it here.
	lazy := testStore(t)
	f.spoil(nil)
	base, err := c.Manifest(ctx, ref, lazy, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Push(ctx, lazy, base.Descriptor(), f.ref(t, "team/copy:1"), PushOptions{}); err != nil {
		t.Error(err)
	}
	if n := f.counted("GET blobs"); n != 1 {
		t.Errorf("%d blobs fetched to push what the registry has", n)
	}
	if err := c.FetchLayer(ctx, lazy, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromString("x"), Size: 1}); !errors.Is(err, image.ErrAbsent) {
		t.Errorf("no source: %v", err)
	}
}

func TestIndexes(t *testing.T) {
	f := newFaulty(t, nil)
	s := testStore(t)
	tr := trees{}
	var children []v1.Descriptor
	for i, arch := range []string{"amd64", "arm64", "s390x"} {
		p := v1.Platform{OS: "linux", Architecture: arch}
		raw := layerTar(uint64(i), 1000)
		d := built(t, s, p, raw)
		tr[digest.FromBytes(raw)] = raw
		d.Platform = &p
		children = append(children, d)
	}
	s.SetLayers(tr)
	index, err := s.PutIndex(ctx, children, image.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ref := f.ref(t, "multi")
	sent, err := quick().Push(ctx, s, index, ref, PushOptions{})
	if err != nil || !image.IsIndex(sent.MediaType) {
		t.Fatalf("%v, %v", sent, err)
	}
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	one := testStore(t)
	d, err := quick().Pull(ctx, ref, one, &arm, nil)
	if err != nil || d.Digest != sent.Digest {
		t.Fatalf("%v, %v", d, err)
	}
	if err := one.Tag("multi", d); err != nil {
		t.Fatal(err)
	}
	wholesome(t, one)
	if im, err := one.Resolve("multi", nil); err != nil || im.Platform().Architecture != "arm64" {
		t.Errorf("the one platform that is here: %v", err)
	}
	if got, err := quick().Push(ctx, one, d, f.ref(t, "part"), PushOptions{}); err != nil || !image.IsManifest(got.MediaType) {
		t.Errorf("part of an index: %v, %v", got, err)
	}
	all := testStore(t)
	if d, err := quick().PullAll(ctx, ref, all, nil); err != nil {
		t.Error(err)
	} else if ix, err := all.Index(ctx, d); err != nil || len(ix.Manifests) != 3 {
		t.Errorf("%v, %v", ix, err)
	}
	riscv := v1.Platform{OS: "linux", Architecture: "riscv64"}
	if _, err := quick().Pull(ctx, ref, testStore(t), &riscv, nil); !errors.Is(err, image.ErrPlatform) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("riscv64: %v", err)
	}
}

func TestNoRegistryThere(t *testing.T) {
	f := newFaulty(t, nil)
	ref := f.ref(t, "x")
	f.Close()
	c := quick()
	c.Retries = -1
	if _, err := c.Pull(ctx, ref, testStore(t), nil, nil); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}

func TestPushSurvives(t *testing.T) {
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, int) bool{
		"500 first": func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n < 2 {
				w.WriteHeader(500)
			}
			return n < 2
		},
		"hangs up in the middle": func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method != http.MethodPatch || n >= 2 {
				return false
			}
			io.CopyN(io.Discard, r.Body, 10_000)
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t, nil)
			f.spoil(fault)
			s := testStore(t)
			d := built(t, s, image.HostPlatform(), layerTar(1, 2<<20), layerTar(2, 500))
			ref := f.ref(t, "app")
			if _, err := quick().Push(ctx, s, d, ref, PushOptions{}); err != nil {
				t.Fatal(err)
			}
			f.spoil(nil)
			fresh := testStore(t)
			got, err := quick().Pull(ctx, ref, fresh, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			readable(t, fresh, got)
		})
	}
	t.Run("a rotten tree is not sent", func(t *testing.T) {
		f := newFaulty(t, nil)
		s := testStore(t)
		d := built(t, s, image.HostPlatform(), layerTar(1, 2<<20))
		s.SetLayers(rotten{})
		_, err := quick().Push(ctx, s, d, f.ref(t, "app"), PushOptions{})
		if !errors.Is(err, image.ErrDigest) || f.counted("PUT manifests") != 0 || f.counted("PATCH uploads") > 2 /* the config, and once the layer */ {
			t.Errorf("%v; %v", err, f.requests)
		}
	})
}

func TestMirrors(t *testing.T) {
	f, _, sent := pushed(t)
	down := newFaulty(t, nil)
	down.Close()
	mirrors, err := ParseMirrors("docker.io=http://" + down.host + ",docker.io=" + f.host + "/team,reg.io=https://mirror.io/v2/")
	if err != nil || len(mirrors["docker.io"]) != 2 {
		t.Fatalf("%v, %v", mirrors, err)
	}
	c := quick()
	c.Mirrors = mirrors
	// docker.io/library/x → team/library/x on the mirror.
	s := testStore(t)
	source := testStore(t)
	if _, err := quick().Pull(ctx, f.ref(t, "team/app:v1"), source, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := quick().Push(ctx, source, sent, f.ref(t, "team/library/app:v1"), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	ref, _ := image.ParseReference("app:v1")
	d, err := c.Pull(ctx, ref, s, nil, nil)
	if err != nil || d.Digest != sent.Digest {
		t.Fatalf("%v, %v", d, err)
	}
	if got := s.Sources(d.Digest); !slices.Equal(got, []string{"docker.io/library/app"}) {
		t.Errorf("the source is %v, not the name's own repository", got)
	}
	for _, bad := range []string{"docker.io", "docker.io=ftp://x", "=http://x", "docker.io=http://user:pw@x", "docker.io=http://"} {
		if _, err := ParseMirrors(bad); err == nil {
			t.Errorf("%q", bad)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	f, ref, sent := pushed(t)
	s := testStore(t)
	c := quick()
	errs := make(chan error)
	for range 8 {
		go func() {
			d, err := c.Pull(ctx, ref, s, nil, nil)
			if err == nil {
				err = s.Tag(ref.String(), d)
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := f.counted("GET blobs"); n != 3 {
		t.Errorf("%d downloads of 3 blobs", n)
	}
	readable(t, s, sent)
	wholesome(t, s)
}

// skopeo understands what was pushed, and what it pushes is understood.
func TestSkopeo(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip(err)
	}
	f, ref, sent := pushed(t)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("skopeo", args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %v: %v\n%s", args, err, out)
		}
	}
	at := "docker://" + ref.String()
	run("inspect", "--tls-verify=false", at)
	run("--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", at, "docker://"+f.host+"/team/by-skopeo:1")
	s := testStore(t)
	d, err := quick().Pull(ctx, f.ref(t, "team/by-skopeo:1"), s, nil, nil)
	if err != nil || d.Digest != sent.Digest {
		t.Fatalf("%v, %v", d, err)
	}
	readable(t, s, d)
}
