package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/builder"
	"mk/image"
	"mk/image/registry"
)

// built is the results of a build, one a platform, on their way out.
type built struct {
	*building
	work    *builder.Builder
	results []*builder.Result
	scanned []*builder.Result // by an SBOM generator, one for each of results; nil: there is none
	said    map[int][]statement
	index   bool // several platforms, or one that is to stand in an index
}

// exported is what a build's image became, where it went last.
type exported struct {
	target ocispec.Descriptor // of the manifest or index
	config digest.Digest      // "" for an index
	names  []string
	image  bool // it went somewhere as an image, and not only as files
}

// id is what --iidfile and -q give: the config's digest, or the index's.
func (e exported) id() digest.Digest {
	if e.config != "" {
		return e.config
	}
	return e.target.Digest
}

// export sends the results where the outputs say.
func (b *built) export(ctx context.Context, progress builder.Reporter) (exported, error) {
	var last exported
	for _, o := range b.outputs {
		err := progress.Task(o.title(), func(v *builder.Vertex) error {
			e, err := b.assemble(ctx, o)
			if err != nil {
				return err
			}
			if e.target, err = b.send(ctx, progress, v, o, e.target); err != nil {
				return err
			}
			e.image = o.kind == "image" || o.kind == "oci" || o.kind == "docker"
			if e.image || !last.image {
				last = e
			}
			return nil
		})
		if err != nil {
			return last, fmt.Errorf("%s: %w", o.title(), err)
		}
	}
	return last, nil
}

// assemble puts the results into the store as the image or index that an output
// wants, without a name.
func (b *built) assemble(ctx context.Context, o output) (exported, error) {
	var e exported
	for _, t := range o.tags {
		ref, err := image.ParseReference(t)
		if err != nil {
			return e, err
		}
		e.names = append(e.names, ref.String())
	}
	index := b.index || b.attest.any()
	if o.notes.index() && !index {
		return e, errors.New("index annotations not supported for single platform export")
	}
	var manifests []ocispec.Descriptor
	for _, r := range b.results {
		p := r.Plan.Platform
		d, err := b.work.Store(ctx, r, image.PutOptions{Annotations: o.notes.of("manifest", p), Docker: o.opts.Docker})
		if err != nil {
			return e, err
		}
		d.Annotations = o.notes.of("manifest-descriptor", p)
		manifests = append(manifests, d)
	}
	if !index {
		e.target = manifests[0]
		img, err := b.store.images.Image(ctx, e.target, nil)
		if err != nil {
			return e, err
		}
		e.config = img.ID()
		return e, nil
	}
	said, err := b.attestations(ctx, e.names, manifests)
	if err != nil {
		return e, err
	}
	manifests = append(manifests, said...)
	none := ocispec.Platform{}
	d, err := b.store.images.PutIndex(ctx, manifests, image.PutOptions{Annotations: o.notes.of("index", none), Docker: o.opts.Docker})
	d.Annotations = o.notes.of("index-descriptor", none)
	e.target = d
	return e, err
}

// send sends one output and tells what the image became on its way.
func (b *built) send(ctx context.Context, progress builder.Reporter, v *builder.Vertex, o output, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	images := namesOf(d, o.tags)
	store := b.store.images
	switch o.kind {
	case "image":
		if o.compressed() {
			var err error
			if d, err = store.Rewrite(ctx, d, o.opts); err != nil {
				return d, err
			}
			images = namesOf(d, o.tags)
		}
		progress.Status(v, "exporting manifest "+d.Digest.String(), 0, 0)
		for _, t := range images {
			if err := store.Tag(t.Name, t.Descriptor); err != nil {
				return d, err
			}
			if t.Name != "" {
				progress.Status(v, "naming to "+t.Name, 0, 0)
			}
		}
		if o.push {
			return b.push(ctx, progress, v, o, d)
		}
	case "oci":
		var out []image.Tagged
		err := error(nil)
		if o.dir {
			out, err = store.WriteOCIDir(ctx, o.dest, images, o.opts)
		} else {
			err = writeOutput(o.dest, func(w io.Writer) (err error) {
				out, err = store.WriteOCI(ctx, w, images, o.opts)
				return err
			})
		}
		if err == nil && len(out) > 0 {
			d = out[0].Descriptor
		}
		return d, err
	case "docker":
		if b.index && len(b.results) > 1 {
			return d, errors.New("docker exporter does not currently support exporting manifest lists: use type=oci, or one platform")
		}
		if o.dir {
			return d, store.WriteDockerDir(ctx, o.dest, images, nil)
		}
		return d, writeOutput(o.dest, func(w io.Writer) error { return store.WriteDocker(ctx, w, images, nil) })
	case "tar":
		return d, writeOutput(o.dest, func(w io.Writer) error { return b.writeTar(ctx, o, w) })
	case "local":
		return d, b.writeDirs(ctx, o)
	}
	return d, nil
}

