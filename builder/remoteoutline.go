package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/snapshot"
)

// A cache carries what is in the bases that its build laid files on, an outline for each of their
// layers (snapshot.Snapshot.WriteOutline): another machine makes its COPY on these and fetches no base.
// They are asked for when a step is executed whose base is neither here nor listed by its author.
// Like a record, an outline is its writer's word: it names the ChainID that it is of, and
// that what it tells of that is true is shown by nothing but the base.

// outlinedBases lists the images that steps of a result laid files on, and that no step of the plans reads.
func (r *Result) outlinedBases() []*image.Image {
	var bases []*image.Image
	for _, n := range r.nodes(true) {
		t := Tree{Node: n}
		for t.Node != nil && namesAlone(t.Node) && !t.Node.linked() {
			t = t.Node.Parent
		}
		if t.Image != nil && !r.engine.read[t.Image] && !slices.Contains(bases, t.Image) {
			bases = append(bases, t.Image)
		}
	}
	return bases
}

// addOutlines adds the outlines of a result's bases, of those of which all layers have one.
func (r *Result) addOutlines(ctx context.Context, doc *cacheDocument, layers map[digest.Digest]ocispec.Descriptor) error {
	for _, img := range r.outlinedBases() {
		list, err := r.engine.outlines(ctx, chainIDs(img))
		if err != nil {
			return fmt.Errorf("what is in a base: %w", err)
		}
		if doc.Outlines == nil && len(list) > 0 {
			doc.Outlines = map[digest.Digest]cachedLayer{}
		}
		for chain, o := range list {
			doc.Outlines[chain], layers[o.Layer] = o, o.blob
		}
	}
	return nil
}

