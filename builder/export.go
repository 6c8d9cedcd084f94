package builder

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
)

// rewrittenTimestamp is BuildKit's annotation of a layer whose times are none newer than
// SOURCE_DATE_EPOCH, to the epoch.
const rewrittenTimestamp = "buildkit/rewritten-timestamp"

// Store puts a result into the image store and returns its manifest, which has
// no name yet. Its layers are named uncompressed: they stay trees, and are made
// into bytes by who asks for them.
//
// Dates come from when each step was executed, not from now: building again
// what has not changed gives the same image, to the byte.
func (b *Builder) Store(ctx context.Context, r *Result, opts image.PutOptions) (ocispec.Descriptor, error) {
	config := r.Config.Clone()
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = []digest.Digest{}
	var layers []ocispec.Descriptor
	for _, l := range r.Layers {
		if l.Base != nil {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Base.DiffID)
			layers = append(layers, l.Base.Descriptor)
			continue
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digests.DiffID)
		d := image.LayerDescriptor(l.Digests.DiffID, l.Digests.Size)
		if r.Plan.Epoch != nil && !opts.Docker { // docker's descriptors have no annotations
			d.Annotations = map[string]string{rewrittenTimestamp: strconv.FormatInt(r.Plan.Epoch.Unix(), 10)}
		}
		layers = append(layers, d)
	}
	if err := date(&config, r); err != nil {
		return ocispec.Descriptor{}, err
	}
	if b.Inline {
		if err := r.inline(ctx, &config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if r.Plan.OmitHistory {
		config.History = nil
	}
	return b.Images.PutImage(ctx, config, layers, opts)
}

// date fills in the history's dates: a step that made a layer has the time it
// was executed, the others that of the one before them. The epoch, if there is
// one, stands for all.
func date(config *Image, r *Result) error {
	made := map[int]time.Time{}
	base := 0
	for i, l := range r.Layers {
		if l.Base != nil {
			base++
		}
		made[i] = l.Made
	}
	layer := 0
	var last *time.Time
	for i := range config.History {
		h := &config.History[i]
		if h.Created == nil && r.Plan.Epoch != nil {
			h.Created = r.Plan.Epoch
		}
		if !h.EmptyLayer {
			if layer >= len(r.Layers) {
				return fmt.Errorf("history tells of more layers than there are: %d", len(r.Layers))
			}
			if h.Created == nil && layer >= base {
				t := made[layer]
				h.Created = &t
			}
			layer++
		}
		if h.Created == nil {
			h.Created = last
		}
		last = h.Created
	}
	config.Created = last
	if r.Plan.Epoch != nil {
		config.Created = r.Plan.Epoch
	}
	return nil
}
