package builder

import (
	"context"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Squash makes one layer of all that a result has, its base's too: the tree as it is seen,
// without what was removed or replaced on the way. The history keeps its lines, as such
// that made no layer, and gets one more. Results of one tree share the layer.
func (b *Builder) Squash(ctx context.Context, results []*Result) error {
	if !b.Inside {
		return ErrNeedsInside
	}
	for _, r := range results {
		if len(r.Layers) < 2 {
			continue
		}
		err := b.Progress.Task("[internal] squash "+fmt.Sprint(len(r.Layers))+" layers", func(*Vertex) error { return b.squash(ctx, r) })
		if err != nil {
			return fmt.Errorf("squash layers: %w", err)
		}
	}
	return nil
}

func (b *Builder) squash(ctx context.Context, r *Result) error {
	draft, err := b.Trees.NewDraft(nil)
	if err != nil {
		return err
	}
	defer draft.Discard() // no-op after Commit
	if r.Plan.Epoch != nil {
		draft.SetEpoch(r.Plan.Epoch)
	}
	from, to := io.Pipe()
	go func() { to.CloseWithError(b.WriteTar(ctx, r, to)) }()
	err = draft.Apply(ctx, from)
	from.CloseWithError(err)
	if err != nil {
		return err
	}
	snap, err := draft.Commit()
	if err != nil {
		return err
	}
	digests, err := snap.Digests(ctx)
	if err != nil {
		return err
	}
	made := r.Layers[len(r.Layers)-1].Made
	if made.IsZero() {
		made = now()
	}
	r.Config = r.Config.Clone()
	for i := range r.Config.History {
		r.Config.History[i].EmptyLayer = true
	}
	r.Config.History = append(r.Config.History, ocispec.History{CreatedBy: "squash", Comment: historyComment})
	r.Layers = []Layer{{Digests: digests, Made: made}}
	return nil
}
