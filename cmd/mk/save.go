package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mk/image"
)

const saveHelp = `Write images to an archive that docker, podman and skopeo read.

--format is docker-archive (the default), oci-archive or oci-dir.`

func newSave(a *app) *cobra.Command {
	var output, format, compression string
	c := &cobra.Command{Use: "save [flags] IMAGE...", Short: "Write images to an archive", Long: saveHelp, Args: cobra.MinimumNArgs(1)}
	c.RunE = a.inside(func(c *cobra.Command, args []string) error {
		s, err := a.open()
		if err != nil {
			return err
		}
		defer s.Close()
		var images []image.Tagged
		for _, name := range args {
			d, err := s.images.Lookup(name)
			if err != nil {
				return err
			}
			t := image.Tagged{Descriptor: d}
			if _, isName := s.nameOf(name); isName {
				ref, err := image.ParseReference(name)
				if err != nil {
					return err
				}
				t.Name = ref.String()
			}
			images = append(images, t)
		}
		if format == "oci-dir" {
			if output == "" {
				return errors.New("save: --format oci-dir wants a directory, given with -o")
			}
			_, err := s.images.WriteOCIDir(c.Context(), output, images, image.WriteOptions{Compression: image.Compression(compression), Jobs: 2})
			return err
		}
		return writeOutput(output, func(w io.Writer) error {
			switch format {
			case "", "docker-archive", "docker":
				return s.images.WriteDocker(c.Context(), w, images, nil)
			case "oci-archive", "oci":
				_, err := s.images.WriteOCI(c.Context(), w, images, image.WriteOptions{Compression: image.Compression(compression), Jobs: 2})
				return err
			}
			return fmt.Errorf("--format %s: want docker-archive, oci-archive or oci-dir", format)
		})
	})
	c.Flags().StringVarP(&output, "output", "o", "", "the file to write (default: standard output)")
	c.Flags().StringVar(&format, "format", "docker-archive", "docker-archive, oci-archive or oci-dir")
	c.Flags().StringVar(&compression, "compression", "", "of layers in OCI forms: gzip, zstd or uncompressed")
	a.usernsFlag(c)
	return c
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
// output. The rename is the commit point.
func writeOutput(path string, write func(io.Writer) error) error {
	if path == "" || path == "-" {
		if term.IsTerminal(int(os.Stdout.Fd())) {
			return errors.New("cowardly refusing to write an archive to a terminal: use -o or redirect")
		}
		return write(os.Stdout)
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() { // a pipe or a device: written as it is
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = write(f)
		return errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing to remove once it was renamed
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
