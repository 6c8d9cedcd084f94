package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Freed is what GC removed.
type Freed struct {
	Blobs int
	Bytes int64 // temporary files of dead writers included
}

// GC removes every blob that no entry of index.json leads to and that keep (nil:
// nothing) does not want, records of blobs that are gone, and temporary files of
// dead writers. The caller holds the exclusive lock: a blob that was put and not
// yet named is taken for garbage.
func (s *Store) GC(ctx context.Context, keep func(digest.Digest) bool) (Freed, error) {
	var freed Freed
	live, err := s.Reachable(ctx, nil)
	if err != nil {
		return freed, fmt.Errorf("collect garbage: %w", err) // an index that cannot be followed frees nothing
	}
	var dead []v1.Descriptor
	err = s.EachBlob(func(d digest.Digest, size int64) error {
		if _, ok := live[d]; !ok && (keep == nil || !keep(d)) {
			dead = append(dead, v1.Descriptor{Digest: d, Size: size, MediaType: s.documentType(ctx, d, size)})
		}
		return ctx.Err()
	})
	if err != nil {
		return freed, fmt.Errorf("collect garbage: %w", err)
	}
	// Indexes, then manifests, then the rest: killed in between, no manifest is left that names what is gone.
	sort.SliceStable(dead, func(i, j int) bool { return deletionOrder(dead[i]) < deletionOrder(dead[j]) })
	for _, d := range dead {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		if err := os.Remove(s.path(blobPath(d.Digest))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("collect garbage: %w", err)
		}
		freed.Blobs++
		freed.Bytes += d.Size
	}
	wanted := func(d digest.Digest) bool {
		_, ok := live[d]
		return ok || keep != nil && keep(d)
	}
	if err := s.dropRecords(wanted); err != nil {
		return freed, fmt.Errorf("collect garbage: %w", err)
	}
	for _, drop := range []func() (int64, error){s.dropDeadTemps, s.dropPartials} {
		bytes, err := drop()
		freed.Bytes += bytes
		if err != nil {
			return freed, fmt.Errorf("collect garbage: %w", err)
		}
	}
	return freed, nil
}

// Reachable returns all digests that roots, or with nil the entries of index.json, lead to: manifests, configs,
// layers, whether their blobs exist or not, and the layers' DiffIDs, whose records are kept with them.
func (s *Store) Reachable(ctx context.Context, roots []v1.Descriptor) (map[digest.Digest]struct{}, error) {
	if roots == nil {
		ix, err := s.readIndex()
		if err != nil {
			return nil, err
		}
		roots = ix.Manifests
	}
	live := map[digest.Digest]struct{}{}
	var follow func(d v1.Descriptor) error
	follow = func(d v1.Descriptor) error {
		if _, seen := live[d.Digest]; seen {
			return ctx.Err()
		}
		live[d.Digest] = struct{}{}
		if ok, err := s.Has(d); err != nil || !ok {
			return err
		}
		switch {
		case IsIndex(d.MediaType):
			children, err := s.loadIndex(ctx, d)
			if err != nil {
				return err
			}
			for _, c := range children.Manifests {
				if err := follow(c); err != nil {
					return err
				}
			}
		case IsManifest(d.MediaType):
			raw, err := s.ReadBlob(ctx, d, MaxManifestSize)
			if err != nil {
				return err
			}
			m, err := ParseManifest(raw, d.MediaType)
			if err != nil {
				return err
			}
			for _, c := range append(m.Layers, m.Config) {
				live[c.Digest] = struct{}{}
				for _, form := range s.forms(c.Digest) { // perhaps all there is of the layer
					live[form.Digest] = struct{}{}
				}
			}
			if raw, err := s.ReadBlob(ctx, m.Config, MaxConfigSize); err == nil {
				if config, err := ParseConfig(raw); err == nil {
					for _, d := range config.RootFS.DiffIDs {
						live[d] = struct{}{}
					}
				}
			}
		}
		return nil
	}
	for _, d := range roots {
		if err := follow(d); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
	}
	return live, nil
}

// deletionOrder puts what names others before what is named.
func deletionOrder(d v1.Descriptor) int {
	switch {
	case IsIndex(d.MediaType):
		return 0
	case IsManifest(d.MediaType):
		return 1
	}
	return 2
}

// documentType is the media type of a blob that is a manifest or index, else "".
func (s *Store) documentType(ctx context.Context, d digest.Digest, size int64) string {
	if size > MaxManifestSize {
		return ""
	}
	f, err := os.Open(s.path(blobPath(d)))
	if err != nil {
		return ""
	}
	defer f.Close()
	first := make([]byte, 1)
	if _, err := f.Read(first); err != nil || first[0] != '{' {
		return ""
	}
	raw, err := s.ReadBlob(ctx, v1.Descriptor{Digest: d, Size: size}, MaxManifestSize)
	if err != nil {
		return ""
	}
	kind, err := sniffDocument(raw, "")
	if err != nil {
		return ""
	}
	return kind
}

// EachBlob calls f for every file under blobs that has a digest's name.
func (s *Store) EachBlob(f func(d digest.Digest, size int64) error) error {
	return s.eachDigestFile("blobs", func(d digest.Digest, e fs.DirEntry, _ string) error {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(d, info.Size())
	})
}

// dropRecords removes the records of digests that nobody wants.
func (s *Store) dropRecords(wanted func(digest.Digest) bool) error {
	for _, kind := range []string{"sources", "compressed", "claims"} {
		err := s.eachDigestFile(kind, func(d digest.Digest, _ fs.DirEntry, name string) error {
			if wanted(d) {
				return nil
			}
			return os.Remove(name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eachDigestFile walks <kind>/<alg>/<hex>. Files with other names are not ours to touch.
func (s *Store) eachDigestFile(kind string, f func(d digest.Digest, e fs.DirEntry, name string) error) error {
	root := s.path(kind)
	return filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := strings.CutPrefix(name, root+string(filepath.Separator))
		d := digest.Digest(strings.Replace(filepath.ToSlash(rel), "/", ":", 1))
		if checkDigest(d) != nil {
			return nil
		}
		return f(d, e, name)
	})
}
