package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/builder"
	"mk/image"
	"mk/image/registry"
)

// cacheFlag is one --cache-from or --cache-to.
type cacheFlag struct {
	word        string
	kind        string // registry, local, inline or repository: buildah's, an image a step
	ref         string // registry, repository
	dir, tag    string // local
	digest      digest.Digest
	max         bool
	reset       bool
	ignoreError bool
	opts        image.WriteOptions
}

// cacheKeys are the keys of each type, beside type itself.
var cacheKeys = map[string]struct{ from, to string }{
	"registry": {"ref", "ref mode compression compression-level force-compression ignore-error image-manifest oci-mediatypes"},
	"local":    {"src tag digest", "dest tag mode reset compression compression-level force-compression ignore-error image-manifest oci-mediatypes"},
	"inline":   {"", "mode"},
}

// parseCaches reads the values of --cache-from, or with to those of --cache-to.
func parseCaches(words []string, to bool) ([]cacheFlag, error) {
	flag := "--cache-from"
	if to {
		flag = "--cache-to"
	}
	var list []cacheFlag
	for _, w := range words {
		c, err := parseCache(w, to)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", flag, w, err)
		}
		list = append(list, c)
	}
	return list, nil
}

func parseCache(word string, to bool) (cacheFlag, error) {
	c := cacheFlag{word: word}
	if !strings.Contains(word, "=") {
		return bareCache(word)
	}
	fields, err := csv.NewReader(strings.NewReader(word)).Read()
	if err != nil {
		return c, err
	}
	for _, f := range fields {
		if key, value, _ := strings.Cut(f, "="); strings.EqualFold(strings.TrimSpace(key), "type") {
			c.kind = value
		}
	}
	all, known := cacheKeys[c.kind]
	keys := all.from
	if to {
		keys = all.to
	}
	switch {
	case c.kind == "":
		return c, errors.New("it has no type")
	case slices.Contains([]string{"gha", "s3", "azblob"}, c.kind):
		return c, fmt.Errorf("type=%s is not supported: a registry or a directory is: want registry, local or inline", c.kind)
	case !known:
		return c, fmt.Errorf("type=%s is not supported: want registry, local or inline", c.kind)
	case c.kind == "inline" && !to:
		return c, errors.New("an inline cache is in an image: type=registry,ref=IMAGE")
	}
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		switch {
		case key == "type":
		case !slices.Contains(strings.Fields(keys), key):
			return c, fmt.Errorf("type=%s has no key %q here: want %s", c.kind, key, strings.Join(strings.Fields(keys), ", "))
		default:
			if err := c.set(key, value); err != nil {
				return c, err
			}
		}
	}
	return c, c.complete(to)
}

// bareCache is a value without type=: with a tag docker's short form of type=registry,
// without one the repository that buildah means, with an image a step.
func bareCache(word string) (cacheFlag, error) {
	c := cacheFlag{word: word, ref: word, kind: "repository"}
	ref, err := image.ParseReference(word)
	if err != nil {
		return c, err
	}
	if ref.Digest() != "" || ref.Tag() != "latest" || strings.HasSuffix(word, ":latest") {
		c.kind = "registry"
	}
	return c, nil
}

// set takes one key that the type has.
func (c *cacheFlag) set(key, value string) (err error) {
	yes := func() bool {
		b, wrong := strconv.ParseBool(value)
		if wrong != nil {
			err = fmt.Errorf("%s=%s: want true or false", key, value)
		}
		return b
	}
	switch key {
	case "ref":
		c.ref = value
	case "src", "dest":
		c.dir = value
	case "tag":
		c.tag = value
	case "digest":
		if c.digest, err = digest.Parse(value); err != nil {
			err = fmt.Errorf("digest=%s: %w", value, err)
		}
	case "mode":
		if value != "min" && value != "max" {
			return fmt.Errorf("mode=%s: want min or max", value)
		}
		c.max = value == "max"
	case "reset":
		c.reset = yes()
	case "ignore-error":
		c.ignoreError = yes()
	case "compression":
		c.opts.Compression, err = image.ParseCompression(value)
	case "compression-level":
		c.opts.Level, err = compressionLevel(value)
	case "force-compression":
		c.opts.ForceCompression = yes()
	case "image-manifest":
		if !yes() && err == nil {
			err = errors.New("image-manifest=false: a cache of mk's is an image manifest always")
		}
	case "oci-mediatypes":
		if !yes() && err == nil {
			err = errors.New("oci-mediatypes=false: docker's media types have no place for what a cache is")
		}
	}
	return err
}

