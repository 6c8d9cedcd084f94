package main

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"mk/image"
)

const imagesHelp = `List the images in mk's store, the newest first.

--format is a Go template over .Repository .Tag .ID .Digest .CreatedAt
.CreatedSince .Size, "table" followed by one, or json.`

// imageLine is an image as docker's templates see it.
type imageLine struct {
	Repository, Tag, ID, Digest, CreatedAt, CreatedSince, Size string
	Containers, SharedSize, UniqueSize                         string // "N/A", as docker says where it has not counted
}

func newImages(a *app) *cobra.Command {
	var quiet, noTrunc, digests, all bool
	var format string
	var filters []string
	c := &cobra.Command{
		Use: "images [flags] [NAME]", Short: "List images", Long: imagesHelp,
		Aliases: []string{"ls"},
		Args:    cobra.MaximumNArgs(1),
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			list, err := s.images.Summaries(c.Context())
			if err != nil {
				return err
			}
			keep, err := s.imageFilter(args, filters, list)
			if err != nil {
				return err
			}
			var lines []imageLine
			for _, sum := range list {
				if sum.Err != nil {
					fmt.Fprintf(os.Stderr, "mk: image %s: %v\n", sum.Target.Digest, sum.Err)
					continue
				}
				if keep(sum) {
					lines = append(lines, newImageLine(sum, noTrunc))
				}
			}
			switch {
			case quiet:
				for _, l := range lines {
					fmt.Fprintln(&stdout, l.ID)
				}
				return nil
			case format == "" && digests:
				format = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
			case format == "" || format == "table":
				format = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
			}
			return printRows(&stdout, format, lines)
		}),
	}
	fl := c.Flags()
	fl.BoolVarP(&all, "all", "a", false, "no meaning here: mk has no images between steps")
	fl.BoolVarP(&quiet, "quiet", "q", false, "print IDs and nothing else")
	fl.BoolVar(&noTrunc, "no-trunc", false, "print whole IDs")
	fl.BoolVar(&digests, "digests", false, "show digests")
	fl.StringVar(&format, "format", "", "Go template, or json")
	fl.VarP((*list)(&filters), "filter", "f", "dangling=true|false, reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME")
	return c
}

func newImageLine(s image.Summary, noTrunc bool) imageLine {
	l := imageLine{
		Repository: "<none>", Tag: "<none>", ID: s.ID.String(), Digest: s.Target.Digest.String(),
		CreatedAt: "N/A", CreatedSince: "N/A", Size: size(s.Size),
		Containers: "N/A", SharedSize: "N/A", UniqueSize: "N/A",
	}
	if !noTrunc {
		l.ID = shortID(s.ID)
	}
	if !s.Reference.IsZero() {
		l.Repository = s.Reference.FamiliarRepository()
		if t := s.Reference.Tag(); t != "" {
			l.Tag = t
		}
	}
	if !s.Created.IsZero() {
		l.CreatedAt = s.Created.Local().Format("2006-01-02 15:04:05 -0700 MST")
		l.CreatedSince = since(s.Created)
	}
	return l
}

// shortID is how docker prints an image's ID: 12 digits.
func shortID(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// since says how long ago a time was, as docker does: "3 hours ago".
func since(t time.Time) string {
	d := time.Since(t)
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"year", 365 * 24 * time.Hour}, {"month", 30 * 24 * time.Hour}, {"week", 7 * 24 * time.Hour},
		{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		if n := int(d / u.unit); n == 1 {
			return "1 " + u.name + " ago"
		} else if n > 1 {
			return fmt.Sprintf("%d %ss ago", n, u.name)
		}
	}
	return "Less than a second ago"
}

// imageFilter says which images of list a command line is about.
func (s *store) imageFilter(args, filters []string, list []image.Summary) (func(image.Summary) bool, error) {
	var tests []func(image.Summary) bool
	reference := func(pattern string) func(image.Summary) bool {
		return func(s image.Summary) bool {
			if s.Reference.IsZero() {
				return false
			}
			for _, name := range []string{s.Reference.Familiar(), s.Reference.FamiliarRepository(), s.Reference.String(), s.Reference.Repository()} {
				if ok, _ := path.Match(pattern, name); ok {
					return true
				}
			}
			return false
		}
	}
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "dangling":
			want := value == "true" || value == "1"
			tests = append(tests, func(s image.Summary) bool { return s.Reference.IsZero() == want })
		case "reference":
			tests = append(tests, reference(value))
		case "before", "since":
			d, err := s.images.Lookup(value)
			if err != nil {
				return nil, fmt.Errorf("--filter %s: %w", f, err)
			}
			at := slices.IndexFunc(list, func(s image.Summary) bool { return s.Target.Digest == d.Digest })
			if at < 0 {
				return nil, fmt.Errorf("--filter %s: it is in a list of images, and no line of its own", f)
			}
			sign, other := map[string]int{"before": -1, "since": 1}[key], list[at].Created
			tests = append(tests, func(s image.Summary) bool { return s.Created.Compare(other) == sign })
		case "until":
			until, err := parseTime(value)
			if err != nil {
				return nil, fmt.Errorf("--filter %s: %w", f, err)
			}
			tests = append(tests, func(s image.Summary) bool { return s.Created.Before(until) })
		case "label":
			k, v, hasValue := strings.Cut(value, "=")
			tests = append(tests, func(s image.Summary) bool { return hasLabel(s.Labels, k, v, !hasValue) })
		default:
			return nil, fmt.Errorf("--filter %s: want dangling, reference, label, before, since or until", f)
		}
	}
	for _, name := range args {
		tests = append(tests, reference(name))
	}
	return func(s image.Summary) bool {
		for _, ok := range tests {
			if !ok(s) {
				return false
			}
		}
		return true
	}, nil
}
