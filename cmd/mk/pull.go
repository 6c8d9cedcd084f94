package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"mk/image"
	"mk/image/registry"
)

const pullHelp = `Bring images from a registry into mk's store.

Of a multi-platform image, this machine's platform is brought, or --platform, or
all. A name with a digest whose image is here makes no request.

MK_REGISTRY_MIRRORS, or the file ~/.config/mk/mirrors, names mirrors that are asked
first, as REGISTRY=URL.`

// pullFlags are the words of one mk pull.
type pullFlags struct {
	platform     string
	allPlatforms bool
	allTags      bool
	quiet        bool
	registry     registryFlags
}

func newPull(a *app) *cobra.Command {
	var f pullFlags
	c := &cobra.Command{
		Use: "pull [flags] NAME[:TAG|@DIGEST]...", Short: "Bring images from a registry", Long: pullHelp,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if f.allPlatforms && f.platform != "" {
				return errors.New("--platform and --all-platforms contradict each other")
			}
			s, err := a.open()
			if err != nil {
				return err
			}
			defer s.Close()
			for _, name := range args {
				ref, err := s.at(name, &f.registry)
				if err != nil {
					return err
				}
				if err := s.pull(c.Context(), ref, &f); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&f.platform, "platform", "", "platform to bring, as os/arch[/variant]")
	c.Flags().BoolVar(&f.allPlatforms, "all-platforms", false, "bring every platform")
	c.Flags().BoolVarP(&f.allTags, "all-tags", "a", false, "bring every tag of the repository")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print the image's ID and nothing else")
	f.registry.register(c.Flags())
	return c
}

// pull brings one name, or all of its repository.
func (s *store) pull(ctx context.Context, ref image.Reference, f *pullFlags) error {
	if !f.allTags {
		return s.pullOne(ctx, ref, f)
	}
	tags, err := s.client.Tags(ctx, ref)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		tagged, err := ref.WithTag(tag)
		if err != nil {
			return err
		}
		if err := s.pullOne(ctx, tagged, f); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) pullOne(ctx context.Context, ref image.Reference, f *pullFlags) error {
	p, err := parsePlatform(f.platform)
	if err != nil {
		return err
	}
	var progress registry.Progress
	if !f.quiet {
		progress = printProgress
	}
	var d ocispec.Descriptor
	if f.allPlatforms {
		d, err = s.client.PullAll(ctx, ref, s.images, progress)
	} else {
		d, err = s.client.Pull(ctx, ref, s.images, p, progress)
	}
	if err != nil {
		return err
	}
	if err := s.images.Tag(ref.String(), d); err != nil {
		return err
	}
	id := d.Digest
	if img, err := s.images.Image(ctx, d, p); err == nil {
		id = img.ID()
	} else if !f.allPlatforms || !errors.Is(err, image.ErrPlatform) { // there may be none of this machine's
		return err
	}
	if f.quiet {
		fmt.Fprintln(&stdout, id)
		return nil
	}
	fmt.Fprintf(os.Stderr, "Digest: %s\n", d.Digest)
	fmt.Fprintln(&stdout, ref.String())
	return nil
}

// parsePlatform reads --platform; nil for "", the choice of who looks.
func parsePlatform(word string) (*ocispec.Platform, error) {
	if word == "" {
		return nil, nil
	}
	p, err := image.ParsePlatform(word)
	if err != nil {
		return nil, fmt.Errorf("--platform %s: %w", word, err)
	}
	return &p, nil
}
