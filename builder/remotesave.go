package builder

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"mk/image"
)

// CacheTo is one --cache-to: where the records of a build go, and how many of the layers.
type CacheTo struct {
	Place   CachePlace
	Max     bool // the layers of every step; else those that the result is made of
	PerStep bool // an image a step, tagged with its key, in place of one for all
}

// SaveCache writes what a build's steps made, here or before, to a cache. What the
// place has is not sent again, and when it has all, no layer is opened: that needs no
// namespaces. Anything else is ErrNeedsInside outside.
func (b *Builder) SaveCache(ctx context.Context, results []*Result, to CacheTo) error {
	images, err := b.cacheImages(ctx, results, to)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, tag := range slices.Sorted(maps.Keys(images)) {
		d := images[tag]
		g.Go(func() error {
			look := d
			if to.PerStep {
				look = ocispec.Descriptor{} // a key says all: whoever was first is right
			}
			if ok, err := to.Place.Holds(ctx, tag, look); ok || err != nil {
				return err
			}
			if !b.Inside {
				return ErrNeedsInside
			}
			return to.Place.Send(ctx, tag, d)
		})
	}
	return g.Wait()
}

// cacheImages puts the images of a cache into the store, without names, and gives the
// tags that they are to have there.
func (b *Builder) cacheImages(ctx context.Context, results []*Result, to CacheTo) (map[string]ocispec.Descriptor, error) {
	var doc cacheDocument
	layers := map[digest.Digest]ocispec.Descriptor{}
	for _, r := range results {
		doc.add(ctx, r)
		for _, n := range r.nodes(to.Max) {
			if d, ok := r.layerOf(ctx, n); ok {
				layers[r.engine.nodes[n].digests.DiffID] = d
			}
		}
		if err := r.addOutlines(ctx, &doc, layers); err != nil {
			return nil, err
		}
	}
	doc.Steps = sortedSteps(doc.Steps)
	if !to.PerStep {
		d, err := b.cacheImage(ctx, doc, layers)
		return map[string]ocispec.Descriptor{"": d}, err
	}
	images := map[string]ocispec.Descriptor{}
	put := func(tag string, one cacheDocument) (err error) {
		images[tag], err = b.cacheImage(ctx, one, layers)
		return err
	}
	for _, s := range doc.Steps {
		if err := put(string(s.Key), cacheDocument{Steps: []cachedStep{s}}); err != nil {
			return nil, err
		}
	}
	for k, answer := range doc.Memos {
		if err := put(memoTag(k), cacheDocument{Memos: map[Key]string{k: answer}}); err != nil {
			return nil, err
		}
	}
	for chain, o := range doc.Outlines {
		if err := put(outlineTag(chain), cacheDocument{Outlines: map[digest.Digest]cachedLayer{chain: o}}); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// cacheImage stores a document as an image with those layers that its steps name. Equal
// builds store equal images.
func (b *Builder) cacheImage(ctx context.Context, doc cacheDocument, layers map[digest.Digest]ocispec.Descriptor) (ocispec.Descriptor, error) {
	var config Image
	config.OS, config.Architecture = "unknown", "unknown" // nothing to run
	config.RootFS.DiffIDs = []digest.Digest{}
	var ids []digest.Digest
	add := func(layer digest.Digest) {
		if layers[layer].Digest != "" && !slices.Contains(ids, layer) {
			ids = append(ids, layer)
		}
	}
	for _, s := range doc.Steps {
		add(s.Layer)
	}
	for _, o := range doc.Outlines {
		add(o.Layer)
	}
	slices.SortFunc(ids, func(a, b digest.Digest) int { return strings.Compare(a.String(), b.String()) })
	var blobs []ocispec.Descriptor
	for _, id := range ids {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, id)
		blobs = append(blobs, layers[id])
	}
	if err := doc.into(&config); err != nil {
		return ocispec.Descriptor{}, err
	}
	return b.Images.PutImage(ctx, config, blobs, image.PutOptions{ArtifactType: cacheArtifact})
}

// cacheArtifact tells people and registries what the image is.
const cacheArtifact = "application/vnd.mk.cache.v1"

// inline makes an image its own cache: a record for each step, and the layers that it has.
func (r *Result) inline(ctx context.Context, config *Image) error {
	var doc cacheDocument
	doc.add(ctx, r)
	doc.Steps = sortedSteps(doc.Steps)
	return doc.into(config)
}

// into puts the document into a config.
func (doc *cacheDocument) into(config *Image) error {
	raw, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("write cache: %w", err)
	}
	config.Unknown = map[string]json.RawMessage{cacheField: raw}
	return nil
}

// add adds the records of all steps of a result.
func (doc *cacheDocument) add(ctx context.Context, r *Result) {
	e := r.engine
	for _, n := range r.nodes(true) {
		m := e.nodes[n]
		doc.Steps = append(doc.Steps, cachedStep{
			Key: m.text.Key(), Step: m.text.Step(), Content: m.digests.Content,
			cachedLayer: cachedLayer{Layer: m.digests.DiffID, Size: m.digests.Size}, Made: m.at.Unix(),
		})
		if m.alone == nil {
			continue
		}
		if s, ok := e.aloneRecord(ctx, m.alone); ok {
			doc.Steps = append(doc.Steps, s)
		}
	}
	if doc.Memos == nil {
		doc.Memos = map[Key]string{}
	}
	maps.Copy(doc.Memos, e.memos)
}

// aloneRecord is the record of a linked step's layer alone: it serves on other bases.
func (e *engine) aloneRecord(ctx context.Context, text *KeyText) (cachedStep, bool) {
	k := text.Key()
	if rec, err := e.Records.Get(k); err == nil {
		return cachedStep{
			Key: k, Step: text.Step(), Content: rec.Digests.Content,
			cachedLayer: cachedLayer{Layer: rec.Digests.DiffID, Size: rec.Digests.Size}, Made: rec.Made.Unix(),
		}, true
	}
	if s := e.cached(ctx, k); s != nil {
		return *s, true
	}
	return cachedStep{}, false
}

// nodes lists the steps of a result that were made: of every stage, or those whose
// layers it has.
func (r *Result) nodes(all bool) []*Node {
	var list []*Node
	if !all {
		for _, l := range r.Layers {
			if l.Step != nil {
				list = append(list, l.Step)
			}
		}
		return list
	}
	for _, s := range r.Plan.Stages {
		for _, n := range s.Nodes {
			if m := r.engine.nodes[n]; m != nil && m.text != nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// layerOf describes the layer of a step as it can be had: from its tree, or as the cache
// that knows the step has it. False: nobody has it.
func (r *Result) layerOf(ctx context.Context, n *Node) (ocispec.Descriptor, bool) {
	e := r.engine
	m := e.nodes[n]
	if m.lazy != nil && m.lazy.snap == nil {
		return e.carry(ctx, &m.lazy.step.cachedLayer)
	}
	return image.LayerDescriptor(m.digests.DiffID, m.digests.Size), true
}

// carry describes a layer that goes from one cache to another.
func (e *engine) carry(ctx context.Context, l *cachedLayer) (ocispec.Descriptor, bool) {
	if l.blob.Digest == "" {
		return l.blob, false
	}
	if len(e.Images.Sources(l.blob.Digest)) == 0 && l.from.Place.Fetch(ctx, l.blob) != nil {
		return l.blob, false // the new cache can do without it
	}
	return ocispec.Descriptor{MediaType: l.blob.MediaType, Digest: l.blob.Digest, Size: l.blob.Size}, true
}
