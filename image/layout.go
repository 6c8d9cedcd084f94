package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// LayoutHolds says whether an OCI layout directory has the manifest d, of one image,
// under a tag, and every blob that it names. A directory that is not there holds nothing.
func LayoutHolds(dir, tag string, d v1.Descriptor) (bool, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer root.Close()
	raw, err := readRootFile(root, "index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ix, err := parseLayoutIndex(raw)
	if err != nil {
		return false, err
	}
	for _, has := range ix.Manifests {
		if has.Digest == d.Digest && has.Annotations[annotationTag] == tag {
			blobs, err := layoutBlobs(root, has)
			return err == nil && len(blobs) > 0, nil // what cannot be read is written again
		}
	}
	return false, nil
}

// layoutBlobs lists the blobs of a manifest or index, itself included. Each must be
// there; its bytes are not read.
func layoutBlobs(root *os.Root, d v1.Descriptor) ([]digest.Digest, error) {
	all := []digest.Digest{d.Digest}
	if !IsIndex(d.MediaType) && !IsManifest(d.MediaType) {
		st, err := root.Stat(blobPath(d.Digest))
		if err == nil && st.Size() != d.Size {
			err = fmt.Errorf("%s has %d bytes: %w", d.Digest, st.Size(), ErrDigest)
		}
		return all, err
	}
	raw, err := readRootFile(root, blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	var children []v1.Descriptor
	if IsIndex(d.MediaType) {
		ix, err := ParseIndex(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		children = ix.Manifests
	} else {
		m, err := ParseManifest(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		children = append(m.Layers, m.Config)
	}
	for _, c := range children {
		if err := CheckDescriptor(c); err != nil {
			return nil, err
		}
		blobs, err := layoutBlobs(root, c)
		if err != nil {
			return nil, err
		}
		all = append(all, blobs...)
	}
	return all, nil
}

// PruneLayout removes the blobs of an OCI layout directory that its index does not lead
// to. Nobody may be writing to it.
func PruneLayout(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	raw, err := readRootFile(root, "index.json")
	if err != nil {
		return err
	}
	ix, err := parseLayoutIndex(raw)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, d := range ix.Manifests {
		blobs, err := layoutBlobs(root, d)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Digest, err) // what cannot be followed frees nothing
		}
		for _, b := range blobs {
			live[blobPath(b)] = true
		}
	}
	return fs.WalkDir(root.FS(), "blobs", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || live[filepath.ToSlash(name)] {
			return err
		}
		return root.Remove(name)
	})
}
