package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const systemPruneHelp = `Remove the containers that do not run, the networks that no container has, and what
'mk prune' removes.

--all removes the images that no container was made of, too, and the step cache, as 'mk prune
--all' does. --volumes removes the anonymous volumes that no container has.

--filter until=24h takes only what was made before and, with --all, of the step cache what no build
wanted since; label=KEY[=value] only containers, networks and images with the label, label!= without.`

// newSystem makes docker's words for what concerns the whole store.
func newSystem(a *app) *cobra.Command {
	c := &cobra.Command{Use: "system", Short: "Look after the whole store"}
	c.AddCommand(newInfo(a), newEvents(a), newDf(a), newSystemPrune(a))
	return c
}

// newBuilder makes docker's other way of saying the commands about building.
func newBuilder(a *app) *cobra.Command {
	c := &cobra.Command{Use: "builder", Short: "Manage builds"}
	c.AddCommand(newBuild(a), newPrune(a), newDu(a))
	return c
}

func newSystemPrune(a *app) *cobra.Command {
	var all, volumes, force bool
	var filters []string
	c := &cobra.Command{Use: "prune", Short: "Remove what does not run, and what nothing uses", Long: systemPruneHelp, Args: cobra.NoArgs}
	c.RunE = a.swept(a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		p, err := pruneOfImages(all, filters)
		if err != nil {
			return err
		}
		if p.until, err = untilOf(filters); err != nil {
			return err
		}
		if !p.until.IsZero() && volumes {
			return errors.New("--filter until: not with --volumes: a volume is as old as what was written into it last")
		}
		labels := slices.ContainsFunc(filters, func(f string) bool { return strings.HasPrefix(f, "label") })
		p.all = all && p.until.IsZero() && !labels
		if labels || !all {
			p.until = time.Time{} // steps have no labels
		}
		freed, err := s.pruneContainers(c.Context(), filters)
		if err != nil {
			return err
		}
		nets, err := openNetworks()
		if err == nil {
			err = nets.prune(filters)
		}
		if err != nil {
			return err
		}
		if volumes {
			bytes, err := s.pruneUnusedVolumes(false, filters)
			if freed += bytes; err != nil {
				return err
			}
		}
		bytes, err := s.prune(c.Context(), p)
		return reclaimed(freed+bytes, err)
	})))
	fl := c.Flags()
	fl.BoolVarP(&all, "all", "a", false, "remove the images that no container was made of, and the step cache")
	fl.BoolVar(&volumes, "volumes", false, "remove the anonymous volumes that no container has")
	fl.Var((*list)(&filters), "filter", "remove only these: until=TIME, label[!]=KEY[=value]")
	fl.BoolVarP(&force, "force", "f", false, "as in docker; mk never asks")
	a.usernsFlag(c)
	return c
}
