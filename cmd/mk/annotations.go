package main

import (
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
)

// annotation is one --annotation: a key and value, and where it goes.
type annotation struct {
	level      string            // manifest, index, manifest-descriptor or index-descriptor
	platform   *ocispec.Platform // of the manifest; nil: all
	key, value string
}

type annotations []annotation

var annotationLevels = []string{"manifest", "index", "manifest-descriptor", "index-descriptor"}

// parseAnnotations reads buildx's form: [LEVEL[PLATFORM],…:]KEY=VALUE. Without a
// level, the annotation is the manifests'.
func parseAnnotations(words []string) (annotations, error) {
	var list annotations
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--annotation %s: want key=value", w)
		}
		levels := []string{"manifest"}
		if before, after, ok := strings.Cut(key, ":"); ok {
			given := strings.Split(before, ",")
			bare, _, _ := strings.Cut(given[0], "[")
			if slices.Contains(annotationLevels, bare) { // else the colon is the key's own
				levels, key = given, after
			}
		}
		for _, level := range levels {
			a, err := newAnnotation(level, key, value)
			if err != nil {
				return nil, fmt.Errorf("--annotation %s: %w", w, err)
			}
			list = append(list, a)
		}
	}
	return list, nil
}

// parseAnnotationKey reads a key of -o: annotation[-LEVEL][[PLATFORM]].KEY.
func parseAnnotationKey(word, value string) (annotation, error) {
	where, key, ok := strings.Cut(word, ".")
	level := strings.TrimPrefix(strings.TrimPrefix(where, "annotation"), "-")
	if level == "" || level[0] == '[' {
		level = "manifest" + level
	}
	if !ok || key == "" {
		return annotation{}, fmt.Errorf("%s: want annotation.KEY or annotation-LEVEL.KEY", word)
	}
	return newAnnotation(level, key, value)
}

func newAnnotation(level, key, value string) (annotation, error) {
	a := annotation{level: level, key: key, value: value}
	if name, rest, ok := strings.Cut(level, "["); ok {
		a.level = name
		p, err := image.ParsePlatform(strings.TrimSuffix(rest, "]"))
		if err != nil {
			return a, err
		}
		if !strings.HasPrefix(name, "manifest") {
			return a, fmt.Errorf("%s: an index is of no platform", level)
		}
		a.platform = &p
	}
	if !slices.Contains(annotationLevels, a.level) {
		return a, fmt.Errorf("unknown level %q: want %s", a.level, strings.Join(annotationLevels, ", "))
	}
	return a, nil
}

// of gives the annotations of one level, for the manifest of one platform; nil for none.
func (list annotations) of(level string, p ocispec.Platform) map[string]string {
	var m map[string]string
	for _, a := range list {
		if a.level != level || a.platform != nil && image.FormatPlatform(*a.platform) != image.FormatPlatform(p) {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		m[a.key] = a.value
	}
	return m
}

// index says whether one of them wants an index.
func (list annotations) index() bool {
	return slices.ContainsFunc(list, func(a annotation) bool { return strings.HasPrefix(a.level, "index") })
}
