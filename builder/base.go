package builder

import (
	"context"
	"fmt"
	"io"
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

	outline outlineOf
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
		if b.snap, b.err = e.unpack(ctx, img, v); b.err == nil && b.snap != nil {
			chains := chainIDs(img)
			b.snap = b.snap.AsImage(chains[len(chains)-1])
		}
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
	arrivals, stop := fetchAhead(ctx, layers[have:])
	defer stop()
	for i, l := range layers[have:] {
		layer := func(*Vertex) (err error) {
			top, err = b.unpackArriving(ctx, l, arrivals[i], top)
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

// fetchAhead begins to bring layers into the image store, those on the bottom first, while they
// are unpacked. stop ends what is still under way.
func fetchAhead(ctx context.Context, layers []image.Layer) (arrivals []*image.Arrival, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	waiting := make(chan *image.Arrival, len(layers))
	for _, l := range layers {
		arrivals = append(arrivals, l.Expect())
		waiting <- arrivals[len(arrivals)-1]
	}
	close(waiting)
	var workers sync.WaitGroup
	for range min(fetchesAtOnce, len(layers)) {
		workers.Go(func() {
			for a := range waiting {
				a.Fetch(ctx)
			}
		})
	}
	return arrivals, func() {
		cancel()
		workers.Wait()
	}
}

// unpackArriving unpacks a layer while it comes. Until all of it is there and verified, what
// comes of it is a draft.
func (b *Builder) unpackArriving(ctx context.Context, l image.Layer, arrival *image.Arrival, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	snap, err := b.unpackLayer(ctx, l.DiffID, arrival.Uncompressed, parent)
	if err == nil {
		return snap, nil
	}
	// Wrong bytes break the unpacking first, somehow: what the transfer has to say says more.
	if err := arrival.Wait(ctx); err != nil {
		return nil, err
	}
	if !arrival.Early() {
		return nil, err
	}
	return b.unpackLayer(ctx, l.DiffID, l.Uncompressed, parent)
}

// unpackLayer unpacks what open gives, verified at its end, on a tree.
func (b *Builder) unpackLayer(ctx context.Context, diffID digest.Digest, open func(context.Context) (io.ReadCloser, error), parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
	if made, err := b.Trees.ByDiffID(diffID); err == nil && made.Below() == nil && parent != nil {
		return b.relay(ctx, made, parent)
	}
	tar, err := open(ctx)
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
	draft.SetLayer(diffID) // the reader has verified it
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
