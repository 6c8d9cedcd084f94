package main

import "github.com/spf13/cobra"

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

func newImagePrune(a *app) *cobra.Command {
	var all, force bool
	c := &cobra.Command{Use: "prune", Short: "Remove images without a name, and what else nothing uses", Args: cobra.NoArgs}
	c.RunE = a.swept(a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		return reclaimed(s.prune(c.Context(), false, all))
	})))
	c.Flags().BoolVarP(&all, "all", "a", false, "remove all images that no container was made of")
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk never asks")
	a.usernsFlag(c)
	return c
}
