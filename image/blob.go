package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Put stores what r gives until EOF and returns its descriptor. With expect, the
// bytes must have its digest and size, and the descriptor keeps its media type; without, the digest is sha256.
// The blob appears whole or not at all.
func (s *Store) Put(ctx context.Context, r io.Reader, expect *v1.Descriptor) (v1.Descriptor, error) {
	t, err := s.temp()
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer t.discard()
	got, err := copyVerified(ctx, t, r, expect)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return got, s.promote(t, got.Digest)
}

// copyVerified copies r to w to its end and checks it against expect.
func copyVerified(ctx context.Context, w io.Writer, r io.Reader, expect *v1.Descriptor) (v1.Descriptor, error) {
	want := v1.Descriptor{MediaType: "application/octet-stream", Size: -1}
	algorithm := digest.SHA256
	if expect != nil {
		if err := checkDigest(expect.Digest); err != nil {
			return want, err
		}
		want, algorithm = *expect, expect.Digest.Algorithm()
		r = io.LimitReader(r, want.Size+1) // one more shows that there is too much
	}
	hash := algorithm.Hash()
	n, err := copyContext(ctx, io.MultiWriter(w, hash), r)
	if err != nil {
		return want, err
	}
	got := digest.NewDigest(algorithm, hash)
	if expect == nil {
		want.Digest, want.Size = got, n
		return want, nil
	}
	return want, compare(want.Digest, want.Size, got, n)
}

// promote makes t the blob d. A blob that exists is replaced by the same bytes:
// that heals one that was damaged.
func (s *Store) promote(t *temp, d digest.Digest) error {
	to := s.path(blobPath(d))
	err := t.rename(to)
	if errors.Is(err, fs.ErrNotExist) { // the first blob of another algorithm
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		err = t.rename(to)
	}
	return err
}

