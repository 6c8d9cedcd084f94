package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/builder"
	"mk/image"
	"mk/recipe"
)

// rulesPage has a paragraph for each lint rule, headed by its name.
const rulesPage = "docs/rules.md"

// lintFacts tells lint and outline what this build knows. base finds an image, or
// gives nil for one of which nothing is known.
func (b *building) lintFacts(opt builder.PlanOptions, base func(string, ocispec.Platform) *image.Image) (recipe.Facts, error) {
	facts := recipe.Facts{Inputs: recipe.Inputs{
		Args: opt.Args, Target: opt.Target,
		BuildPlatform: image.HostPlatform(), Platform: image.HostPlatform(),
	}}
	if opt.Platform != nil {
		facts.Inputs.Platform = *opt.Platform
	}
	facts.Replaced = func(stage string) bool {
		_, ok := opt.Contexts[stage]
		return ok
	}
	facts.Base = func(name string, p ocispec.Platform) (recipe.Base, bool) {
		img, known := (*image.Image)(nil), false
		if t, ok := opt.Contexts[name]; ok {
			img, known = t.Image, true
		} else {
			img = base(name, p)
		}
		if img == nil {
			return recipe.Base{}, known
		}
		c := img.Config()
		return recipe.Base{Env: c.Config.Env, Shell: c.Config.Shell, OnBuild: c.Config.OnBuild, Platform: img.Platform()}, true
	}
	if b.context != nil {
		ignore, err := recipe.NewIgnore(b.context.Ignore)
		if err != nil {
			return facts, err
		}
		facts.Ignore = ignore
	}
	return facts, nil
}

// lint finds what the rules object to in the stages that this build needs, and
// makes it an error where the recipe asks for that. Bases are those that the plan
// has found; lint fetches nothing.
func (b *building) lint(opt builder.PlanOptions) error {
	facts, err := b.lintFacts(opt, b.bases.get)
	if err != nil {
		return err
	}
	b.warnings, err = recipe.Lint(b.recipe, facts)
	if err != nil {
		return err
	}
	return b.recipe.LintError(b.warnings)
}

// foundBases remembers the images that a plan asked for, and which could not be found.
type foundBases struct {
	mu    sync.Mutex           // guards found: a plan asks from several goroutines
	found map[string]foundBase // by name and platform
}

type foundBase struct {
	img *image.Image
	err error
}

// remember wraps the function that finds images: each is looked for once, however
// many plans and rules ask.
func (f *foundBases) remember(find baseFinder) baseFinder {
	return func(ctx context.Context, name string, p ocispec.Platform) (*image.Image, error) {
		f.mu.Lock()
		was, ok := f.found[baseKey(name, p)]
		f.mu.Unlock()
		if ok {
			return was.img, was.err
		}
		img, err := find(ctx, name, p)
		if ctx.Err() == nil { // else it says nothing of the image
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.found == nil {
				f.found = map[string]foundBase{}
			}
			f.found[baseKey(name, p)] = foundBase{img, err}
		}
		return img, err
	}
}

type baseFinder = func(ctx context.Context, name string, p ocispec.Platform) (*image.Image, error)

func (f *foundBases) get(name string, p ocispec.Platform) *image.Image {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.found[baseKey(name, p)].img
}

func baseKey(name string, p ocispec.Platform) string { return name + " " + image.FormatPlatform(p) }

// ruleURL is where our text on a rule is.
func ruleURL(rule string) string { return rulesPage + "#" + strings.ToLower(rule) }

// shortWarning is a warning's line at the end of a build, as buildx has it.
func shortWarning(w recipe.Warning) string {
	s := w.Rule + ": " + w.Detail
	if w.Pos.Start > 0 {
		s += fmt.Sprintf(" (line %d)", w.Pos.Start)
	}
	return s
}

// printWarnings ends a build's display with the warnings, in buildx's form.
//
//	1 warning found (use --debug to expand):
//	- StageNameCasing: Stage name 'Build' should be lowercase (line 1)
func printWarnings(w io.Writer, lines []string, warnings []recipe.Warning, expand bool) {
	if len(warnings) == 0 {
		return
	}
	count := "1 warning found"
	if n := len(warnings); n > 1 {
		count = fmt.Sprintf("%d warnings found", n)
	}
	if !expand {
		count += " (use --debug to expand)"
	}
	fmt.Fprintf(w, "\n %s:\n", count)
	for _, x := range warnings {
		fmt.Fprintf(w, " - %s\n", shortWarning(x))
		if expand {
			fmt.Fprintf(w, "%s\nMore info: %s\n%s\n", x.Description, ruleURL(x.Rule), recipe.Excerpt(lines, x.Pos))
		}
	}
}
