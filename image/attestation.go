package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What is said about an image (where it came from, what is in it) stands beside it
// in its index, as BuildKit puts it there: a manifest of the platform
// unknown/unknown whose annotations name the image, and whose layers are in-toto
// statements. Who looks for an image never picks it; who does not know such
// manifests passes them by.
const (
	mediaTypeInToto     = "application/vnd.in-toto+json"
	annotationReference = "vnd.docker.reference.type"
	annotationSubject   = "vnd.docker.reference.digest" // of the image's manifest
	annotationPredicate = "in-toto.io/predicate-type"
	isAttestationOf     = "attestation-manifest" // the value of annotationReference

	// StatementType is what opens every statement that mk makes, in-toto's v1.
	StatementType = "https://in-toto.io/Statement/v1"
	// maxStatement bounds one in bytes: an SBOM of a large image has some 20 MiB.
	maxStatement = 128 << 20
)

// Statement is an in-toto statement: of these subjects, this predicate holds.
type Statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []Subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is something that a statement is about, known by its digest.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"` // algorithm: hex digits
}

// NewSubject makes the subject of a digest.
func NewSubject(name string, d digest.Digest) Subject {
	return Subject{Name: name, Digest: map[string]string{d.Algorithm().String(): d.Encoded()}}
}

// PutAttestations stores statements about an image as a manifest, and returns its
// descriptor for the index that has the image's too.
func (s *Store) PutAttestations(ctx context.Context, subject digest.Digest, statements []Statement) (v1.Descriptor, error) {
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, st := range statements {
		raw, err := encodeStatement(st)
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("store attestation: %w", err)
		}
		d, err := s.putBytes(mediaTypeInToto, raw)
		if err != nil {
			return v1.Descriptor{}, err
		}
		d.Annotations = map[string]string{annotationPredicate: st.PredicateType}
		m.Layers = append(m.Layers, d)
	}
	raw, err := attestationConfig(m.Layers)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("store attestation: config: %w", err)
	}
	if m.Config, err = s.putBytes(v1.MediaTypeImageConfig, raw); err != nil {
		return v1.Descriptor{}, err
	}
	d, err := s.PutManifest(ctx, m)
	d.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	d.Annotations = map[string]string{annotationReference: isAttestationOf, annotationSubject: subject.String()}
	return d, err
}

// attestationConfig is the config of a manifest that is no image: it says so, and
// has the statements for layers.
func attestationConfig(layers []v1.Descriptor) ([]byte, error) {
	config := v1.Image{Platform: v1.Platform{OS: "unknown", Architecture: "unknown"}}
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = []digest.Digest{}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	return json.Marshal(config)
}

// Attestations returns the statements about an image that stand in an index, in
// their order. Those that are not in the store are ErrAbsent.
func (s *Store) Attestations(ctx context.Context, ix v1.Index, subject digest.Digest) ([]Statement, error) {
	var list []Statement
	for _, d := range ix.Manifests {
		if !isAttestation(d) || d.Annotations[annotationSubject] != subject.String() {
			continue
		}
		raw, err := s.ReadBlob(ctx, d, MaxManifestSize)
		if err != nil {
			return nil, fmt.Errorf("attestation: %w", err)
		}
		m, err := ParseManifest(raw, d.MediaType)
		if err != nil {
			return nil, fmt.Errorf("attestation %s: %w", d.Digest, err)
		}
		for _, l := range m.Layers {
			if l.MediaType != mediaTypeInToto {
				continue // a signature or the like, which stands for itself
			}
			var st Statement
			raw, err := s.ReadBlob(ctx, l, maxStatement)
			if err == nil {
				err = json.Unmarshal(raw, &st)
			}
			if err != nil {
				return nil, fmt.Errorf("attestation %s: %w", l.Digest, err)
			}
			list = append(list, st)
		}
	}
	return list, nil
}

// isAttestation knows BuildKit's provenance and SBOM manifests inside an index.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations[annotationReference] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// attestation sends an attestation manifest. Where its image became another on the
// way (the layers of what was built here are compressed then), the statements are
// made to name what it became: a statement about a digest that nobody has is none.
func (e exporter) attestation(ctx context.Context, d v1.Descriptor, became map[digest.Digest]v1.Descriptor) (v1.Descriptor, error) {
	old := digest.Digest(d.Annotations[annotationSubject])
	now, known := became[old]
	if !known || now.Digest == old {
		return e.manifest(ctx, d, became)
	}
	raw, err := e.store.ReadBlob(ctx, d, MaxManifestSize)
	if err != nil {
		return d, err
	}
	m, err := ParseManifest(raw, d.MediaType)
	if err != nil {
		return d, err
	}
	for i, l := range m.Layers {
		if l.MediaType != mediaTypeInToto {
			if err := e.asIs(ctx, l); err != nil {
				return d, err
			}
			continue
		}
		raw, err := e.store.ReadBlob(ctx, l, maxStatement)
		if err != nil {
			return d, err
		}
		if raw, err = retarget(raw, old, now.Digest); err != nil {
			return d, fmt.Errorf("statement %s: %w", l.Digest, err)
		}
		sent := bytesDescriptor(l.MediaType, raw)
		sent.Annotations = l.Annotations
		m.Layers[i] = sent
		if err := e.bytes(ctx, sent, raw); err != nil {
			return d, err
		}
	}
	if m.Subject != nil && m.Subject.Digest == old {
		subject := plain(now)
		subject.Platform = nil
		m.Subject = &subject
	}
	if m.ArtifactType == "" { // an artifact's config is empty and says nothing of layers
		if raw, err = attestationConfig(m.Layers); err != nil {
			return d, err
		}
		m.Config = bytesDescriptor(m.Config.MediaType, raw)
		if err := e.bytes(ctx, m.Config, raw); err != nil {
			return d, err
		}
	} else if err := e.asIs(ctx, m.Config); err != nil {
		return d, err
	}
	if raw, err = json.MarshalIndent(m, "", "  "); err != nil {
		return d, err
	}
	out := bytesDescriptor(m.MediaType, raw)
	out.Platform, out.ArtifactType = d.Platform, d.ArtifactType
	return out, e.sink.Manifest(ctx, out, raw)
}

// bytes sends a blob that is no blob of the store.
func (e exporter) bytes(ctx context.Context, d v1.Descriptor, raw []byte) error {
	if ok, err := e.sink.Has(ctx, d); ok || err != nil {
		return err
	}
	_, err := e.sink.Blob(ctx, d, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw)), nil
	})
	return err
}

// retarget gives a statement another digest of its subject. All else of it, also
// what in-toto may add one day, stays.
func retarget(raw []byte, from, to digest.Digest) ([]byte, error) {
	var st map[string]json.RawMessage
	var subjects []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &st); err != nil {
		return nil, err
	}
	if st["subject"] == nil {
		return raw, nil // it names nothing
	}
	if err := json.Unmarshal(st["subject"], &subjects); err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	for _, s := range subjects {
		var sums map[string]string
		if err := json.Unmarshal(s["digest"], &sums); err != nil {
			return nil, fmt.Errorf("subject: digest: %w", err)
		}
		if sums[from.Algorithm().String()] != from.Encoded() {
			continue
		}
		sums = NewSubject("", to).Digest // other algorithms' are of the old bytes
		var err error
		if s["digest"], err = json.Marshal(sums); err != nil {
			return nil, err
		}
	}
	var err error
	if st["subject"], err = encodeStatement(subjects); err != nil {
		return nil, err
	}
	return encodeStatement(st)
}

// encodeStatement is json.Marshal that leaves <, > and & in commands as they are.
func encodeStatement(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
