package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"mk/image"
)

const manifestHelp = `Make and change lists of images, of which machines pick the one for their platform:
OCI indexes, docker's manifest lists. A list is an image of mk's store by its own name.

    mk manifest create team/app:v1 team/app:v1-amd64 team/app:v1-arm64
    mk manifest push team/app:v1

Images are taken from the store, else from their registry; of those only the manifests are
fetched, and layers only when they are to be pushed to another registry.`

func newManifest(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "manifest", Short: "Make lists of images for several platforms", Long: manifestHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return errors.New("manifest: want create, add, annotate, inspect, push, remove, rm, exists or referrers")
		},
	}
	for _, make := range []func(*app) *cobra.Command{
		newManifestCreate, newManifestAdd, newManifestAnnotate, newManifestInspect, newManifestPush,
		newManifestRemove, newManifestRm, newManifestExists, newManifestReferrers,
	} {
		c.AddCommand(make(a))
	}
	return c
}

// manifestList is a list being changed: save makes it what its name stands for.
type manifestList struct {
	store *store
	name  image.Reference
	was   ocispec.Descriptor // what the name stands for; zero: nothing yet
	index ocispec.Index
}

// openList finds a list in the store.
func (s *store) openList(ctx context.Context, name string) (*manifestList, error) {
	ref, err := image.ParseReference(name)
	if err != nil {
		return nil, err
	}
	d, err := s.images.Lookup(ref.String())
	if err != nil {
		return nil, err
	}
	if !image.IsIndex(d.MediaType) {
		return nil, fmt.Errorf("%s is an image, and not a list of images", ref.Familiar())
	}
	ix, err := s.images.Index(ctx, d)
	return &manifestList{store: s, name: ref, was: d, index: ix}, err
}

// save gives the list's name to what it has become. Somebody else's change in between is an error.
func (l *manifestList) save(ctx context.Context) (ocispec.Descriptor, error) {
	images := l.store.images
	d, err := images.PutIndex(ctx, l.index.Manifests, image.PutOptions{Annotations: l.index.Annotations,
		ArtifactType: l.index.ArtifactType, Subject: l.index.Subject, Docker: l.index.MediaType == image.DockerManifestList})
	switch {
	case err != nil:
		return d, err
	case l.was.Digest == "":
		return d, images.Tag(l.name.String(), d)
	}
	return d, images.Replace(l.name.String(), l.was.Digest, d)
}

// find returns the place of an entry, named by its digest or by an image that is one, of the store
// or else of its registry.
func (l *manifestList) find(ctx context.Context, name string, f *registryFlags) (int, error) {
	wanted := digest.Digest(name)
	if wanted.Validate() != nil {
		d, err := l.store.images.Lookup(name)
		if errors.Is(err, image.ErrNotFound) {
			ref, wrong := l.store.at(name, f)
			if wrong != nil {
				return 0, wrong
			}
			d, err = l.store.client.Resolve(ctx, ref)
		}
		if err != nil {
			return 0, err
		}
		wanted = d.Digest
	}
	at := slices.IndexFunc(l.index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == wanted })
	if at < 0 {
		return 0, fmt.Errorf("%s is not in %s", name, l.name.Familiar())
	}
	return at, nil
}

// put adds an entry, or takes the place of the one with its digest.
func (l *manifestList) put(d ocispec.Descriptor) {
	at := slices.IndexFunc(l.index.Manifests, func(m ocispec.Descriptor) bool { return m.Digest == d.Digest })
	if at < 0 {
		l.index.Manifests = append(l.index.Manifests, d)
		return
	}
	l.index.Manifests[at] = d
}

// add puts an image into the list; all says that a list's images all come along, else the one for p does.
func (l *manifestList) add(ctx context.Context, name string, all bool, p *ocispec.Platform, f *registryFlags) ([]ocispec.Descriptor, error) {
	d, err := l.store.obtain(ctx, name, all, p, f)
	if err != nil {
		return nil, err
	}
	var entries []ocispec.Descriptor
	if image.IsIndex(d.MediaType) && all {
		ix, err := l.store.images.Index(ctx, d)
		if err != nil {
			return nil, err
		}
		entries = ix.Manifests
	} else {
		img, err := l.store.images.Image(ctx, d, p)
		if errors.Is(err, image.ErrPlatform) && !image.IsIndex(d.MediaType) { // --arch says it better than the image
			img, err = l.store.images.Image(ctx, d, nil)
		}
		if err != nil {
			return nil, err
		}
		entry, platform := img.Descriptor(), img.Platform()
		entry.Platform = &platform
		entries = []ocispec.Descriptor{entry}
	}
	for _, e := range entries {
		l.put(e)
	}
	return entries, nil
}

// obtain finds an image in the store, else its manifests in the registry. "docker://" means the registry.
func (s *store) obtain(ctx context.Context, name string, all bool, p *ocispec.Platform, f *registryFlags) (ocispec.Descriptor, error) {
	name, remote := strings.CutPrefix(name, "docker://")
	if !remote {
		d, err := s.images.Lookup(strings.TrimPrefix(name, "containers-storage:"))
		if err == nil || !errors.Is(err, image.ErrNotFound) {
			return d, err
		}
	}
	ref, err := s.at(name, f)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if all {
		return s.client.Documents(ctx, ref, s.images)
	}
	img, err := s.client.Manifest(ctx, ref, s.images, p)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return img.Target(), nil
}

func newManifestCreate(a *app) *cobra.Command {
	var amend, all bool
	var notes []string
	var f registryFlags
	c := &cobra.Command{Use: "create [flags] LIST [IMAGE...]", Short: "Make a list of images", Args: cobra.MinimumNArgs(1)}
	c.RunE = a.withStore(func(c *cobra.Command, s *store, args []string) error {
		list, err := s.openList(c.Context(), args[0])
		switch {
		case err == nil && !amend:
			return fmt.Errorf("%s is there already: give --amend to add to it", list.name.Familiar())
		case errors.Is(err, image.ErrNotFound):
			list = &manifestList{store: s, index: ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}}
			list.name, err = image.ParseReference(args[0])
		}
		if err != nil {
			return err
		}
		if list.index.Annotations, err = addAnnotations(list.index.Annotations, notes); err != nil {
			return err
		}
		for _, name := range args[1:] {
			if _, err := list.add(c.Context(), name, all, nil, &f); err != nil {
				return fmt.Errorf("manifest create %s: add %s: %w", args[0], name, err)
			}
		}
		d, err := list.save(c.Context())
		if err == nil {
			fmt.Fprintln(&stdout, d.Digest)
		}
		return err
	})
	c.Flags().BoolVarP(&amend, "amend", "a", false, "add to a list that is there")
	c.Flags().BoolVar(&all, "all", false, "of lists, take all images")
	c.Flags().Var((*list)(&notes), "annotation", "annotation of the list, as key=value")
	f.register(c.Flags())
	return c
}

// entryFlags say more of an image of a list than the image does.
type entryFlags struct {
	os, arch, variant, osVersion string
	osFeatures                   []string
	notes                        []string
}

func (f *entryFlags) register(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.os, "os", "", "operating system that the image is for")
	fl.StringVar(&f.arch, "arch", "", "architecture that the image is for")
	fl.StringVar(&f.variant, "variant", "", "variant of the architecture")
	fl.StringVar(&f.osVersion, "os-version", "", "version of the operating system")
	fl.StringSliceVar(&f.osFeatures, "os-features", nil, "features that the operating system must have")
	fl.Var((*list)(&f.notes), "annotation", "annotation of the image's place in the list, as key=value")
}

// platform is what is asked for of a list of images; nil: nothing, the choice is this machine's.
func (f *entryFlags) platform() (*ocispec.Platform, error) {
	if f.os == "" && f.arch == "" && f.variant == "" {
		return nil, nil
	}
	host := image.HostPlatform()
	word := cmp.Or(f.os, host.OS) + "/" + cmp.Or(f.arch, host.Architecture)
	if f.variant != "" {
		word += "/" + f.variant
	}
	return parsePlatform(word)
}

func (f *entryFlags) apply(d *ocispec.Descriptor) (err error) {
	p := ocispec.Platform{}
	if d.Platform != nil {
		p = *d.Platform
	}
	for _, field := range []struct {
		is   *string
		want string
	}{{&p.OS, f.os}, {&p.Architecture, f.arch}, {&p.Variant, f.variant}, {&p.OSVersion, f.osVersion}} {
		if field.want != "" {
			*field.is = field.want
		}
	}
	if f.osFeatures != nil {
		p.OSFeatures = f.osFeatures
	}
	d.Platform = &p
	d.Annotations, err = addAnnotations(d.Annotations, f.notes)
	return err
}

