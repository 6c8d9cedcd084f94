// Package recipe turns the text of a recipe into typed steps, and typed steps
// into steps whose variables are replaced. It does no I/O.
//
// The path of a recipe through the package:
//
//	Parse          text      → Recipe: stages of steps, words as written
//	Recipe.Globals inputs    → Globals: the variables FROM may use
//	Globals.From   Stage     → From: base and platform with variables replaced
//	Globals.Scope  base ENV  → Scope: the variables of one stage
//	Scope.Expand   Step      → a new Step; ENV and ARG change the scope
//	Lint           Recipe    → Warnings, by the rules of BuildKit
//
// Grammar and word lexing are BuildKit's own packages, so that a file means
// here what it means there; this is the only package of mk that knows them.
// The types, the walk over stages and the evaluation are ours. Messages of
// errors and warnings are BuildKit's, word for word: people search for them.
//
// What the package does not do: read files, look up images, decide what is
// built. Facts from outside come in as values (Inputs, Facts).
package recipe

import "github.com/moby/buildkit/frontend/dockerfile/linter"

// Recipe is a parsed recipe file: its stages in order, every step knowing the
// lines it came from. Does no I/O.
type Recipe struct {
	Name     string   // as the user named the file
	Lines    []string // the source, for excerpts
	Syntax   string   // value of the "# syntax=" directive: accepted, never fetched
	Escape   rune     // '\\', or '`' by the "# escape=" directive
	Args     []*Arg   // ARG before the first FROM
	Stages   []*Stage
	Warnings []Warning // what the text alone shows; Lint finds the rest

	check *linter.Config
}

// Stage is one FROM and the steps after it.
type Stage struct {
	Pos      Position
	Index    int
	Name     string // lower case; "" without AS
	Base     string // the word after FROM, unexpanded
	Platform string // --platform, unexpanded
	Source   string // the FROM line as written
	Doc      string // the comment above FROM … AS
	Steps    []Step

	spelled  string   // "FROM" or "from"
	comments []string // above it, for "# check=" of this line only
}

// Warning is what a lint rule found.
type Warning struct {
	Rule        string // BuildKit's name: StageNameCasing
	Description string
	URL         string
	Detail      string
	Pos         Position
}

// Error is an error that knows its place in the recipe.
type Error struct {
	Pos Position
	Err error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }
