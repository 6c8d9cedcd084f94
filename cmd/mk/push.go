package main

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mk/image"
	"mk/image/registry"
)

const pushHelp = `Send an image to the registry that its name says, or to another NAME.

Layers are compressed on their way; those that the registry has are not sent, and those
that another repository of it has are mounted. The last line on standard output is
the digest that the registry has it under.`

// pushFlags are the words of one mk push.
type pushFlags struct {
	write      writeFlags
	format     string
	platform   string
	allTags    bool
	quiet      bool
	digestFile string
	registry   registryFlags
}

// writeFlags say in what form layers leave the store, in mk's and podman's words.
type writeFlags struct {
	compression string
	level       int
	force       bool
}

func (f *writeFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.compression, "compression", "", "of layers that have none yet: gzip, zstd or uncompressed")
	fl.StringVar(&f.compression, "compression-format", "", "podman's word for --compression")
	fl.IntVar(&f.level, "compression-level", 0, "1 to 9 for gzip, to 22 for zstd (default: 6 and 3)")
	fl.BoolVar(&f.force, "force-compression", false, "change the compression of the other layers too")
}

func (f *writeFlags) options() image.WriteOptions {
	return image.WriteOptions{Compression: image.Compression(f.compression), Level: f.level, ForceCompression: f.force, Jobs: 2}
}

func newPush(a *app) *cobra.Command {
	var f pushFlags
	c := &cobra.Command{Use: "push [flags] IMAGE [NAME[:TAG]]", Short: "Send an image to a registry", Long: pushHelp, Args: cobra.RangeArgs(1, 2)}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, args []string) error {
		if f.allTags {
			return s.pushAll(c.Context(), args, f)
		}
		sent, err := s.push(c.Context(), args[0], args[len(args)-1], f)
		if err != nil || f.digestFile == "" {
			return err
		}
		return os.WriteFile(f.digestFile, []byte(sent), 0o644)
	}))
	fl := c.Flags()
	f.write.register(fl)
	fl.StringVar(&f.format, "format", "", "oci or v2s2: the media types of the manifest (default: as it is)")
	fl.StringVar(&f.platform, "platform", "", "send only this platform of a multi-platform image, as os/arch[/variant]")
	fl.BoolVarP(&f.allTags, "all-tags", "a", false, "send every tag that the store has of the repository")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but the digest")
	fl.StringVar(&f.digestFile, "digestfile", "", "write the digest to this file")
	f.registry.register(fl)
	a.usernsFlag(c)
	return c
}

// pushAll sends each tag of a repository under its own name.
func (s *store) pushAll(ctx context.Context, args []string, f pushFlags) error {
	repository, err := image.ParseReference(args[0])
	if err != nil {
		return err
	}
	if len(args) > 1 || repository.FamiliarRepository() != args[0] && repository.Repository() != args[0] {
		return fmt.Errorf("--all-tags wants one name, without a tag")
	}
	tagged, err := s.images.List()
	if err != nil {
		return err
	}
	sent := 0
	for _, t := range tagged {
		ref, err := image.ParseReference(t.Name)
		if err != nil || ref.Repository() != repository.Repository() || ref.Tag() == "" {
			continue
		}
		if _, err := s.push(ctx, t.Name, t.Name, f); err != nil {
			return err
		}
		sent++
	}
	if sent == 0 {
		return &image.NotFoundError{Name: args[0]}
	}
	return nil
}

// push sends the image of one name to another, or the same, and prints what it is there.
func (s *store) push(ctx context.Context, name, to string, f pushFlags) (digest.Digest, error) {
	d, err := s.images.Lookup(name)
	if err != nil {
		return "", err
	}
	if f.platform != "" {
		p, err := parsePlatform(f.platform)
		if err != nil {
			return "", err
		}
		img, err := s.images.Image(ctx, d, p)
		if err != nil {
			return "", err
		}
		d = img.Descriptor()
	}
	ref, err := s.at(to, &f.registry)
	if err != nil {
		return "", err
	}
	opts := registry.PushOptions{Write: f.write.options()}
	switch f.format {
	case "", "oci":
	case "v2s2", "docker":
		opts.Write.Docker = true
	default:
		return "", fmt.Errorf("--format %s: want oci or v2s2", f.format)
	}
	if !f.quiet {
		opts.Progress = printProgress
	}
	sent, err := s.client.Push(ctx, s.images, d, ref, opts)
	if err != nil {
		return "", err
	}
	if f.quiet {
		fmt.Fprintln(&stdout, sent.Digest)
	} else {
		fmt.Fprintf(&stdout, "%s: digest: %s size: %d\n", ref.Tag(), sent.Digest, sent.Size)
	}
	return sent.Digest, nil
}
