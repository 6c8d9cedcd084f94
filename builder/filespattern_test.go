package builder

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/moby/patternmatcher"
)

var patternSeeds = []string{"a", "*", "**", "**/a", "a/**", "*.go", "src/*.go", "**/*.go", "a/*/b", "?", "a?", "[ab]", "[^a]", `\*`, "a/**/b", "**a", "a**", "***",
	"!a", "a\n!a/b", "*\n!a/b\na/b/c", "a.b", "a+b", "^a", "a^", "*^", "**/^", "**/a*/b", "a/b\n!a\na/c", "*|", "*{2}", "a|b*"}

// FuzzPatterns compares each answer, in the order of a walk, with moby's.
func FuzzPatterns(f *testing.F) {
	for _, p := range patternSeeds {
		for _, path := range []string{"a", "a/b", "a/b/c", "x.go", "src/x.go", "src/y/x.go", "^a", "a.b", "barfoo/a", "*"} {
			f.Add(p, path)
		}
	}
	f.Fuzz(func(t *testing.T, patterns, path string) {
		// Newlines are not in file names of .dockerignore; moby reads its
		// patterns rune by rune, and file names are bytes.
		path = strings.Trim(path, "/")
		if path == "" || strings.Contains(path, "//") || strings.ContainsAny(path, "\n\x00") || !utf8.ValidString(patterns) || !utf8.ValidString(path) {
			t.Skip()
		}
		list := strings.Split(patterns, "\n")
		moby, merr := patternmatcher.New(list)
		ours, err := newPatternSet(list)
		if merr == nil && err != nil {
			// A pattern that moby finds broken only when it is used.
			if _, merr = moby.MatchesOrParentMatches(path); merr == nil {
				t.Skip()
			}
		}
		if (err != nil) != (merr != nil) {
			t.Fatalf("%q: %v, moby says %v", list, err, merr)
		}
		if err != nil {
			return
		}
		var info patternmatcher.MatchInfo
		state := ours.start()
		parts := strings.Split(path, "/")
		var got, pruned bool
		for i := range parts {
			at := strings.Join(parts[:i+1], "/")
			// moby: a zero MatchInfo also looks at parents, of which the first has none.
			want, next, err := moby.MatchesUsingParentResults(at, info)
			if err != nil {
				t.Skip()
			}
			if pruned && want != got {
				t.Fatalf("%q: nothing below was to change, but %q did", list, at)
			}
			info = next
			if got, state = ours.match(at, state); got != want {
				t.Fatalf("%q on %q: %t, moby says %t", list, at, got, want)
			}
			if got && !ours.mayMatchBelow(at) {
				pruned = true
			}
		}
	})
}

func BenchmarkPatterns(b *testing.B) {
	set, err := newPatternSet([]string{".git", "node_modules", "**/*.log", "*.md", "!README.md", "**/__pycache__"})
	if err != nil {
		b.Fatal(err)
	}
	state := set.start()
	b.ReportAllocs()
	for b.Loop() {
		set.matches("src/some/package/file.go", state)
	}
}
