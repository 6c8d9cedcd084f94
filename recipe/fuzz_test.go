package recipe

import (
	"errors"
	"strings"
	"testing"
)

var corpus = []string{
	"FROM a\n", "ARG a=1\nFROM a AS b\nCOPY --from=0 $a ${a:-b} /\n", "# escape=`\nFROM a\nRUN a `\n  b\n", "FROM a\nRUN <<E\n$x\nE\n",
	"FROM a\nCOPY <<-E <<'F' /\n\t$x\n\tE\n\\$\nF\n", "FROM a\nRUN --mount=type=cache,target=$x,id=\"a,b\" true\n", "FROM a\nENV a=1 b=\"$a\" c='x'\nLABEL x y\n",
	"FROM a\nHEALTHCHECK --interval=1s CMD [\"a\"]\nEXPOSE 1-3/udp $x\nVOLUME [\"a\"]\n", "FROM a\nONBUILD RUN <<E\nE\n", "# check=skip=all;error=true\nfrom a as B\n",
	"FROM a\nUSER ${a%%b*}${a//x/y}${a:?c}\n", "\ufeff#!x\n# syntax=y\nFROM a\nSHELL [\"x\"]\nCMD x\n", "FROM a AS b\nFROM b AS b\nCOPY --from=b x y\n",
	"FROM --platform=$BUILDPLATFORM a\nONBUILD ENV x=$y\nSTOPSIGNAL 9\n",
}

// A recipe of any bytes is parsed or refused with an *Error that stands in it,
// and what is parsed can be evaluated, linted, outlined and printed.
func FuzzParse(f *testing.F) {
	for _, s := range corpus {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		r, err := Parse("Recipe", []byte(src), ParseOptions{})
		inside := func(err error) {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v is no *Error", err)
			}
			if e.Pos.File != "Recipe" || e.Pos.Start < 0 || e.Pos.Start > len(r.Lines) {
				t.Fatalf("%v at %+v of %d lines", e, e.Pos, len(r.Lines))
			}
			Excerpt(r.Lines, e.Pos)
		}
		if err != nil {
			inside(err)
			return
		}
		ws, err := Lint(r, Facts{Inputs: inputs(), All: true, Base: alpine})
		if err != nil {
			inside(err)
		}
		FormatWarnings(r.Lines, ws)
		if _, err := NewOutline(r, Facts{Inputs: inputs()}); err != nil {
			inside(err)
		}
		for _, st := range r.Stages {
			for _, step := range st.Steps {
				Title(step, nil)
				HistoryLine(step, nil, nil)
				if on, ok := step.(*Onbuild); ok {
					if _, err := ParseOnbuild(on.Expression, step.At(), r.Escape); err != nil {
						inside(err)
					}
				}
			}
		}
	})
}

// A word of any bytes expands, or fails; a word without anything special stays.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"a", "$a", "${a:-${b}}", "'$a'", `"\$a"`, "${a#*x}", "${a/b/c}", "<<E", "$$", "${", "a\\"} {
		f.Add(s, "v", true)
		f.Add(s, "", false)
	}
	f.Fuzz(func(t *testing.T, word, value string, backslash bool) {
		escape := '`'
		if backslash {
			escape = '\\'
		}
		vars := &Vars{}
		vars.Set("a", value)
		got, usage, err := ExpandWord(word, vars, escape)
		plain := strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789 /.-_:=") == ""
		if plain && (got != word || err != nil || usage.Used != nil || usage.Unset != nil) {
			t.Errorf("%q: %q %+v %v", word, got, usage, err)
		}
	})
}

// With any patterns, a path is ignored or not, whatever was asked before.
func FuzzIgnore(f *testing.F) {
	for _, s := range []string{"a\n!a/b", "*\n!**/c", "a/*/c\n!a", "!b\n**", "[a-b]\n!a?b", "*\n!a/b/../c", "a**b\n!*", "a\\\n!\\a/b"} {
		f.Add(s)
	}
	names := []string{"a", "a/b", "a/b/c", "b", "b/c", "c"}
	f.Fuzz(func(t *testing.T, text string) {
		ignore, err := ParseIgnore(strings.NewReader(text))
		if err != nil {
			return
		}
		again, err := NewIgnore(ignore.Patterns())
		if err != nil {
			t.Fatalf("%q is read, its patterns %q are not: %v", text, ignore.Patterns(), err)
		}
		for _, name := range names {
			one, err := ignore.Match(name)
			if err != nil {
				t.Fatal(err)
			}
			if two, err := again.Match(name); one != two || err != nil {
				t.Errorf("%q: %s is ignored: %v, by its patterns %v %v", text, name, one, two, err)
			}
		}
	})
}
