package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"mk/builder"
	"mk/image"
)

// output is one -o of a build: where its result goes.
type output struct {
	kind   string // image, oci, docker, tar, local, cacheonly
	dest   string // "-" is standard output
	dir    bool   // oci, docker: a directory and not an archive
	opts   image.WriteOptions
	tags   []string // of -t and name=
	push   bool
	notes  annotations
	split  *bool   // tar, local: a directory a platform; nil: where there are several
	delete bool    // local: what is not of the result goes
	epoch  *string // source-date-epoch; nil: not given
}

// outputKeys are the keys of each type, beside type itself. What another builder
// has and is not here is refused by its name.
var outputKeys = map[string]string{
	"image":     "name push compression compression-level force-compression oci-mediatypes rewrite-timestamp source-date-epoch",
	"registry":  "name push compression compression-level force-compression oci-mediatypes rewrite-timestamp source-date-epoch",
	"oci":       "name dest tar compression compression-level force-compression oci-mediatypes rewrite-timestamp source-date-epoch",
	"docker":    "name dest tar rewrite-timestamp source-date-epoch",
	"tar":       "dest platform-split rewrite-timestamp source-date-epoch",
	"local":     "dest platform-split mode rewrite-timestamp source-date-epoch",
	"cacheonly": "",
}

// parseOutputs reads the -o flags, and --push and --load, which are short for two of
// them. None at all means the store.
func parseOutputs(f *buildFlags) ([]output, error) {
	var outputs []output
	stdout := 0
	for _, w := range f.outputs {
		o, err := parseOutput(w)
		if err != nil {
			return nil, fmt.Errorf("--output %s: %w", w, err)
		}
		if o.dest == "-" {
			stdout++
		}
		outputs = append(outputs, o)
	}
	if stdout > 1 {
		return nil, errors.New("--output: only one can go to standard output")
	}
	at := slices.IndexFunc(outputs, func(o output) bool { return o.kind == "image" })
	if at < 0 && (f.load || f.push || len(outputs) == 0) {
		at = len(outputs)
		outputs = append(outputs, output{kind: "image"})
	}
	if f.push {
		outputs[at].push = true
	}
	given, err := parseAnnotations(f.annotations)
	if err != nil {
		return nil, err
	}
	for i := range outputs {
		o := &outputs[i]
		if f.podman.format == "docker" {
			o.opts.Docker = true
		}
		o.tags = slices.Concat(f.tags, o.tags)
		o.notes = slices.Concat(given, o.notes)
		for _, t := range o.tags {
			if _, err := image.ParseReference(t); err != nil {
				return nil, fmt.Errorf("--tag %s: %w", t, err)
			}
		}
		if len(o.notes) > 0 && o.opts.Docker {
			return nil, errors.New("--annotation: docker's media types have no annotations: leave oci-mediatypes=false out")
		}
		if o.push && len(o.tags) == 0 {
			return nil, errors.New("push: the image has no name: give one with -t")
		}
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
		if key, value, _ := strings.Cut(f, "="); strings.EqualFold(strings.TrimSpace(key), "type") {
			o.kind = value
		}
	}
	keys, known := outputKeys[o.kind]
	switch {
	case o.kind == "":
		return o, errors.New("it has no type")
	case !known:
		return o, fmt.Errorf("type=%s is not supported: want image, registry, oci, docker, tar, local or cacheonly", o.kind)
	}
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		switch {
		case key == "type":
		case strings.HasPrefix(key, "annotation") && strings.Contains(keys, "name"):
			// Keys of annotations keep their case.
			a, err := parseAnnotationKey(strings.TrimSpace(f[:len(key)]), value)
			if err != nil {
				return o, err
			}
			o.notes = append(o.notes, a)
		case !slices.Contains(strings.Fields(keys), key):
			return o, fmt.Errorf("type=%s has no key %q here: want %s", o.kind, key, strings.Join(strings.Fields(keys), ", "))
		default:
			if err := o.set(key, value); err != nil {
				return o, err
			}
		}
	}
	switch o.kind {
	case "registry":
		o.kind, o.push = "image", true
	case "oci", "docker", "tar":
		if o.dest == "" {
			o.dest = "-"
		}
		if o.dir && o.dest == "-" {
			return o, errors.New("tar=false wants a directory: dest=DIR")
		}
	case "local":
		if o.dest == "" || o.dest == "-" {
			return o, errors.New("type=local wants a directory: dest=DIR")
		}
	}
	return o, nil
}

// compressionLevel reads the value of compression-level=, of outputs and of caches.
func compressionLevel(value string) (int, error) {
	level, err := strconv.Atoi(value)
	if err != nil || level < 0 || level > 22 {
		return 0, fmt.Errorf("compression-level=%s: want a number from 0 (the default) to 9 for gzip, to 22 for zstd", value)
	}
	return level, nil
}

// set takes one key of an output that has this key.
func (o *output) set(key, value string) (err error) {
	yes := func() bool {
		b, wrong := strconv.ParseBool(value)
		if wrong != nil && value == "" {
			return true
		}
		if wrong != nil {
			err = fmt.Errorf("%s=%s: want true or false", key, value)
		}
		return b
	}
	switch key {
	case "dest":
		o.dest = value
	case "name":
		o.tags = append(o.tags, strings.Split(value, ",")...)
	case "tar":
		o.dir = !yes()
	case "push":
		o.push = yes()
	case "compression":
		o.opts.Compression, err = image.ParseCompression(value)
	case "compression-level":
		o.opts.Level, err = compressionLevel(value)
	case "force-compression":
		o.opts.ForceCompression = yes()
	case "oci-mediatypes":
		o.opts.Docker = !yes()
	case "rewrite-timestamp":
		if !yes() && err == nil {
			err = errors.New("rewrite-timestamp=false: with SOURCE_DATE_EPOCH mk never makes files newer than it")
		}
	case "source-date-epoch":
		o.epoch = &value
	case "platform-split":
		split := yes()
		o.split = &split
	case "mode":
		if value != "copy" && value != "delete" {
			err = fmt.Errorf("mode=%s: want copy or delete", value)
		}
		o.delete = value == "delete"
	}
	return err
}

// outputEpoch is the epoch that the outputs ask for in place of the recipe's and the
// command line's, nil for none. It is in the times of the layers, so all outputs of a
// build have one.
func outputEpoch(outputs []output) (epoch *time.Time, given bool, err error) {
	for i, o := range outputs {
		if (o.epoch == nil) != (outputs[0].epoch == nil) || o.epoch != nil && *o.epoch != *outputs[0].epoch {
			return nil, false, fmt.Errorf("--output %d: source-date-epoch: one build has one epoch: give all outputs the same", i+1)
		}
	}
	word := outputs[0].epoch
	if word == nil || *word == "" {
		return nil, word != nil, nil
	}
	t, err := builder.ParseEpoch(*word)
	return &t, true, err
}

// compressed says whether the output names a form for its layers. Without one, layers that go
// into mk's store stay as they were built, and are compressed on their way out.
func (o output) compressed() bool { return o.opts.Compression != "" || o.opts.ForceCompression }

// needsInside says whether the output reads trees.
func (o output) needsInside() bool {
	return o.push || o.compressed() || o.kind != "image" && o.kind != "cacheonly"
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
