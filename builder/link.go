package builder

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"mk/recipe"
	"mk/snapshot"
)

// COPY --link and ADD --link: a layer that is made on nothing and then laid on the
// parent's tree. So it does not follow symlinks of the parent's, does not know its
// users, need not wait for it, and is the same layer on every base: a rebuilt base
// costs a snapshot.Rebase and no copy, and that only when something runs on it. It has two
// records: one of the layer alone, under a key whose parent is the word alone, and, of a
// tree that was laid, one as every step has it.

// alone stands where a key has the parent's content.
const alone = "none: linked"

// linked says whether a step's layer is made without looking at its parent. With
// --chmod it is not: BuildKit does not link then either.
func (n *Node) linked() bool {
	st, ok := n.Step.(*recipe.Copy)
	return ok && st.Link && st.Chmod == ""
}

// laidTree is the tree of a linked step, laid on its parent's when somebody needs it. A base
// that nobody runs anything on, and that is in a registry, stays there.
type laidTree struct {
	layer *snapshot.Snapshot
	turn  chan struct{} // a token: who holds it lays the tree
	snap  *snapshot.Snapshot
}

// makeLinked finds or makes the layer of a linked step. What it makes of the parent's tree is
// known without that.
func (e *engine) makeLinked(ctx context.Context, n *Node, m *made, act action, facts func(parent string) *KeyText) error {
	text := facts(alone)
	layer, made, err := e.aloneLayer(ctx, n, act, text)
	if err != nil {
		return at(n.Step.At(), err)
	}
	m.id, m.at = layer.ID(), made
	if n.Parent.Node != nil || n.Parent.Image != nil && len(n.Parent.Image.Layers()) > 0 {
		m.laid = &laidTree{layer: layer, turn: make(chan struct{}, 1)}
	}
	e.group.Go(func() error {
		defer close(m.digested)
		m.digests, m.digestErr = e.digest(layer)
		if m.digestErr != nil {
			return m.digestErr
		}
		if err := e.Records.Put(text, layer.ID(), m.digests, made); err != nil {
			return err
		}
		below, err := e.contentOf(e.ctx, n.Parent)
		if err != nil {
			return err
		}
		m.text = facts(below)
		if m.laid == nil {
			err = e.Records.Put(m.text, layer.ID(), m.digests, made)
		} else {
			m.digests = m.digests.On(digest.Digest(below))
		}
		if err != nil {
			return err
		}
		return e.setLast(n, m.text)
	})
	return nil
}

// lay makes the tree of a linked step, and its record.
func (e *engine) lay(ctx context.Context, n *Node, m *made) (*snapshot.Snapshot, error) {
	l := m.laid
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.snap != nil {
		return l.snap, nil
	}
	if !e.Inside {
		return nil, ErrNeedsInside
	}
	parent, err := e.tree(ctx, n.Parent)
	if err != nil {
		return nil, err
	}
	snap, err := e.Trees.Rebase(l.layer, parent)
	if err != nil {
		return nil, err
	}
	d, err := snap.Digests(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := m.wait(ctx); err != nil {
		return nil, err
	}
	if err := e.Records.Put(m.text, snap.ID(), d, m.at); err != nil {
		return nil, err
	}
	l.snap = snap
	return snap, nil
}

// aloneBefore finds the layer that a linked step made before.
func (e *engine) aloneBefore(n *Node, text *KeyText) (*Record, bool) {
	if !n.linked() || n.NoCache {
		return nil, false
	}
	rec, err := e.Records.Get(text.Key())
	return rec, err == nil && e.usable(rec) != nil
}

// aloneLayer finds the layer of a linked step in the records or a cache, or makes it.
func (e *engine) aloneLayer(ctx context.Context, n *Node, act action, text *KeyText) (*snapshot.Snapshot, time.Time, error) {
	if rec, ok := e.aloneBefore(n, text); ok {
		e.Progress.Cached(n.Vertex)
		layer, err := e.Trees.Get(rec.Snapshot)
		return layer, rec.Made, err
	}
	if !e.Inside {
		return nil, time.Time{}, ErrNeedsInside
	}
	if e.Explain != nil {
		below, err := e.contentOf(ctx, n.Parent)
		if err != nil {
			return nil, time.Time{}, err
		}
		e.Explain(Reason{n.Vertex, e.explain(n, text.On(below))})
	}
	if layer, made, err := e.aloneCached(ctx, n, text); layer != nil || err != nil {
		return layer, made, err
	}
	layer, err := e.onDraft(ctx, n, act, nil)
	return layer, now(), err
}
