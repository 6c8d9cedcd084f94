package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
)

// metadata is what --metadata-file gets, with buildx's keys.
func (b *built) metadata(e exported) (map[string]any, error) {
	m := map[string]any{"buildx.build.ref": "mk/mk/" + b.id}
	if e.image {
		d := e.target
		d.Annotations = nil
		if e.config != "" {
			m["containerimage.config.digest"] = e.config
			d.Annotations = map[string]string{"config.digest": e.config.String()}
		}
		m["containerimage.digest"] = d.Digest
		m["containerimage.descriptor"] = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: d.Annotations, Platform: d.Platform}
		if len(e.names) > 0 {
			m["image.name"] = strings.Join(e.names, ",")
		}
	}
	if on, err := strconv.ParseBool(os.Getenv("BUILDX_METADATA_WARNINGS")); err == nil && on {
		m["buildx.build.warnings"] = append([]noteJSON{}, notes(b.src, b.warnings)...)
	}
	return m, b.provenanceMetadata(m)
}

// provenanceMetadata adds the provenance, as BUILDX_METADATA_PROVENANCE says: min (the
// default), max, or a word for no.
func (b *built) provenanceMetadata(m map[string]any) error {
	whole := false
	switch word := os.Getenv("BUILDX_METADATA_PROVENANCE"); word {
	case "", "min", "true", "1":
	case "max":
		whole = true
	case "disabled", "false", "0":
		return nil
	default:
		return fmt.Errorf("BUILDX_METADATA_PROVENANCE=%s: want min, max or disabled", word)
	}
	for _, r := range b.results {
		key := "buildx.build.provenance"
		if len(b.results) > 1 {
			key += "/" + image.FormatPlatform(r.Plan.Platform)
		}
		p := b.provenance(r)
		text, err := p.Brief()
		if whole {
			text, err = p.V02()
		}
		if err != nil {
			return err
		}
		m[key] = text
	}
	return nil
}

// buildID names one build, like no other.
func buildID() string { return strings.ToLower(rand.Text())[:25] }

// writeMetadata writes the file.
func (b *built) writeMetadata(path string, e exported) error {
	var text bytes.Buffer
	m, err := b.metadata(e)
	if err == nil {
		err = printJSON(&text, m)
	}
	if err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	return nil
}
