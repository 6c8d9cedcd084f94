package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"mk/image"
	"mk/recipe"
	"mk/snapshot"
)

// A COPY and a WORKDIR look at names alone: which directories there are, where links lead, whose
// what is. So they need not have a base that is in a registry, if its layers say what is in
// them for less than themselves (image.Layer.Listing), or a cache does (remoteoutline.go): they are made on an outline, a tree with
// the directories and links of the base and none of its files (snapshot.Draft.ApplyListing). Their layers are the same to the byte.
//
// A tree is asked first, being verified; then the listing, the word of the base's author; last a cache, of whoever may write to it.
// A step that reads the tree has the base fetched, and the layers laid on it; where the plan has such
// a step, the base is fetched at once.

// outlineOf is the outline of one image, made once a build.
type outlineOf struct {
	once sync.Once
	snap *snapshot.Snapshot // nil: there is none
	err  error
}

// ground gives the tree that a step is made on: an outline of it, if that is enough and there is one.
func (e *engine) ground(ctx context.Context, n *Node) (*snapshot.Snapshot, error) {
	if !namesAlone(n) {
		return e.tree(ctx, n.Parent)
	}
	if s, err := e.outlined(ctx, n.Parent, false); s != nil || err != nil {
		return s, err
	}
	return e.tree(ctx, n.Parent)
}

// outlined gives an outline of a tree, nil where there is none, the tree itself is here, or a step of the plan reads it.
// With kept, those steps do not count: a cache has what they made.
func (e *engine) outlined(ctx context.Context, t Tree, kept bool) (*snapshot.Snapshot, error) {
	switch {
	case t.Node != nil:
		m, err := e.node(ctx, t.Node)
		switch {
		case err != nil:
			return nil, err
		case m.lazy != nil:
			return e.bringOutlined(ctx, t.Node, m, kept)
		case m.laid != nil && m.laid.layer.Outline():
			return m.laid.layer, nil
		}
	case t.Image != nil && (kept || !e.read[t]):
		return e.outline(ctx, t.Image)
	}
	return nil, nil
}

// namesAlone tells whether a step reads no file of its parent's: none of the accounts, and none to unpack
// archives beside.
func namesAlone(n *Node) bool {
	switch st := n.Step.(type) {
	case *recipe.Copy:
		return !st.Add && st.Unpack == nil && (st.Chown == "" || onlyNumber.MatchString(st.Chown))
	case *recipe.Workdir:
		return n.User == ""
	}
	return false
}

// readTrees lists the trees that steps of the plans read files of, or that end as files themselves, and those that they lie on.
func (b *Builder) readTrees(plans []*Plan) map[Tree]bool {
	read := map[Tree]bool{}
	mark := func(t Tree) {
		for ; !read[t]; t = t.Node.Parent {
			if read[t] = true; t.Node == nil {
				return
			}
		}
	}
	for _, p := range plans {
		for _, s := range p.Stages {
			for _, n := range s.Nodes {
				onLinked := n.Parent.Node != nil && n.Parent.Node.linked() // which is laid on trees only
				if !n.linked() && (!namesAlone(n) || onLinked) {
					mark(n.Parent)
				}
				for _, t := range n.From {
					mark(t)
				}
			}
		}
		if b.Need == NeedTree {
			mark(p.Target.Tree)
		}
	}
	return read
}

var onlyNumber = regexp.MustCompile(`^[0-9]+$`)

