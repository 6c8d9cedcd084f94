package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/builder"
	"mk/image"
	"mk/recipe"
)

// call is what --call asks a build for instead of an image.
type call struct {
	what         string // build, check, outline or targets
	json         bool
	ignoreStatus bool // check: status 0 whatever is found
}

// parseCall reads "check" or "outline,format=json". --check is short for --call=check.
func parseCall(word string, check bool) (call, error) {
	c := call{what: "build"}
	if word == "" && check {
		word = "check"
	}
	for i, part := range strings.Split(word, ",") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case i == 0 && word == "":
		case i == 0 && !ok:
			c.what = part
		case key == "format" && (value == "json" || value == "text"):
			c.json = value == "json"
		case key == "ignorestatus":
			c.ignoreStatus = value == "" || value == "true"
		default:
			return c, fmt.Errorf("--call %s: %q is not understood: want build, check, outline or targets, and format=text or format=json", word, part)
		}
	}
	switch c.what {
	case "lint":
		c.what = "check" // its name before it was called check
	case "build", "check", "outline", "targets":
	default:
		return c, fmt.Errorf("--call %s: want build, check, outline or targets", word)
	}
	if check && c.what != "check" {
		return c, fmt.Errorf("--check and --call %s: want one of them", word)
	}
	return c, nil
}

// call answers --call on standard output. parsed is what Parse said: a check
// reports it beside the warnings found up to there.
func (b *building) call(ctx context.Context, c call, progress builder.Reporter, parsed error) error {
	if parsed != nil && c.what != "check" {
		return parsed
	}
	switch c.what {
	case "targets":
		return printTargets(&stdout, b.recipe, c.json)
	case "outline":
		facts, err := b.callFacts(ctx, progress, nil)
		if err != nil {
			return err
		}
		o, err := recipe.NewOutline(b.recipe, facts)
		if err != nil {
			return err
		}
		return printOutline(&stdout, b.recipe, o, c.json)
	}
	warnings, err := b.recipe.Warnings, parsed
	if err == nil {
		var missing error // the first base that cannot be had: a build would end there
		facts, ferr := b.callFacts(ctx, progress, &missing)
		if ferr != nil {
			return ferr
		}
		facts.All = b.flags.target == ""
		if warnings, err = recipe.Lint(b.recipe, facts); err == nil {
			err = missing
		}
	}
	if canceled(err) {
		return err
	}
	if err := printCheck(&stdout, b.recipe, warnings, err, c.json); err != nil {
		return err
	}
	if (len(warnings) > 0 || err != nil) && !c.ignoreStatus {
		return &exitError{status: exitFailed}
	}
	return nil
}

// callFacts makes the facts for a call, which looks bases up as it meets them. The
// first that cannot be found is left in missing.
func (b *building) callFacts(ctx context.Context, progress builder.Reporter, missing *error) (recipe.Facts, error) {
	opt, err := b.options(ctx, progress)
	if err != nil {
		return recipe.Facts{}, err
	}
	return b.lintFacts(opt, func(name string, p ocispec.Platform) *image.Image {
		img, err := opt.Base(ctx, name, p)
		if err != nil {
			if missing != nil && *missing == nil {
				*missing = placedAtBase(b.recipe, name, err)
			}
			return nil
		}
		return img
	})
}

// placedAtBase gives an error the line of the FROM that names the base.
func placedAtBase(r *recipe.Recipe, base string, err error) error {
	for _, st := range r.Stages {
		if st.Base == base {
			return &recipe.Error{Pos: st.Pos, Err: err}
		}
	}
	return err
}

// The JSON that BuildKit answers these requests with. Its field names are its own.
type (
	locationJSON struct {
		SourceIndex int         `json:"sourceIndex,omitempty"`
		Ranges      []rangeJSON `json:"ranges,omitempty"`
	}
	rangeJSON struct {
		Start placeJSON `json:"start"`
		End   placeJSON `json:"end"`
	}
	placeJSON struct {
		Line int `json:"line,omitempty"`
	}
	sourceJSON struct {
		Filename string `json:"filename,omitempty"`
		Data     []byte `json:"data,omitempty"`
		Language string `json:"language,omitempty"`
	}
	warningJSON struct {
		RuleName    string       `json:"ruleName"`
		Description string       `json:"description,omitempty"`
		URL         string       `json:"url,omitempty"`
		Detail      string       `json:"detail,omitempty"`
		Location    locationJSON `json:"location"`
	}
	buildErrorJSON struct {
		Message  string       `json:"message"`
		Location locationJSON `json:"location"`
	}
	checkJSON struct {
		Warnings []warningJSON   `json:"warnings"`
		Sources  []sourceJSON    `json:"sources"`
		Error    *buildErrorJSON `json:"buildError,omitempty"`
	}
	targetJSON struct {
		Name        string       `json:"name,omitempty"`
		Default     bool         `json:"default,omitempty"`
		Description string       `json:"description,omitempty"`
		Base        string       `json:"base,omitempty"`
		Platform    string       `json:"platform,omitempty"`
		Location    locationJSON `json:"location"`
	}
	targetsJSON struct {
		Targets []targetJSON `json:"targets"`
		Sources [][]byte     `json:"sources"`
	}
	argJSON struct {
		Name        string       `json:"name"`
		Description string       `json:"description,omitempty"`
		Value       string       `json:"value,omitempty"`
		Location    locationJSON `json:"location"`
	}
	mountJSON struct {
		Name     string       `json:"name"`
		Required bool         `json:"required,omitempty"`
		Location locationJSON `json:"location"`
	}
	cacheJSON struct {
		ID       string       `json:"ID"`
		Location locationJSON `json:"location"`
	}
	outlineJSON struct {
		Name        string      `json:"name,omitempty"`
		Description string      `json:"description,omitempty"`
		Args        []argJSON   `json:"args,omitempty"`
		Secrets     []mountJSON `json:"secrets,omitempty"`
		SSH         []mountJSON `json:"ssh,omitempty"`
		Cache       []cacheJSON `json:"cache,omitempty"`
		Sources     [][]byte    `json:"sources,omitempty"`
	}
)

