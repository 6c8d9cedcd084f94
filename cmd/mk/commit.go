package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"mk/builder"
	"mk/container"
	"mk/image"
	"mk/snapshot"
)

const commitHelp = `Make an image of a container: its image, and a layer of what it changed.

--change takes an instruction of a recipe: CMD, ENTRYPOINT, ENV, EXPOSE,
HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR. Volumes are not part of the image.`

// commitFlags are the words of one mk commit.
type commitFlags struct {
	author, message string
	changes         []string
	quiet           bool
}

func newCommit(a *app) *cobra.Command {
	var f commitFlags
	var pause bool
	c := &cobra.Command{Use: "commit [flags] CONTAINER [NAME]", Short: "Make an image of a container", Long: commitHelp, Args: cobra.RangeArgs(1, 2)}
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.insideOf(func(c *cobra.Command, s *store, ctr *container.Container) error {
			name := ""
			if len(args) > 1 {
				name = args[1]
			}
			d, err := s.commit(c.Context(), ctr, &f)
			if err != nil {
				return fmt.Errorf("commit %s: %w", ctr.Name, err)
			}
			if err := s.images.Tag(name, d); err != nil {
				return err
			}
			img, err := s.images.Image(c.Context(), d, nil)
			if err != nil {
				return err
			}
			fmt.Fprintln(&stdout, img.ID())
			return nil
		})(c, args)
	}
	fl := c.Flags()
	fl.StringVarP(&f.author, "author", "a", "", "author of the image")
	fl.StringVarP(&f.message, "message", "m", "", "comment in the history")
	fl.VarP((*list)(&f.changes), "change", "c", "instruction to apply to the image")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "as in docker; mk commit prints only the ID")
	fl.BoolVarP(&pause, "pause", "p", false, "as in docker; mk commit does not stop the container")
	a.usernsFlag(c)
	return c
}

// commit makes the image, which has no name yet.
func (s *store) commit(ctx context.Context, c *container.Container, f *commitFlags) (ocispec.Descriptor, error) {
	unlock, err := c.Change() // nobody removes it meanwhile
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer unlock()
	if err := layered(c); err != nil {
		return ocispec.Descriptor{}, err
	}
	base, err := s.images.Resolve(c.ImageTarget, nil)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("its image: %w", err)
	}
	snap, err := s.freeze(ctx, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := snap.Digests(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config := base.Config().Clone()
	now := time.Now().UTC()
	config.Created = &now
	if f.author != "" {
		config.Author = f.author
	}
	run := &config.Config
	run.Env, run.User, run.WorkingDir, run.Labels, run.StopSignal = c.Env, c.User, c.Dir, c.Labels, c.StopSignal
	run.Entrypoint, run.Cmd = c.Command[:c.Entrypoint], c.Command[c.Entrypoint:]
	if config, err = builder.Change(ctx, config, f.changes); err != nil {
		return ocispec.Descriptor{}, err
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.DiffID)
	config.History = append(config.History, ocispec.History{
		Created: &now, CreatedBy: strings.Join(c.Command, " "), Author: f.author, Comment: f.message,
	})
	var layers []ocispec.Descriptor
	for _, l := range base.Layers() {
		layers = append(layers, l.Descriptor)
	}
	layers = append(layers, image.LayerDescriptor(d.DiffID, d.Size))
	return s.images.PutImage(ctx, config, layers, image.PutOptions{})
}

// freeze copies what a container changed into a snapshot; the container goes on.
func (s *store) freeze(ctx context.Context, c *container.Container) (*snapshot.Snapshot, error) {
	view, err := s.trees.View(c.Path("layer"))
	if err != nil {
		return nil, err
	}
	draft, err := s.trees.NewDraft(view.Parent())
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	r, w := io.Pipe()
	go func() { w.CloseWithError(view.WriteLayer(ctx, w)) }()
	err = draft.Apply(ctx, r)
	r.CloseWithError(err)
	if err != nil {
		return nil, err
	}
	return draft.Commit()
}
