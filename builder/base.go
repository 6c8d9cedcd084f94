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
	once sync.Once
	snap *snapshot.Snapshot
	err  error
}

func (e *engine) base(ctx context.Context, img *image.Image) (*snapshot.Snapshot, error) {
	e.mu.Lock()
	b := e.bases[img]
	if b == nil {
		b = &lazyBase{}
		e.bases[img] = b
	}
	e.mu.Unlock()
	b.once.Do(func() { b.snap, b.err = e.Unpack(ctx, img) })
	return b.snap, b.err
}

// Unpack makes an image's layers into snapshots, those that are not there yet,
// and returns the topmost; nil for an image without layers.
//
// Each layer is committed by itself, so an interrupted Unpack goes on where it
// was. Two processes may unpack the same layer at the same time: both are
// right, one is found later.
func (b *Builder) Unpack(ctx context.Context, img *image.Image) (*snapshot.Snapshot, error) {
	layers := img.Layers()
	chains := chainIDs(img)

	var top *snapshot.Snapshot
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
	for _, l := range layers[have:] {
		err := b.Progress.Task("extracting "+l.Descriptor.Digest.String(), func(v *Vertex) (err error) {
			top, err = b.unpackLayer(ctx, l, top)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("unpack layer %s: %w", l.Descriptor.Digest, err)
		}
	}
	return top, nil
}

func (b *Builder) unpackLayer(ctx context.Context, l image.Layer, parent *snapshot.Snapshot) (*snapshot.Snapshot, error) {
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