// addAnnotations puts --annotation values into a map, which may be nil.
func addAnnotations(m map[string]string, words []string) (map[string]string, error) {
	given, err := keyValues("--annotation", words)
	for k, v := range given {
		if m == nil {
			m = map[string]string{}
		}
		m[k] = v
	}
	return m, err
}

func newManifestAdd(a *app) *cobra.Command {
	var all bool
	var e entryFlags
	var f registryFlags
	c := &cobra.Command{Use: "add [flags] LIST IMAGE...", Short: "Add images to a list", Args: cobra.MinimumNArgs(2)}
	c.RunE = a.withStore(func(c *cobra.Command, s *store, args []string) error {
		list, err := s.openList(c.Context(), args[0])
		if err != nil {
			return err
		}
		p, err := e.platform()
		if err != nil {
			return err
		}
		for _, name := range args[1:] {
			entries, err := list.add(c.Context(), name, all, p, &f)
			if err != nil {
				return fmt.Errorf("manifest add %s: %w", name, err)
			}
			for _, d := range entries {
				if err := e.apply(&d); err != nil {
					return err
				}
				list.put(d)
			}
		}
		d, err := list.save(c.Context())
		if err == nil {
			fmt.Fprintln(&stdout, d.Digest)
		}
		return err
	})
	c.Flags().BoolVar(&all, "all", false, "of lists, take all images")
	e.register(c)
	f.register(c.Flags())
	return c
}

func newManifestAnnotate(a *app) *cobra.Command {
	var e entryFlags
	var f registryFlags
	var index bool
	c := &cobra.Command{Use: "annotate [flags] LIST [IMAGE|DIGEST]", Short: "Say more of an image of a list, or of the list", Args: cobra.RangeArgs(1, 2)}
	c.RunE = a.withStore(func(c *cobra.Command, s *store, args []string) error {
		list, err := s.openList(c.Context(), args[0])
		if err != nil {
			return err
		}
		switch {
		case index == (len(args) == 2):
			return errors.New("manifest annotate: want an image of the list, or --index")
		case index:
			list.index.Annotations, err = addAnnotations(list.index.Annotations, e.notes)
		default:
			var at int
			if at, err = list.find(c.Context(), args[1], &f); err == nil {
				err = e.apply(&list.index.Manifests[at])
			}
		}
		if err != nil {
			return err
		}
		d, err := list.save(c.Context())
		if err == nil {
			fmt.Fprintln(&stdout, d.Digest)
		}
		return err
	})
	e.register(c)
	f.register(c.Flags())
	c.Flags().BoolVar(&index, "index", false, "--annotation is of the list itself")
	return c
}

func newManifestInspect(a *app) *cobra.Command {
	var verbose bool
	var f registryFlags
	c := &cobra.Command{Use: "inspect [flags] NAME", Short: "Print a list or manifest, of the store or else of its registry", Args: cobra.ExactArgs(1)}
	c.RunE = a.withStore(func(c *cobra.Command, s *store, args []string) error {
		name, remote := strings.CutPrefix(args[0], "docker://")
		var raw []byte
		var d ocispec.Descriptor
		err := image.ErrNotFound
		if !remote {
			if d, err = s.images.Lookup(name); err == nil {
				raw, err = s.images.ReadBlob(c.Context(), d, image.MaxManifestSize)
			}
		}
		if errors.Is(err, image.ErrNotFound) {
			ref, parseErr := s.at(name, &f)
			if parseErr != nil {
				return parseErr
			}
			d, raw, err = s.client.Document(c.Context(), ref)
		}
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := json.Indent(&out, raw, "", "    "); err != nil {
			return err
		}
		if verbose {
			fmt.Fprintf(&stdout, "Digest:    %s\nMediaType: %s\nSize:      %d\n", d.Digest, d.MediaType, d.Size)
		}
		fmt.Fprintln(&stdout, out.String())
		return nil
	})
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "begin with the digest, media type and size")
	f.register(c.Flags())
	return c
}

