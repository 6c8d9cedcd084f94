package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
)

const dfHelp = `Show what images, containers, volumes and the step cache take on disk.

A layer that several images share, or an image and the step cache, counts once,
and with the image. RECLAIMABLE of images is what 'mk image prune --all' gives
back, of containers 'mk container prune', of volumes 'mk volume prune --all', of
the build cache 'mk builder prune --all'.

--format is a Go template over .Type .TotalCount .Active .Size .Reclaimable,
"table" followed by one, or json.`

// dfLine is a kind of things as docker's templates see it.
type dfLine struct {
	Type, TotalCount, Active, Size, Reclaimable string
}

func newDf(a *app) *cobra.Command {
	var verbose bool
	var format string
	c := &cobra.Command{Use: "df [flags]", Short: "Show what takes space on disk", Long: dfHelp, Args: cobra.NoArgs}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, _ []string) error {
		u, err := s.usage(c.Context(), true)
		if err != nil {
			return err
		}
		if verbose {
			err = u.printAll()
		} else {
			if format == "" || format == "table" {
				format = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
			}
			err = printRows(&stdout, format, u.kinds(), map[string]string{"TotalCount": "TOTAL"})
		}
		if err != nil {
			return err
		}
		return s.sayOtherModes()
	}))
	fl := c.Flags()
	fl.BoolVarP(&verbose, "verbose", "v", false, "each image, container, volume and step")
	fl.StringVar(&format, "format", "", "Go template, \"table\" with one, or json")
	c.MarkFlagsMutuallyExclusive("verbose", "format")
	a.usernsFlag(c)
	return c
}

// kinds are df's four lines.
func (u *usage) kinds() []dfLine {
	line := func(kind string, total, active int, bytes, free int64) dfLine {
		share := int64(0)
		if bytes > 0 {
			share = 100 * free / bytes
		}
		return dfLine{kind, strconv.Itoa(total), strconv.Itoa(active), size(bytes), fmt.Sprintf("%s (%d%%)", size(free), share)}
	}
	var images, imagesFree, cache, cacheFree, containers, containersFree, volumes, volumesFree int64
	var imagesActive, cacheTotal, cacheActive, running, volumesActive int
	for _, i := range u.images {
		if i.containers > 0 {
			imagesActive++
		}
	}
	for _, p := range u.pieces {
		if p.cached && p.Kind != linkKind && p.Kind != "internal" {
			if cacheTotal++; p.held() {
				cacheActive++
			}
		}
		switch {
		case p.images > 0:
			if images += p.bytes; !p.containers && !p.cached {
				imagesFree += p.bytes
			}
		case p.containers:
			containers += p.bytes // of an image that is gone
		default:
			cache += p.bytes
			cacheFree += p.bytes
		}
	}
	for _, c := range u.containers {
		containers += c.bytes
		switch {
		case c.status.Running:
			running++
		case c.Mode == u.mode: // else it is removed in its own
			containersFree += c.bytes
		}
	}
	for _, v := range u.volumes {
		if volumes += v.bytes; v.users > 0 {
			volumesActive++
		} else {
			volumesFree += v.bytes
		}
	}
	return []dfLine{
		line("Images", len(u.images), imagesActive, images, imagesFree),
		line("Containers", len(u.containers), running, containers, containersFree),
		line("Local Volumes", len(u.volumes), volumesActive, volumes, volumesFree),
		line("Build Cache", cacheTotal, cacheActive, cache, cacheFree),
	}
}

type dfImage struct {
	Repository, Tag, ID, CreatedSince, Size, SharedSize, UniqueSize, Containers string
}

type dfVolume struct {
	Name, Links, Size string
}

// printAll is df -v: docker's four tables.
func (u *usage) printAll() error {
	var images []dfImage
	for _, i := range u.images {
		var bytes, shared int64
		for _, p := range i.pieces {
			p.mark(func(p *piece) {
				if bytes += p.bytes; p.images > 1 || p.cached {
					shared += p.bytes
				}
			})
		}
		for _, sum := range i.names {
			l := newImageLine(sum, false)
			images = append(images, dfImage{l.Repository, l.Tag, l.ID, l.CreatedSince, size(bytes), size(shared), size(bytes - shared), strconv.Itoa(i.containers)})
		}
	}
	var containers []containerLine
	for _, c := range u.containers {
		l := c.seen.line(false, false)
		l.Size = size(c.bytes)
		containers = append(containers, l)
	}
	var volumes []dfVolume
	for _, v := range u.volumes {
		volumes = append(volumes, dfVolume{v.Name, strconv.Itoa(v.users), size(v.bytes)})
	}
	var cache []duLine
	var cacheBytes int64
	for _, p := range u.cached() {
		if p.Kind != linkKind {
			cache = append(cache, p.line(false))
		}
		if !p.held() {
			cacheBytes += p.bytes
		}
	}
	fmt.Fprint(&stdout, "Images space usage:\n\n")
	err := printRows(&stdout, "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", images)
	if err != nil {
		return err
	}
	fmt.Fprint(&stdout, "\nContainers space usage:\n\n")
	err = printRows(&stdout, "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}", containers, containerHeadings)
	if err != nil {
		return err
	}
	fmt.Fprint(&stdout, "\nLocal Volumes space usage:\n\n")
	if err := printRows(&stdout, "table {{.Name}}\t{{.Links}}\t{{.Size}}", volumes, map[string]string{"Name": "VOLUME NAME"}); err != nil {
		return err
	}
	fmt.Fprintf(&stdout, "\nBuild cache usage: %s\n\n", size(cacheBytes))
	return printRows(&stdout, "table {{.ID}}\t{{.Type}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.Reclaimable}}", cache, duHeadings)
}