// push sends the image under each of its names.
func (b *built) push(ctx context.Context, progress builder.Reporter, v *builder.Vertex, o output, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	sent := d
	for _, t := range o.tags {
		ref, err := image.ParseReference(t)
		if err != nil {
			return d, err
		}
		opts := registry.PushOptions{Write: o.opts, Progress: func(e registry.Event) {
			if e.State == registry.Complete {
				progress.Status(v, "pushing layer "+e.Digest.String(), e.Done, e.Done)
			}
		}}
		if sent, err = b.store.client.Push(ctx, b.store.images, d, ref, opts); err != nil {
			return d, err
		}
		progress.Status(v, "pushing manifest for "+ref.String()+"@"+sent.Digest.String(), 0, 0)
	}
	return sent, nil
}

// splits says whether each platform's files get a directory of their own.
func (b *built) splits(o output) bool {
	if o.split != nil {
		return *o.split
	}
	return len(b.results) > 1
}

// platformDir is the name of that directory: linux_amd64, linux_arm_v7.
func platformDir(r *builder.Result) string {
	return strings.ReplaceAll(image.FormatPlatform(r.Plan.Platform), "/", "_")
}

// writeDirs copies the trees into a directory of the caller's.
func (b *built) writeDirs(ctx context.Context, o output) error {
	if o.delete {
		if err := emptyDir(o.dest); err != nil {
			return err
		}
	}
	for i, r := range b.results {
		dir := o.dest
		if b.splits(o) {
			dir = filepath.Join(dir, platformDir(r))
		}
		leftOut, err := b.work.WriteDir(ctx, r, dir)
		if err != nil {
			return err
		}
		if len(leftOut) > 0 {
			b.notices = append(b.notices, fmt.Sprintf("%s: without its devices, which only root can make (a tar has them): %s", dir, strings.Join(leftOut, " ")))
		}
		if err := b.writeStatements(ctx, i, o, func(name string, text []byte) error {
			return os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}); err != nil {
			return err
		}
	}
	return nil
}

// emptyDir removes what is in a directory and leaves the directory. Directories that
// nobody means are refused.
func emptyDir(dir string) error {
	abs, err := filepath.Abs(dir)
	if err == nil {
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			abs = real
		}
	}
	home, _ := os.UserHomeDir()
	wd := cwd()
	if err != nil || abs == "/" || abs == home || abs == wd || strings.HasPrefix(wd+"/", abs+"/") {
		return fmt.Errorf("mode=delete: %s is not a directory to empty", dir)
	}
	root, err := os.OpenRoot(abs)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := os.ReadDir(abs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := root.RemoveAll(e.Name()); err != nil {
			return fmt.Errorf("mode=delete: %w", err)
		}
	}
	return nil
}

// writeTar writes the tree as a tar, or several under a directory each.
func (b *built) writeTar(ctx context.Context, o output, w io.Writer) error {
	if !b.splits(o) {
		if len(b.results) > 1 {
			return errors.New("platform-split=false: a tar cannot hold two trees in one place")
		}
		if !b.attest.any() {
			return b.work.WriteTar(ctx, b.results[0], w)
		}
	}
	tw := tar.NewWriter(w)
	for i, r := range b.results {
		dir := ""
		if b.splits(o) {
			dir = platformDir(r)
		}
		from, to := io.Pipe()
		go func() { to.CloseWithError(b.work.WriteTar(ctx, r, to)) }()
		err := prefixTar(tw, from, dir)
		from.CloseWithError(err)
		if err != nil {
			return err
		}
		if err := b.writeStatements(ctx, i, o, func(name string, text []byte) error {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(dir, name), Size: int64(len(text)), Mode: 0o644}
			if r.Plan.Epoch != nil {
				h.ModTime = *r.Plan.Epoch
			}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			_, err := tw.Write(text)
			return err
		}); err != nil {
			return err
		}
	}
	return tw.Close()
}

// prefixTar copies the entries of a tar into another, under dir, if that is not "".
func prefixTar(to *tar.Writer, from io.Reader, dir string) error {
	r := tar.NewReader(from)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		slash := ""
		if strings.HasSuffix(h.Name, "/") {
			slash = "/"
		}
		if dir != "" {
			h.Name = path.Join(dir, h.Name) + slash
		}
		if dir != "" && h.Typeflag == tar.TypeLink {
			h.Linkname = path.Join(dir, h.Linkname)
		}
		if err := to.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(to, r); err != nil {
			return err
		}
	}
}

// namesOf pairs an image with its names, or with none.
func namesOf(d ocispec.Descriptor, tags []string) []image.Tagged {
	if len(tags) == 0 {
		return []image.Tagged{{Descriptor: d}}
	}
	var list []image.Tagged
	for _, t := range tags {
		ref, err := image.ParseReference(t)
		if err != nil {
			continue // parseOutputs has refused it
		}
		list = append(list, image.Tagged{Name: ref.String(), Descriptor: d})
	}
	return list
}
