package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/snapshot"
)

// A cache carries what is in the trees that its build laid files on last, bases and what RUN steps made of them: an
// outline for each of their layers (snapshot.Snapshot.WriteOutline). Another machine makes its COPY on these and fetches none of
// that. They are asked for when a step is executed whose base is neither here nor listed by its author.
// Like a record, an outline is its writer's word: it names the ChainID that it is of, and
// that what it tells of that is true is shown by nothing but the base.

// outlinedGrounds lists the trees that steps of a result laid files on, and that no step of the plans reads.
func (r *Result) outlinedGrounds() []Tree {
	var grounds []Tree
	for _, n := range r.nodes(true) {
		t := Tree{Node: n}
		for t.Node != nil && namesAlone(t.Node) && !t.Node.linked() {
			t = t.Node.Parent
		}
		if t.Node != n && t != (Tree{}) && !r.engine.read[t] && !slices.Contains(grounds, t) {
			grounds = append(grounds, t)
		}
	}
	return grounds
}

// chain is the ChainID of each layer of a tree.
func (e *engine) chain(ctx context.Context, t Tree) ([]digest.Digest, error) {
	var ids []digest.Digest
	for ; t.Node != nil; t = t.Node.Parent {
		m, err := e.node(ctx, t.Node)
		if err != nil {
			return nil, err
		}
		d, err := m.wait(ctx)
		if err != nil {
			return nil, err
		}
		ids = append(ids, d.DiffID)
	}
	slices.Reverse(ids)
	if t.Image != nil {
		var below []digest.Digest
		for _, l := range t.Image.Layers() {
			below = append(below, l.DiffID)
		}
		ids = append(below, ids...)
	}
	return identity.ChainIDs(ids), nil
}

// addOutlines adds the outlines of what a result's files were laid on, if all layers of that have one.
func (r *Result) addOutlines(ctx context.Context, doc *cacheDocument, layers map[digest.Digest]ocispec.Descriptor) error {
	for _, t := range r.outlinedGrounds() {
		chains, err := r.engine.chain(ctx, t)
		if err != nil {
			return err
		}
		list, err := r.engine.outlines(ctx, chains)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		} else if errors.Is(err, ErrNeedsInside) {
			return err
		} else if err != nil { // the cache saves less, and is one
			r.engine.notice(fmt.Sprintf("the cache does not tell what is in a base: %v", err))
			continue
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
	layer, size, _ := strings.Cut(answer, " ")
	o.Layer = digest.Digest(layer)
	if o.Size, _ = strconv.ParseInt(size, 10, 64); !o.sound() {
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
func (e *engine) cachedOutline(ctx context.Context, layer digest.Digest, o *cachedLayer) (tar io.ReadCloser, err error) {
	e.Progress.Task(fmt.Sprintf("reading what is in layer %s from %s", layer, o.from.Place), func(*Vertex) error {
		d := image.LayerDescriptor(o.Layer, o.Size)
		if err = e.fetchCached(ctx, o); err == nil {
			err = e.Images.Obtain(ctx, d)
		}
		if err == nil {
			tar, err = e.Images.Open(ctx, d)
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

// unpackOutline unpacks an outline that a cache has on what its layer lies on. name is the layer's for people, content
// what its tree has for Content, "" for the layer of an image.
func (e *engine) unpackOutline(ctx context.Context, name, diffID, content, chain digest.Digest, o *cachedLayer, tar io.Reader, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	draft, err := e.Trees.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	if err := draft.ApplyOutline(ctx, tar, chain); err != nil {
		if ctx.Err() == nil {
			o.from.fail(fmt.Errorf("what is in layer %s: %w", name, err), e.Progress)
		}
		return nil, errors.Join(context.Cause(ctx), errForsaken)
	}
	draft.SetOutlineOf(diffID, content)
	s, err := draft.Commit()
	if err != nil {
		return nil, err
	}
	return s, e.keepOutline(chain, *o)
}

// bringOutlined makes an outline of the tree of a step that a cache has; nil where there is none. Of a step that looks
// at names alone it is the layer itself, on an outline; of another, what a cache says is in that.
func (e *engine) bringOutlined(ctx context.Context, n *Node, m *made, kept bool) (*snapshot.Snapshot, error) {
	l := m.lazy
	if !e.Inside || !kept && e.read[Tree{Node: n}] {
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
	var err error
	if l.step.blob.Digest != "" && namesAlone(n) && !n.linked() {
		l.outlined, err = e.bringOnOutline(ctx, n, l, kept)
	} else {
		l.outlined, err = e.outlineOfStep(ctx, n, m)
	}
	return l.outlined, err
}

// bringOnOutline lays the layer of a step that looks at names alone on an outline of its parent.
func (e *engine) bringOnOutline(ctx context.Context, n *Node, l *lazyTree, kept bool) (made *snapshot.Snapshot, err error) {
	below, err := e.outlined(ctx, n.Parent, kept)
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
		made = snap
		return err
	})
	if err != nil {
		return nil, e.dropCache(ctx, l.step.from)
	}
	return made, nil
}

// outlineOfStep is the outline of what a step left that a cache has, if it has that of all below, too.
func (e *engine) outlineOfStep(ctx context.Context, n *Node, m *made) (*snapshot.Snapshot, error) {
	chains, err := e.chain(ctx, Tree{Node: n})
	if err != nil {
		return nil, err
	}
	chain := chains[len(chains)-1]
	if s, err := e.Trees.OutlineByChain(chain); err == nil {
		if d, ok := s.Recorded(); ok && d.Content == m.digests.Content {
			return s, nil
		}
	}
	o := e.from.outline(ctx, chain)
	if o == nil {
		return nil, nil
	}
	below, err := e.outlined(ctx, n.Parent, true)
	if below == nil && err == nil && n.Parent.Image != nil && len(chains) > 1 {
		below, _ = e.Trees.ByChain(chains[len(chains)-2]) // the base is here
	}
	if below == nil && n.Parent != (Tree{}) || err != nil {
		return nil, err
	}
	tar, err := e.cachedOutline(ctx, m.digests.DiffID, o)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return e.unpackOutline(ctx, m.digests.DiffID, m.digests.DiffID, m.digests.Content, chain, o, tar, below)
}
