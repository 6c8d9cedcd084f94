package recipe

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// Lint finds all that BuildKit's rules object to, in the order of the file: what
// Parse found, and what shows only when variables have values. The error is the
// one that would end a build; the warnings up to it are given all the same.
func Lint(r *Recipe, facts Facts) ([]Warning, error) {
	w, err := newWalk(r, facts)
	return w.rep.sorted(), err
}

// lintStep checks one expanded step. The error is one of a build.
func (w *walk) lintStep(lint *linter.Linter, s *stageWalk, step Step) error {
	at, name := ranges(step.At()), step.line().spelled
	switch c := step.(type) {
	case *Env:
		if c.legacy {
			lint.Run(&linter.RuleLegacyKeyValueFormat, at, linter.RuleLegacyKeyValueFormat.Format(name))
		}
		for _, p := range c.Vars {
			lintSecret(lint, "ENV", p.Key, step)
		}
	case *Label:
		if c.legacy {
			lint.Run(&linter.RuleLegacyKeyValueFormat, at, linter.RuleLegacyKeyValueFormat.Format(name))
		}
	case *Arg:
		for _, a := range c.Args {
			lintSecret(lint, "ARG", a.Name, step)
		}
	case *Cmd:
		lintOnce(lint, step, &s.cmd)
		lintShellForm(lint, s, step, c.Command)
	case *Entrypoint:
		lintOnce(lint, step, &s.entrypoint)
		lintShellForm(lint, s, step, c.Command)
	case *Healthcheck:
		lintOnce(lint, step, &s.healthcheck)
	case *Shell:
		s.shell = len(c.Shell) > 0
	case *Workdir:
		if !s.workdir && !path.IsAbs(c.Path) {
			lint.Run(&linter.RuleWorkdirRelativePath, at, linter.RuleWorkdirRelativePath.Format(c.Path))
		}
		s.workdir = true
	case *Expose:
		return lintExpose(lint, c)
	case *Copy:
		return w.lintCopy(lint, c)
	}
	return nil
}

// lintOnce reports the earlier of two: that is the one without effect.
func lintOnce(lint *linter.Linter, step Step, before *Position) {
	if *before != (Position{}) {
		lint.Run(&linter.RuleMultipleInstructionsDisallowed, ranges(*before),
			linter.RuleMultipleInstructionsDisallowed.Format(step.line().spelled))
	}
	*before = step.At()
}

func lintShellForm(lint *linter.Linter, s *stageWalk, step Step, c Command) {
	if c.Shell && !s.shell {
		lint.Run(&linter.RuleJSONArgsRecommended, ranges(step.At()), linter.RuleJSONArgsRecommended.Format(step.line().spelled))
	}
}

