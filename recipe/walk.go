package recipe

import (
	"errors"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Facts are what Lint and Outline must be told from outside the recipe. The zero
// value is right for a recipe of which nothing else is known.
type Facts struct {
	Inputs Inputs
	// All looks at every stage, as a check of the whole file does. Otherwise
	// only the stages that Inputs.Target needs are looked at.
	All bool
	// Base tells what an image brings; false when that is not known, and then
	// nothing is said about variables that it may set.
	Base func(name string, platform v1.Platform) (Base, bool)
	// Replaced tells whether a named context stands in for the stage of this
	// name. Its steps are not looked at then.
	Replaced func(stage string) bool
	// Ignore is the build context's.
	Ignore *Ignore
}

// Base is what lint needs to know of a base image.
type Base struct {
	Env      []string
	Shell    []string
	OnBuild  []string
	Platform v1.Platform
}

// walk goes through the stages in order as a build would, but runs nothing. It
// feeds lint and outline.
type walk struct {
	r       *Recipe
	facts   Facts
	globals *Globals
	rep     *reporter
	stages  []*stageWalk // by index; nil where not looked at
}

// stageWalk is what is known of a stage while it is walked, and afterwards.
type stageWalk struct {
	stage *Stage
	from  From
	base  *stageWalk   // nil: an image or scratch
	needs []*stageWalk // whose files it copies or mounts
	scope *Scope
	// known is false when the base image's ENV is a mystery.
	known   bool
	shell   bool // a SHELL was given, here or in the base
	workdir bool // a WORKDIR was given in this recipe

	cmd, entrypoint, healthcheck Position // of the last one; zero before
	outline                      outlineWalk
}

// newWalk evaluates the globals and all FROM lines. Errors are *Error.
func newWalk(r *Recipe, facts Facts) (*walk, error) {
	w := &walk{r: r, facts: facts, rep: newReporter(r), stages: make([]*stageWalk, len(r.Stages))}
	w.rep.found = slices.Clone(r.Warnings)
	w.lintDefaults()
	var err error
	if w.globals, err = r.Globals(facts.Inputs); err != nil {
		return w, err
	}
	froms := make([]From, len(r.Stages))
	for i, st := range r.Stages {
		w.lintFrom(st)
		if froms[i], err = w.globals.From(st); err != nil {
			return w, err
		}
	}
	target, err := r.Target(facts.Inputs.Target)
	if err != nil {
		return w, &Error{Pos: Position{File: r.Name}, Err: err}
	}
	wanted := w.reachable(target, froms)
	for i, st := range r.Stages {
		if !wanted[i] {
			continue
		}
		if err := w.walkStage(st, froms[i]); err != nil {
			return w, err
		}
	}
	return w, nil
}

// reachable tells which stages the target needs, or all.
func (w *walk) reachable(target *Stage, froms []From) []bool {
	wanted := make([]bool, len(w.r.Stages))
	var want func(*Stage)
	want = func(st *Stage) {
		if st == nil || wanted[st.Index] {
			return
		}
		wanted[st.Index] = true
		if w.replaced(st) {
			return
		}
		base, ok := w.r.BaseStage(st, froms[st.Index].Base)
		if ok {
			want(base)
		}
		for _, step := range w.steps(st, base, froms[st.Index]) {
			for _, source := range w.sources(st, step) {
				want(source)
			}
		}
	}
	want(target)
	if w.facts.All {
		for _, st := range w.r.Stages {
			want(st)
		}
	}
	return wanted
}

// steps are those of a stage with the triggers of its base before them. A trigger
// that cannot be parsed is left out: it is the build's to refuse.
func (w *walk) steps(st, base *Stage, from From) []Step {
	var triggers []string
	if base != nil {
		for _, step := range base.Steps {
			if on, ok := step.(*Onbuild); ok {
				triggers = append(triggers, on.Expression)
			}
		}
	} else if image, ok := w.image(from); ok {
		triggers = image.OnBuild
	}
	var steps []Step
	for _, t := range triggers {
		if s, err := ParseOnbuild(t, st.Pos, w.r.Escape); err == nil {
			steps = append(steps, s...)
		}
	}
	return append(steps, st.Steps...)
}

// sources are the stages whose files a step takes.
func (w *walk) sources(st *Stage, step Step) []*Stage {
	var out []*Stage
	add := func(source *Stage, err error) {
		if err == nil && source != nil {
			out = append(out, source)
		}
	}
	switch s := step.(type) {
	case *Copy:
		if s.From != "" {
			add(w.r.CopySource(st, s.From))
		}
	case *Run:
		for _, m := range s.Mounts {
			add(w.r.MountSource(st, m.From, m.Target))
		}
	}
	return out
}

func (w *walk) replaced(st *Stage) bool {
	return st.Name != "" && w.facts.Replaced != nil && w.facts.Replaced(st.Name)
}

// image asks what a base brings. Scratch is known to bring nothing.
func (w *walk) image(from From) (Base, bool) {
	if from.Base == "scratch" {
		return Base{}, true
	}
	if w.facts.Base == nil {
		return Base{}, false
	}
	return w.facts.Base(from.Base, w.platform(from))
}

func (w *walk) platform(from From) v1.Platform {
	if from.Platform != nil {
		return *from.Platform
	}
	return w.facts.Inputs.Platform
}

func (w *walk) walkStage(st *Stage, from From) error {
	s := &stageWalk{stage: st, from: from}
	w.stages[st.Index] = s
	base, _ := w.r.BaseStage(st, from.Base)
	switch {
	case w.replaced(st):
		s.scope = w.globals.Scope(nil)
		s.outline = newOutlineWalk(w.globals)
		return nil
	case base != nil:
		s.base = w.stages[base.Index]
		s.scope, s.known = s.base.scope.Child(), s.base.known
		s.shell, s.workdir = s.base.shell, s.base.workdir
	default:
		image, known := w.image(from)
		s.known, s.shell = known, len(image.Shell) > 0
		s.scope = w.globals.Scope(image.Env)
		if known && from.Base != "scratch" {
			w.lintPlatform(st, from, image)
		}
	}
	s.outline = newOutlineWalk(w.globals)
	s.outline.use(from.Usage.Used)
	for _, step := range w.steps(st, base, from) {
		if err := w.walkStep(s, step); err != nil {
			return err
		}
		for _, source := range w.sources(st, step) {
			s.needs = append(s.needs, w.stages[source.Index])
		}
	}
	return nil
}

func (w *walk) walkStep(s *stageWalk, step Step) error {
	lint := w.rep.at(step.line().comments)
	var names []string // what a misspelt variable may have meant
	if strings.Contains(step.Text(), "$") {
		names = s.scope.Vars().Keys()
	}
	expanded, usage, err := s.scope.Expand(step)
	if s.known {
		for _, n := range usage.Unset {
			lint.Run(&linter.RuleUndefinedVar, ranges(step.At()), linter.RuleUndefinedVar.Format(n, Suggest(n, names)))
		}
	}
	if err != nil {
		return err
	}
	if err := w.lintStep(lint, s, expanded); err != nil {
		var located *Error
		if !errors.As(err, &located) {
			err = &Error{Pos: step.At(), Err: err}
		}
		return err
	}
	s.outline.step(step, expanded, s.scope)
	return nil
}
