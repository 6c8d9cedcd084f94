package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"mk/builder"
	"mk/image"
	"mk/image/registry"
)

// Saved caches are an OCI image: a layer a cache, and in the config the field
// cacheMountsField, which says of each what it is, in the layers' order. Layers that
// did not change have the same digests, so that saving again sends what changed.
//
// Which form the image has, its address says: docker://NAME is a registry, a directory
// (one that exists, or a name that ends with a slash) is an OCI layout, any
// other file is an archive of one.

// cacheMountsField is the field of the config: a list of builder.CacheMount.Info.
const cacheMountsField = "mk.cachemounts.v1"

// cacheMountsArtifact tells people and registries what the image is.
const cacheMountsArtifact = "application/vnd.mk.cachemounts.v1"

const cacheSaveHelp = `Write caches, all or those of the given IDs, to where 'mk cache restore' finds them:

  FILE or -      an archive; - is standard output
  DIR/           an OCI layout directory, also without the slash if it exists
  docker://NAME  an image in a registry

Files keep their owners, modes, times and links. Builds that use a cache are waited
for, and wait until it is written.`

const cacheRestoreHelp = `Make caches, all or those of the given IDs, what 'mk cache save' wrote, in place of
what they hold. Builds that use one are waited for.`

func newCacheSave(a *app) *cobra.Command {
	var output string
	var filters []string
	var write writeFlags
	var reg registryFlags
	c := &cobra.Command{Use: "save [flags] [ID...]", Short: "Write caches to an archive, a directory or a registry", Long: cacheSaveHelp}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, args []string) error {
		list, err := s.pickCaches(args, filters)
		if err != nil {
			return err
		}
		return s.saveCacheMounts(c.Context(), list, output, write.options(), &reg)
	}))
	fl := c.Flags()
	fl.StringVarP(&output, "output", "o", "-", "where to: FILE, DIR/, docker://NAME or -")
	cacheFilter(c, &filters)
	write.register(fl)
	reg.register(fl)
	a.usernsFlag(c)
	return c
}

func newCacheRestore(a *app) *cobra.Command {
	var input string
	var filters []string
	var reg registryFlags
	c := &cobra.Command{Use: "restore [flags] [ID...]", Short: "Read caches that were saved", Long: cacheRestoreHelp}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, args []string) error {
		return s.restoreCacheMounts(c.Context(), args, filters, input, &reg)
	}))
	fl := c.Flags()
	fl.StringVarP(&input, "input", "i", "-", "where from: FILE, DIR, docker://NAME or -")
	fl.Var((*list)(&filters), "filter", "only caches with id=PATTERN")
	reg.register(fl)
	a.usernsFlag(c)
	return c
}

// cacheAddress is where saved caches are.
func cacheAddress(word string) (kind, where string) {
	if name, ok := strings.CutPrefix(word, "docker://"); ok {
		return "registry", name
	}
	if word == "" || word == "-" {
		return "stream", "-"
	}
	if st, err := os.Stat(word); strings.HasSuffix(word, "/") || err == nil && st.IsDir() {
		return "layout", strings.TrimSuffix(word, "/")
	}
	return "file", word
}

// savedTag names saved caches in a layout.
const savedTag = "caches"

// saveCacheMounts writes caches as an image.
func (s *store) saveCacheMounts(ctx context.Context, list []builder.CacheInfo, output string, opts image.WriteOptions, reg *registryFlags) error {
	dirs, release, err := s.holdCaches(ctx, list)
	if err != nil {
		return err
	}
	defer release()
	layers := &mountLayers{Layers: treeLayers{s}, store: s, dirs: map[digest.Digest]mountLayer{}}
	s.images.SetLayers(layers)
	defer s.images.SetLayers(treeLayers{s})
	d, err := s.mountsImage(ctx, list, dirs, layers)
	if err != nil {
		return err
	}
	d.Platform = nil
	d.Annotations = map[string]string{ocispec.AnnotationRefName: savedTag}
	tagged := []image.Tagged{{Descriptor: d}}
	switch kind, where := cacheAddress(output); kind {
	case "registry":
		ref, err := s.at(where, reg)
		if err != nil {
			return err
		}
		_, err = s.client.Push(ctx, s.images, d, ref, registry.PushOptions{Write: opts})
		return err
	case "layout":
		_, err = s.images.WriteOCIDir(ctx, where, tagged, opts)
		return err
	default:
		return writeOutput(where, func(w io.Writer) error {
			_, err := s.images.WriteOCI(ctx, w, tagged, opts)
			return err
		})
	}
}

