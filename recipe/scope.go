package recipe

import (
	"errors"
	"fmt"
	"path"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Inputs are what the caller of a build chose; with them the variables of a
// recipe have values.
type Inputs struct {
	Args          map[string]string // --build-arg
	Target        string            // --target; "" is the last stage
	BuildPlatform v1.Platform       // of this machine
	Platform      v1.Platform       // --platform: what the image is for
}

// Globals are the variables that FROM and --platform may use, and that a bare
// ARG brings into a stage: the platform arguments and the ARGs before the first FROM.
type Globals struct {
	vars   *Vars
	inputs Inputs
	escape rune
	args   []globalArg // as declared, the last of each name
}

// globalArg is an ARG before the first FROM.
type globalArg struct {
	ArgValue
	Pos  Position
	used []string // variables in its default
}

// Globals evaluates the ARGs before the first FROM. Errors are *Error.
func (r *Recipe) Globals(in Inputs) (*Globals, error) {
	g := &Globals{vars: &Vars{}, inputs: in, escape: r.Escape}
	target := in.Target
	if target == "" && len(r.Stages) > 0 {
		target = r.Stages[len(r.Stages)-1].Name
	}
	if target == "" {
		target = "default"
	}
	bp, tp := in.BuildPlatform, in.Platform
	for _, kv := range [...]Pair{
		{"BUILDPLATFORM", path.Join(bp.OS, bp.Architecture, bp.Variant)},
		{"BUILDOS", bp.OS},
		{"BUILDOSVERSION", bp.OSVersion},
		{"BUILDARCH", bp.Architecture},
		{"BUILDVARIANT", bp.Variant},
		{"TARGETPLATFORM", FormatPlatform(tp)},
		{"TARGETOS", tp.OS},
		{"TARGETOSVERSION", tp.OSVersion},
		{"TARGETARCH", tp.Architecture},
		{"TARGETVARIANT", tp.Variant},
		{"TARGETSTAGE", target},
	} {
		if given, ok := in.Args[kv.Key]; ok {
			kv.Value = given
		}
		g.vars.Set(kv.Key, kv.Value)
	}
	for _, arg := range r.Args {
		for _, a := range arg.Args {
			if err := g.declare(a, arg.Pos); err != nil {
				return nil, &Error{Pos: arg.Pos, Err: plain(err)}
			}
		}
	}
	return g, nil
}

func (g *Globals) declare(a ArgValue, pos Position) error {
	var used []string
	if given, ok := g.inputs.Args[a.Name]; ok {
		a.Value = &given
	} else if a.Value != nil {
		value, usage, err := ExpandWord(*a.Value, g.vars, g.escape)
		if err != nil {
			return err
		}
		a.Value, used = &value, usage.Used
	}
	if a.Value != nil {
		g.vars.Set(a.Name, *a.Value)
	}
	i := slices.IndexFunc(g.args, func(o globalArg) bool { return o.Name == a.Name })
	if i < 0 {
		g.args = append(g.args, globalArg{a, pos, used})
		return nil
	}
	if slices.Contains(used, a.Name) { // ARG X=$X-more: what the first X used is used still
		used = append(used, g.args[i].used...)
	}
	g.args[i] = globalArg{a, pos, used}
	return nil
}

// Get tells the value of a global variable.
func (g *Globals) Get(name string) (string, bool) { return g.vars.Get(name) }

// Replace puts another value in place of what was written or given: the
// SOURCE_DATE_EPOCH that "context" or the name of a stage turned out to mean. ""
// unsets it. A name that nobody set stays unset.
func (g *Globals) Replace(name, value string) {
	args := make(map[string]string, len(g.inputs.Args))
	for k, v := range g.inputs.Args {
		switch {
		case k != name:
			args[k] = v
		case value != "":
			args[k] = value
		}
	}
	g.inputs.Args = args
	if _, ok := g.vars.Get(name); !ok {
		return
	}
	if value == "" {
		g.vars.Unset(name)
	} else {
		g.vars.Set(name, value)
	}
}

// From is a FROM line with its variables replaced.
type From struct {
	Base     string       // "scratch", a stage, a named context or an image
	Platform *v1.Platform // nil without --platform
	Usage    Usage        // of both
}

// From expands the FROM line of a stage. Errors are *Error.
func (g *Globals) From(st *Stage) (From, error) {
	fail := func(err error) (From, error) { return From{}, &Error{Pos: st.Pos, Err: plain(err)} }
	var from From
	var err error
	from.Base, from.Usage, err = ExpandWord(st.Base, g.vars, g.escape)
	if err != nil {
		return fail(err)
	}
	if from.Base == "" {
		return fail(fmt.Errorf("base name (%s) should not be blank", st.Base))
	}
	if st.Platform == "" {
		return from, nil
	}
	word, usage, err := ExpandWord(st.Platform, g.vars, g.escape)
	if err != nil {
		return fail(fmt.Errorf("failed to process arguments for platform %s: %w", word, err))
	}
	if word == "" {
		return fail(errors.New("empty platform value from expression " + st.Platform + g.meant(usage.Unset)))
	}
	p, err := ParsePlatform(word)
	if err != nil {
		return fail(fmt.Errorf("failed to parse platform %s: %w%s", st.Platform, err, g.meant(usage.Unset)))
	}
	from.Platform = &p
	from.Usage.Used = sortedUnion(from.Usage.Used, usage.Used)
	from.Usage.Unset = append(from.Usage.Unset, usage.Unset...)
	return from, nil
}

// meant suggests a global variable for the first of names that is near one.
func (g *Globals) meant(names []string) string {
	for _, n := range names {
		if s := didYouMean(n, g.vars.Keys()); s != "" {
			return s
		}
	}
	return ""
}

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// neverEnv are arguments that no instruction and no process sees.
var neverEnv = []string{"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"}

// Scope holds the variables of one stage while its steps are walked in order.
type Scope struct {
	globals *Globals
	vars    *Vars      // ENV and ARG: what $X sees
	env     *Vars      // ENV only, in the order of the image's config
	args    []ArgValue // declared so far, those of parent stages first
}

// Scope starts a stage whose base is an image with this Env; nil is scratch.
func (g *Globals) Scope(baseEnv []string) *Scope {
	s := &Scope{globals: g, env: &Vars{}}
	for _, kv := range baseEnv {
		s.env.replace(cut(kv))
	}
	if _, ok := s.env.Get("PATH"); !ok {
		s.env.replace("PATH", defaultPath)
	}
	s.vars = s.env.Clone()
	return s
}

// Child starts a stage that is FROM this one: its ENV and its ARGs are inherited,
// and an inherited ENV wins over an inherited ARG of the same name.
func (s *Scope) Child() *Scope {
	c := &Scope{globals: s.globals, vars: s.vars.Clone(), env: s.env.Clone(), args: slices.Clone(s.args)}
	for _, p := range c.env.pairs() {
		c.vars.Set(p.Key, p.Value)
	}
	return c
}

// Vars are all variables of this moment, ENV and ARG: what a word sees and what
// a RUN has in its environment. The caller does not change them.
func (s *Scope) Vars() *Vars { return s.vars }

// Env is the Env of the image's config at this moment.
func (s *Scope) Env() []string { return s.env.List() }

// Args are the ARGs declared so far, with their values; nil is unset.
func (s *Scope) Args() []ArgValue { return slices.Clone(s.args) }

// RunArgs are the declared ARGs as a RUN's history shows them: NAME=value, one a
// name, in order of first declaration, with the value the RUN sees.
func (s *Scope) RunArgs() []string {
	var out []string
	at := map[string]int{}
	for _, a := range s.args {
		value, ok := s.vars.Get(a.Name)
		if !ok && a.Value != nil {
			value = *a.Value
		}
		if i, ok := at[a.Name]; ok {
			out[i] = a.Name + "=" + value
			continue
		}
		at[a.Name] = len(out)
		out = append(out, a.Name+"="+value)
	}
	return out
}

// Expand is the function Expand with the stage's variables, after which ENV and
// ARG have changed them. A variable that an ARG declares without a value is not
// among the Unset. Errors are *Error.
func (s *Scope) Expand(step Step) (Step, Usage, error) {
	if arg, ok := step.(*Arg); ok {
		return s.declare(arg)
	}
	expanded, usage, err := Expand(step, s.vars)
	usage.Unset = s.undeclared(usage.Unset)
	if env, ok := expanded.(*Env); ok && err == nil {
		for _, p := range env.Vars {
			s.vars.Set(p.Key, p.Value)
			s.env.replace(p.Key, p.Value)
		}
	}
	return expanded, usage, err
}

// declare gives the ARGs of one instruction their values: the build argument,
// else the default (which is not even expanded when the argument was given),
// else the global variable of that name. Each sees those before it.
func (s *Scope) declare(arg *Arg) (Step, Usage, error) {
	c := *arg
	c.Args = slices.Clone(arg.Args)
	var usage Usage
	for i := range c.Args {
		a := &c.Args[i]
		if given, ok := s.globals.inputs.Args[a.Name]; ok {
			a.Value = &given
		} else if a.Value != nil {
			value, u, err := ExpandWord(*a.Value, s.vars, arg.escape)
			usage.Used = sortedUnion(usage.Used, u.Used)
			usage.Unset = append(usage.Unset, s.undeclared(u.Unset)...)
			if err != nil {
				return nil, usage, &Error{Pos: arg.Pos, Err: plain(err)}
			}
			a.Value = &value
		} else if value, ok := s.globals.Get(a.Name); ok {
			a.Value = &value
		}
		if a.Value != nil && !slices.Contains(neverEnv, a.Name) {
			s.vars.Set(a.Name, *a.Value)
		}
		s.args = append(s.args, *a)
	}
	return &c, usage, nil
}

// undeclared drops the names that are declared without a value.
func (s *Scope) undeclared(names []string) []string {
	var out []string
	for _, n := range names {
		declared := slices.ContainsFunc(s.args, func(a ArgValue) bool { return a.Name == n })
		if !declared && !slices.Contains(neverEnv, n) {
			out = append(out, n)
		}
	}
	return out
}

func sortedUnion(a, b []string) []string {
	u := slices.Concat(a, b)
	slices.Sort(u)
	return slices.Compact(u)
}
