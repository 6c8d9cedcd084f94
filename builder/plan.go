package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/recipe"
)

// Plan is the graph of steps that the wanted target needs, variables expanded.
// Nothing of it has been run: making one reads base images' configs, no more.
type Plan struct {
	Recipe   *recipe.Recipe
	Platform ocispec.Platform
	Stages   []*Stage // those that the target needs, each after what it needs
	Target   *Stage
	Epoch    *time.Time // SOURCE_DATE_EPOCH: times in the image are no newer

	OmitHistory bool // the image has none
}

// Stage is one FROM of the plan with everything evaluated that needs no file:
// its config is what the finished image will have, save for layers and dates.
type Stage struct {
	Name string // "build", "stage-1", or "" in a recipe of one stage
	From *recipe.Stage
	// Platform is what the stage's tree is for: its base's, by --platform or the plan's.
	Platform ocispec.Platform
	Start    Tree // what FROM names
	Nodes    []*Node
	Tree     Tree // what the stage leaves: its last node's, or Start
	Image    Image
	total    int           // nodes and the FROM, as the display counts them
	trigger  bool          // the step being evaluated comes from an ONBUILD of the base
	cmd      bool          // a CMD was seen: ENTRYPOINT leaves it
	scope    *recipe.Scope // the variables, while steps are evaluated
	base     *Vertex       // shows the FROM of an image; nil for what is none
	origin   string        // the name of the image that Start is of, variables replaced
	prefix   string        // before names in the display: "linux/arm64 " where there are several platforms
}

// Image is an image's config in docker's superset of OCI's.
type Image = image.Config

// Tree names a file tree: exactly one field is set, or none, for scratch.
type Tree struct {
	Node  *Node        // what that step leaves
	Image *image.Image // an image's root
	Files *Files       // a directory of the caller's
}

// Node is a step that makes a layer: RUN, COPY, ADD or WORKDIR.
type Node struct {
	Step    recipe.Step // expanded
	Stage   *Stage
	Parent  Tree
	From    []Tree // COPY, ADD: one; RUN: one a mount, in order; zero Tree where none is named
	Vertex  *Vertex
	Place   string // stage and ordinal: the same in the next build of the same recipe
	Env     []string
	Args    []string        // RUN: the argument vector
	Script  *recipe.Heredoc // RUN: a here-document with an interpreter line, to be found in recipe.PipesDir
	Dir     string          // WORKDIR in force
	User    string          // USER in force
	NoCache bool
}

// PlanOptions are what a caller may ask of a plan.
type PlanOptions struct {
	Target        string
	Args          map[string]string // --build-arg
	Labels        map[string]string
	Platform      *ocispec.Platform
	ShowPlatform  bool            // in the display: there are plans for others too
	Contexts      map[string]Tree // --build-context
	Context       *Files          // the main one; nil: COPY from it is refused
	NoCache       bool
	NoCacheStages []string
	Env           []string // NAME=value, that stages start with beside their image's
	UnsetEnv      []string // names that the image is not to have
	UnsetLabels   []string
	OmitHistory   bool
	// Epoch tells what a SOURCE_DATE_EPOCH that is no number stands for: the time of the
	// context of this name ("context" is the main one), or of what a stage fetches.
	// Nil time: none, and no error. Nil function: only numbers are times.
	Epoch func(ctx context.Context, word string) (*time.Time, error)
	// Base finds an image by its normalized name, which its errors give. Called once a name and platform.
	Base func(ctx context.Context, name string, platform ocispec.Platform) (*image.Image, error)
}

// defaultPath is what a stage's PATH is when its base has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// historyComment is in every history entry: builders and scanners look for it.
const historyComment = "buildkit.dockerfile.v0"

// NewPlan resolves the stages that the target needs and evaluates their steps.
// Errors are *recipe.Error and know their line.
func NewPlan(ctx context.Context, r *recipe.Recipe, opt PlanOptions) (*Plan, error) {
	build := image.HostPlatform()
	target := build
	if opt.Platform != nil {
		target = *opt.Platform
	}
	p := &planner{
		ctx:   ctx,
		opt:   opt,
		plan:  &Plan{Recipe: r, Platform: target, OmitHistory: opt.OmitHistory},
		build: build,
		done:  map[*recipe.Stage]*Stage{},
		bases: map[string]*baseResult{},
	}
	if err := p.globals(); err != nil {
		return nil, err
	}
	want, err := r.Target(opt.Target)
	if err != nil {
		return nil, err
	}
	p.prefetch(want)
	p.plan.Target, err = p.stage(want, nil)
	if err != nil {
		return nil, err
	}
	p.finish()
	return p.plan, nil
}

