package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"mk/container"
	"mk/userns"
)

const infoHelp = `Tell how mk becomes root on this machine and what the machine allows, each
thing tried and not guessed, with the one command that mends what it denies.`

func newInfo(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "info", Short: "Show the mode, and what this machine allows", Long: infoHelp, Args: cobra.NoArgs}
	c.RunE = a.inside(a.withStore(func(_ *cobra.Command, s *store, _ []string) error {
		return printInfo(s, userns.Survey(a.in, s.root), asJSON)
	}))
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	a.usernsFlag(c)
	return c
}

func printInfo(s *store, r userns.Report, asJSON bool) error {
	can := []struct {
		Name string
		Err  error
	}{
		{"overlay", r.Overlay}, {"seccomp notifier", r.Notifier}, {"fast notifier", r.FastWake},
		{"/dev/net/tun", r.Tun},
	}
	cgroups, cgroupErr := container.Cgroups()
	if asJSON {
		doc := map[string]any{
			"version": version, "root": s.root, "mode": r.Choice.Mode, "reason": r.Choice.Reason,
			"uids": r.Choice.UIDs, "gids": r.Choice.GIDs, "kernel": r.Kernel, "machine": r.Machine,
			"pasta": r.Pasta, "slirp4netns": r.Slirp,
		}
		allowed := map[string]any{}
		for _, x := range can {
			if allowed[x.Name] = true; x.Err != nil {
				allowed[x.Name] = x.Err.Error()
			}
		}
		doc["allowed"] = allowed
		if doc["cgroups"] = cgroups; cgroupErr != nil {
			doc["cgroups"] = cgroupErr.Error()
		}
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(doc)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, value) }
	row("version", version)
	row("store", s.root)
	row("mode", string(r.Choice.Mode))
	row("reason", r.Choice.Reason)
	row("uids", ranges(r.Choice.UIDs))
	row("gids", ranges(r.Choice.GIDs))
	row("kernel", r.Kernel+" "+r.Machine)
	for _, x := range can {
		if x.Err == nil {
			row(x.Name, "yes")
			continue
		}
		row(x.Name, "no: "+x.Err.Error())
		if advice := userns.Advice(x.Err); advice != "" {
			row("", "hint: "+advice)
		}
	}
	if cgroupErr != nil {
		row("cgroup", "no: "+cgroupErr.Error())
		if advice := userns.Advice(cgroupErr); advice != "" {
			row("", "hint: "+advice)
		}
	} else {
		row("cgroup", cgroups.String())
	}
	for _, x := range [][2]string{{"pasta", r.Pasta}, {"slirp4netns", r.Slirp}} {
		if x[1] == "" {
			x[1] = "not installed"
		}
		row(x[0], x[1])
	}
	return w.Flush()
}

func ranges(list []userns.Range) string {
	var words []string
	for _, r := range list {
		words = append(words, fmt.Sprintf("%d→%d+%d", r.Inside, r.Outside, r.Length))
	}
	if len(words) == 0 {
		return "all, as they are"
	}
	return strings.Join(words, " ")
}
