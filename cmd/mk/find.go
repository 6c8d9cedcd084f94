package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/builder"
	"mk/image"
	"mk/recipe"
)

// finder finds images by the names that people write: in the store, else at a
// registry, or in an archive or layout directory named with its transport.
type finder struct {
	*store
	pull     policy
	policy   *sourcePolicy
	progress builder.Reporter
	fetch    *fetcher // of a build: brings contexts
	names    *imageNames
}

// imageNames remembers by what name each image was found, after all that policies
// made of it. Nil remembers nothing.
type imageNames struct {
	mu    sync.Mutex // a plan asks from several goroutines
	names map[*image.Image]string
}

func (n *imageNames) set(img *image.Image, name string) {
	if n == nil || img == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.names == nil {
		n.names = map[*image.Image]string{}
	}
	n.names[img] = name
}

// of is the name of an image. Of one from a file it is the file's: where that is on
// this machine is nobody's concern.
func (n *imageNames) of(img *image.Image) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := n.names[img]
	if transport, path, ok := cutTransport(name); ok {
		return transport + "://" + filepath.Base(path)
	}
	return name
}

// policy says when a registry is asked for an image.
type policy int

const (
	missing policy = iota // for what the store has not
	always
	newer // always, and the store's is taken when that fails
	never
)

// pullPolicy reads --pull: docker's yes and no, or podman's words.
func pullPolicy(word string) (policy, error) {
	switch word {
	case "missing", "false", "ifmissing":
		return missing, nil
	case "always", "true":
		return always, nil
	case "newer", "ifnewer":
		return newer, nil
	case "never":
		return never, nil
	}
	return missing, fmt.Errorf("--pull=%s: want always, missing, newer or never", word)
}

// base finds the image of a FROM line.
func (f *finder) base(ctx context.Context, name string, platform ocispec.Platform) (*image.Image, error) {
	return f.find(ctx, name, &platform)
}

// find finds an image; platform nil means this machine's.
func (f *finder) find(ctx context.Context, name string, platform *ocispec.Platform) (*image.Image, error) {
	if transport, path, ok := cutTransport(name); ok {
		img, err := f.archive(ctx, transport, path, platform)
		f.names.set(img, name)
		return img, err
	}
	title := name
	ref, wrong := image.ParseReference(name) // an ID of the store is no reference, maybe
	if wrong == nil {
		title = ref.String()
	}
	if to, err := f.policy.image(title); err != nil {
		return nil, err
	} else if to != title {
		name, title = to, to
		ref, wrong = image.ParseReference(to)
	}
	var img *image.Image
	err := f.progress.Task("[internal] load metadata for "+title, func(*builder.Vertex) (err error) {
		if f.pull == missing || f.pull == never {
			img, err = f.images.Resolve(name, platform)
			if err == nil || !errors.Is(err, image.ErrNotFound) {
				return err
			}
			if f.pull == never {
				return fmt.Errorf("--pull=never: %w", err)
			}
		}
		if wrong != nil {
			return wrong
		}
		if img, err = f.client.Manifest(ctx, ref, f.images, platform); err != nil {
			if have, herr := f.images.Resolve(name, platform); f.pull == newer && herr == nil {
				img = have
				return nil
			}
			return err
		}
		return f.images.Tag(ref.String(), img.Target())
	})
	f.names.set(img, title)
	return img, err
}

// transports are the ways to name an image that is not in a registry.
var transports = []string{"oci", "oci-archive", "docker-archive", "oci-layout"}

// cutTransport splits "oci:DIR:tag" and its like.
func cutTransport(name string) (transport, path string, ok bool) {
	for _, t := range transports {
		if rest, ok := strings.CutPrefix(name, t+":"); ok {
			return t, strings.TrimPrefix(rest, "//"), true
		}
	}
	return "", "", false
}