func locate(pos recipe.Position) locationJSON {
	if pos.Start == 0 {
		return locationJSON{}
	}
	return locationJSON{Ranges: []rangeJSON{{Start: placeJSON{pos.Start}, End: placeJSON{max(pos.Start, pos.End)}}}}
}

func source(r *recipe.Recipe) []byte { return []byte(strings.Join(r.Lines, "\n")) }

func printJSON(w io.Writer, v any) error {
	enc := newJSON(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printCheck prints warnings, and the error that would end the build, if any.
func printCheck(w io.Writer, r *recipe.Recipe, warnings []recipe.Warning, failed error, asJSON bool) error {
	for i := range warnings {
		warnings[i].URL = ruleURL(warnings[i].Rule)
	}
	var at recipe.Position
	var placed *recipe.Error
	if errors.As(failed, &placed) {
		at = placed.Pos
	}
	if asJSON {
		out := checkJSON{Warnings: []warningJSON{}, Sources: []sourceJSON{{r.Name, source(r), "Dockerfile"}}}
		for _, x := range warnings {
			out.Warnings = append(out.Warnings, warningJSON{x.Rule, x.Description, x.URL, x.Detail, locate(x.Pos)})
		}
		if failed != nil {
			out.Error = &buildErrorJSON{failed.Error(), locate(at)}
		}
		return printJSON(w, out)
	}
	switch n := len(warnings); {
	case n == 1:
		fmt.Fprintln(w, "Check complete, 1 warning has been found!")
	case n > 1:
		fmt.Fprintf(w, "Check complete, %d warnings have been found!\n", n)
	case failed == nil:
		fmt.Fprintln(w, "Check complete, no warnings found.")
	}
	fmt.Fprint(w, recipe.FormatWarnings(r.Lines, warnings))
	if failed != nil {
		if len(warnings) > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "ERROR: %v\n%s", failed, recipe.Excerpt(r.Lines, at))
	}
	return nil
}

// printTargets lists the stages that --target takes.
func printTargets(w io.Writer, r *recipe.Recipe, asJSON bool) error {
	if asJSON {
		out := targetsJSON{Sources: [][]byte{source(r)}}
		for i, st := range r.Stages {
			out.Targets = append(out.Targets, targetJSON{st.Name, i == len(r.Stages)-1, st.Doc, st.Base, st.Platform, locate(st.Pos)})
		}
		return printJSON(w, out)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "TARGET\tDESCRIPTION\n")
	for i, st := range r.Stages {
		name := st.Name
		if i == len(r.Stages)-1 {
			name = strings.TrimSpace(name + " (default)")
		}
		fmt.Fprintf(tw, "%s\t%s\n", name, st.Doc)
	}
	return tw.Flush()
}

// printOutline tells what the target can be given.
func printOutline(w io.Writer, r *recipe.Recipe, o *recipe.Outline, asJSON bool) error {
	if asJSON {
		out := outlineJSON{Name: o.Name, Description: o.Doc, Sources: [][]byte{source(r)}}
		for _, a := range o.Args {
			out.Args = append(out.Args, argJSON{a.Name, a.Doc, a.Value, locate(a.Pos)})
		}
		for _, m := range o.Secrets {
			out.Secrets = append(out.Secrets, mountJSON{m.ID, m.Required, locate(m.Pos)})
		}
		for _, m := range o.SSH {
			out.SSH = append(out.SSH, mountJSON{m.ID, m.Required, locate(m.Pos)})
		}
		for _, m := range o.Caches {
			out.Cache = append(out.Cache, cacheJSON{m.ID, locate(m.Pos)})
		}
		return printJSON(w, out)
	}
	if o.Name != "" || o.Doc != "" {
		name := o.Name
		if name == "" {
			name = "(default)"
		}
		rows := [][]string{{"TARGET:", name}}
		if o.Doc != "" {
			rows = append(rows, []string{"DESCRIPTION:", o.Doc})
		}
		printTable(w, 1, rows)
	}
	args := [][]string{{"BUILD ARG", "VALUE", "DESCRIPTION"}}
	for _, a := range o.Args {
		args = append(args, []string{a.Name, a.Value, a.Doc})
	}
	printTable(w, 3, args)
	for _, list := range []struct {
		title  string
		mounts []recipe.OutlineMount
	}{{"SECRET", o.Secrets}, {"SSH", o.SSH}} {
		rows := [][]string{{list.title, "REQUIRED"}}
		for _, m := range list.mounts {
			required := ""
			if m.Required {
				required = "true"
			}
			rows = append(rows, []string{m.ID, required})
		}
		printTable(w, 3, rows)
	}
	return nil
}

// printTable prints rows in columns and an empty line; a heading alone is not printed.
func printTable(w io.Writer, gap int, rows [][]string) {
	if len(rows) == 1 && rows[0][0] != "TARGET:" {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, gap, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	tw.Flush()
	fmt.Fprintln(w)
}