func newManifestPush(a *app) *cobra.Command {
	var f pushFlags
	var all, rm, purge bool
	c := &cobra.Command{Use: "push [flags] LIST [DESTINATION]", Short: "Send a list and its images to a registry", Args: cobra.RangeArgs(1, 2)}
	c.RunE = a.inside(func(c *cobra.Command, args []string) error {
		if !all {
			return errors.New("manifest push: --all=false: a registry takes no list whose images it does not have")
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		defer s.Close()
		list, err := s.openList(c.Context(), args[0])
		if err != nil {
			return err
		}
		sent, err := s.push(c.Context(), list.name.String(), strings.TrimPrefix(args[len(args)-1], "docker://"), f)
		if err == nil && f.digestFile != "" {
			err = os.WriteFile(f.digestFile, []byte(sent), 0o644)
		}
		if err == nil && (rm || purge) {
			_, err = s.images.Untag(list.name.String())
		}
		return err
	})
	fl := c.Flags()
	fl.BoolVar(&all, "all", true, "send the images too")
	fl.BoolVar(&rm, "rm", false, "remove the list from the store when it was sent")
	fl.BoolVarP(&purge, "purge", "p", false, "docker's word for --rm")
	fl.StringVarP(&f.format, "format", "f", "", "oci or v2s2: the media types (default: as they are)")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but the digest")
	fl.StringVar(&f.digestFile, "digestfile", "", "write the digest to this file")
	f.write.register(fl)
	f.registry.register(fl)
	a.usernsFlag(c)
	return c
}

func newManifestRemove(a *app) *cobra.Command {
	var f registryFlags
	c := &cobra.Command{
		Use: "remove LIST IMAGE|DIGEST...", Short: "Take images out of a list", Args: cobra.MinimumNArgs(2),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			list, err := s.openList(c.Context(), args[0])
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				at, err := list.find(c.Context(), name, &f)
				if err != nil {
					return err
				}
				list.index.Manifests = slices.Delete(list.index.Manifests, at, at+1)
			}
			d, err := list.save(c.Context())
			if err == nil {
				fmt.Fprintln(&stdout, d.Digest)
			}
			return err
		}),
	}
	f.register(c.Flags())
	return c
}

func newManifestRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm LIST...", Short: "Remove lists from the store", Args: cobra.MinimumNArgs(1),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			for _, name := range args {
				list, err := s.openList(c.Context(), name)
				if err == nil {
					_, err = s.images.Untag(list.name.String())
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(&stdout, "Untagged:", list.name.Familiar())
			}
			return nil
		}),
	}
}

func newManifestExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "exists LIST", Short: "Tell by the exit status whether the store has a list: 0, else 1", Args: cobra.ExactArgs(1),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			_, err := s.openList(c.Context(), args[0])
			if errors.Is(err, image.ErrNotFound) {
				return &exitError{status: exitFailed}
			}
			return err
		}),
	}
}

// referrerLine is a referrer as templates see it.
type referrerLine struct {
	Digest, ArtifactType, MediaType, Size string
	Annotations                           map[string]string
}

func newManifestReferrers(a *app) *cobra.Command {
	var artifactType, format string
	var f registryFlags
	c := &cobra.Command{
		Use: "referrers [flags] NAME[:TAG|@DIGEST]", Short: "List what a registry has about an image: signatures, attestations, bills of materials",
		Args: cobra.ExactArgs(1),
	}
	c.RunE = a.withStore(func(c *cobra.Command, s *store, args []string) error {
		ref, err := s.at(args[0], &f)
		if err != nil {
			return err
		}
		found, err := s.client.Referrers(c.Context(), ref, artifactType)
		if err != nil {
			return err
		}
		lines := []referrerLine{}
		for _, d := range found {
			lines = append(lines, referrerLine{d.Digest.String(), d.ArtifactType, d.MediaType, size(d.Size), d.Annotations})
		}
		return printRows(&stdout, cmp.Or(format, "table {{.Digest}}\t{{.ArtifactType}}\t{{.Size}}"), lines)
	})
	c.Flags().StringVar(&artifactType, "artifact-type", "", "only those of this type")
	c.Flags().StringVar(&format, "format", "", "Go template over .Digest .ArtifactType .MediaType .Size .Annotations, or json")
	f.register(c.Flags())
	return c
}
