package recipe

import (
	"strings"
	"sync"
	"testing"
)

func TestIgnore(t *testing.T) {
	const all = "a a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD"
	for _, tc := range []struct {
		ignore, want string
	}{
		{"", all},
		{"# a\n\n  \n", all},
		{"\ufeffa\n", "a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD"},
		{"*.md", "a b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x .git/HEAD"},
		{"**/*.md\n!README.md", "a b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD"},
		{"ba*\n!bay", "a a.md b/a.md b/c/d b/c/e.o bay dir/file dir/other dir/sub/x README.md .git/HEAD"},
		{"/b/\n .git ", "a a.md bar bay baz dir/file dir/other dir/sub/x README.md"},
		{"dir\n!dir/file", "a a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file README.md .git/HEAD"},
		{"*\n!b/c", "b/c/d b/c/e.o"},
		{"*\n!b/c\nb/c/d", "b/c/e.o"},
		{"**\n!**/x", "dir/sub/x"},
		{"*\n!*/sub", "dir/sub/x"},
		{"b/?/d", "a a.md b/a.md b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD"},
		{"ba[rz]", "a a.md b/a.md b/c/d b/c/e.o bay dir/file dir/other dir/sub/x README.md .git/HEAD"},
		{"b/../a", "a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD"},
		{"*\n!a", "a"},
		{"!a\n*", ""},
		{"!a\n*\n!.g[h-j]t", ".git/HEAD"},
	} {
		ignore, err := ParseIgnore(strings.NewReader(tc.ignore))
		if err != nil {
			t.Errorf("%q: %v", tc.ignore, err)
			continue
		}
		var left []string
		for _, name := range strings.Fields(all) {
			if ignored, err := ignore.Match(name); err != nil {
				t.Errorf("%q: %s: %v", tc.ignore, name, err)
			} else if !ignored {
				left = append(left, name)
			}
		}
		if got := strings.Join(left, " "); got != tc.want {
			t.Errorf("%q\n got %s\nwant %s", tc.ignore, got, tc.want)
		}
	}
}

func TestIgnoreErrors(t *testing.T) {
	for text, want := range map[string]string{
		"a\n!\n":   `pattern "!": illegal exclusion pattern: "!"`,
		"a\n[\n":   `pattern "[": syntax error in pattern`,
		"a\n![a\n": `pattern "![a": syntax error in pattern`,
	} {
		if _, err := ParseIgnore(strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestNilIgnore(t *testing.T) {
	var none *Ignore
	if ignored, err := none.Match("a"); ignored || err != nil || none.Exceptions() || none.Patterns() != nil {
		t.Error("a nil *Ignore ignores something")
	}
}

func TestIgnorePatterns(t *testing.T) {
	i, err := NewIgnore([]string{"a/../b", "!c/", " "})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(i.Patterns(), " "); got != "b !c" {
		t.Error(got)
	}
}

// Many walkers share one Ignore; the race detector is the judge.
func TestIgnoreShared(t *testing.T) {
	ignore, err := NewIgnore([]string{"a*", "!ab/**", "**/x", "!**/xy?"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, name := range []string{"a", "ab/c", "ab/x", "q/xyz"} {
				if _, err := ignore.Match(name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
