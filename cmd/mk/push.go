package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mk/image"
	"mk/image/registry"
)

const pushHelp = `Send an image to the registry that its name says, or to another NAME.

Layers are compressed on their way; those that the registry has are not sent.`

// pushFlags are the words of one mk push.
type pushFlags struct {
	compression string
	force       bool
	quiet       bool
}

func newPush(a *app) *cobra.Command {
	var f pushFlags
	var verify bool
	c := &cobra.Command{Use: "push [flags] IMAGE [NAME[:TAG]]", Short: "Send an image to a registry", Long: pushHelp, Args: cobra.RangeArgs(1, 2)}
	c.RunE = a.inside(func(c *cobra.Command, args []string) error {
		s, err := a.open()
		if err != nil {
			return err
		}
		defer s.Close()
		s.client.SkipTLSVerify = !verify
		to := args[len(args)-1]
		return s.push(c.Context(), args[0], to, f)
	})
	fl := c.Flags()
	fl.StringVar(&f.compression, "compression", "", "of layers that have none yet: gzip, zstd or uncompressed")
	fl.BoolVar(&f.force, "force-compression", false, "change the compression of the other layers too")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but the digest")
	fl.BoolVar(&verify, "tls-verify", true, "verify the registry's certificate")
	a.usernsFlag(c)
	return c
}

// push sends the image of one name to another, or the same.
func (s *store) push(ctx context.Context, name, to string, f pushFlags) error {
	d, err := s.images.Lookup(name)
	if err != nil {
		return err
	}
	ref, err := image.ParseReference(to)
	if err != nil {
		return err
	}
	opts := registry.PushOptions{}
	opts.Write.Compression, opts.Write.ForceCompression = image.Compression(f.compression), f.force
	if !f.quiet {
		opts.Progress = printProgress
	}
	sent, err := s.client.Push(ctx, s.images, d, ref, opts)
	if err != nil {
		return err
	}
	if f.quiet {
		fmt.Println(sent.Digest)
		return nil
	}
	fmt.Fprintf(os.Stderr, "%s: digest: %s size: %d\n", ref.Tag(), sent.Digest, sent.Size)
	return nil
}
