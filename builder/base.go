package builder

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"mk/image"
	"mk/snapshot"
)

// lazyBase unpacks an image once a build.
type lazyBase struct {
	once  sync.Once
	snap  *snapshot.Snapshot
	err   error
	shown sync.Once // in the display: once as CACHED, or while it is unpacked
}

// lazy returns the image's entry.
func (e *engine) lazy(img *image.Image) *lazyBase {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.bases[img]
	if b == nil {
		b = &lazyBase{}
		e.bases[img] = b
	}
	return b
}

// nameBases remembers how the display calls each base: by the first stage that is FROM it.
func (e *engine) nameBases(plans []*Plan) {
	for _, p := range plans {
		for _, s := range p.Stages {
			if img := s.Start.Image; img != nil && e.names[img] == nil {
				e.names[img] = s.base
			}
		}
	}
}

// showBase shows once that a base need not be unpacked, if that is so.
func (e *engine) showBase(img *image.Image) {
	v := e.names[img]
	if v == nil {
		return
	}
	b := e.lazy(img)
	if chains := chainIDs(img); len(chains) > 0 {
		if _, err := e.Trees.ByChain(chains[len(chains)-1]); err != nil {
			return
		}
	}
	b.shown.Do(func() { e.Progress.Cached(v) })
}

func (e *engine) base(ctx context.Context, img *image.Image) (*snapshot.Snapshot, error) {
	b := e.lazy(img)
	b.once.Do(func() {
		e.showBase(img)
		var v *Vertex
		b.shown.Do(func() { v = e.names[img] })
		b.snap, b.err = e.unpack(ctx, img, v)
	})
	return b.snap, b.err
}

// Unpack makes an image's layers into snapshots, those that are not there yet,
// and returns the topmost; nil for an image without layers.
//
// Each layer is committed by itself, so an interrupted Unpack goes on where it
// was. Two processes may unpack the same layer at the same time: both are
// right, one is found later.
func (b *Builder) Unpack(ctx context.Context, img *image.Image) (*snapshot.Snapshot, error) {
	return b.unpack(ctx, img, nil)
}

// unpack is Unpack shown as v, or where that is nil as a vertex a layer.
func (b *Builder) unpack(ctx context.Context, img *image.Image, v *Vertex) (top *snapshot.Snapshot, err error) {
	layers := img.Layers()
	chains := chainIDs(img)

	have := 0
	for i := len(chains) - 1; i >= 0; i-- {
		if s, err := b.Trees.ByChain(chains[i]); err == nil {
			top, have = s, i+1
			break
		}
	}
	if have == len(layers) {
		return top, nil
	}
	if !b.Inside {
		return nil, ErrNeedsInside
	}
	if v != nil {
		b.Progress.Start(v)
		defer func() { b.Progress.End(v, err) }()
	}
	arrival, stop := fetchAhead(ctx, layers[have:])
	defer stop()
	for i, l := range layers[have:] {
		layer := func(*Vertex) (err error) {
			if err = <-arrival[i]; err == nil {
				top, err = b.unpackLayer(ctx, l, top)
			}
			return err
		}
		title := "extracting " + l.Descriptor.Digest.String()
		if v == nil {
			err = b.Progress.Task(title, layer)
		} else if err = layer(v); err == nil {
			b.Progress.Status(v, title, 0, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("unpack layer %s: %w", l.Descriptor.Digest, err)
		}
	}
	return top, nil
}

// fetchesAtOnce is how many layers of an image come at once; registries slow down whoever asks for more.
const fetchesAtOnce = 4

// fetchAhead begins to bring layers into the image store, those on the bottom first, while others are
// unpacked. Each channel says once how its layer's fetch ended. stop ends what is still under way.
func fetchAhead(ctx context.Context, layers []image.Layer) (arrival []chan error, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	arrival = make([]chan error, len(layers))
	waiting := make(chan int, len(layers))
	for i := range layers {
		arrival[i] = make(chan error, 1)
		waiting <- i
	}
	close(waiting)
	var workers sync.WaitGroup
	for range min(fetchesAtOnce, len(layers)) {
		workers.Go(func() {
			for i := range waiting {
				arrival[i] <- layers[i].Fetch(ctx)
			}
		})
	}
	return arrival, func() {
		cancel()
		workers.Wait()
	}
}

func (b *Builder) unpackLayer(ctx context.Context, l image.Layer, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	if made, err := b.Trees.ByDiffID(l.DiffID); err == nil && made.Parent() == nil && parent != nil {
		return b.relay(ctx, made, parent)
	}
	tar, err := l.Uncompressed(ctx)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	draft, err := b.Trees.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	if err := draft.Apply(ctx, tar); err != nil {
		return nil, err
	}
	draft.SetLayer(l.DiffID) // the reader has verified it
	return draft.Commit()
}

// relay lays a layer that COPY --link made here on a tree, and has it found there.
func (b *Builder) relay(ctx context.Context, layer, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	snap, err := b.Trees.Rebase(layer, parent)
	if err != nil {
		return nil, err
	}
	_, err = snap.Digests(ctx)
	return snap, err
}

// defaultJobs lets steps that wait overlap even on one processor.
func defaultJobs() int { return max(4, runtime.GOMAXPROCS(0)) }

// chainIDs names what each layer of an image makes together with those below it.
func chainIDs(img *image.Image) []digest.Digest {
	var ids []digest.Digest
	for _, l := range img.Layers() {
		ids = append(ids, l.DiffID)
	}
	return identity.ChainIDs(ids)
}
