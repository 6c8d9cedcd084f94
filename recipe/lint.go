package recipe

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// reporter runs lint rules with the recipe's configuration and keeps what they say.
type reporter struct {
	lint  *linter.Linter
	found []Warning
}

func newReporter(r *Recipe) *reporter {
	rep := &reporter{}
	config := *r.check
	config.Warn = func(rule, description, url, detail string, location []parser.Range) {
		rep.found = append(rep.found, Warning{rule, description, url, detail, span(r.Name, location)})
	}
	rep.lint = linter.New(&config)
	return rep
}

// at is the linter for an instruction with these comments above it.
func (rep *reporter) at(comments []string) *linter.Linter {
	return rep.lint.WithMergedConfigFromComments(comments)
}

// sorted gives what was found in the order of the file.
func (rep *reporter) sorted() []Warning {
	sort.SliceStable(rep.found, func(i, j int) bool { return rep.found[i].Pos.Start < rep.found[j].Pos.Start })
	return rep.found
}

// LintError makes an error of warnings when the recipe says "# check=error=true".
func (r *Recipe) LintError(warnings []Warning) error {
	if !r.check.ReturnAsError || len(warnings) == 0 {
		return nil
	}
	rules := map[string]struct{}{}
	for _, w := range warnings {
		rules[w.Rule] = struct{}{}
	}
	return fmt.Errorf("lint violation found for rules: %s", strings.Join(slices.Sorted(maps.Keys(rules)), ", "))
}

// lintNames finds reserved and repeated stage names.
func (r *Recipe) lintNames(rep *reporter) {
	seen := map[string]bool{}
	for _, st := range r.Stages {
		if st.Name == "" {
			continue
		}
		if st.Name == "context" || st.Name == "scratch" {
			rep.lint.Run(&linter.RuleReservedStageName, ranges(st.Pos), linter.RuleReservedStageName.Format(st.Name))
		}
		if seen[st.Name] {
			rep.lint.Run(&linter.RuleDuplicateStageName, ranges(st.Pos), linter.RuleDuplicateStageName.Format(st.Name))
		}
		seen[st.Name] = true
	}
}

// lintCasing finds keywords that are not in the case of most. A tie is upper
// case, and a keyword in mixed case does not count.
func (r *Recipe) lintCasing(rep *reporter) {
	type keyword struct {
		word string
		pos  Position
	}
	var words []keyword
	for _, st := range r.Stages {
		words = append(words, keyword{st.spelled, st.Pos})
		for _, step := range st.Steps {
			words = append(words, keyword{step.line().spelled, step.At()})
		}
	}
	lower, upper := 0, 0
	for _, k := range words {
		switch k.word {
		case strings.ToLower(k.word):
			lower++
		case strings.ToUpper(k.word):
			upper++
		}
	}
	want, fold := "uppercase", strings.ToUpper
	if lower > upper {
		want, fold = "lowercase", strings.ToLower
	}
	for _, k := range words {
		if fold(k.word) != k.word {
			rep.lint.Run(&linter.RuleConsistentInstructionCasing, ranges(k.pos), linter.RuleConsistentInstructionCasing.Format(k.word, want))
		}
	}
}