// complete refuses what lacks its place.
func (c *cacheFlag) complete(to bool) error {
	switch {
	case c.kind == "registry":
		if c.ref == "" {
			return errors.New("type=registry wants ref=NAME")
		}
		_, err := image.ParseReference(c.ref)
		return err
	case c.kind == "local" && c.dir == "" && to:
		return errors.New("type=local wants dest=DIR")
	case c.kind == "local" && c.dir == "":
		return errors.New("type=local wants src=DIR")
	case c.kind == "inline" && c.max:
		return errors.New("mode=max: an inline cache has the layers of its image only: use type=registry")
	}
	return nil
}

// place is where the flag's cache lies, as a builder sees it.
func (c *cacheFlag) place(s *store, client *registry.Client) (builder.CachePlace, error) {
	if c.kind == "local" {
		return &layoutCache{store: s.images, flag: c}, nil
	}
	ref, err := image.ParseReference(c.ref)
	return &registryCache{store: s.images, client: client, ref: ref, opts: c.opts}, err
}

// caches sets up what --cache-from and --cache-to say, and gives the latter.
func (b *building) caches(work *builder.Builder) ([]cacheFlag, error) {
	from, err := parseCaches(b.flags.cacheFrom, false)
	if err != nil {
		return nil, err
	}
	to, err := parseCaches(b.flags.cacheTo, true)
	if err != nil {
		return nil, err
	}
	if work.From, err = b.importCaches(from); err != nil {
		return nil, err
	}
	for _, o := range b.outputs {
		switch {
		case o.kind == "tar" || o.kind == "local":
			work.Need = builder.NeedTree
		case o.needsInside():
			work.Need = max(work.Need, builder.NeedLayers)
		}
	}
	if b.attest.sbom != nil {
		work.Need = builder.NeedTree // whose packages are looked for
	}
	work.Inline, err = inlineCache(to, b.args)
	return to, err
}

// importCaches sets up what --cache-from says.
func (b *building) importCaches(flags []cacheFlag) ([]*builder.ImportedCache, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	// A cache is worth less patience than a base: without it the build goes on.
	client, err := newClient()
	if err != nil {
		return nil, err
	}
	if err := b.flags.registry.apply(client, ""); err != nil {
		return nil, err
	}
	client.Retries, client.Backoff, client.Stall = 2, 200*time.Millisecond, 20*time.Second
	var list []*builder.ImportedCache
	for i := range flags {
		c := &flags[i]
		place, err := c.place(b.store, client)
		if err != nil {
			return nil, err
		}
		list = append(list, &builder.ImportedCache{Place: place, PerStep: c.kind == "repository"})
		if c.kind == "repository" { // docker's user may mean the image of that name, with a cache in it
			list = append(list, &builder.ImportedCache{Place: place, Quiet: true})
		}
	}
	return list, nil
}

// saveCaches writes the caches that --cache-to names. Outside it only finds out that
// they are as they should be, or that this takes the namespaces.
func (b *built) saveCaches(ctx context.Context, progress builder.Reporter, flags []cacheFlag) error {
	for i := range flags {
		c := &flags[i]
		if c.kind == "inline" {
			continue // it went with the image
		}
		place, err := c.place(b.store, b.store.client)
		if err != nil {
			return err
		}
		title := "exporting cache to " + c.kind
		if c.kind == "local" {
			title = "exporting cache to client directory"
		}
		err = progress.Task(title, func(v *builder.Vertex) error {
			to := builder.CacheTo{Place: place, Max: c.max, PerStep: c.kind == "repository"}
			return b.work.SaveCache(ctx, b.results, to)
		})
		if err != nil && !(c.ignoreError && ctx.Err() == nil && !errors.Is(err, builder.ErrNeedsInside)) {
			return fmt.Errorf("%s: %w", title, err)
		}
	}
	return nil
}

// registryCache is a cache in a repository: under the reference's tag, or under others.
type registryCache struct {
	store  *image.Store
	client *registry.Client
	ref    image.Reference
	opts   image.WriteOptions
}