func lintExpose(lint *linter.Linter, c *Expose) error {
	for _, word := range c.Ports {
		p, err := parsePort(word)
		if p.proto != strings.ToLower(p.proto) {
			lint.Run(&linter.RuleExposeProtoCasing, ranges(c.Pos), linter.RuleExposeProtoCasing.Format(word))
		}
		if p.ip != "" || p.host != "" {
			lint.Run(&linter.RuleExposeInvalidFormat, ranges(c.Pos), linter.RuleExposeInvalidFormat.Format(word))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lintCopy finds sources that the ignore file has taken away. With exceptions in
// that file nobody can tell without looking, and "." is missing only when
// everything is.
func (w *walk) lintCopy(lint *linter.Linter, c *Copy) error {
	ignore := w.facts.Ignore
	if c.From != "" || ignore == nil || ignore.Exceptions() {
		return nil
	}
	verb := "Copy"
	if c.Add {
		verb = "Add"
	}
	for _, src := range c.Sources {
		if KindOf(src) != Local {
			continue
		}
		src = path.Clean(src)
		if (src == "." || src == "/") && !ignore.excludesRoot() {
			continue
		}
		ignored, err := ignore.Match(src)
		if err != nil {
			return err
		}
		if ignored {
			lint.Run(&linter.RuleCopyIgnoredFile, ranges(c.Pos), linter.RuleCopyIgnoredFile.Format(verb, src))
		}
	}
	return nil
}

// The words that make a name look like a secret's, and those that clear it.
var secretName = sync.OnceValues(func() (deny, allow *regexp.Regexp) {
	word := func(words string) *regexp.Regexp { return regexp.MustCompile(`(?i)(?:_|^)(?:` + words + `)(?:_|$)`) }
	return word("apikey|auth|credential|credentials|key|password|pword|passwd|secret|token"), word("public|file|version")
})

func lintSecret(lint *linter.Linter, instruction, name string, step Step) {
	if deny, allow := secretName(); deny.MatchString(name) && !allow.MatchString(name) {
		lint.Run(&linter.RuleSecretsUsedInArgOrEnv, ranges(step.At()), linter.RuleSecretsUsedInArgOrEnv.Format(instruction, name))
	}
}

// lintDefaults finds bases that are no image names unless build arguments are
// given. Globals that fail are reported by the build itself.
func (w *walk) lintDefaults() {
	in := w.facts.Inputs
	in.Args = maps.Clone(in.Args)
	for _, arg := range w.r.Args {
		for _, a := range arg.Args {
			delete(in.Args, a.Name)
		}
	}
	g, err := w.r.Globals(in)
	if err != nil {
		return
	}
	for _, st := range w.r.Stages {
		base, _, err := ExpandWord(st.Base, g.vars, g.escape)
		if err != nil {
			return
		}
		if !validReference(base) {
			w.rep.lint.Run(&linter.RuleInvalidDefaultArgInFrom, ranges(st.Pos), linter.RuleInvalidDefaultArgInFrom.Format(st.Base))
		}
	}
}

// lintFrom checks the variables and the platform of a FROM line.
func (w *walk) lintFrom(st *Stage) {
	lint, at, g := w.rep.at(st.comments), ranges(st.Pos), w.globals
	declared := g.vars.Keys()
	for _, a := range g.args {
		if !slices.Contains(declared, a.Name) {
			declared = append(declared, a.Name)
		}
	}
	undeclared := func(names []string) {
		for _, n := range names {
			if !slices.Contains(declared, n) {
				lint.Run(&linter.RuleUndefinedArgInFrom, at, linter.RuleUndefinedArgInFrom.Format(n, Suggest(n, declared)))
			}
		}
	}
	base, usage, err := ExpandWord(st.Base, g.vars, g.escape)
	undeclared(usage.Unset)
	if err != nil || base == "" || st.Platform == "" {
		return
	}
	platform, usage, _ := ExpandWord(st.Platform, g.vars, g.escape)
	undeclared(usage.Unset)
	if len(usage.Used)+len(usage.Unset) == 0 {
		p, err := ParsePlatform(platform)
		if err == nil && !strings.Contains(st.Name, p.OS) && !strings.Contains(st.Name, p.Architecture) {
			lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, at, linter.RuleFromPlatformFlagConstDisallowed.Format(platform))
		}
		return
	}
	target, _ := g.Get("TARGETPLATFORM")
	if slices.Equal(usage.Used, []string{"TARGETPLATFORM"}) && len(usage.Unset) == 0 && platform == target {
		lint.Run(&linter.RuleRedundantTargetPlatform, at, linter.RuleRedundantTargetPlatform.Format(st.Platform))
	}
}

func (w *walk) lintPlatform(st *Stage, from From, image Base) {
	want, got := w.platform(from), image.Platform
	if got.OS == "" || want.OS == got.OS && want.Architecture == got.Architecture {
		return
	}
	w.rep.lint.Run(&linter.RuleInvalidBaseImagePlatform, ranges(st.Pos), linter.RuleInvalidBaseImagePlatform.Format(
		from.Base, FormatPlatform(NormalizePlatform(want)), FormatPlatform(NormalizePlatform(got))))
}