// Rename puts a word before the names of the steps of plans in the display, for a
// second build of the same.
func Rename(prefix string, plans []*Plan) {
	renamed := map[*Vertex]*Vertex{}
	done := map[*Node]bool{} // plans of several platforms share nodes
	for _, p := range plans {
		for _, st := range p.Stages {
			for _, n := range st.Nodes {
				if done[n] {
					continue
				}
				done[n] = true
				v := NewVertex(prefix + n.Vertex.Name)
				v.Pos = n.Vertex.Pos
				for _, in := range n.Vertex.Inputs {
					v.Inputs = append(v.Inputs, renamed[in]) // stages come after what they need
				}
				renamed[n.Vertex], n.Vertex = v, v
			}
		}
	}
}

// planner holds what is needed while a plan is made, and only then.
type planner struct {
	ctx    context.Context
	opt    PlanOptions
	plan   *Plan
	build  ocispec.Platform
	global *recipe.Globals
	done   map[*recipe.Stage]*Stage
	bases  map[string]*baseResult
}

// at gives an error its place in the recipe, unless it has one.
func at(pos recipe.Position, err error) error {
	var placed *recipe.Error
	if err == nil || errors.As(err, &placed) {
		return err
	}
	return &recipe.Error{Pos: pos, Err: err}
}

// globals evaluates what FROM lines may use.
func (p *planner) globals() (err error) {
	p.global, err = p.plan.Recipe.Globals(recipe.Inputs{
		Args: p.opt.Args, Target: p.opt.Target, BuildPlatform: p.build, Platform: p.plan.Platform,
	})
	if err != nil {
		return err
	}
	v, ok := p.opt.Args["SOURCE_DATE_EPOCH"]
	if !ok {
		v, _ = p.global.Get("SOURCE_DATE_EPOCH")
	}
	if v == "" {
		return nil
	}
	if t, err := ParseEpoch(v); err == nil {
		p.plan.Epoch = &t
		return nil
	} else if p.opt.Epoch == nil {
		return err
	}
	if p.plan.Epoch, err = p.opt.Epoch(p.ctx, v); err != nil {
		return err
	}
	seconds := ""
	if p.plan.Epoch != nil {
		seconds = strconv.FormatInt(p.plan.Epoch.Unix(), 10)
	}
	p.global.Replace("SOURCE_DATE_EPOCH", seconds)
	return nil
}

// stage evaluates one stage and, before it, those it needs. open is the chain
// of stages being evaluated, to notice a circle.
func (p *planner) stage(rs *recipe.Stage, open []*recipe.Stage) (*Stage, error) {
	if s := p.done[rs]; s != nil {
		return s, nil
	}
	if slices.Contains(open, rs) {
		return nil, at(rs.Pos, fmt.Errorf("circular dependency detected on stage: %s", rs.Name))
	}
	open = append(open, rs)

	s := &Stage{Name: rs.Name, From: rs}
	if s.Name == "" && len(p.plan.Recipe.Stages) > 1 {
		s.Name = rs.DisplayName()
	}
	triggers, err := p.from(s, open)
	if err != nil {
		return nil, at(rs.Pos, err)
	}
	s.Tree = s.Start
	steps := append(triggers, rs.Steps...)
	for _, step := range steps {
		if makesLayer(step) {
			s.total++
		}
	}
	if s.Start.Image != nil {
		s.base = NewVertex(s.fromTitle())
		s.base.Pos = rs.Pos
	}
	for i, step := range steps {
		s.trigger = i < len(triggers)
		if err := p.step(s, step, fmt.Sprintf("%s/%d", rs.DisplayName(), i), open); err != nil {
			return nil, at(step.At(), err)
		}
	}
	p.done[rs] = s
	p.plan.Stages = append(p.plan.Stages, s)
	return s, nil
}

func makesLayer(step recipe.Step) bool {
	switch step.(type) {
	case *recipe.Run, *recipe.Copy, *recipe.Workdir:
		return true
	}
	return false
}

