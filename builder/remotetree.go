package builder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"mk/image"
	"mk/snapshot"
)

// errForsaken ends an attempt to build: what a cache promised is not to be had. The
// next attempt knows that.
var errForsaken = errors.New("a cached step is not to be had")

// lazyTree is the tree of a step that only a cache has, until somebody needs it.
type lazyTree struct {
	step *cachedStep
	text *KeyText
	turn chan struct{} // a token: who holds it brings the tree
	snap *snapshot.Snapshot

	outlined *snapshot.Snapshot // it on an outline: see bringOutlined
}

func newLazyTree(s *cachedStep, text *KeyText) *lazyTree {
	return &lazyTree{step: s, text: text, turn: make(chan struct{}, 1)}
}

// bring makes the tree of a node whose result a cache has.
func (e *engine) bring(ctx context.Context, n *Node, l *lazyTree) (*snapshot.Snapshot, error) {
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
	if l.step.blob.Digest == "" {
		e.forsake(n)
		return nil, errForsaken
	}
	// Every layer below asks for its own first too: all are fetched at once, and then
	// applied one after the other.
	ahead, stop := context.WithCancel(ctx)
	defer stop()
	fetched := e.fetchAhead(ahead, &l.step.cachedLayer)
	parent, err := e.tree(ctx, n.Parent)
	if err != nil {
		stop()
		<-fetched
		return nil, err
	}
	snap, err := e.unpackCached(ctx, l.step, parent, n.linked(), fetched)
	if err != nil {
		return nil, err
	}
	d, err := snap.Digests(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.Records.Put(l.text, snap.ID(), d, l.step.made()); err != nil {
		return nil, err
	}
	l.snap = snap
	return snap, nil
}

// forsake drops the record of a node that a cache cannot give, and those below it that
// would be wanted next.
func (e *engine) forsake(n *Node) {
	var keys []Key
	e.mu.Lock()
	for ; n != nil; n = n.Parent.Node {
		m := e.nodes[n]
		if m == nil || m.lazy == nil || m.lazy.step.blob.Digest != "" {
			break
		}
		keys = append(keys, m.lazy.step.Key)
	}
	e.mu.Unlock()
	e.from.forsake(keys)
}

// fetchAhead begins to fetch a layer, a few at a time, and gives how that ended.
func (e *engine) fetchAhead(ctx context.Context, s *cachedLayer) <-chan error {
	fetched := make(chan error, 1)
	go func() {
		select {
		case e.from.fetching <- struct{}{}:
			defer func() { <-e.from.fetching }()
			fetched <- e.fetchCached(ctx, s)
		case <-ctx.Done():
			fetched <- context.Cause(ctx)
		}
	}()
	return fetched
}

// unpackCached applies a cached layer, once it is fetched, to a tree. The result is what the
// record says, to the byte of its tar and by its content, or the cache is dropped.
func (e *engine) unpackCached(ctx context.Context, s *cachedStep, parent *snapshot.Snapshot, linked bool, fetched <-chan error) (snap *snapshot.Snapshot, err error) {
	err = e.Progress.Task(fmt.Sprintf("extracting cached layer %s from %s", s.blob.Digest, s.from.Place), func(v *Vertex) error {
		if err := <-fetched; err != nil {
			return err
		}
		snap, err = e.applyCached(ctx, s, parent, linked)
		return err
	})
	if err == nil {
		return snap, nil
	}
	return nil, e.dropCache(ctx, s.from)
}

// dropCache ends the attempt after an error of a cache, which was shown.
func (e *engine) dropCache(ctx context.Context, from *ImportedCache) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	from.drop()
	return errForsaken
}

// fetchCached brings the blob of a cached layer, unless its tree is here under another key.
func (e *engine) fetchCached(ctx context.Context, s *cachedLayer) error {
	if err := e.Images.Claim(s.Layer, s.blob); err != nil {
		return err
	}
	if _, err := e.Trees.ByDiffID(s.Layer); err == nil {
		return nil
	}
	// A server that sends a byte a second must not keep a build that can do without.
	limit := time.Minute + time.Duration(s.blob.Size/slowest)*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not here after %s", limit))
	defer cancel()
	err := s.from.Place.Fetch(ctx, s.blob)
	if why := context.Cause(ctx); err != nil && why != nil {
		err = fmt.Errorf("fetch layer %s: %w", s.blob.Digest, why)
	}
	return err
}

