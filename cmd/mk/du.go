package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const duHelp = `List what the step cache has, the last used first, and what it takes on disk.

What an image or a container needs too is not reclaimable: forgetting the step
would give nothing back. 'mk prune' removes what is: all, what is old, or as
much as to be within a size.

--format is a Go template over .ID .Type .Size .Reclaimable .Description
.CreatedSince .LastUsedSince, "table" followed by one, or json.`

// duLine is a piece of the step cache as templates see it.
type duLine struct {
	ID, Type, Size, Reclaimable, Description, CreatedSince, LastUsedSince string
}

var duHeadings = map[string]string{"ID": "ID", "CreatedSince": "CREATED", "LastUsedSince": "LAST USED"}

func newDu(a *app) *cobra.Command {
	var verbose bool
	var format string
	c := &cobra.Command{Use: "du [flags]", Short: "List what the step cache takes on disk", Long: duHelp, Args: cobra.NoArgs}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		u, err := s.usage(c.Context(), true)
		if err != nil {
			return err
		}
		var lines []duLine
		var total, shared int64
		for _, p := range u.cached() {
			if total += p.bytes; p.held() {
				shared += p.bytes
			}
			if p.Kind != linkKind {
				lines = append(lines, p.line(verbose))
			}
		}
		if verbose && format == "" {
			format = "ID:\t\t{{.ID}}\nType:\t\t{{.Type}}\nSize:\t\t{{.Size}}\nReclaimable:\t{{.Reclaimable}}\n" +
				"Created:\t{{.CreatedSince}}\nLast used:\t{{.LastUsedSince}}\nDescription:\t{{.Description}}\n"
		}
		if whole := format == "" || format == "table"; !whole && !verbose {
			return printRows(&stdout, format, lines)
		} else if whole {
			format = "table {{.ID}}\t{{.Type}}\t{{.Size}}\t{{.Reclaimable}}\t{{.LastUsedSince}}\t{{.Description}}"
		}
		if err := printRows(&stdout, format, lines, duHeadings); err != nil {
			return err
		}
		_, err = fmt.Fprintf(&stdout, "Shared:\t\t%s\nReclaimable:\t%s\nTotal:\t\t%s\n", size(shared), size(total-shared), size(total))
		if err != nil {
			return err
		}
		return s.sayOtherModes()
	}))
	fl := c.Flags()
	fl.BoolVarP(&verbose, "verbose", "v", false, "whole descriptions, a line each")
	fl.StringVar(&format, "format", "", "Go template, \"table\" with one, or json")
	a.usernsFlag(c)
	return c
}

// cached lists the pieces of the step cache, the last used first.
func (u *usage) cached() []*piece {
	all := slices.DeleteFunc(slices.Clone(u.pieces), func(p *piece) bool { return !p.cached })
	slices.SortStableFunc(all, func(a, b *piece) int { return b.used.Compare(a.used) })
	return all
}

func (p *piece) line(whole bool) duLine {
	ago := func(t time.Time) string {
		if t.IsZero() {
			return "N/A"
		}
		return since(t)
	}
	l := duLine{ID: p.ID, Type: p.Kind, Size: size(p.size()), Reclaimable: strconv.FormatBool(!p.held()), Description: p.Text, CreatedSince: ago(p.made), LastUsedSince: ago(p.used)}
	if !whole {
		l.ID = l.ID[:min(12, len(l.ID))]
		if r := []rune(l.Description); len(r) > 50 {
			l.Description = string(r[:49]) + "…"
		}
	}
	return l
}

// sayOtherModes says that what was built in other modes is not counted, if there is such.
func (s *store) sayOtherModes() error {
	modes, err := s.otherModes()
	if err != nil || len(modes) == 0 {
		return err
	}
	_, err = fmt.Fprintf(os.Stderr, "mk: note: this is what was built in mode %s; for what was built in %s say --userns\n", s.mode, strings.Join(modes, " and "))
	return err
}
