package recipe

import (
	"errors"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/sys/signal"
)

// Usage tells which variables an expansion asked for. Used are those that had a
// value: sorted, each once. Unset are those that had none, in order of writing,
// once for each word that named them: each is one lint warning.
type Usage struct {
	Used  []string
	Unset []string
}

// ExpandWord replaces the variables of one word: all forms of features A3, as
// FROM, --platform and defaults of ARG are expanded. escape is the Recipe's.
func ExpandWord(word string, vars *Vars, escape rune) (string, Usage, error) {
	x := newExpander(vars, escape)
	word, err := x.word(word)
	return word, x.usage(), err
}

// Expand gives a new step with its variables replaced by the rules of its
// instruction; step itself is never changed. Every word of it sees the same
// vars. What has no variables (RUN's text, CMD, ENTRYPOINT, HEALTHCHECK, ONBUILD,
// SHELL, --from, --network, --exclude) comes back as written. What can only be
// judged after expansion is checked here: mounts, the flags and sources of COPY
// and ADD, the stop signal, empty volumes.
//
// Defaults of an ARG are expanded one after the other, each seeing the ones
// before it; Scope.Expand, which knows the build arguments, is what a build
// wants. Errors are *Error; Usage is right even then.
func Expand(step Step, vars *Vars) (Step, Usage, error) {
	x := newExpander(vars, step.line().escape)
	expanded, err := x.step(step)
	if err != nil {
		return nil, x.usage(), &Error{Pos: step.At(), Err: plain(err)}
	}
	return expanded, x.usage(), nil
}

// expander expands words of one instruction and remembers what they asked for.
type expander struct {
	escape rune
	lex    *shell.Lex // made when the first word needs it: most need none
	vars   *Vars
	used   map[string]struct{}
	unset  []string
}

func newExpander(vars *Vars, escape rune) *expander {
	if escape == 0 {
		escape = parser.DefaultEscapeToken
	}
	return &expander{escape: escape, vars: vars}
}

func (x *expander) usage() Usage {
	return Usage{Used: slices.Sorted(maps.Keys(x.used)), Unset: x.unset}
}

func (x *expander) word(word string) (string, error) {
	if plainWord(word) {
		return word, nil
	}
	return x.process(x.lexer(), word)
}

// body expands a here-document: quotes are text, and a backslash is the escape
// whatever the recipe says.
func (x *expander) body(text string) (string, error) {
	if plainWord(text) {
		return text, nil
	}
	lex := shell.NewLex(parser.DefaultEscapeToken)
	lex.SkipProcessQuotes = true
	return x.process(lex, text)
}

func (x *expander) lexer() *shell.Lex {
	if x.lex == nil {
		x.lex = shell.NewLex(x.escape)
	}
	return x.lex
}

func (x *expander) process(lex *shell.Lex, word string) (string, error) {
	if !utf8.ValidString(word) {
		// The lexer would do the same, but write to our stderr about each byte.
		word = string([]rune(word))
	}
	res, err := lex.ProcessWordWithMatches(word, x.vars)
	if x.used == nil && len(res.Matched) > 0 {
		x.used = map[string]struct{}{}
	}
	maps.Copy(x.used, res.Matched)
	x.unset = append(x.unset, slices.Sorted(maps.Keys(res.Unmatched))...)
	return res.Result, err
}

// plainWord tells whether the lexer would give a word back as it is. Most words
// are plain, and a plan of thousands of steps notices the difference.
func plainWord(word string) bool {
	for i := range len(word) {
		switch c := word[i]; {
		case c < ' ' || c > '~':
			return false // the lexer mends what is no UTF-8
		case c == '$' || c == '\'' || c == '"' || c == '<' || c == '\\' || c == '`':
			return false
		}
	}
	return true
}

