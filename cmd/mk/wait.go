package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newWait(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait until containers end, and print their exit statuses",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := findContainers(args)
			if err != nil {
				return err
			}
			for _, c := range all {
				code, err := c.Wait(cmd.Context())
				if err != nil {
					return err
				}
				fmt.Fprintln(&stdout, code)
			}
			return nil
		},
	}
	return c
}
