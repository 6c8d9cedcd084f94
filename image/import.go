package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// PutTar stores the tar of a file system, which may be compressed as DecompressArchive knows, as an
// uncompressed layer. Its headers are read on the way: what is no whole tar is an error. Whether
// its names and links may be unpacked is for the one that unpacks them to say.
func (s *Store) PutTar(ctx context.Context, r io.Reader) (v1.Descriptor, error) {
	plain, err := DecompressArchive(contextReader{ctx, r})
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer plain.Close()
	pr, pw := io.Pipe()
	verdict := make(chan error, 1)
	go func() {
		err := checkTar(pr)
		pr.CloseWithError(err) // ends the copy below
		verdict <- err
	}()
	d, err := s.Put(ctx, io.TeeReader(plain, pw), nil)
	pw.CloseWithError(err)
	if wrong := <-verdict; err == nil {
		err = wrong
	}
	d.MediaType = v1.MediaTypeImageLayer
	return d, err
}

// checkTar reads a tar to its end.
func checkTar(r io.Reader) error {
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		_, err := t.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // the padding of tar's last record
			return err
		}
		if n == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return fmt.Errorf("not a tar archive: %w", ErrInvalid)
		}
		if err != nil {
			return err
		}
	}
}