// from sets where a stage starts: its tree, config, arguments, and the
// ONBUILD triggers that its base left for it.
func (p *planner) from(s *Stage, open []*recipe.Stage) ([]recipe.Step, error) {
	base, platform, err := p.fromLine(s.From)
	if err != nil {
		return nil, err
	}
	s.Platform, s.origin = platform, base
	var triggers []string
	if t, ok := p.named(s.From.Name, platform); ok {
		// A named context of a stage's name replaces the stage: its steps are not run.
		s.From = &recipe.Stage{Pos: s.From.Pos, Index: s.From.Index, Name: s.From.Name, Base: s.From.Base}
		s.Start = t
		if err := p.fromTree(s, platform); err != nil {
			return nil, err
		}
	} else if rs, ok := p.plan.Recipe.BaseStage(s.From, base); ok {
		b, err := p.stage(rs, open)
		if err != nil {
			return nil, err
		}
		s.Start, s.origin = b.Tree, b.origin
		s.Platform = b.Platform
		s.Image = b.Image.Clone()
		s.scope = b.scope.Child()
		triggers = b.Image.Config.OnBuild
	} else if base == "scratch" {
		s.Image = emptyImage(platform)
	} else {
		if t, ok := p.named(base, platform); ok {
			s.Start = t
		} else {
			img, err := p.base(base, platform)
			if err != nil {
				return nil, err
			}
			s.Start = Tree{Image: img}
		}
		if err := p.fromTree(s, platform); err != nil {
			return nil, err
		}
		triggers = s.Image.Config.OnBuild
	}
	if base != "scratch" && s.Start.Node == nil && (s.Start != Tree{}) {
		s.total = 1
	}
	if p.opt.ShowPlatform {
		s.prefix = image.FormatPlatform(s.Platform) + " "
	}
	s.Image.Config.OnBuild = nil
	if s.scope == nil {
		env := slices.Clone(s.Image.Config.Env)
		for _, kv := range p.opt.Env {
			name, value, _ := strings.Cut(kv, "=")
			env = setEnv(env, name, value)
		}
		s.scope = p.global.Scope(env)
	}
	s.Image.Config.Env = s.scope.Env()
	return p.triggers(s, triggers)
}

// fromTree takes a stage's config from the image it starts from.
func (p *planner) fromTree(s *Stage, platform ocispec.Platform) error {
	if s.Start.Image == nil {
		s.Image = emptyImage(platform)
		return nil
	}
	s.Image = s.Start.Image.Config().Clone()
	s.Image.Created = nil
	s.Image.RootFS.DiffIDs = nil
	s.Image.Unknown = nil // container_config and such: of the base, not of what is built on it
	return nil
}

// triggers parses what a base's ONBUILD instructions left for this stage.
func (p *planner) triggers(s *Stage, expressions []string) ([]recipe.Step, error) {
	var steps []recipe.Step
	for _, x := range expressions {
		more, err := recipe.ParseOnbuild(x, s.From.Pos, p.plan.Recipe.Escape)
		if err != nil {
			return nil, err
		}
		steps = append(steps, more...)
	}
	return steps, nil
}

// named finds a --build-context. One that was given for a platform, as
// name::linux/arm64, goes before one for all.
func (p *planner) named(name string, platform ocispec.Platform) (Tree, bool) {
	if name == "" || name == "scratch" {
		return Tree{}, false
	}
	wanted := []string{strings.ToLower(name), name}
	if ref, err := image.ParseReference(name); err == nil {
		wanted = append(wanted, ref.Familiar())
	}
	for _, suffix := range []string{"::" + image.FormatPlatform(platform), ""} {
		for _, w := range wanted {
			if t, ok := p.opt.Contexts[w+suffix]; ok {
				return t, true
			}
		}
	}
	return Tree{}, false
}

// copySource finds what COPY --from names, as seen from a stage: a named
// context, an earlier stage by name or index, or an image.
func (p *planner) copySource(s *Stage, name string, open []*recipe.Stage) (Tree, error) {
	rs, err := p.plan.Recipe.CopySource(s.From, name)
	if t, ok := p.named(name, p.plan.Platform); ok {
		return t, nil
	}
	if err != nil {
		return Tree{}, err
	}
	return p.stageOrImage(rs, name, open)
}

// mountSource finds what RUN --mount=from= names, by name only.
func (p *planner) mountSource(s *Stage, m recipe.Mount, open []*recipe.Stage) (Tree, error) {
	if t, ok := p.named(m.From, p.plan.Platform); ok {
		return t, nil
	}
	rs, err := p.plan.Recipe.MountSource(s.From, m.From, m.Target)
	if err != nil {
		return Tree{}, err
	}
	return p.stageOrImage(rs, m.From, open)
}

