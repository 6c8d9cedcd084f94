package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// metadata is what --metadata-file gets, with buildx's keys.
func (b *building) metadata(e exported) map[string]any {
	m := map[string]any{"buildx.build.ref": "mk/mk/" + buildID()}
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
	return m
}

// buildID names one build, like no other.
func buildID() string { return strings.ToLower(rand.Text())[:25] }

// writeMetadata writes the file.
func (b *building) writeMetadata(path string, e exported) error {
	var text bytes.Buffer
	if err := printJSON(&text, b.metadata(e)); err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	return nil
}