// mountsImage hashes the caches and stores the image that names them.
func (s *store) mountsImage(ctx context.Context, list []builder.CacheInfo, dirs []string, layers *mountLayers) (ocispec.Descriptor, error) {
	found := make([]mountLayer, len(list))
	ids := make([]digest.Digest, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i := range list {
		g.Go(func() error {
			hash := digest.SHA256.Hash()
			count := &countWriter{w: hash}
			if err := s.trees.WriteDir(gctx, dirs[i], count); err != nil {
				return fmt.Errorf("cache %s: %w", list[i].ID, err)
			}
			found[i], ids[i] = mountLayer{dirs[i], count.n}, digest.NewDigest(digest.SHA256, hash)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return ocispec.Descriptor{}, err
	}
	var config image.Config
	config.OS, config.Architecture = "unknown", "unknown" // nothing to run
	infos := []string{}
	var blobs []ocispec.Descriptor
	for i, info := range list {
		layers.dirs[ids[i]] = found[i]
		infos = append(infos, info.Info())
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, ids[i])
		blobs = append(blobs, image.LayerDescriptor(ids[i], found[i].size))
	}
	raw, err := json.Marshal(infos)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config.Unknown = map[string]json.RawMessage{cacheMountsField: raw}
	return s.images.PutImage(ctx, config, blobs, image.PutOptions{ArtifactType: cacheMountsArtifact})
}

// mountLayers makes the layers of caches that are held, beside those of trees.
type mountLayers struct {
	image.Layers
	store *store
	dirs  map[digest.Digest]mountLayer
}

type mountLayer struct {
	dir  string
	size int64 // of the tar
}

func (m *mountLayers) OpenLayer(ctx context.Context, diffID digest.Digest) (io.ReadCloser, int64, error) {
	l, ok := m.dirs[diffID]
	if !ok {
		return m.Layers.OpenLayer(ctx, diffID)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(m.store.trees.WriteDir(ctx, l.dir, w)) }()
	return r, l.size, nil
}

// countWriter counts what passes.
type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// restoreCacheMounts makes the caches of an image that arguments and filters mean.
func (s *store) restoreCacheMounts(ctx context.Context, args, filters []string, input string, reg *registryFlags) error {
	img, fetch, err := s.savedCaches(ctx, input, reg)
	if err != nil {
		return fmt.Errorf("cache restore: %w", err)
	}
	config := img.Config()
	raw, ok := config.Unknown[cacheMountsField]
	layers := img.Layers()
	var infos []string
	if !ok {
		return errors.New("cache restore: there are no caches in it")
	}
	if err := json.Unmarshal(raw, &infos); err != nil || len(infos) != len(layers) {
		return fmt.Errorf("cache restore: it tells of %d caches and has %d: %w", len(infos), len(layers), errors.Join(err, image.ErrInvalid))
	}
	var all []builder.CacheInfo
	byName := map[string]image.Layer{}
	for i, info := range infos {
		m, err := builder.ParseCacheMount(info)
		if err != nil {
			return fmt.Errorf("cache restore: %w", err)
		}
		byName[m.Name()] = layers[i]
		all = append(all, builder.CacheInfo{CacheMount: m, Name: m.Name()})
	}
	pick, err := cachePicker(args, filters)
	if err != nil {
		return err
	}
	list, missed := pick(all)
	if missed != "" {
		return fmt.Errorf("cache restore: there is no cache %s in it", missed)
	}
	for _, i := range slices.CompactFunc(list, func(a, b builder.CacheInfo) bool { return a.Name == b.Name }) {
		if err := s.restoreCacheMount(ctx, i.CacheMount, byName[i.Name], fetch); err != nil {
			return fmt.Errorf("cache restore: cache %s: %w", i.ID, err)
		}
		fmt.Fprintln(&stdout, i.ID)
	}
	return nil
}

func (s *store) restoreCacheMount(ctx context.Context, m builder.CacheMount, l image.Layer, fetch func(ocispec.Descriptor) error) error {
	if err := fetch(l.Descriptor); err != nil {
		return err
	}
	tar, err := l.Uncompressed(ctx)
	if err != nil {
		return err
	}
	defer tar.Close()
	return s.caches().Replace(ctx, s.trees, m, tar)
}

// savedCaches finds the image at an address. Its layers are had by fetch.
func (s *store) savedCaches(ctx context.Context, input string, reg *registryFlags) (img *image.Image, fetch func(ocispec.Descriptor) error, err error) {
	var found []image.Tagged
	fetch = func(ocispec.Descriptor) error { return nil } // they came along
	switch kind, where := cacheAddress(input); kind {
	case "registry":
		ref, err := s.at(where, reg)
		if err != nil {
			return nil, nil, err
		}
		img, err := s.client.Manifest(ctx, ref, s.images, nil)
		return img, func(d ocispec.Descriptor) error { return s.client.FetchLayer(ctx, s.images, d) }, err
	case "layout":
		fetch = func(d ocispec.Descriptor) error { return s.images.ReadLayoutBlob(ctx, where, d) }
		found, err = s.images.PeekLayout(ctx, where, savedTag)
	case "stream":
		found, err = s.images.ReadArchiveFrom(ctx, &stdin)
	default:
		found, err = s.images.ReadArchive(ctx, where)
	}
	if err != nil {
		return nil, nil, err
	}
	if len(found) == 0 {
		return nil, nil, fs.ErrNotExist
	}
	img, err = s.images.Image(ctx, found[len(found)-1].Descriptor, nil)
	return img, fetch, err
}
