package main

import (
	"context"
	"fmt"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"mk/image"
	"mk/image/registry"
)

func newPull(a *app) *cobra.Command {
	var platform string
	var quiet, verify bool
	c := &cobra.Command{
		Use: "pull [flags] NAME[:TAG|@DIGEST]...", Short: "Bring images from a registry",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			defer s.Close()
			s.client.SkipTLSVerify = !verify
			for _, name := range args {
				if err := s.pull(c.Context(), name, platform, quiet); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&platform, "platform", "", "platform to bring, as os/arch[/variant]")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the image's ID and nothing else")
	c.Flags().BoolVar(&verify, "tls-verify", true, "verify the registry's certificate")
	return c
}

func (s *store) pull(ctx context.Context, name, platform string, quiet bool) error {
	ref, err := image.ParseReference(name)
	if err != nil {
		return err
	}
	var p *ocispec.Platform
	if platform != "" {
		want, err := image.ParsePlatform(platform)
		if err != nil {
			return fmt.Errorf("--platform %s: %w", platform, err)
		}
		p = &want
	}
	var progress registry.Progress
	if !quiet {
		progress = printProgress
	}
	d, err := s.client.Pull(ctx, ref, s.images, p, progress)
	if err != nil {
		return err
	}
	if err := s.images.Tag(ref.String(), d); err != nil {
		return err
	}
	img, err := s.images.Image(ctx, d, p)
	if err != nil {
		return err
	}
	if quiet {
		fmt.Println(img.ID())
		return nil
	}
	fmt.Fprintf(os.Stderr, "Digest: %s\n", d.Digest)
	fmt.Println(ref.String())
	return nil
}

// printProgress prints what became of each blob, a line each.
func printProgress(e registry.Event) {
	switch e.State {
	case registry.Complete:
		fmt.Fprintf(os.Stderr, "%s: done, %s\n", shortID(e.Digest), size(e.Done))
	case registry.Exists:
		fmt.Fprintf(os.Stderr, "%s: exists already\n", shortID(e.Digest))
	case registry.Mounted:
		fmt.Fprintf(os.Stderr, "%s: mounted\n", shortID(e.Digest))
	}
}

// newClient is a registry client set up from the environment.
func newClient() (*registry.Client, error) {
	mirrors, err := registry.ParseMirrors(os.Getenv("MK_REGISTRY_MIRRORS"))
	if err != nil {
		return nil, fmt.Errorf("MK_REGISTRY_MIRRORS: %w", err)
	}
	return &registry.Client{Mirrors: mirrors, UserAgent: "mk/" + version}, nil
}
