package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"mk/builder"
	"mk/image"
)

const importHelp = `Make an image of the tar of a root file system: a file, a URL, or - for standard
input. It may be compressed. The image has one layer, and no command but by --change.

--change takes an instruction of a recipe: CMD, ENTRYPOINT, ENV, EXPOSE,
HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR.`

// importFlags are the words of one mk import.
type importFlags struct {
	changes  []string
	message  string
	platform string
	quiet    bool
}

func newImport(a *app) *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use: "import [flags] FILE|URL|- [NAME[:TAG]]", Short: "Make an image of a tar of files", Long: importHelp,
		Args: cobra.RangeArgs(1, 2),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			name := ""
			if len(args) > 1 {
				ref, err := image.ParseReference(args[1])
				if err == nil && ref.Digest() != "" {
					err = errors.New("a new image is given no digest")
				}
				if err != nil {
					return fmt.Errorf("import: %w", err)
				}
				name = ref.String()
			}
			id, err := s.importTar(c.Context(), args[0], name, &f)
			if err != nil {
				return fmt.Errorf("import %s: %w", builder.Redact(args[0]), err)
			}
			fmt.Fprintln(&stdout, id)
			return nil
		}),
	}
	fl := c.Flags()
	fl.VarP((*list)(&f.changes), "change", "c", "instruction to apply to the image")
	fl.StringVarP(&f.message, "message", "m", "", "comment in the history")
	fl.StringVar(&f.platform, "platform", "", "what the files are for, as os/arch[/variant] (default: this machine)")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "no meaning here: only the ID is printed")
	return c
}

// importTar makes the image and returns its ID.
func (s *store) importTar(ctx context.Context, from, name string, f *importFlags) (digest.Digest, error) {
	var config image.Config
	config.Platform = image.HostPlatform()
	if p, err := parsePlatform(f.platform); err != nil {
		return "", err
	} else if p != nil {
		config.Platform = *p
	}
	config, err := builder.Change(ctx, config, f.changes) // before anything is read
	if err != nil {
		return "", err
	}
	archive, err := s.openArchive(ctx, from)
	if err != nil {
		return "", err
	}
	defer archive.Close()
	layer, err := s.images.PutTar(ctx, archive)
	if err != nil {
		return "", err
	}
	now, err := creationTime()
	if err != nil {
		return "", err
	}
	config.Created = &now
	config.RootFS.DiffIDs = []digest.Digest{layer.Digest}
	comment := f.message
	if comment == "" {
		comment = "Imported from " + builder.Redact(from)
	}
	config.History = []ocispec.History{{Created: &now, Comment: comment}}
	d, err := s.images.PutImage(ctx, config, []ocispec.Descriptor{layer}, image.PutOptions{})
	if err != nil {
		return "", err
	}
	if err := s.images.Tag(name, d); err != nil {
		return "", err
	}
	img, err := s.images.Image(ctx, d, &config.Platform)
	if err != nil {
		return "", err
	}
	return img.ID(), nil
}

// creationTime is now, or SOURCE_DATE_EPOCH where that is set.
func creationTime() (time.Time, error) {
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		return builder.ParseEpoch(epoch)
	}
	return time.Now().UTC(), nil
}

// openArchive opens what import reads: standard input, a URL's bytes, or a file.
func (s *store) openArchive(ctx context.Context, from string) (io.ReadCloser, error) {
	switch {
	case from == "-":
		return io.NopCloser(&stdin), nil
	case strings.HasPrefix(from, "http://"), strings.HasPrefix(from, "https://"):
		got, err := s.fetched().URL(ctx, from, "", true, nil)
		if err != nil {
			return nil, err
		}
		return got.Open()
	}
	return os.Open(from)
}
