package recipe

import (
	"slices"
	"sort"
)

// Outline is what a target can be given: the data of "--call outline".
type Outline struct {
	Name    string // of the target, "" without AS
	Doc     string
	Args    []OutlineArg
	Secrets []OutlineMount
	SSH     []OutlineMount
	Caches  []OutlineMount
}

// OutlineArg is a build argument that the target, or a stage it needs, uses.
type OutlineArg struct {
	Name  string
	Value string // with the inputs as they are
	Doc   string
	Pos   Position
}

// OutlineMount is a secret, an ssh agent or a cache, by its ID.
type OutlineMount struct {
	ID       string
	Required bool
	Pos      Position // where it is first used
}

// NewOutline tells what the target of facts can be given, each thing in the
// order of the file. Errors are those of a build.
func NewOutline(r *Recipe, facts Facts) (*Outline, error) {
	facts.All = false
	w, err := newWalk(r, facts)
	if err != nil {
		return nil, err
	}
	target, err := r.Target(facts.Inputs.Target)
	if err != nil {
		return nil, err
	}
	o := &Outline{Name: target.Name, Doc: target.Doc}
	seen := map[*stageWalk]bool{}
	var gather func(*stageWalk)
	gather = func(s *stageWalk) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		o.Args = append(o.Args, s.outline.usedArgs()...)
		o.Secrets = append(o.Secrets, s.outline.secrets...)
		o.SSH = append(o.SSH, s.outline.ssh...)
		o.Caches = append(o.Caches, s.outline.caches...)
		gather(s.base)
		for _, n := range s.needs {
			gather(n)
		}
	}
	gather(w.stages[target.Index])

	// The target's own declaration of a name comes first and stays.
	o.Args = firsts(o.Args, func(a OutlineArg) string { return a.Name })
	sort.SliceStable(o.Args, func(i, j int) bool { return o.Args[i].Pos.Start < o.Args[j].Pos.Start })
	for _, list := range []*[]OutlineMount{&o.Secrets, &o.SSH, &o.Caches} {
		*list = firsts(*list, func(m OutlineMount) string { return m.ID })
		sort.SliceStable(*list, func(i, j int) bool { return (*list)[i].Pos.Start < (*list)[j].Pos.Start })
	}
	return o, nil
}

func firsts[T any](list []T, key func(T) string) []T {
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(t T) bool {
		k := key(t)
		again := seen[k]
		seen[k] = true
		return again
	})
}

// outlineWalk gathers the outline of one stage.
type outlineWalk struct {
	args                 []outlineArg
	used                 map[string]bool
	secrets, ssh, caches []OutlineMount
}

type outlineArg struct {
	OutlineArg
	needs []string // arguments in its default
}

func newOutlineWalk(g *Globals) outlineWalk {
	o := outlineWalk{used: map[string]bool{}}
	for _, a := range g.args {
		arg := outlineArg{OutlineArg{Name: a.Name, Doc: a.Doc, Pos: a.Pos}, a.used}
		if a.Value != nil {
			arg.Value = *a.Value
		}
		o.args = append(o.args, arg)
	}
	return o
}

func (o *outlineWalk) use(names []string) {
	for _, n := range names {
		o.used[n] = true
	}
}

// step notes the arguments and mounts of a step.
func (o *outlineWalk) step(raw, expanded Step, scope *Scope) {
	switch s := expanded.(type) {
	case *Arg:
		for i, a := range s.Args {
			o.used[a.Name] = true
			_, given := scope.globals.inputs.Args[a.Name]
			_, global := scope.globals.Get(a.Name)
			if raw.(*Arg).Args[i].Value == nil && !given && global {
				continue // the global declaration is the one to show
			}
			arg := outlineArg{OutlineArg: OutlineArg{Name: a.Name, Doc: a.Doc, Pos: s.Pos}}
			if a.Value != nil {
				arg.Value = *a.Value
			}
			o.args = append(slices.DeleteFunc(o.args, func(b outlineArg) bool { return b.Name == a.Name }), arg)
		}
	case *Run:
		for _, m := range s.Mounts {
			mount := OutlineMount{m.ID, m.Required, s.Pos}
			switch m.Type {
			case "secret":
				o.secrets = append(o.secrets, mount)
			case "ssh":
				o.ssh = append(o.ssh, mount)
			case "cache":
				o.caches = append(o.caches, mount)
			}
		}
	}
}

// usedArgs are the arguments used, and those that their defaults use in turn, as
// declared.
func (o *outlineWalk) usedArgs() []OutlineArg {
	used := map[string]bool{}
	var mark func(string)
	mark = func(name string) {
		if used[name] {
			return
		}
		used[name] = true
		for _, a := range o.args {
			if a.Name == name {
				for _, n := range a.needs {
					mark(n)
				}
			}
		}
	}
	for name := range o.used {
		mark(name)
	}
	var out []OutlineArg
	for _, a := range o.args {
		if used[a.Name] {
			out = append(out, a.OutlineArg)
		}
	}
	return out
}
