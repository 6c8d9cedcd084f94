package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"mk/container"
	"mk/image"
)

// imageDocument is an image as docker's inspect prints it.
type imageDocument struct {
	Id           digest.Digest // docker's spelling: templates say .Id
	RepoTags     []string
	RepoDigests  []string
	Created      string
	Author       string
	Config       image.RunConfig
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64
	RootFS       struct {
		Type   string
		Layers []digest.Digest
	}
	Digest  digest.Digest
	History any
}

func newInspect(a *app) *cobra.Command {
	var format, kind, platform string
	var sizes bool
	c := &cobra.Command{
		Use: "inspect [flags] NAME...", Short: "Print all that is known of containers, images or volumes, as JSON",
		Args: cobra.MinimumNArgs(1),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			docs := []any{}
			var missing error // the others are printed
			for _, name := range args {
				doc, err := s.anyDocument(name, kind, platform)
				if err != nil {
					missing = errors.Join(missing, err)
					continue
				}
				if d, ok := doc.(*containerDocument); ok && sizes {
					d.SizeRw = diskUse(d.layer)
				}
				docs = append(docs, doc)
			}
			if len(docs) == 0 {
				return missing
			}
			return errors.Join(printDocuments(docs, format), missing)
		}),
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template over the document")
	c.Flags().BoolVarP(&sizes, "size", "s", false, "of a container, also what it takes on disk (SizeRw)")
	c.Flags().StringVar(&kind, "type", "", "container, image or volume (default: whichever has the name, in this order)")
	c.Flags().StringVar(&platform, "platform", "", "of this platform of a multi-platform image, as os/arch[/variant]")
	return c
}

func newContainerInspect(a *app) *cobra.Command {
	c := newInspect(a)
	c.Use, c.Short = "inspect [flags] NAME...", "Print all that is known of containers, as JSON"
	c.Flags().Set("type", "container")
	return c
}

// anyDocument finds what has a name: a container, else an image, of a platform if one is given, else a volume.
func (s *store) anyDocument(name, kind, platform string) (any, error) {
	p, err := parsePlatform(platform)
	if err != nil {
		return nil, err
	}
	if p != nil && kind == "" {
		kind = "image"
	}
	switch kind {
	case "", "container", "image", "volume":
	default:
		return nil, fmt.Errorf("--type %s: want container, image or volume", kind)
	}
	if kind == "" || kind == "container" {
		c, err := s.containers.Find(name)
		if err == nil {
			return describeContainer(c)
		}
		if kind != "" || !errors.Is(err, container.ErrNotFound) {
			return nil, err
		}
	}
	if kind == "" || kind == "volume" {
		v, err := s.volume(name)
		if err == nil {
			if _, ierr := s.images.Lookup(name); kind == "volume" || ierr != nil {
				return s.describeVolume(v), nil
			}
		} else if kind == "volume" {
			return nil, err
		}
	}
	img, err := s.images.Resolve(name, p)
	if err != nil {
		return nil, err
	}
	return s.document(img)
}

// document gathers what inspect prints of an image.
func (s *store) document(img *image.Image) (imageDocument, error) {
	config := img.Config()
	d := imageDocument{
		Id: img.ID(), RepoTags: []string{}, RepoDigests: []string{}, Author: config.Author, Config: config.Config,
		Architecture: config.Architecture, Variant: config.Variant, Os: config.OS, Size: img.Size(),
		Digest: img.Target().Digest, History: config.History,
	}
	d.RootFS.Type, d.RootFS.Layers = config.RootFS.Type, config.RootFS.DiffIDs
	if config.Created != nil {
		d.Created = config.Created.Format(time.RFC3339Nano)
	}
	tagged, err := s.images.List()
	if err != nil {
		return d, err
	}
	for _, t := range tagged {
		if t.Descriptor.Digest != img.Target().Digest || t.Name == "" {
			continue
		}
		ref, err := image.ParseReference(t.Name)
		if err != nil {
			continue
		}
		if ref.Tag() != "" {
			d.RepoTags = append(d.RepoTags, ref.Familiar())
		}
		digested := ref.FamiliarRepository() + "@" + t.Descriptor.Digest.String()
		if !strings.Contains(strings.Join(d.RepoDigests, " "), digested) {
			d.RepoDigests = append(d.RepoDigests, digested)
		}
	}
	return d, nil
}
