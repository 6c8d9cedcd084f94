package main

import (
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
)

// parsePlatforms reads --platform: several, in flags or between commas, each once.
// "local" is this machine's. None at all leaves the platform to the base.
func parsePlatforms(words []string) ([]ocispec.Platform, error) {
	var list []ocispec.Platform
	var seen []string
	for _, w := range words {
		for _, name := range strings.Split(w, ",") {
			p := image.HostPlatform()
			if name = strings.TrimSpace(name); name != "local" {
				var err error
				if p, err = image.ParsePlatform(name); err != nil {
					return nil, fmt.Errorf("--platform %s: %w", w, err)
				}
			}
			if id := image.FormatPlatform(p); !slices.Contains(seen, id) {
				seen = append(seen, id)
				list = append(list, p)
			}
		}
	}
	return list, nil
}
