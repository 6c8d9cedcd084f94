package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/builder"
	"mk/image"
)

// output is one -o of a build: where its result goes.
type output struct {
	kind string // image, oci, docker, tar, local, cacheonly
	dest string // "-" is standard output
	dir  bool   // oci: a layout directory and not an archive
	opts image.WriteOptions
	tags []string // of -t and name=
	push bool
}

// parseOutputs reads the -o flags. None at all means the store.
func parseOutputs(words, tags []string) ([]output, error) {
	if len(words) == 0 {
		words = []string{"type=image"}
	}
	var outputs []output
	stdout := 0
	for _, w := range words {
		o, err := parseOutput(w)
		if err != nil {
			return nil, fmt.Errorf("--output %s: %w", w, err)
		}
		o.tags = slices.Concat(tags, o.tags)
		for _, t := range o.tags {
			if _, err := image.ParseReference(t); err != nil {
				return nil, fmt.Errorf("--tag %s: %w", t, err)
			}
		}
		if o.dest == "-" {
			stdout++
		}
		outputs = append(outputs, o)
	}
	if stdout > 1 {
		return nil, errors.New("--output: only one can go to standard output")
	}
	return outputs, nil
}

func parseOutput(word string) (output, error) {
	o := output{}
	if !strings.Contains(word, "=") { // a bare word is a directory, or - a tar on standard output
		o.kind, o.dest = "local", word
		if word == "-" {
			o.kind = "tar"
		}
		return o, nil
	}
	fields, err := csv.NewReader(strings.NewReader(word)).Read()
	if err != nil {
		return o, err
	}
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		switch strings.ToLower(key) {
		case "type":
			o.kind = value
		case "dest":
			o.dest = value
		case "name":
			o.tags = append(o.tags, strings.Split(value, ",")...)
		case "tar":
			switch value {
			case "true":
			case "false":
				o.dir = true
			default:
				return o, fmt.Errorf("tar=%s: want true or false", value)
			}
		case "compression":
			switch c := image.Compression(value); c {
			case image.Gzip, image.Zstd, image.Uncompressed:
				o.opts.Compression = c
			default:
				return o, fmt.Errorf("compression=%s is not supported: want gzip, zstd or uncompressed", value)
			}
		case "push":
			o.push = value == "true"
		default:
			return o, fmt.Errorf("key %q is not supported", key)
		}
	}
	switch o.kind {
	case "image", "cacheonly":
		if o.dest != "" {
			return o, fmt.Errorf("type=%s takes no dest", o.kind)
		}
	case "registry":
		o.kind, o.push = "image", true
	case "oci", "docker", "tar":
		if o.dest == "" {
			o.dest = "-"
		}
	case "local":
		if o.dest == "" {
			return o, errors.New("type=local wants a directory: dest=DIR")
		}
	case "":
		return o, errors.New("it has no type")
	default:
		return o, fmt.Errorf("type=%s is not supported: want image, registry, oci, docker, tar, local or cacheonly", o.kind)
	}
	return o, nil
}

// needsInside says whether the output reads trees.
func (o output) needsInside() bool { return o.push || o.kind != "image" && o.kind != "cacheonly" }

// export sends a result where the outputs say and returns its manifest.
func (b *building) export(ctx context.Context, progress builder.Reporter, work *builder.Builder, r *builder.Result) (*image.Image, error) {
	desc, err := work.Store(ctx, r)
	if err != nil {
		return nil, err
	}
	img, err := b.store.images.Image(ctx, desc, nil)
	if err != nil {
		return nil, err
	}
	for _, o := range b.outputs {
		if err := progress.Task(o.title(), func(v *builder.Vertex) error {
			return b.send(ctx, progress, v, o, work, r, img)
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", o.title(), err)
		}
	}
	return img, nil
}

// title names an output as buildx does.
func (o output) title() string {
	switch o.kind {
	case "oci":
		return "exporting to oci image format"
	case "docker":
		return "exporting to docker image format"
	case "tar":
		return "exporting to client tarball"
	case "local":
		return "exporting to client directory"
	case "cacheonly":
		return "exporting nothing"
	}
	return "exporting to image"
}

func (b *building) send(ctx context.Context, progress builder.Reporter, v *builder.Vertex, o output, work *builder.Builder, r *builder.Result, img *image.Image) error {
	images := namesOf(img.Descriptor(), o.tags)
	store := b.store.images
	switch o.kind {
	case "image":
		for _, t := range images {
			if err := store.Tag(t.Name, t.Descriptor); err != nil {
				return err
			}
			if t.Name != "" {
				progress.Status(v, "naming to "+t.Name, 0, 0)
			}
		}
		if o.push {
			if len(o.tags) == 0 {
				return errors.New("push: the image has no name: give one with -t")
			}
			for _, t := range o.tags {
				if err := b.store.push(ctx, t, t, pushFlags{quiet: true}); err != nil {
					return err
				}
			}
		}
	case "oci":
		if o.dir {
			if o.dest == "-" {
				return errors.New("tar=false wants a directory: dest=DIR")
			}
			_, err := store.WriteOCIDir(ctx, o.dest, images, o.opts)
			return err
		}
		return writeOutput(o.dest, func(w io.Writer) error {
			_, err := store.WriteOCI(ctx, w, images, o.opts)
			return err
		})
	case "docker":
		return writeOutput(o.dest, func(w io.Writer) error { return store.WriteDocker(ctx, w, images, nil) })
	case "tar":
		return writeOutput(o.dest, func(w io.Writer) error { return work.WriteTar(ctx, r, w) })
	case "local":
		return work.WriteDir(ctx, r, o.dest)
	}
	return nil
}

// namesOf pairs an image with its names, or with none.
func namesOf(d ocispec.Descriptor, tags []string) []image.Tagged {
	if len(tags) == 0 {
		return []image.Tagged{{Descriptor: d}}
	}
	var list []image.Tagged
	for _, t := range tags {
		ref, err := image.ParseReference(t)
		if err != nil {
			continue // parseOutputs has refused it
		}
		list = append(list, image.Tagged{Name: ref.String(), Descriptor: d})
	}
	return list
}