var _ builder.CachePlace = (*registryCache)(nil)

func (r *registryCache) String() string { return r.ref.String() }

// under is the reference of a tag of the repository; "" is its own.
func (r *registryCache) under(tag string) image.Reference {
	if tag == "" {
		return r.ref
	}
	ref, err := image.ParseReference(r.ref.Repository() + ":" + tag)
	if err != nil {
		panic(err) // tags are keys: hexadecimal
	}
	return ref
}

func (r *registryCache) Images(ctx context.Context, tag string) ([]*image.Image, error) {
	images, err := r.client.Manifests(ctx, r.under(tag), r.store)
	if errors.Is(err, registry.ErrNotFound) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return images, err
}

func (r *registryCache) Fetch(ctx context.Context, layer ocispec.Descriptor) error {
	return r.client.FetchLayer(ctx, r.store, layer)
}

func (r *registryCache) Holds(ctx context.Context, tag string, d ocispec.Descriptor) (bool, error) {
	if d.Digest != "" {
		var err error
		if d, err = r.store.Predict(ctx, d, r.opts); err != nil {
			return false, nil // it has yet to be compressed
		}
	}
	there, err := r.client.Resolve(ctx, r.under(tag))
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return err == nil && (d.Digest == "" || there.Digest == d.Digest), err
}

func (r *registryCache) Send(ctx context.Context, tag string, d ocispec.Descriptor) error {
	_, err := r.client.Push(ctx, r.store, d, r.under(tag), registry.PushOptions{Write: r.opts})
	return err
}

// layoutCache is a cache in an OCI layout directory.
type layoutCache struct {
	store *image.Store
	flag  *cacheFlag
}

var _ builder.CachePlace = (*layoutCache)(nil)

func (l *layoutCache) String() string { return l.flag.dir }

// name is the cache's in the directory's index.
func (l *layoutCache) name() string {
	if l.flag.tag != "" {
		return l.flag.tag
	}
	return "latest"
}

func (l *layoutCache) Images(ctx context.Context, tag string) ([]*image.Image, error) {
	name := l.name()
	if l.flag.digest != "" {
		name = ""
	}
	found, err := l.store.PeekLayout(ctx, l.flag.dir, name)
	if err != nil {
		return nil, err
	}
	for _, t := range found {
		if l.flag.digest == "" || t.Descriptor.Digest == l.flag.digest {
			return l.store.Images(ctx, t.Descriptor)
		}
	}
	return nil, fmt.Errorf("%s: no %s in it: %w", l.flag.dir, l.flag.digest, fs.ErrNotExist)
}

func (l *layoutCache) Fetch(ctx context.Context, layer ocispec.Descriptor) error {
	return l.store.ReadLayoutBlob(ctx, l.flag.dir, layer)
}

func (l *layoutCache) Holds(ctx context.Context, _ string, d ocispec.Descriptor) (bool, error) {
	d, err := l.store.Predict(ctx, d, l.flag.opts)
	if err != nil {
		return false, nil // it has yet to be compressed
	}
	return image.LayoutHolds(l.flag.dir, l.name(), d)
}

func (l *layoutCache) Send(ctx context.Context, _ string, d ocispec.Descriptor) error {
	d.Annotations = map[string]string{ocispec.AnnotationRefName: l.name()}
	d.Platform = nil
	if _, err := l.store.WriteOCIDir(ctx, l.flag.dir, []image.Tagged{{Descriptor: d}}, l.flag.opts); err != nil {
		return err
	}
	if !l.flag.reset {
		return nil
	}
	return image.PruneLayout(l.flag.dir)
}

// inlineCache says whether the image itself is to be a cache: --cache-to type=inline,
// or the build argument that BuildKit knows for it.
func inlineCache(flags []cacheFlag, args map[string]string) (bool, error) {
	for _, c := range flags {
		if c.kind == "inline" {
			return true, nil
		}
	}
	word := args["BUILDKIT_INLINE_CACHE"]
	if word == "" {
		return false, nil
	}
	yes, err := strconv.ParseBool(word)
	if err != nil {
		return false, fmt.Errorf("invalid boolean value for BUILDKIT_INLINE_CACHE: %s", word)
	}
	return yes, nil
}
