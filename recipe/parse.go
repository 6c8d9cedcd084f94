package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// ParseOptions are the choices of Parse. The zero value is right.
type ParseOptions struct {
	// Check takes the place of the "# check=" directive: the build argument
	// BUILDKIT_DOCKERFILE_CHECK. "" leaves the directive in force.
	Check string
}

// Parse reads a recipe. Errors are *Error. The Recipe is not nil even then: its
// Lines serve the excerpt and its Warnings hold what was found before the error.
func Parse(name string, src []byte, opts ParseOptions) (*Recipe, error) {
	r := &Recipe{
		Name:   name,
		Lines:  strings.Split(string(src), "\n"),
		Escape: parser.DefaultEscapeToken,
		check:  &linter.Config{},
	}
	if len(src) == 0 {
		return r, r.fail(errors.New("the Dockerfile cannot be empty"), nil)
	}
	r.Syntax, _, _, _ = parser.DetectSyntax(src)
	check := opts.Check
	if check == "" {
		check, _, _, _ = parser.ParseDirective("check", src)
	}
	config, err := linter.ParseLintOptions(check)
	if err != nil {
		return r, r.fail(fmt.Errorf("failed to parse check options: %w", err), nil)
	}
	r.check = config

	rep := newReporter(r)
	defer func() { r.Warnings = rep.sorted() }()

	file, err := parser.Parse(bytes.NewReader(src))
	if err != nil {
		return r, r.fail(err, nil)
	}
	r.Escape = file.EscapeToken
	for _, w := range file.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL && w.Location != nil {
			rep.lint.Run(&linter.RuleNoEmptyContinuation, []parser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	for _, node := range file.AST.Children {
		if err := r.add(node, rep.lint); err != nil {
			return r, err
		}
	}
	if len(r.Stages) == 0 {
		return r, r.fail(errors.New("dockerfile contains no stages to build"), nil)
	}
	r.lintNames(rep)
	r.lintCasing(rep)
	return r, r.checkCircles()
}

// add appends one instruction to the recipe.
func (r *Recipe) add(node *parser.Node, lint *linter.Linter) error {
	ins, err := instructions.ParseInstructionWithLinter(node, lint)
	if err != nil {
		err = sureOfItself(err)
		return r.fail(fmt.Errorf("dockerfile parse error on line %d: %w", node.StartLine, err), node)
	}
	if st, ok := ins.(*instructions.Stage); ok {
		r.Stages = append(r.Stages, &Stage{
			Pos:      r.position(node),
			Index:    len(r.Stages),
			Name:     st.Name,
			Base:     st.BaseName,
			Platform: st.Platform,
			Source:   st.SourceCode,
			Doc:      st.DocComment,
			spelled:  st.OrigCmd,
			comments: st.Comments,
		})
		return nil
	}
	step, err := newStep(ins, node, r.position(node), r.Escape)
	if err != nil {
		return r.fail(err, node)
	}
	if len(r.Stages) == 0 {
		arg, ok := step.(*Arg)
		if !ok {
			return r.fail(errors.New("no build stage in current context"), node)
		}
		r.Args = append(r.Args, arg)
		return nil
	}
	st := r.Stages[len(r.Stages)-1]
	st.Steps = append(st.Steps, step)
	return nil
}

// ParseOnbuild gives the steps of an ONBUILD trigger found in a base image or in
// the stage that a stage is FROM. The steps stand where that FROM stands. escape
// is the Recipe's: the trigger's words are expanded by the rules of the file
// that runs it. Errors are *Error.
func ParseOnbuild(expr string, at Position, escape rune) ([]Step, error) {
	fail := func(err error) ([]Step, error) { return nil, &Error{Pos: at, Err: plain(err)} }
	file, err := parser.Parse(strings.NewReader(expr))
	if err != nil {
		return fail(err)
	}
	if len(file.AST.Children) != 1 {
		return fail(errors.New("onbuild trigger should be a single expression"))
	}
	node := file.AST.Children[0]
	switch keyword := strings.ToUpper(node.Value); keyword {
	case "ONBUILD":
		return fail(errors.New("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"))
	case "MAINTAINER", "FROM":
		return fail(fmt.Errorf("%s isn't allowed as an ONBUILD trigger", keyword))
	}
	ins, err := instructions.ParseInstruction(node)
	if err != nil {
		return fail(sureOfItself(err))
	}
	step, err := newStep(ins, node, at, escape)
	if err != nil {
		return fail(err)
	}
	step.line().Trigger = expr
	return []Step{step}, nil
}

// sureOfItself replaces BuildKit's suggestion for an unknown instruction: of two
// that are equally near it takes either, and one text must give one message.
func sureOfItself(err error) error {
	var unknown *instructions.UnknownInstructionError
	if !errors.As(err, &unknown) {
		return err
	}
	word := unknown.Instruction
	names := slices.Sorted(maps.Keys(command.Commands))
	meant := Suggest(strings.ToLower(word), names)
	if meant == "" {
		return unknown
	}
	if word == strings.ToUpper(word) {
		meant = strings.ToUpper(meant)
	}
	return fmt.Errorf("%w (did you mean %s?)", unknown, meant)
}

// checkFrom refuses variables in COPY --from.
func checkFrom(from string, escape rune) error {
	if from == "" {
		return nil
	}
	word, err := shell.NewLex(escape).ProcessWordWithMatches(from, (*Vars)(nil))
	if err != nil {
		return err
	}
	if word.Result != from {
		return errors.New("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround")
	}
	return nil
}

func (r *Recipe) position(node *parser.Node) Position {
	return Position{File: r.Name, Start: node.StartLine, End: max(node.StartLine, node.EndLine)}
}

// fail makes an *Error of BuildKit's error: at node, or where the error says.
func (r *Recipe) fail(err error, node *parser.Node) error {
	pos := Position{File: r.Name}
	var located *parser.LocationError
	switch {
	case node != nil:
		pos = r.position(node)
	case errors.As(err, &located) && len(located.Locations) > 0:
		pos = span(r.Name, located.Locations[0])
		if strings.Contains(err.Error(), "parser directive") || strings.Contains(err.Error(), "escape token") {
			// BuildKit tells the line before: it has not counted this one yet.
			pos.Start, pos.End = pos.Start+1, pos.End+1
		}
	}
	return &Error{Pos: pos, Err: plain(err)}
}

// plain keeps an error's words and drops the stack trace that BuildKit's carry.
func plain(err error) error { return errors.New(err.Error()) }

// span is the Position that holds all ranges.
func span(file string, ranges []parser.Range) Position {
	pos := Position{File: file}
	for i, g := range ranges {
		if i == 0 || g.Start.Line < pos.Start {
			pos.Start = g.Start.Line
		}
		pos.End = max(pos.End, g.Start.Line, g.End.Line)
	}
	return pos
}

// ranges is the way back: BuildKit's linter wants to be told where.
func ranges(pos Position) []parser.Range {
	return []parser.Range{{Start: parser.Position{Line: pos.Start}, End: parser.Position{Line: pos.End}}}
}
