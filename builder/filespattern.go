package builder

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// patternSet is a list of patterns with moby/patternmatcher's meaning, made
// for walking big trees: it may be used by several goroutines, allocates
// nothing for a file, knows the commonest forms without a regular expression,
// and can tell that nothing below a directory can match. That module remains
// the oracle of its test. A nil set matches nothing.
type patternSet struct {
	patterns []filePattern
	negated  bool // one of them begins with "!"
}

type filePattern struct {
	negated bool
	text    string // cleaned, without "!"
	parts   []string
	match   func(path string) bool
}

// matchState tells of one path which patterns matched it or a directory above.
type matchState []bool

// newPatternSet compiles patterns; none give a nil set. The error names the
// pattern.
func newPatternSet(patterns []string) (*patternSet, error) {
	s := &patternSet{}
	for _, raw := range patterns {
		p := strings.TrimSpace(raw)
		if p == "" {
			continue
		}
		p = path.Clean(p)
		var fp filePattern
		if p[0] == '!' {
			if len(p) == 1 {
				return nil, fmt.Errorf("illegal exclusion pattern: %q", p)
			}
			fp.negated, s.negated, p = true, true, p[1:]
		}
		if _, err := path.Match(p, "."); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", raw, err)
		}
		fp.text, fp.parts = p, strings.Split(p, "/")
		match, err := compilePattern(p)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", raw, path.ErrBadPattern)
		}
		fp.match = match
		s.patterns = append(s.patterns, fp)
	}
	if len(s.patterns) == 0 {
		return nil, nil
	}
	return s, nil
}

// start is the state of the tree's root.
func (s *patternSet) start() matchState {
	if s == nil {
		return nil
	}
	return make(matchState, len(s.patterns))
}

// match tells whether p matches, given the state of its directory, and p's own
// state for what is below it.
func (s *patternSet) match(p string, parent matchState) (bool, matchState) {
	if s == nil {
		return false, nil
	}
	state := make(matchState, len(s.patterns))
	return s.matchInto(p, parent, state), state
}

// matches is match for a path that has nothing below it.
func (s *patternSet) matches(p string, parent matchState) bool {
	return s != nil && s.matchInto(p, parent, nil)
}

func (s *patternSet) matchInto(p string, parent, state matchState) bool {
	matched := false
	for i := range s.patterns {
		fp := &s.patterns[i]
		m := parent[i]
		if !m {
			// A pattern that could not change the answer is not looked at,
			// and then does not count for what is below either: moby's rule.
			if fp.negated != matched {
				continue
			}
			m = fp.match(p)
		}
		if state != nil {
			state[i] = m
		}
		if m {
			matched = !fp.negated
		}
	}
	return matched
}

// mayMatchBelow tells whether the answer for something below directory dir may
// differ from that for dir: whether a negated pattern can match there. It errs
// only towards true.
func (s *patternSet) mayMatchBelow(dir string) bool {
	return s != nil && s.negated && s.reaches(dir, true)
}

// mayInclude tells whether a pattern can match something below dir.
func (s *patternSet) mayInclude(dir string) bool { return s != nil && s.reaches(dir, false) }

func (s *patternSet) reaches(dir string, negated bool) bool {
	for i := range s.patterns {
		if s.patterns[i].negated == negated && s.patterns[i].reaches(dir) {
			return true
		}
	}
	return false
}

func (fp *filePattern) reaches(dir string) bool {
	if dir == "" {
		return true
	}
	for i := 0; ; i++ {
		name, below, more := strings.Cut(dir, "/")
		if i >= len(fp.parts) {
			return false
		}
		// "**" crosses slashes, and so does a negated class in moby's reading.
		if strings.Contains(fp.parts[i], "**") || strings.Contains(fp.parts[i], "[") {
			return true
		}
		if ok, err := path.Match(fp.parts[i], name); !ok && err == nil {
			return false
		}
		if !more {
			return i+1 < len(fp.parts)
		}
		dir = below
	}
}

// compilePattern makes the test for one cleaned pattern. "*" and "?" stop at
// slashes, "**" does not, "**/" is also nothing, and a leading "**" followed by
// plain text is a suffix. Two frequent forms escape the regular expression:
// plain text, and "*" once within text that has no other meaning.
func compilePattern(p string) (func(string) bool, error) {
	if p == "**" {
		return func(string) bool { return true }, nil
	}
	if !strings.ContainsAny(p, `*?[]\`) {
		return func(s string) bool { return s == p }, nil
	}
	if rest, ok := strings.CutPrefix(p, "**"); ok && !strings.ContainsAny(rest, `*?[]\`) {
		return func(s string) bool {
			return strings.HasSuffix(s, rest) || rest[0] == '/' && s == rest[1:]
		}, nil
	}
	if head, ok := strings.CutSuffix(p, "**"); ok && !strings.ContainsAny(head, `*?[]\`) {
		return func(s string) bool { return strings.HasPrefix(s, head) }, nil
	}
	anywhere := strings.HasPrefix(p, "**/")
	head, tail, ok := strings.Cut(strings.TrimPrefix(p, "**/"), "*")
	if ok && !strings.ContainsAny(head+tail, `*?[]\^|{}`) && !(anywhere && strings.Contains(head+tail, "/")) {
		return func(s string) bool {
			if anywhere {
				s = s[strings.LastIndexByte(s, '/')+1:]
			}
			return len(s) >= len(head)+len(tail) && strings.HasPrefix(s, head) && strings.HasSuffix(s, tail) &&
				strings.IndexByte(s[len(head):len(s)-len(tail)], '/') < 0
		}, nil
	}

	var re strings.Builder
	re.WriteByte('^')
	for r := []rune(p); len(r) > 0; r = r[1:] {
		switch c := r[0]; {
		case c == '*' && len(r) > 1 && r[1] == '*':
			r = r[1:]
			if len(r) > 1 && r[1] == '/' {
				r = r[1:]
			}
			if len(r) == 1 {
				re.WriteString(".*")
			} else {
				re.WriteString("(.*/)?")
			}
		case c == '*':
			re.WriteString("[^/]*")
		case c == '?':
			re.WriteString("[^/]")
		case strings.ContainsRune(".+()$", c): // moby means to quote |, { and } too, and does not
			re.WriteString(`\` + string(c))
		case c == '\\' && len(r) > 1:
			r = r[1:]
			re.WriteString(`\` + string(r[0]))
		case c == '\\':
			re.WriteString(`\`)
		default:
			re.WriteRune(c)
		}
	}
	re.WriteByte('$')
	compiled, err := regexp.Compile(re.String())
	if err != nil {
		return nil, err
	}
	return compiled.MatchString, nil
}
