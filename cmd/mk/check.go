package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

const checkHelp = `Read the whole store and verify it: every blob against its digest, every image
against its parts, every tree against the digests recorded for it.

The exit status is 1 if something is wrong; each problem is a line.`

func newCheck(a *app) *cobra.Command {
	c := &cobra.Command{Use: "check", Short: "Verify the store", Long: checkHelp, Args: cobra.NoArgs}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		bad := 0
		problems, err := s.images.Check(c.Context())
		if err != nil {
			return fmt.Errorf("check images: %w", err)
		}
		for _, p := range problems {
			bad++
			fmt.Fprintln(os.Stderr, "mk:", p)
		}
		for _, p := range s.trees.Check(c.Context()) {
			bad++
			fmt.Fprintf(os.Stderr, "mk: tree %s: %v\n", p.ID, p.Err)
		}
		if bad > 0 {
			return &exitError{status: exitFailed, err: fmt.Errorf("check: %d problems", bad)}
		}
		fmt.Fprintln(&stdout, "store is whole")
		return nil
	}))
	a.usernsFlag(c)
	return c
}
