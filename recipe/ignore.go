package recipe

import (
	"fmt"
	"io"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Ignore is a .dockerignore: the last pattern that matches a path, or a directory
// above it, decides; "!" lets it in again. A nil *Ignore ignores nothing. It may be
// used by many goroutines at once. A walk of files goes by its Patterns: see
// builder.Files.
type Ignore struct {
	pm *patternmatcher.PatternMatcher
}

// ParseIgnore reads a .dockerignore: comments with # in the first column, blank
// lines, a byte order mark, blanks around a pattern and a leading / do not count.
func ParseIgnore(r io.Reader) (*Ignore, error) {
	patterns, err := ignorefile.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return NewIgnore(patterns)
}

// NewIgnore takes patterns as Patterns gives them.
func NewIgnore(patterns []string) (*Ignore, error) {
	pm, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, culprit(patterns, err)
	}
	if err := compile(pm); err != nil {
		return nil, culprit(patterns, err)
	}
	return &Ignore{pm: pm}, nil
}

// culprit names the pattern that is at fault.
func culprit(patterns []string, err error) error {
	for _, p := range patterns {
		pm, perr := patternmatcher.New([]string{p})
		if perr == nil {
			perr = compile(pm)
		}
		if perr != nil {
			return fmt.Errorf("pattern %q: %w", p, perr)
		}
	}
	return err
}

// compile makes every pattern ready now. The matcher would do it at first use,
// which is neither safe among goroutines nor a good time to find a bad pattern.
// A pattern is looked at only when its turn can change the answer, so each gets
// a matcher of its own, behind one that has matched already if it is a "!".
func compile(pm *patternmatcher.PatternMatcher) error {
	for _, p := range pm.Patterns() {
		one, err := patternmatcher.New([]string{"**", "x"})
		if err != nil {
			return err
		}
		slot := 0
		if p.Exclusion() {
			slot = 1
		}
		one.Patterns()[slot] = p
		if _, err := one.MatchesOrParentMatches("x"); err != nil {
			return err
		}
	}
	return nil
}

// Match tells whether a path is ignored. name is relative to the root, with slashes,
// and not ".".
func (i *Ignore) Match(name string) (bool, error) {
	if i == nil {
		return false, nil
	}
	return i.pm.MatchesOrParentMatches(name)
}

// Exceptions tells whether any pattern begins with "!".
func (i *Ignore) Exceptions() bool { return i != nil && i.pm.Exclusions() }

// Patterns are the patterns in force, cleaned: they are part of a step's key.
func (i *Ignore) Patterns() []string {
	if i == nil {
		return nil
	}
	var list []string
	for _, p := range i.pm.Patterns() {
		if p.Exclusion() {
			list = append(list, "!"+p.String())
			continue
		}
		list = append(list, p.String())
	}
	return list
}

// excludesRoot tells whether a pattern takes away everything there is.
func (i *Ignore) excludesRoot() bool {
	for _, p := range i.pm.Patterns() {
		switch p.String() {
		case "*", "**", "**/*":
			if !p.Exclusion() {
				return true
			}
		}
	}
	return false
}