// words expands each of a list; it does not change the list.
func (x *expander) words(list []string) ([]string, error) {
	var out []string
	for _, w := range list {
		w, err := x.word(w)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

func (x *expander) pairs(list []Pair) ([]Pair, error) {
	out := make([]Pair, len(list))
	for i, p := range list {
		var err error
		if out[i].Key, err = x.word(p.Key); err != nil {
			return nil, err
		}
		if out[i].Value, err = x.word(p.Value); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (x *expander) step(step Step) (Step, error) {
	var err error
	switch s := step.(type) {
	case *Run:
		c := *s
		c.Mounts, err = x.mounts(s.mounts)
		return &c, err
	case *Copy:
		return x.copy(s)
	case *Env:
		c := *s
		c.Vars, err = x.pairs(s.Vars)
		return &c, err
	case *Label:
		c := *s
		c.Labels, err = x.pairs(s.Labels)
		return &c, err
	case *Workdir:
		c := *s
		c.Path, err = x.word(s.Path)
		return &c, err
	case *User:
		c := *s
		c.User, err = x.word(s.User)
		return &c, err
	case *Expose:
		c := *s
		c.Ports, err = x.ports(s.Ports)
		return &c, err
	case *Volume:
		c := *s
		if c.Paths, err = x.words(s.Paths); err == nil && slices.Contains(c.Paths, "") {
			err = errors.New("VOLUME specified can not be an empty string")
		}
		return &c, err
	case *StopSignal:
		c := *s
		if c.Signal, err = x.word(s.Signal); err == nil {
			_, err = signal.ParseSignal(c.Signal)
		}
		return &c, err
	case *Arg:
		return x.arg(s)
	}
	return step, nil // Cmd, Entrypoint, Shell, Maintainer, Onbuild, Healthcheck
}

func (x *expander) copy(s *Copy) (Step, error) {
	c := *s
	for _, word := range []*string{&c.Chown, &c.Chmod, &c.Checksum} {
		var err error
		if *word, err = x.word(*word); err != nil {
			return nil, err
		}
	}
	var err error
	if c.Sources, err = x.words(s.Sources); err != nil {
		return nil, err
	}
	if c.Dest, err = x.word(s.Dest); err != nil {
		return nil, err
	}
	c.Inline = slices.Clone(s.Inline)
	for i := range c.Inline {
		if !c.Inline[i].Expand {
			continue
		}
		if c.Inline[i].Data, err = x.body(c.Inline[i].Data); err != nil {
			return nil, err
		}
	}
	return &c, c.check()
}

// ports splits words after expansion: EXPOSE alone does that. BuildKit does not
// report unset variables here, and so neither does Usage.
func (x *expander) ports(list []string) ([]string, error) {
	var out []string
	for _, p := range list {
		words, err := x.lexer().ProcessWords(p, x.vars)
		if err != nil {
			return nil, err
		}
		out = append(out, words...)
		unset := x.unset
		_, _ = x.word(p) // only for what it used
		x.unset = unset
	}
	return out, nil
}

func (x *expander) arg(s *Arg) (Step, error) {
	c := *s
	c.Args = slices.Clone(s.Args)
	x.vars = x.vars.Clone()
	for i, a := range c.Args {
		if a.Value == nil {
			continue
		}
		value, err := x.word(*a.Value)
		if err != nil {
			return nil, err
		}
		c.Args[i].Value = &value
		x.vars.Set(a.Name, value)
	}
	return &c, nil
}

// mounts evaluates the values of RUN --mount. The grammar is BuildKit's own,
// reached by a RUN that has nothing but these flags.
func (x *expander) mounts(values []string) ([]Mount, error) {
	if len(values) == 0 {
		return nil, nil
	}
	node := &parser.Node{Value: "RUN"}
	for _, v := range values {
		node.Flags = append(node.Flags, "--mount="+v)
	}
	ins, err := instructions.ParseInstruction(node)
	if err != nil {
		return nil, err
	}
	run := ins.(*instructions.RunCommand)
	if err := run.Expand(x.word); err != nil {
		return nil, err
	}
	var mounts []Mount
	for _, m := range instructions.GetMounts(run) {
		mount, err := newMount(m)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}
