package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/userns"
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

// emulators are what this process lets run programs of foreign architectures with.
type emulators struct {
	*app

	mu   sync.Mutex // guards open, and is held while one is set up
	open map[string]*userns.Emulation
}

// need makes sure that programs of an architecture run.
func (e *emulators) need(arch string) error {
	if arch == "" || arch == runtime.GOARCH || arch == "386" && runtime.GOARCH == "amd64" || e.in == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open[arch] != nil {
		return nil
	}
	em, err := e.in.Emulate(arch)
	if err != nil {
		return err
	}
	if e.open == nil {
		e.open = map[string]*userns.Emulation{}
	}
	e.open[arch] = em
	return nil
}

// Close ends them all.
func (e *emulators) Close() {
	for _, em := range e.open {
		em.Close()
	}
}