// outlines describes the outlines of layers as they can be had, the first that is possible: as they were written or
// read before, written now, or of a cache. None if one cannot be had.
func (e *engine) outlines(ctx context.Context, chains []digest.Digest) (map[digest.Digest]cachedLayer, error) {
	list := map[digest.Digest]cachedLayer{}
	for _, chain := range chains {
		if o, ok := e.keptOutline(ctx, chain); ok {
			list[chain] = o
		}
	}
	if len(list) == len(chains) {
		return list, nil
	}
	var below *snapshot.Snapshot
	if sources, ok := e.outlineSources(chains); ok {
		if !e.Inside {
			return nil, ErrNeedsInside
		}
		for i, s := range sources {
			var err error
			if below, err = e.Trees.MakeOutline(ctx, s, below); err != nil {
				return nil, err
			}
			if list[chains[i]], err = e.writeOutline(ctx, chains[i], below); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	clear(list)
	for _, chain := range chains {
		o := e.from.outline(ctx, chain)
		if o == nil {
			return nil, nil
		}
		blob, ok := e.carry(ctx, o)
		if !ok {
			return nil, nil
		}
		list[chain] = cachedLayer{Layer: o.Layer, Size: o.Size, blob: blob}
	}
	return list, nil
}

// outlineSources finds for each chain a tree that an outline can be made of, or one.
func (e *engine) outlineSources(chains []digest.Digest) (sources []*snapshot.Snapshot, ok bool) {
	for _, chain := range chains {
		s, err := e.Trees.OutlineByChain(chain)
		if err != nil {
			s, err = e.Trees.ByChain(chain)
		}
		if err != nil {
			return nil, false
		}
		sources = append(sources, s)
	}
	return sources, true
}

// outlineMemo is the question whose answer are the DiffID and the bytes of an outline as it travels.
func outlineMemo(chain digest.Digest) string { return "outline " + chain.String() }

func (e *engine) keptOutline(ctx context.Context, chain digest.Digest) (o cachedLayer, ok bool) {
	answer, _ := e.Records.Memo(outlineMemo(chain))
	if n, err := fmt.Sscan(answer, &o.Layer, &o.Size); n != 2 || err != nil || !o.sound() {
		return o, false
	}
	o.blob = image.LayerDescriptor(o.Layer, o.Size)
	return o, e.Images.Obtain(ctx, o.blob) == nil
}

func (e *engine) keepOutline(chain digest.Digest, o cachedLayer) error {
	return e.Records.SetMemo(outlineMemo(chain), fmt.Sprintf("%s %d", o.Layer, o.Size))
}

// writeOutline puts an outline into the image store, as it travels.
func (e *engine) writeOutline(ctx context.Context, chain digest.Digest, s *snapshot.Snapshot) (o cachedLayer, err error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(s.WriteOutline(ctx, w)) }()
	blob, err := e.Images.Put(ctx, r, nil)
	r.CloseWithError(err) // the writer ends, too
	if err != nil {
		return o, err
	}
	o = cachedLayer{Layer: blob.Digest, Size: blob.Size, blob: image.LayerDescriptor(blob.Digest, blob.Size)}
	return o, e.keepOutline(chain, o)
}

// cachedOutline fetches an outline that a cache has, and opens it.
func (e *engine) cachedOutline(ctx context.Context, l image.Layer, o *cachedLayer) (tar io.ReadCloser, err error) {
	e.Progress.Task(fmt.Sprintf("reading what is in layer %s from %s", l.Descriptor.Digest, o.from.Place), func(*Vertex) error {
		layer := image.LayerDescriptor(o.Layer, o.Size)
		if err = e.fetchCached(ctx, o); err == nil {
			err = e.Images.Obtain(ctx, layer)
		}
		if err == nil {
			tar, err = e.Images.Open(ctx, layer)
		}
		if err != nil && ctx.Err() == nil && !o.from.drop() {
			return nil // another layer's outline was as bad, and the cache is named
		}
		return err
	})
	if err != nil {
		return nil, e.dropCache(ctx, o.from)
	}
	return tar, nil
}

// unpackOutline unpacks an outline that a cache has on one of what its layer lies on.
func (e *engine) unpackOutline(ctx context.Context, l image.Layer, chain digest.Digest, o *cachedLayer, tar io.Reader, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	draft, err := e.Trees.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	if err := draft.ApplyOutline(ctx, tar, chain); err != nil {
		if ctx.Err() == nil {
			o.from.fail(fmt.Errorf("what is in layer %s: %w", l.Descriptor.Digest, err), e.Progress)
		}
		return nil, errors.Join(context.Cause(ctx), errForsaken)
	}
	draft.SetOutline(l.DiffID)
	s, err := draft.Commit()
	if err != nil {
		return nil, err
	}
	return s, e.keepOutline(chain, *o)
}

// bringOutlined makes of a step that a cache has, and that looks at names alone, what it is on an outline
// of its parent; nil where that is not enough, or is not to be had.
func (e *engine) bringOutlined(ctx context.Context, n *Node, l *lazyTree) (*snapshot.Snapshot, error) {
	if l.step.blob.Digest == "" || !e.Inside || !namesAlone(n) || n.linked() {
		return nil, nil
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.snap != nil || l.outlined != nil {
		return l.outlined, nil
	}
	below, err := e.outlined(ctx, n.Parent)
	if below == nil || err != nil {
		return nil, err
	}
	err = e.Progress.Task(fmt.Sprintf("extracting cached layer %s from %s", l.step.blob.Digest, l.step.from.Place), func(*Vertex) error {
		if err := <-e.fetchAhead(ctx, &l.step.cachedLayer); err != nil {
			return err
		}
		snap, err := e.applyCached(ctx, l.step, below, false)
		if err != nil {
			return ctx.Err() // on the tree it is made again, and there an error is one
		}
		d, err := snap.Digests(ctx)
		if err == nil {
			err = e.Records.Put(l.text, snap.ID(), d, l.step.made())
		}
		l.outlined = snap
		return err
	})
	if err != nil {
		return nil, e.dropCache(ctx, l.step.from)
	}
	return l.outlined, nil
}
