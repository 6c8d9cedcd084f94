package builder

import (
	"context"
	"time"

	"mk/recipe"
	"mk/snapshot"
)

// COPY --link and ADD --link: a layer that is made on nothing and then laid on the
// parent's tree. So it does not follow symlinks of the parent's, does not know its
// users, need not wait for it, and is the same layer on every base: a rebuilt base
// costs a snapshot.Rebase and no copy. It has two records: one of the layer alone,
// under a key whose parent is the word alone, and one as every step has it.

// alone stands where a key has the parent's content.
const alone = "none: linked"

// linked says whether a step's layer is made without looking at its parent. With
// --chmod it is not: BuildKit does not link then either.
func (n *Node) linked() bool {
	st, ok := n.Step.(*recipe.Copy)
	return ok && st.Link && st.Chmod == ""
}

// link finds or makes the layer of a linked step and lays it on the parent's tree.
func (e *engine) link(ctx context.Context, n *Node, act action, text *KeyText) (*snapshot.Snapshot, time.Time, error) {
	layer, made, err := e.aloneLayer(ctx, n, act, text)
	if err != nil {
		return nil, made, err
	}
	parent, err := e.tree(ctx, n.Parent)
	if err != nil {
		return nil, made, err
	}
	snap, err := e.Trees.Rebase(layer, parent)
	return snap, made, err
}

// aloneBefore finds the layer that a linked step made before.
func (e *engine) aloneBefore(n *Node, text *KeyText) (*Record, bool) {
	if !n.linked() || n.NoCache {
		return nil, false
	}
	rec, err := e.Records.Get(text.Key())
	return rec, err == nil && e.usable(rec)
}

func (e *engine) aloneLayer(ctx context.Context, n *Node, act action, text *KeyText) (*snapshot.Snapshot, time.Time, error) {
	if rec, ok := e.aloneBefore(n, text); ok {
		e.Progress.Cached(n.Vertex)
		layer, err := e.Trees.Get(rec.Snapshot)
		return layer, rec.Made, err
	}
	if layer, made, err := e.aloneCached(ctx, n, text); layer != nil || err != nil {
		return layer, made, err
	}
	layer, err := e.onDraft(ctx, n, act, nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	made := now()
	e.group.Go(func() error {
		d, err := e.digest(layer)
		if err != nil {
			return err
		}
		return e.Records.Put(text, layer.ID(), d, made)
	})
	return layer, made, nil
}
