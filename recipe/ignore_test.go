package recipe

import (
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
)

// walkIgnore lists what is left of a tree, by the walk that Ignore's doc describes.
// It counts the directories that were not descended into.
func walkIgnore(t *testing.T, ignore *Ignore, tree fstest.MapFS) (left []string, pruned int) {
	t.Helper()
	parents := map[string]Parent{}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		dir := name[:max(0, strings.LastIndexByte(name, '/'))]
		ignored, self, err := ignore.Match(name, parents[dir])
		if err != nil {
			return err
		}
		if slow, _, _ := ignore.Match(name, Parent{}); slow != ignored {
			t.Errorf("%s: %v with its parent's match, %v without", name, ignored, slow)
		}
		if !d.IsDir() {
			if !ignored {
				left = append(left, name)
			}
			return nil
		}
		parents[name] = self
		if ignored && ignore.Prune(name) {
			pruned++
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	return left, pruned
}

func tree(files string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for _, f := range strings.Fields(files) {
		fsys[f] = &fstest.MapFile{}
	}
	return fsys
}

func TestIgnore(t *testing.T) {
	const all = "a a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD"
	for _, tc := range []struct {
		ignore, want string
		pruned       int
	}{
		{"", all, 0},
		{"# a\n\n  \n", all, 0},
		{"\ufeffa\n", "a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD", 0},
		{"*.md", "a b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x .git/HEAD", 0},
		{"**/*.md\n!README.md", "a b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD", 0},
		{"ba*\n!bay", "a a.md b/a.md b/c/d b/c/e.o bay dir/file dir/other dir/sub/x README.md .git/HEAD", 0},
		{"/b/\n .git ", "a a.md bar bay baz dir/file dir/other dir/sub/x README.md", 2},
		{"dir\n!dir/file", "a a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file README.md .git/HEAD", 1},
		{"*\n!b/c", "b/c/d b/c/e.o", 2},
		{"*\n!b/c\nb/c/d", "b/c/e.o", 2},
		{"**\n!**/x", "dir/sub/x", 0},
		{"*\n!*/sub", "dir/sub/x", 1},
		{"b/?/d", "a a.md b/a.md b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD", 0},
		{"ba[rz]", "a a.md b/a.md b/c/d b/c/e.o bay dir/file dir/other dir/sub/x README.md .git/HEAD", 0},
		{"b/../a", "a.md b/a.md b/c/d b/c/e.o bar bay baz dir/file dir/other dir/sub/x README.md .git/HEAD", 0},
		{"*\n!a", "a", 3},
		{"!a\n*", "", 3},
		{"!a\n*\n!.g[h-j]t", ".git/HEAD", 0},
	} {
		ignore, err := ParseIgnore(strings.NewReader(tc.ignore))
		if err != nil {
			t.Errorf("%q: %v", tc.ignore, err)
			continue
		}
		want := strings.Fields(tc.want)
		slices.Sort(want)
		left, pruned := walkIgnore(t, ignore, tree(all))
		if !slices.Equal(left, want) || pruned != tc.pruned {
			t.Errorf("%q\n got %s, %d pruned\nwant %s, %d pruned", tc.ignore, left, pruned, want, tc.pruned)
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
	if ignored, _, err := none.Match("a", Parent{}); ignored || err != nil || none.Exceptions() || !none.Prune("a") || none.Patterns() != nil {
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
				if _, _, err := ignore.Match(name, Parent{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