// slowest is the slowest transfer that is waited for, in bytes a second.
const slowest = 100_000

// applyCached applies a layer whose blob is here. What comes out is compared with the record.
func (e *engine) applyCached(ctx context.Context, s *cachedStep, parent *snapshot.Snapshot, linked bool) (*snapshot.Snapshot, error) {
	tar, err := e.Images.Open(ctx, image.LayerDescriptor(s.Layer, s.Size))
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	below := parent
	if linked {
		below = nil
	}
	draft, err := e.Trees.NewDraft(below)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	if e.plan.Epoch != nil {
		draft.SetEpoch(e.plan.Epoch)
	}
	if err := draft.Apply(ctx, tar); err != nil {
		return nil, err
	}
	snap, err := draft.Commit()
	if err != nil {
		return nil, err
	}
	if linked {
		if snap, err = e.Trees.Rebase(snap, parent); err != nil {
			return nil, err
		}
	}
	d, err := snap.Digests(ctx)
	if err != nil {
		return nil, err
	}
	if d.DiffID != s.Layer || d.Content != s.Content {
		return nil, fmt.Errorf("layer %s makes the tree %s, and the cache says %s", s.Layer, d.Content, s.Content)
	}
	return snap, nil
}

// aloneCached brings the layer of a linked step, without a tree below it, from a cache.
func (e *engine) aloneCached(ctx context.Context, n *Node, text *KeyText) (*snapshot.Snapshot, time.Time, error) {
	if e.from == nil || n.NoCache {
		return nil, time.Time{}, nil
	}
	s := e.from.step(ctx, text.Key())
	if s == nil || s.blob.Digest == "" {
		return nil, time.Time{}, nil
	}
	snap, err := e.unpackCached(ctx, s, nil, false, e.fetchAhead(ctx, &s.cachedLayer))
	if err != nil {
		return nil, time.Time{}, err
	}
	d, err := snap.Digests(ctx)
	if err == nil {
		err = e.Records.Put(text, snap.ID(), d, s.made())
	}
	return snap, s.made(), err
}

// Need says how much of a result has to be in the store when Build returns, beyond its
// records: what a cache promises is still to be had then, and later may not be.
type Need int

const (
	NeedNothing Need = iota
	NeedLayers       // their bytes
	NeedTree         // the tree of the whole
)

// need brings what a result will be asked for.
func (e *engine) need(ctx context.Context, t Tree, r *Result) error {
	if e.Need == NeedTree {
		if t.Node == nil {
			return nil
		}
		if _, err := e.tree(ctx, t); err != nil {
			return err
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFetching)
	for _, l := range r.Layers {
		if l.Step == nil {
			continue
		}
		m, err := e.node(ctx, l.Step)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if m.lazy != nil {
			g.Go(func() error { return e.obtain(ctx, l.Step, m.lazy.step) })
		}
	}
	return g.Wait()
}

// obtain makes a cached layer a verified one of the store's, or only notes where it is.
func (e *engine) obtain(ctx context.Context, n *Node, s *cachedStep) error {
	if s.blob.Digest == "" {
		e.forsake(n)
		return errForsaken
	}
	if e.Need == NeedNothing && len(e.Images.Sources(s.blob.Digest)) > 0 {
		return e.Images.Claim(s.Layer, s.blob)
	}
	layer := image.LayerDescriptor(s.Layer, s.Size)
	err := e.fetchCached(ctx, &s.cachedLayer)
	if err == nil {
		err = e.Images.Obtain(ctx, layer)
	}
	if err == nil {
		return nil
	}
	e.Progress.Task("fetching cached layer "+s.blob.Digest.String(), func(*Vertex) error { return err })
	return e.dropCache(ctx, s.from)
}
