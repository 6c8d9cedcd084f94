package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mk/image"
)

const loadHelp = `Read images from an archive: of 'docker save', 'podman save', an OCI archive,
or an OCI layout directory. Compressed archives are read as they are.`

func newLoad(a *app) *cobra.Command {
	var input string
	var quiet bool
	c := &cobra.Command{
		Use: "load [flags]", Short: "Read images from an archive", Long: loadHelp, Args: cobra.NoArgs,
		RunE: a.withStore(func(c *cobra.Command, s *store, _ []string) error {
			return s.load(c.Context(), input, quiet)
		}),
	}
	c.Flags().StringVarP(&input, "input", "i", "", "the archive (default: standard input)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	return c
}

func (s *store) load(ctx context.Context, input string, quiet bool) error {
	var found []image.Tagged
	var err error
	if input == "" || input == "-" {
		found, err = s.images.ReadArchiveFrom(ctx, &stdin)
	} else {
		found, err = s.images.ReadArchive(ctx, input)
	}
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for _, t := range found {
		what := "Loaded image ID: " + t.Descriptor.Digest.String()
		if t.Name != "" {
			ref, err := image.ParseReference(t.Name)
			if err != nil {
				return fmt.Errorf("load: %w", err)
			}
			what = "Loaded image: " + ref.Familiar()
		}
		if had, err := s.images.Lookup(t.Name); t.Name != "" && err == nil && had.Digest != t.Descriptor.Digest {
			fmt.Fprintf(os.Stderr, "The name %s was %s's until now\n", t.Name, had.Digest)
		}
		if err := s.images.Tag(t.Name, t.Descriptor); err != nil {
			return fmt.Errorf("load: %w", err)
		}
		if !quiet {
			fmt.Fprintln(&stdout, what)
		}
	}
	return nil
}
