package main

import "github.com/spf13/cobra"

// newImage makes docker's other way of saying the commands about images: mk image ls is mk images.
func newImage(a *app) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Manage images"}
	for _, make := range []func(*app) *cobra.Command{
		newBuild, newPull, newPush, newImages, newTag, newRmi, newInspect, newHistory, newSave, newLoad, newImport,
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