// archive reads an image from a file or directory into the store. A tag or
// digest may follow the path, for layouts that hold several.
func (f *finder) archive(ctx context.Context, transport, path string, platform *ocispec.Platform) (*image.Image, error) {
	want := ""
	if !exists(path) {
		if i := strings.LastIndex(path, "@"); i > 0 {
			path, want = path[:i], path[i+1:]
		} else if i := strings.LastIndex(path, ":"); i > 0 {
			path, want = path[:i], path[i+1:]
		}
	}
	var found []image.Tagged
	var err error
	if st, serr := os.Stat(path); serr == nil && st.IsDir() && want != "" && !strings.Contains(want, "sha256:") {
		found, err = f.images.ReadLayout(ctx, path, want)
		want = ""
	} else {
		found, err = f.images.ReadArchive(ctx, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s:%s: %w", transport, path, err)
	}
	var match []image.Tagged
	for _, t := range found {
		if want == "" || t.Descriptor.Digest.String() == want || strings.HasSuffix(t.Name, ":"+want) || t.Name == want {
			match = append(match, t)
		}
	}
	switch {
	case len(match) == 0:
		return nil, fmt.Errorf("%s:%s: no image %q in it", transport, path, want)
	case len(match) > 1 && match[0].Descriptor.Digest != match[1].Descriptor.Digest:
		return nil, fmt.Errorf("%s:%s: holds %d images: name one as %s:%s:TAG", transport, path, len(match), transport, path)
	}
	return f.images.Image(ctx, match[0].Descriptor, platform)
}

// context finds the value of a --build-context.
func (f *finder) context(ctx context.Context, value string, platform *ocispec.Platform) (builder.Tree, error) {
	if !strings.HasPrefix(value, imageScheme) && recipe.KindOf(value) != recipe.Local {
		if err := f.policy.remote(value); err != nil {
			return builder.Tree{}, err
		}
	}
	if ref, ok := strings.CutPrefix(value, "docker-image://"); ok {
		if ref == "scratch" {
			return builder.Tree{}, nil
		}
		img, err := f.find(ctx, ref, platform)
		return builder.Tree{Image: img}, err
	}
	if strings.HasPrefix(value, "oci-layout://") {
		img, err := f.find(ctx, value, platform)
		return builder.Tree{Image: img}, err
	}
	if value != "-" && isRemote(value) {
		got, err := f.fetch.get(ctx, value)
		if err == nil && got.text != nil {
			err = errors.New("it is neither an archive nor a git repository")
		}
		return builder.Tree{Files: got.files}, err
	}
	if scheme, _, ok := strings.Cut(value, "://"); ok && !exists(value) {
		return builder.Tree{}, fmt.Errorf("%s:// is not supported: want a directory, docker-image://, oci-layout://, a git repository or the address of an archive", scheme)
	}
	files, err := openContext(value, "", "")
	if err != nil {
		return builder.Tree{}, err
	}
	f.fetch.open = append(f.fetch.open, files.Root)
	files.Cache = f.statCache(value)
	return builder.Tree{Files: files}, nil
}

// contextName splits the name of a --build-context: name, or name::os/arch for images of
// that platform. It returns the name as the plan looks for it, and the platform that an
// image of that name is wanted for, nil for this machine's.
func contextName(word string, platform *ocispec.Platform) (string, *ocispec.Platform, error) {
	name, of, ok := strings.Cut(word, "::")
	if !ok {
		return word, platform, nil
	}
	p, err := image.ParsePlatform(of)
	if err != nil {
		return "", nil, err
	}
	return name + "::" + image.FormatPlatform(p), &p, nil
}

// statCache is the cache of file digests of one directory.
func (s *store) statCache(dir string) *builder.StatCache {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = realPath(abs)
	}
	return builder.OpenStatCache(s.path("stat"), dir)
}

// fetched is what was got from URLs and git repositories.
func (s *store) fetched() *builder.Fetched { return builder.OpenFetched(s.path("fetched")) }

func (s *store) path(name string) string { return filepath.Join(s.root, name) }

func cwd() string {
	dir, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return dir
}