// outline gives the outline of an image, nil where the image itself is here or nearly, or has
// layers of which nobody says what is in them.
func (e *engine) outline(ctx context.Context, img *image.Image) (*snapshot.Snapshot, error) {
	o := &e.lazy(img).outline
	o.once.Do(func() {
		chains := chainIDs(img)
		if len(chains) == 0 {
			return
		}
		top := chains[len(chains)-1]
		if _, err := e.Trees.ByChain(top); err == nil {
			return
		}
		if s, err := e.Trees.OutlineByChain(top); err == nil {
			o.snap = s.AsImage(top) // it may be of a step that made the same
			return
		}
		if !e.Inside || !e.mostlyListed(ctx, img) {
			return
		}
		s, err := e.makeOutline(ctx, img)
		switch {
		case err == nil:
			o.snap = s.AsImage(top)
		case errors.Is(err, errForsaken):
			o.err = err
		case ctx.Err() == nil:
			e.notice(fmt.Sprintf("a base is fetched, of which no byte would be needed: %v", err))
		}
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return o.snap, o.err
}

// maxListings is how many bytes of listings, compressed as they come, are held in memory for one image.
const maxListings = 64 << 20

// mostlyListed tells whether most bytes of an image that would have to be fetched are in layers with listings,
// or with outlines in a cache.
func (e *engine) mostlyListed(ctx context.Context, img *image.Image) bool {
	var listed, other, listings int64
	chains, known := chainIDs(img), true // a cache that lacks one is not asked for more: it may be a request each
	for i, l := range img.Layers() {
		if here, err := l.Present(); here || err != nil {
			continue
		}
		if n := l.Listed(); n > 0 {
			listed, listings = listed+l.Descriptor.Size, listings+n
		} else if known = known && e.from.outline(ctx, chains[i]) != nil; known {
			listed += l.Descriptor.Size
		} else {
			other += l.Descriptor.Size
		}
	}
	return listed > other && listings <= maxListings
}

// told is what is said to be in a layer: its listing, by its author, or else an outline, by a cache.
type told struct {
	io.ReadCloser
	cached *cachedLayer // nil: it is a listing
}

// makeOutline makes a snapshot a layer, of what is told of it, or of the layer where that is here or nothing is.
func (e *engine) makeOutline(ctx context.Context, img *image.Image) (top *snapshot.Snapshot, err error) {
	chains := chainIDs(img)
	known := 0
	for i := range chains {
		s, err := e.Trees.ByChain(chains[i])
		if err != nil {
			s, err = e.Trees.OutlineByChain(chains[i])
		}
		if err != nil {
			break
		}
		top, known = s, i+1
	}
	layers, chains := img.Layers()[known:], chains[known:]
	told, err := e.listings(ctx, layers, chains)
	if err != nil {
		return nil, err
	}
	defer closeAll(told)
	for i, l := range layers {
		switch t := told[i]; {
		case t.ReadCloser == nil:
			top, err = e.unpackLayer(ctx, l.DiffID, l.Uncompressed, top)
		case t.cached != nil:
			top, err = e.unpackOutline(ctx, l.Descriptor.Digest, l.DiffID, "", chains[i], t.cached, t, top)
		default:
			top, err = e.unpackListing(ctx, l, t, top)
		}
		if err != nil {
			return nil, err
		}
	}
	return top, nil
}

// listings gets what is told of the layers that are not here; of some that may be nothing.
func (e *engine) listings(ctx context.Context, layers []image.Layer, chains []digest.Digest) ([]told, error) {
	found := make([]told, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchesAtOnce)
	for i, l := range layers {
		if here, err := l.Present(); here || err != nil {
			continue // an error shows when it is read
		}
		if l.Listed() == 0 {
			if o := e.from.outline(ctx, chains[i]); o != nil {
				g.Go(func() (err error) {
					found[i].cached = o
					found[i].ReadCloser, err = e.cachedOutline(ctx, l.Descriptor.Digest, o)
					return err
				})
			}
			continue
		}
		g.Go(func() error {
			return e.Progress.Task("reading what is in layer "+l.Descriptor.Digest.String(), func(*Vertex) (err error) {
				found[i].ReadCloser, err = l.Listing(ctx)
				return err
			})
		})
	}
	err := g.Wait()
	if err != nil {
		closeAll(found)
	}
	return found, err
}

func closeAll(list []told) {
	for _, t := range list {
		if t.ReadCloser != nil {
			t.Close()
		}
	}
}

// unpackListing unpacks a layer's listing on a tree.
func (e *engine) unpackListing(ctx context.Context, l image.Layer, tar io.Reader, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	draft, err := e.Trees.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	if err := draft.ApplyListing(ctx, tar); err != nil {
		return nil, err
	}
	draft.SetOutline(l.DiffID)
	return draft.Commit()
}

// execute makes the snapshot of a step on its parent's tree, or on the outline of that. What an
// outline is not enough for is made again on the tree, which also has the better words for what is wrong.
func (e *engine) execute(ctx context.Context, n *Node, act action) (*snapshot.Snapshot, error) {
	ground, err := e.ground(ctx, n)
	if err != nil {
		return nil, err
	}
	snap, err := e.onDraft(ctx, n, act, ground)
	if err == nil || !ground.Outline() || ctx.Err() != nil || errors.Is(err, errChanged) {
		return snap, err
	}
	tree, err := e.tree(ctx, n.Parent)
	if err != nil {
		return nil, err
	}
	return e.onDraft(ctx, n, act, tree)
}

// found takes what a step made, now or before, for its result.
func (m *made) found(s *snapshot.Snapshot) {
	m.id = s.ID()
	if s.Outline() {
		m.laid = &laidTree{layer: s, turn: make(chan struct{}, 1)}
	}
}
