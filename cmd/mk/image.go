package main

import (
	"github.com/spf13/cobra"

	"mk/image"
)

// newImage makes docker's other way of saying the commands about images: mk image ls is mk images.
func newImage(a *app) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Manage images"}
	for _, make := range []func(*app) *cobra.Command{
		newBuild, newPull, newPush, newImages, newTag, newRmi, newInspect, newHistory, newSave, newLoad, newImport, newImagePrune,
	} {
		sub := make(a)
		switch sub.Name() {
		case "images":
			sub.Use, sub.Aliases = "ls [flags] [NAME]", []string{"list"}
		case "rmi":
			sub.Use, sub.Aliases = "rm [flags] IMAGE...", []string{"remove"}
		}
		c.AddCommand(sub)
	}
	return c
}

const imagePruneHelp = `Remove images without a name, and what else nothing uses.

--all removes all images that no container was made of. --filter until=24h
takes those made before, label=KEY[=value] those with the label.`

func newImagePrune(a *app) *cobra.Command {
	var all, force bool
	var filters []string
	c := &cobra.Command{Use: "prune", Short: "Remove images without a name, and what else nothing uses", Long: imagePruneHelp, Args: cobra.NoArgs}
	c.RunE = a.swept(a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		p, err := pruneOfImages(all, filters)
		if err != nil {
			return err
		}
		return reclaimed(s.prune(c.Context(), p))
	})))
	fl := c.Flags()
	fl.BoolVarP(&all, "all", "a", false, "remove all images that no container was made of")
	fl.BoolVarP(&force, "force", "f", false, "as in docker; mk never asks")
	fl.Var((*list)(&filters), "filter", "remove only these: until=TIME, label=KEY[=value]")
	a.usernsFlag(c)
	return c
}

// pruneOfImages is a prune of the images that filters mean: those without a name or, with all, all.
func pruneOfImages(all bool, filters []string) (*pruning, error) {
	until, err := untilOf(filters)
	if err != nil {
		return nil, err
	}
	keep, err := filterOf(filters, map[string]func(image.Summary, string) bool{
		"label": func(sum image.Summary, value string) bool { return labelled(sum.Labels, value) },
		"until": func(sum image.Summary, _ string) bool { return sum.Created.Before(until) },
	})
	if err != nil {
		return nil, err
	}
	p := &pruning{none: keep.keeps}
	if all {
		p.images = keep.keeps
	}
	return p, nil
}
