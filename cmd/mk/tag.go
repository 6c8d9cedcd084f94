package main

import "github.com/spf13/cobra"

func newTag(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME[:TAG]...", Short: "Give an image one more name",
		Args: cobra.MinimumNArgs(2),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			d, err := s.images.Lookup(args[0])
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				if err := s.images.Tag(name, d); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}