// Has reports whether the blob is in the store, of the right size. It does not read it.
func (s *Store) Has(d v1.Descriptor) (bool, error) {
	if err := checkDigest(d.Digest); err != nil {
		return false, err
	}
	info, err := os.Stat(s.path(blobPath(d.Digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("image store: %w", err)
	}
	return info.Mode().IsRegular() && info.Size() == d.Size, nil
}

// Open returns a blob's bytes. They are checked: reading to the end gives
// ErrDigest in place of io.EOF when they are not d's. A blob that is absent comes
// from Layers, when it is an uncompressed layer, or through the Fetcher, when a
// source is known; otherwise the error is ErrAbsent.
func (s *Store) Open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return s.open(ctx, d, true)
}

// Pass is Open for somebody who sends the bytes on: of what comes through the Fetcher, nothing stays.
func (s *Store) Pass(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return s.open(ctx, d, false)
}

// open is Open, or if the store is not to keep what it fetches, Pass.
func (s *Store) open(ctx context.Context, d v1.Descriptor, keep bool) (io.ReadCloser, error) {
	if err := CheckDescriptor(d); err != nil {
		return nil, err
	}
	f, err := s.openFile(d)
	if err == nil || !errors.Is(err, ErrAbsent) {
		return f, err
	}
	layers, fetcher := s.hooks()
	if how, ok := layerCompression(d.MediaType); ok && how == Uncompressed {
		treeErr := error(fs.ErrNotExist)
		if layers != nil {
			var rc io.ReadCloser
			if rc, treeErr = openTree(ctx, layers, d.Digest); treeErr == nil {
				return rc, nil
			}
		}
		rc, formErr := s.openForm(ctx, d, keep)
		switch {
		case formErr == nil:
			return rc, nil
		case !errors.Is(treeErr, fs.ErrNotExist):
			return nil, treeErr
		case !errors.Is(formErr, ErrAbsent):
			return nil, formErr
		}
	}
	if fetcher != nil && len(s.Sources(d.Digest)) > 0 {
		if keep {
			if err := fetcher.FetchLayer(ctx, s, d); err != nil {
				return nil, err
			}
			return s.openFile(d)
		}
		rc, err := fetcher.OpenLayer(ctx, s, d)
		if err != nil {
			return nil, err
		}
		return newVerifier(rc, d.Digest, d.Size), nil
	}
	if from := s.Sources(d.Digest); len(from) > 0 {
		return nil, fmt.Errorf("%s (it is in %s): %w", d.Digest, from[0], ErrAbsent)
	}
	return nil, err
}

// openForm opens an uncompressed layer by decompressing one of its forms.
func (s *Store) openForm(ctx context.Context, d v1.Descriptor, keep bool) (io.ReadCloser, error) {
	err := fmt.Errorf("%s: %w", d.Digest, ErrAbsent)
	for _, form := range s.forms(d.Digest) {
		raw, formErr := s.open(ctx, form, keep)
		if formErr == nil {
			return newUncompressed(raw, d.Digest, d.Size)
		}
		if ctx.Err() != nil || errors.Is(err, ErrAbsent) {
			err = formErr
		}
	}
	return nil, err
}

// Obtain makes sure that an uncompressed layer can be opened without asking anybody and
// is what it should be: one that only a claim leads to is fetched and verified.
func (s *Store) Obtain(ctx context.Context, d v1.Descriptor) error {
	if ok, err := s.Has(d); ok || err != nil {
		return err
	}
	if layers, _ := s.hooks(); layers != nil {
		if rc, _, err := layers.OpenLayer(ctx, d.Digest); err == nil {
			return rc.Close()
		}
	}
	for _, form := range s.compressedForms(d.Digest) {
		if ok, err := s.Has(form.Descriptor); ok || err != nil {
			return err
		}
	}
	err := fmt.Errorf("layer %s: %w", d.Digest, ErrAbsent)
	for _, claim := range s.claims(d.Digest) {
		var raw, tar io.ReadCloser
		if raw, err = s.Open(ctx, claim); err != nil {
			continue
		}
		if tar, err = newUncompressed(raw, d.Digest, d.Size); err != nil {
			continue
		}
		_, err = copyContext(ctx, io.Discard, tar)
		tar.Close()
		if err == nil {
			return s.addCompressed(d.Digest, compressed{Descriptor: claim, level: unknownLevel})
		}
	}
	return err
}

// openFile opens a blob's file, verified. ErrAbsent when there is none.
func (s *Store) openFile(d v1.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(s.path(blobPath(d.Digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d.Digest, ErrAbsent)
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return newVerifier(f, d.Digest, d.Size), nil
}

// openTree opens a layer made again from its tree, verified.
func openTree(ctx context.Context, layers Layers, diffID digest.Digest) (io.ReadCloser, error) {
	rc, size, err := layers.OpenLayer(ctx, diffID)
	if err != nil {
		return nil, fmt.Errorf("make layer %s again: %w", diffID, err)
	}
	return newVerifier(rc, diffID, size), nil
}

// ReadBlob returns a small blob whole (a manifest, a config), refusing one over limit bytes.
func (s *Store) ReadBlob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", d.Digest, d.Size, limit, ErrInvalid)
	}
	rc, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc) // bounded by the verifier
}

// putBytes stores a small blob.
func (s *Store) putBytes(mediaType string, raw []byte) (v1.Descriptor, error) {
	d := bytesDescriptor(mediaType, raw)
	if ok, err := s.Has(d); ok || err != nil {
		return d, err
	}
	t, err := s.temp()
	if err != nil {
		return d, err
	}
	defer t.discard()
	if _, err := t.Write(raw); err != nil {
		return d, fmt.Errorf("store blob: %w", err)
	}
	return d, s.promote(t, d.Digest)
}

// copyContext is io.Copy that ends when ctx does.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(w, contextReader{ctx, r}, make([]byte, 256<<10))
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Document describes the manifest or index with this digest, whatever it is named;
// ErrAbsent when the store has no such.
func (s *Store) Document(ctx context.Context, d digest.Digest) (v1.Descriptor, error) {
	if err := checkDigest(d); err != nil {
		return v1.Descriptor{}, err
	}
	info, err := os.Stat(s.path(blobPath(d)))
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, fmt.Errorf("%s: %w", d, ErrAbsent)
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("image store: %w", err)
	}
	kind := s.documentType(ctx, d, info.Size())
	if kind == "" {
		return v1.Descriptor{}, fmt.Errorf("%s is neither manifest nor index: %w", d, ErrAbsent)
	}
	return v1.Descriptor{MediaType: kind, Digest: d, Size: info.Size()}, nil
}
