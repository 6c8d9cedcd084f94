package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mk/image"
)

const saveHelp = `Write images to an archive that docker, podman and skopeo read.

--format is docker-archive (the default), oci-archive, oci-dir, or docker-dir: an OCI
layout with what docker load wants beside it.`

// saveFlags are the words of one mk save.
type saveFlags struct {
	output   string
	format   string
	platform string
	write    writeFlags
	quiet    bool
	several  bool
}

func newSave(a *app) *cobra.Command {
	var f saveFlags
	c := &cobra.Command{Use: "save [flags] IMAGE...", Short: "Write images to an archive", Long: saveHelp, Args: cobra.MinimumNArgs(1)}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, args []string) error {
		return s.save(c.Context(), args, f)
	}))
	fl := c.Flags()
	fl.StringVarP(&f.output, "output", "o", "", "the file or directory to write (default: standard output)")
	fl.StringVar(&f.format, "format", "docker-archive", "docker-archive, oci-archive, oci-dir or docker-dir")
	fl.StringVar(&f.platform, "platform", "", "only this platform of multi-platform images, as os/arch[/variant]")
	f.write.register(fl)
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "no meaning here: nothing is printed")
	fl.BoolVarP(&f.several, "multi-image-archive", "m", false, "no meaning here: all arguments are images")
	a.usernsFlag(c)
	return c
}

func (s *store) save(ctx context.Context, names []string, f saveFlags) error {
	p, err := parsePlatform(f.platform)
	if err != nil {
		return err
	}
	var images []image.Tagged
	for _, name := range names {
		d, err := s.images.Lookup(name)
		if err != nil {
			return err
		}
		if p != nil {
			img, err := s.images.Image(ctx, d, p)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			d = img.Descriptor()
		}
		full, _ := s.nameOf(name) // "" for an ID
		images = append(images, image.Tagged{Name: full, Descriptor: d})
	}
	if strings.HasPrefix(f.format, "docker") && f.write != (writeFlags{}) {
		return errors.New("save: --compression is of OCI forms: layers in docker's have none")
	}
	switch f.format {
	case "oci-dir", "docker-dir":
		if f.output == "" || f.output == "-" {
			return fmt.Errorf("save: --format %s wants a directory, given with -o", f.format)
		}
		if f.format == "docker-dir" {
			return s.images.WriteDockerDir(ctx, f.output, images, p)
		}
		_, err := s.images.WriteOCIDir(ctx, f.output, images, f.write.options())
		return err
	case "", "docker-archive", "docker":
		return writeOutput(f.output, func(w io.Writer) error { return s.images.WriteDocker(ctx, w, images, p) })
	case "oci-archive", "oci":
		return writeOutput(f.output, func(w io.Writer) error {
			_, err := s.images.WriteOCI(ctx, w, images, f.write.options())
			return err
		})
	}
	return fmt.Errorf("--format %s: want docker-archive, oci-archive, oci-dir or docker-dir", f.format)
}

// nameOf says whether an argument names an image by its name, not by its ID.
func (s *store) nameOf(arg string) (string, bool) {
	ref, err := image.ParseReference(arg)
	if err != nil {
		return "", false
	}
	tagged, err := s.images.List()
	if err != nil {
		return "", false
	}
	for _, t := range tagged {
		if t.Name == ref.String() {
			return t.Name, true
		}
	}
	return "", false
}

// writeOutput writes a file whole or not at all; "" and "-" are standard
// output. A new file has the mode that the umask leaves, one that is replaced
// keeps its own. The rename is the commit point.
func writeOutput(path string, write func(io.Writer) error) error {
	if path == "" || path == "-" {
		if term.IsTerminal(int(os.Stdout.Fd())) {
			return errors.New("cowardly refusing to write an archive to a terminal: use -o or redirect")
		}
		return write(&stdout)
	}
	old, err := os.Stat(path)
	replaces := err == nil
	if replaces && !old.Mode().IsRegular() { // a pipe or a device: written as it is
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = write(f)
		return errors.Join(err, f.Close())
	}
	if replaces {
		if path, err = filepath.EvalSymlinks(path); err != nil { // the file is replaced, not the link to it
			return err
		}
	}
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"-"+rand.Text()[:10])
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666) // the umask's mode, which os.CreateTemp does not give
	if err != nil {
		return err
	}
	defer os.Remove(name) // nothing to remove once it was renamed
	if replaces {
		err = f.Chmod(old.Mode().Perm())
	}
	if err == nil {
		err = write(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(name, path)
}
