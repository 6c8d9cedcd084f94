package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
)

// historyLine is one step of an image's making as docker's templates see it.
type historyLine struct {
	ID, CreatedSince, CreatedAt, CreatedBy, Size, Comment string
}

func newHistory(a *app) *cobra.Command {
	var noTrunc, quiet, human bool
	var format, platform string
	c := &cobra.Command{
		Use: "history [flags] IMAGE", Short: "Show how an image was made, the last step first",
		Args: cobra.ExactArgs(1),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			p, err := parsePlatform(platform)
			if err != nil {
				return err
			}
			img, err := s.images.Resolve(args[0], p)
			if err != nil {
				return err
			}
			config, layers := img.Config(), img.Layers()
			var lines []historyLine
			for _, h := range config.History {
				l := historyLine{ID: "<missing>", CreatedSince: "N/A", CreatedAt: "N/A", CreatedBy: h.CreatedBy, Size: "0B", Comment: h.Comment}
				if h.Created != nil && !h.Created.IsZero() {
					l.CreatedSince, l.CreatedAt = since(*h.Created), h.Created.Format("2006-01-02T15:04:05Z07:00")
				}
				var bytes int64
				if !h.EmptyLayer && len(layers) > 0 {
					bytes, layers = layers[0].Descriptor.Size, layers[1:]
				}
				if l.Size = size(bytes); !human {
					l.Size, l.CreatedSince = strconv.FormatInt(bytes, 10), l.CreatedAt
				}
				if r := []rune(l.CreatedBy); !noTrunc && len(r) > 45 {
					l.CreatedBy = string(r[:44]) + "…"
				}
				lines = append(lines, l)
			}
			if n := len(lines); n > 0 {
				if lines[n-1].ID = shortID(img.ID()); noTrunc {
					lines[n-1].ID = img.ID().String()
				}
			}
			slices.Reverse(lines)
			if quiet {
				for _, l := range lines {
					fmt.Fprintln(&stdout, l.ID)
				}
				return nil
			}
			if format == "" || format == "table" {
				format = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
			}
			return printRows(&stdout, format, lines, map[string]string{"ID": "IMAGE"})
		}),
	}
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "print whole lines")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs and nothing else")
	c.Flags().BoolVarP(&human, "human", "H", true, "sizes and times as people say them")
	c.Flags().StringVar(&platform, "platform", "", "of this platform of a multi-platform image, as os/arch[/variant]")
	c.Flags().StringVar(&format, "format", "", "Go template, or json")
	return c
}
