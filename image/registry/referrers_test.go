package registry

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"mk/image"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What is said of an image is found by its digest, in registries that know referrers and in those that do not.
func TestReferrers(t *testing.T) {
	for name, knows := range map[string]bool{"api": true, "tag": false} {
		t.Run(name, func(t *testing.T) {
			f := wrap(t, httptest.NewServer, ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(knows)), nil)
			f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
				if knows && r.Method == http.MethodPut { // as a registry says that it has taken note
					w.Header().Set("OCI-Subject", "sha256:…")
				}
				return false
			})
			s := testStore(t)
			d := built(t, s, image.HostPlatform(), layerTar(1, 500))
			ref := f.ref(t, "app:v1")
			subject, err := quick().Push(ctx, s, d, ref, PushOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := quick().Referrers(ctx, ref, ""); err != nil || len(got) != 0 {
				t.Fatalf("before: %v, %v", got, err)
			}
			for _, kind := range []string{"application/x.signature", "application/x.sbom"} {
				attach(t, s, ref, subject, kind)
			}
			attach(t, s, ref, subject, "application/x.sbom") // again: it is the same
			if got, err := quick().Referrers(ctx, ref, ""); err != nil || len(got) != 2 {
				t.Errorf("all: %v, %v", got, err)
			}
			got, err := quick().Referrers(ctx, ref.WithDigest(subject.Digest), "application/x.sbom")
			if err != nil || len(got) != 1 || got[0].ArtifactType != "application/x.sbom" {
				t.Errorf("one type: %v, %v", got, err)
			}
			tags, err := quick().Tags(ctx, ref)
			if err != nil || slices.Contains(tags, fallbackTag(subject.Digest)) == knows {
				t.Errorf("tags %v, %v", tags, err)
			}
		})
	}
}

// attach pushes a manifest about a subject, by its digest.
func attach(t *testing.T, s *image.Store, ref image.Reference, subject v1.Descriptor, kind string) {
	t.Helper()
	var m v1.Manifest
	m.SchemaVersion, m.MediaType, m.ArtifactType = 2, v1.MediaTypeImageManifest, kind
	m.Config = v1.DescriptorEmptyJSON
	m.Config.Data, m.Config.MediaType = nil, kind // this registry goes by it
	m.Layers = []v1.Descriptor{m.Config}
	m.Subject = &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	if _, err := s.Put(ctx, strings.NewReader("{}"), &m.Config); err != nil {
		t.Fatal(err)
	}
	d, err := s.PutManifest(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := quick().Push(ctx, s, d, ref.WithDigest(d.Digest), PushOptions{}); err != nil {
		t.Fatal(err)
	}
}