func (p *planner) stageOrImage(rs *recipe.Stage, name string, open []*recipe.Stage) (Tree, error) {
	if rs != nil {
		b, err := p.stage(rs, open)
		if err != nil {
			return Tree{}, err
		}
		return b.Tree, nil
	}
	if name == "scratch" {
		return Tree{}, nil
	}
	img, err := p.base(name, p.plan.Platform)
	if err != nil {
		return Tree{}, err
	}
	return Tree{Image: img}, nil
}

// fromLine gives a FROM's base and the platform it is for.
func (p *planner) fromLine(rs *recipe.Stage) (string, ocispec.Platform, error) {
	f, err := p.global.From(rs)
	if err != nil {
		return "", ocispec.Platform{}, err
	}
	if f.Platform != nil {
		return f.Base, *f.Platform, nil
	}
	return f.Base, p.plan.Platform, nil
}

// baseResult is one image being looked for; done is closed when it is found or not.
type baseResult struct {
	done chan struct{}
	img  *image.Image
	err  error
}

// base finds an image, once a name and platform however many stages ask.
func (p *planner) base(name string, platform ocispec.Platform) (*image.Image, error) {
	r := p.fetch(name, platform)
	<-r.done
	return r.img, r.err
}

func (p *planner) fetch(name string, platform ocispec.Platform) *baseResult {
	id := name + " " + image.FormatPlatform(platform)
	if r := p.bases[id]; r != nil {
		return r
	}
	r := &baseResult{done: make(chan struct{})}
	p.bases[id] = r
	go func() {
		defer close(r.done)
		r.img, r.err = p.opt.Base(p.ctx, name, platform)
	}()
	return r
}

// prefetch asks for all bases that the target certainly needs at once, so
// that their registries answer side by side.
func (p *planner) prefetch(target *recipe.Stage) {
	seen := map[*recipe.Stage]bool{}
	var visit func(*recipe.Stage)
	visit = func(rs *recipe.Stage) {
		if rs == nil || seen[rs] {
			return
		}
		seen[rs] = true
		base, platform, err := p.fromLine(rs)
		if err != nil {
			return // stage reports it, with its line
		}
		if _, replaced := p.named(rs.Name, platform); replaced {
			return // nothing of it is built
		}
		_, given := p.named(base, platform)
		if b, ok := p.plan.Recipe.BaseStage(rs, base); ok {
			visit(b)
		} else if base != "scratch" && !given {
			p.fetch(base, platform)
		}
		// What steps take files from: a stage, nil where it is an image or a context.
		source := func(name string, rs *recipe.Stage, err error) {
			if err != nil || name == "" || name == "scratch" {
				return
			}
			if _, given := p.named(name, p.plan.Platform); given {
				return
			}
			if rs == nil {
				p.fetch(name, p.plan.Platform)
			}
			visit(rs)
		}
		for _, step := range rs.Steps {
			switch st := step.(type) {
			case *recipe.Copy:
				from, err := p.plan.Recipe.CopySource(rs, st.From)
				source(st.From, from, err)
			case *recipe.Run:
				for _, m := range st.Mounts {
					from, err := p.plan.Recipe.MountSource(rs, m.From, m.Target)
					source(m.From, from, err)
				}
			}
		}
	}
	visit(target)
}

// finish completes the target's config: labels of the command line, platform.
func (p *planner) finish() {
	t := p.plan.Target
	if len(p.opt.Labels)+len(p.opt.UnsetLabels) > 0 {
		t.Image.Config.Labels = maps.Clone(t.Image.Config.Labels)
		if t.Image.Config.Labels == nil {
			t.Image.Config.Labels = map[string]string{}
		}
		maps.Copy(t.Image.Config.Labels, p.opt.Labels)
	}
	for _, name := range p.opt.UnsetLabels {
		delete(t.Image.Config.Labels, name)
	}
	for _, name := range p.opt.UnsetEnv {
		t.Image.Config.Env = slices.DeleteFunc(slices.Clone(t.Image.Config.Env), func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	}
	if p.opt.Platform != nil {
		t.Image.Platform = p.plan.Platform
	}
}

func emptyImage(platform ocispec.Platform) Image {
	var img Image
	img.Platform = platform
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	img.Config.Env = []string{"PATH=" + defaultPath}
	return img
}
