package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"mk/builder"
	"mk/recipe"
)

// sourcePolicy is BuildKit's: rules that allow, deny or convert what a build takes
// from elsewhere, before anything is fetched. Of the rules that allow and deny, the
// last that matches counts; one that converts begins again with what it made.
//
// Nil allows everything.
type sourcePolicy struct{ Rules []sourceRule }

type sourceRule struct {
	Action   policyAction
	Selector struct {
		Identifier  string
		MatchType   policyMatch `json:"match_type"`
		MatchType2  policyMatch `json:"matchType"` // the other spelling that tools write
		Constraints []struct{ Key, Value string }
	}
	Updates *struct {
		Identifier string
		Attrs      map[string]string
	}

	pattern *regexp.Regexp // nil: the identifier itself
}

// In JSON, both are a word or BuildKit's number for it.
type (
	policyAction int
	policyMatch  int
)

const (
	allow policyAction = iota
	deny
	convert
)

const (
	wildcard policyMatch = iota
	exact
	regex
)

func (a *policyAction) UnmarshalJSON(raw []byte) error {
	return policyWord(raw, (*int)(a), "ALLOW", "DENY", "CONVERT")
}

func (m *policyMatch) UnmarshalJSON(raw []byte) error {
	return policyWord(raw, (*int)(m), "WILDCARD", "EXACT", "REGEX")
}

func policyWord(raw []byte, to *int, words ...string) error {
	text := strings.Trim(string(raw), `"`)
	for i, w := range words {
		if text == w || text == strconv.Itoa(i) {
			*to = i
			return nil
		}
	}
	return fmt.Errorf("%s: want one of %s", raw, strings.Join(words, ", "))
}

// maxPolicy bounds a policy file; conversions bounds how often one source is converted.
const (
	maxPolicy   = 1 << 20
	conversions = 20
)

// readPolicy reads the file of --source-policy-file, or where that is "", the one
// that EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names.
func readPolicy(path string) (*sourcePolicy, error) {
	if path == "" {
		path = os.Getenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY")
	}
	if path == "" {
		return nil, nil
	}
	fail := func(err error) (*sourcePolicy, error) {
		return nil, fmt.Errorf("read source policy %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read source policy: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxPolicy))
	if err != nil {
		return fail(err)
	}
	p := &sourcePolicy{}
	if err := json.Unmarshal(raw, p); err != nil {
		return fail(err)
	}
	for i := range p.Rules {
		if err := p.Rules[i].compile(); err != nil {
			return fail(fmt.Errorf("rule %d: %w", i+1, err))
		}
	}
	return p, nil
}

func (r *sourceRule) compile() (err error) {
	if len(r.Selector.Constraints) > 0 {
		return errors.New("constraints are not supported")
	}
	if r.Action == convert {
		if r.Updates == nil {
			return errors.New("missing destination for convert rule")
		}
		if len(r.Updates.Attrs) > 0 {
			return errors.New("updates of attrs are not supported: put the digest into the identifier")
		}
	}
	switch id := r.Selector.Identifier; max(r.Selector.MatchType, r.Selector.MatchType2) {
	case wildcard:
		if strings.Contains(id, "**") {
			return fmt.Errorf("invalid wildcard %q", id)
		}
		r.pattern = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(id), `\*`, "(.*)") + "$")
	case regex:
		r.pattern, err = regexp.Compile(id)
	}
	return err
}

// matches says whether a rule is of a source.
func (r *sourceRule) matches(source string) bool {
	return source == r.Selector.Identifier || r.pattern != nil && r.pattern.MatchString(source)
}

// converted is what a rule makes of a source: $1 and so on stand for what the pattern's parts matched.
func (r *sourceRule) converted(source string) string {
	to := r.Updates.Identifier
	if to == "" {
		to = r.Selector.Identifier
	}
	if r.pattern == nil {
		return to
	}
	at := r.pattern.FindStringSubmatchIndex(source)
	if at == nil {
		return to // it was the identifier, letter by letter
	}
	return string(r.pattern.ExpandString(nil, to, source, at))
}

// source gives what is to be taken in the place of source, mostly the same.
func (p *sourcePolicy) source(source string) (string, error) {
	if p == nil {
		return source, nil
	}
next:
	for range conversions {
		denied := false
		for i := range p.Rules {
			r := &p.Rules[i]
			if !r.matches(source) {
				continue
			}
			switch r.Action {
			case convert:
				if to := r.converted(source); to != source {
					source = to
					continue next
				}
			default:
				denied = r.Action == deny
			}
		}
		if denied {
			return "", fmt.Errorf("source %q denied by policy", source)
		}
		return source, nil
	}
	return "", fmt.Errorf("source %q: too many conversions by policy", source)
}

const imageScheme = "docker-image://"

// image gives the name of the image to be taken in the place of another.
func (p *sourcePolicy) image(name string) (string, error) {
	to, err := p.source(imageScheme + name)
	if err != nil {
		return "", fmt.Errorf("could not resolve image due to policy: %w", err)
	}
	to, ok := strings.CutPrefix(to, imageScheme)
	if !ok {
		return "", fmt.Errorf("could not resolve image due to policy: %s is not an image", to)
	}
	return to, nil
}

// remote checks an address. Converting one is not supported, and is an error.
func (p *sourcePolicy) remote(address string) error {
	to, err := p.source(address)
	if err == nil && to != address {
		err = fmt.Errorf("source %q: policy converts it to %q, which is supported for images only", builder.Redact(address), builder.Redact(to))
	}
	return err
}

// steps checks what the ADDs of plans fetch.
func (p *sourcePolicy) steps(plans []*builder.Plan) error {
	if p == nil {
		return nil
	}
	for _, plan := range plans {
		for _, st := range plan.Stages {
			for _, n := range st.Nodes {
				add, ok := n.Step.(*recipe.Copy)
				if !ok || !add.Add {
					continue
				}
				for _, src := range add.Sources {
					if recipe.KindOf(src) == recipe.Local {
						continue
					}
					if err := p.remote(src); err != nil {
						return &recipe.Error{Pos: add.At(), Err: err}
					}
				}
			}
		}
	}
	return nil
}
