package main

import (
	"slices"
	"time"

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

--all, or --filter dangling=false, removes all images that no container was made
of. --filter until=24h takes those that say they were made before, which with
SOURCE_DATE_EPOCH is its time; label=KEY[=value] those with the label, label!=
those without.`

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
	fl.Var((*list)(&filters), "filter", "remove only these: until=TIME, label[!]=KEY[=value], dangling=true|false")
	a.usernsFlag(c)
	return c
}

// pruneOfImages is a prune of the images that filters mean: those without a name or, with all or
// dangling=false, all.
func pruneOfImages(all bool, filters []string) (*pruning, error) {
	filters = slices.Clone(filters)
	filters = slices.DeleteFunc(filters, func(f string) bool {
		named := f == "dangling=false" || f == "dangling=0"
		all = all || named
		return named || f == "dangling=true" || f == "dangling=1"
	})
	keep, err := pruneFilter(filters, func(sum image.Summary) map[string]string { return sum.Labels }, func(sum image.Summary) time.Time { return sum.Created })
	if err != nil {
		return nil, err
	}
	p := &pruning{}
	if all {
		p.images = func(sum image.Summary) bool { return len(filters) == 0 || sum.Err == nil && keep.keeps(sum) }
	}
	if len(filters) > 0 {
		p.none = keep.keeps
	}
	return p, nil
}
