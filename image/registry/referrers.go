package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"mk/image"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers lists the manifests of ref's repository that have ref's as their subject (signatures,
// attestations), of one artifact type or, for "", of all. A ref by tag is resolved first. Where the
// registry has no referrers API, the tag that the specification puts in its place is read:
// https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#unavailable-referrers-api
func (c *Client) Referrers(ctx context.Context, ref image.Reference, artifactType string) ([]v1.Descriptor, error) {
	subject := ref.Digest()
	if subject == "" {
		d, err := c.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		subject = d.Digest
	}
	s, err := c.open(ctx, upstream(ref.Domain()), ref.Path(), transport.PullScope, nil) // mirrors know images, not what is said of them
	if err == nil {
		var found []v1.Descriptor
		if found, err = s.referrers(ctx, subject, artifactType); err == nil {
			return found, nil
		}
	}
	return nil, what("list referrers of", ref, err)
}

func (s *session) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	next := s.root + "/referrers/" + subject.String()
	if artifactType != "" {
		next += "?artifactType=" + url.QueryEscape(artifactType)
	}
	var all []v1.Descriptor
	for range 1000 { // pages
		resp, err := s.do(ctx, request{method: http.MethodGet, url: next, header: http.Header{"Accept": {v1.MediaTypeImageIndex}}}, http.StatusOK, http.StatusNotFound)
		var refused *Error
		if errors.As(err, &refused) && (refused.Status == http.StatusBadRequest || refused.Status == http.StatusMethodNotAllowed) || err == nil && resp.StatusCode == http.StatusNotFound {
			if err == nil {
				resp.Body.Close()
			}
			ix, err := s.taggedReferrers(ctx, subject)
			return ofType(ix.Manifests, artifactType), err
		}
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(io.LimitReader(resp.Body, image.MaxManifestSize+1))
		resp.Body.Close()
		if err != nil {
			return nil, &netError{method: http.MethodGet, url: next, err: err}
		}
		ix, err := image.ParseIndex(raw, v1.MediaTypeImageIndex)
		if err != nil {
			return nil, fmt.Errorf("GET %s: %w", next, err)
		}
		all = append(all, ix.Manifests...)
		if next, err = nextPage(resp); err != nil || next == "" {
			return ofType(all, artifactType), err // not every registry filters
		}
	}
	return nil, errors.New("more than 1000 pages of referrers")
}

func ofType(all []v1.Descriptor, artifactType string) []v1.Descriptor {
	if artifactType == "" {
		return all
	}
	return slices.DeleteFunc(all, func(d v1.Descriptor) bool { return d.ArtifactType != artifactType })
}

// fallbackTag is the tag of the index of a manifest's referrers: sha256-0123….
func fallbackTag(subject digest.Digest) string {
	return strings.Replace(subject.String(), ":", "-", 1)
}

// taggedReferrers reads the fallback; where there is none, the index is empty.
func (s *session) taggedReferrers(ctx context.Context, subject digest.Digest) (v1.Index, error) {
	d, raw, err := s.manifest(ctx, fallbackTag(subject), v1.Descriptor{})
	if errors.Is(err, ErrNotFound) {
		return v1.Index{}, nil
	}
	if err != nil {
		return v1.Index{}, err
	}
	return image.ParseIndex(raw, d.MediaType)
}

// refer makes a manifest that was put under its digest known as a referrer where the registry does
// not do that by itself, which it says by OCI-Subject: d is added to the fallback's index. Two clients
// that do so at once may lose one of their entries; the specification knows no way out of that.
func (s *session) refer(ctx context.Context, put *http.Response, d v1.Descriptor, raw []byte) error {
	var doc struct {
		Subject      *v1.Descriptor    `json:"subject"`
		ArtifactType string            `json:"artifactType"`
		Config       v1.Descriptor     `json:"config"`
		Annotations  map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil || doc.Subject == nil || put.Header.Get("OCI-Subject") != "" {
		return err
	}
	if err := image.CheckDescriptor(*doc.Subject); err != nil {
		return err
	}
	d = v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	if d.ArtifactType == "" {
		d.ArtifactType = doc.Config.MediaType
	}
	ix, err := s.taggedReferrers(ctx, doc.Subject.Digest)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(ix.Manifests, func(m v1.Descriptor) bool { return m.Digest == d.Digest }) {
		return nil
	}
	ix.SchemaVersion, ix.MediaType = 2, v1.MediaTypeImageIndex
	ix.Manifests = append(ix.Manifests, d)
	raw, err = json.Marshal(ix)
	if err != nil {
		return err
	}
	resp, err := s.do(ctx, request{method: http.MethodPut, url: s.root + "/manifests/" + fallbackTag(doc.Subject.Digest), header: http.Header{"Content-Type": {ix.MediaType}},
		body: func() (io.Reader, error) { return bytes.NewReader(raw), nil }, size: int64(len(raw))}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err == nil {
		resp.Body.Close()
	}
	return err
}
