package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mk/builder"
)

const cacheHelp = `Look after the directories of RUN --mount=type=cache.

An ID is a cache's, which is its target unless the recipe gives one, or a pattern
with * and ?, or the name that 'mk cache ls' shows.`

func newCache(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "cache", Short: "Look after the directories of RUN --mount=type=cache", Long: cacheHelp,
		Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newCacheLs(a), newCacheRm(a), newCacheSave(a), newCacheRestore(a))
	return c
}

// cacheLine is a cache as templates see it.
type cacheLine struct {
	Name, ID, From, Size, LastUsed, UsedSince string
	Copies                                    int
}

func newCacheLs(a *app) *cobra.Command {
	var quiet, noTrunc bool
	var format string
	var filters []string
	c := &cobra.Command{Use: "ls [flags] [ID...]", Aliases: []string{"list"}, Short: "List caches, the last used first", Long: `List caches, the last used first.

--format is a Go template over .Name .ID .From .Size .LastUsed .UsedSince .Copies,
"table" followed by one, or json.`}
	c.RunE = a.inside(a.withStore(func(c *cobra.Command, s *store, args []string) error {
		list, err := s.pickCaches(args, filters)
		if err != nil {
			return err
		}
		sort.SliceStable(list, func(i, j int) bool { return list[i].Used.After(list[j].Used) })
		var lines []cacheLine
		for _, i := range list {
			if quiet {
				fmt.Fprintln(&stdout, shortCache(i.Name, noTrunc))
				continue
			}
			n, err := i.Bytes()
			if err != nil {
				return fmt.Errorf("cache %s: %w", i.ID, err)
			}
			lines = append(lines, cacheLine{
				Name: shortCache(i.Name, noTrunc), ID: i.ID, From: i.From, Size: size(n), Copies: len(i.Dirs),
				LastUsed: i.Used.Local().Format("2006-01-02 15:04:05 -0700 MST"), UsedSince: since(i.Used),
			})
		}
		if quiet {
			return nil
		}
		if format == "" || format == "table" {
			format = "table {{.Name}}\t{{.ID}}\t{{.Size}}\t{{.UsedSince}}"
		}
		return printRows(&stdout, format, lines, map[string]string{"Name": "CACHE", "ID": "ID", "UsedSince": "LAST USED"})
	}))
	fl := c.Flags()
	fl.BoolVarP(&quiet, "quiet", "q", false, "print names and nothing else")
	fl.BoolVar(&noTrunc, "no-trunc", false, "print whole names")
	fl.StringVar(&format, "format", "", "Go template, or json")
	cacheFilter(c, &filters)
	a.usernsFlag(c)
	return c
}

func newCacheRm(a *app) *cobra.Command {
	var all, force bool
	var filters []string
	c := &cobra.Command{Use: "rm [flags] ID...", Short: "Empty caches: the next step begins them anew", Long: `Empty caches: the next step begins them anew.

A cache that a step is using is not touched, and the command fails.`}
	c.RunE = a.inside(func(c *cobra.Command, args []string) error {
		if len(args) == 0 && len(filters) == 0 && !all {
			return errors.New("cache rm: say which, or --all")
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		defer s.Close()
		list, err := s.pickCaches(args, filters)
		if err != nil {
			return err
		}
		var failed error
		for _, i := range list {
			if _, err := s.caches().Remove(i.CacheMount); err != nil {
				failed = errors.Join(failed, fmt.Errorf("cache %s: %w", i.ID, err))
				continue
			}
			fmt.Fprintln(&stdout, i.ID)
		}
		return failed
	})
	fl := c.Flags()
	fl.BoolVarP(&all, "all", "a", false, "all caches")
	fl.BoolVarP(&force, "force", "f", false, "as in docker; mk never asks")
	cacheFilter(c, &filters)
	a.usernsFlag(c)
	return c
}

func cacheFilter(c *cobra.Command, filters *[]string) {
	c.Flags().Var((*list)(filters), "filter", "only caches with id=PATTERN, or until=DURATION: not used for so long")
}

// shortCache is a cache's name as lists have it.
func shortCache(name string, whole bool) string {
	if whole {
		return name
	}
	return name[:12]
}

// pickCaches lists the caches that hold something and that arguments and filters mean:
// any of the arguments, and of each kind of filter any. An argument that means none
// is an error.
func (s *store) pickCaches(args, filters []string) ([]builder.CacheInfo, error) {
	all, err := s.caches().List()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i builder.CacheInfo) bool { return len(i.Dirs) == 0 })
	pick, err := cachePicker(args, filters)
	if err != nil {
		return nil, err
	}
	list, missed := pick(all)
	if missed != "" {
		return nil, fmt.Errorf("there is no cache %s", missed)
	}
	return list, nil
}

// cachePicker reads arguments and filters. The function that it returns picks caches in
// the order of their names, and tells an argument that means none.
func cachePicker(args, filters []string) (func([]builder.CacheInfo) (picked []builder.CacheInfo, missed string), error) {
	var ids []string
	until := time.Duration(-1)
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		var err error
		switch key {
		case "id":
			ids = append(ids, value)
		case "until":
			if until, err = time.ParseDuration(value); err != nil {
				return nil, fmt.Errorf("--filter %s: %w", f, err)
			}
		default:
			return nil, fmt.Errorf("--filter %s: want id=PATTERN or until=DURATION", f)
		}
	}
	for _, p := range slices.Concat(args, ids) {
		if _, err := path.Match(slashless(p), ""); err != nil {
			return nil, fmt.Errorf("cache %s: %w", p, err)
		}
	}
	means := func(i builder.CacheInfo) func(string) bool {
		return func(word string) bool {
			like, _ := path.Match(slashless(word), slashless(i.ID))
			return like || word == i.ID || len(word) >= 6 && strings.HasPrefix(i.Name, word)
		}
	}
	return func(all []builder.CacheInfo) (picked []builder.CacheInfo, missed string) {
		for _, a := range args {
			if !slices.ContainsFunc(all, func(i builder.CacheInfo) bool { return means(i)(a) }) {
				return nil, a
			}
		}
		for _, i := range all {
			old := until < 0 || time.Since(i.Used) >= until
			if old && (len(args) == 0 || slices.ContainsFunc(args, means(i))) && (len(ids) == 0 || slices.ContainsFunc(ids, means(i))) {
				picked = append(picked, i)
			}
		}
		sort.Slice(picked, func(i, j int) bool { return picked[i].Name < picked[j].Name })
		return picked, ""
	}, nil
}

// slashless makes * match slashes too: IDs are paths by habit only.
func slashless(s string) string { return strings.ReplaceAll(s, "/", "\x01") }

// holdCaches keeps builds away from caches until release, and says what it waits for.
func (s *store) holdCaches(ctx context.Context, list []builder.CacheInfo) (dirs []string, release func(), err error) {
	var held []func() error
	release = func() {
		for _, r := range held {
			r()
		}
	}
	for _, i := range list {
		id := i.ID
		late := time.AfterFunc(time.Second, func() { fmt.Fprintf(os.Stderr, "mk: waiting for the build that uses cache %s\n", id) })
		dir, r, err := s.caches().Hold(ctx, i.CacheMount)
		late.Stop()
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("cache %s: %w", i.ID, err)
		}
		held = append(held, r)
		dirs = append(dirs, dir)
	}
	return dirs, release, nil
}
