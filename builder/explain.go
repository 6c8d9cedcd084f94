package builder

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Reason says why a step was executed.
type Reason struct {
	Vertex *Vertex
	Text   string // one clause: "src/a.go: content"
}

// explain compares the key that a step had in the last build of the same recipe
// with the one it has now, and names what differs.
func (e *engine) explain(n *Node, now *KeyText) string {
	if n.NoCache {
		return "asked for by --no-cache"
	}
	before, base := e.last(n)
	if before == "" {
		return "first build of this step"
	}
	after := now.String()
	if before == after {
		return "what it made is gone from the store"
	}
	if kindOfStep(before) != kindOfStep(after) {
		return "another instruction was in its place"
	}
	var reasons []string
	gone, come := difference(before, after)
	for _, line := range come {
		kind, rest, _ := strings.Cut(line, " ")
		was := take(&gone, kind, rest)
		if kind == "parent" && n.Parent.Image != nil {
			reasons = append(reasons, changedBase(base, baseDigest(n)))
			continue
		}
		reasons = append(reasons, e.reason(kind, was, rest))
	}
	for _, line := range gone {
		kind, rest, _ := strings.Cut(line, " ")
		reasons = append(reasons, e.reason(kind, rest, ""))
	}
	return strings.Join(reasons, "; ")
}

// kindOfStep is the word that a key's own facts begin with: run, copy, workdir.
func kindOfStep(text string) string {
	facts, _ := stepFacts(text)
	if len(facts) == 0 {
		return ""
	}
	kind, _, _ := strings.Cut(facts[0], " ")
	return kind
}

// setLast keeps a step's key for the next build, and beside it the base image that the step
// runs on, of which the key says only what is in it.
func (e *engine) setLast(n *Node, text *KeyText) error {
	s := text.String()
	if d := baseDigest(n); d != "" {
		s += "base " + d + "\n"
	}
	return e.Records.SetLast(e.place(n), s)
}

// last gives what setLast kept; "" is none.
func (e *engine) last(n *Node) (text, base string) {
	text = e.Records.Last(e.place(n))
	if i := strings.LastIndex(text, "\nbase "); i >= 0 {
		text, base = text[:i+1], strings.TrimSpace(text[i+len("\nbase "):])
	}
	return text, base
}

func baseDigest(n *Node) string {
	if n.Parent.Image == nil {
		return ""
	}
	return n.Parent.Image.Target().Digest.String()
}

func changedBase(was, now string) string {
	switch {
	case was == "":
		return "the base image is " + short(now) + " now"
	case now == was: // its layers are the same in another form
		return "the base image changed"
	}
	return fmt.Sprintf("the base image: %s -> %s", short(was), short(now))
}

// short is as much of a digest as people compare.
func short(d string) string {
	if i := strings.Index(d, ":"); i >= 0 && len(d) > i+13 {
		return d[:i+13]
	}
	return d
}

// difference gives the lines that only one of two key texts has, in order.
func difference(before, after string) (gone, come []string) {
	count := map[string]int{}
	for _, l := range strings.Split(strings.TrimSpace(before), "\n") {
		count[l]++
	}
	for _, l := range strings.Split(strings.TrimSpace(after), "\n") {
		if count[l] > 0 {
			count[l]--
		} else {
			come = append(come, l)
		}
	}
	for _, l := range strings.Split(strings.TrimSpace(before), "\n") {
		if count[l] > 0 {
			count[l]--
			gone = append(gone, l)
		}
	}
	return gone, come
}

// take removes from gone the line that a new one replaces: of the same kind, and
// for variables of the same name, for mounts of the same place.
func take(gone *[]string, kind, now string) string {
	for i, l := range *gone {
		k, was, _ := strings.Cut(l, " ")
		if k != kind || kind == "env" && variable(was) != variable(now) || kind == "mount" && mounted(was) != mounted(now) {
			continue
		}
		*gone = append((*gone)[:i:i], (*gone)[i+1:]...)
		return was
	}
	return ""
}

func variable(quoted string) string {
	kv, err := strconv.Unquote(quoted)
	if err != nil {
		return quoted
	}
	name, _, _ := strings.Cut(kv, "=")
	return name
}

// mounted is where a mount is: the second word of its line.
func mounted(line string) string {
	_, rest := cutWord(line)
	target, _ := cutWord(rest)
	if u, err := strconv.Unquote(target); err == nil {
		return u
	}
	return target
}

// changedMount names the files of a mount that changed, if nothing else of it did.
func (e *engine) changedMount(was, now string) (string, bool) {
	var differ [2][]string
	words := [2][]string{quotedWords(was), quotedWords(now)}
	for i := range words {
		for _, w := range words[i] {
			if !slices.Contains(words[1-i], w) {
				differ[i] = append(differ[i], w)
			}
		}
	}
	if len(differ[0]) != 1 || len(differ[1]) != 1 {
		return "", false
	}
	before, ok1 := strings.CutPrefix(differ[0][0], "shows=")
	after, ok2 := strings.CutPrefix(differ[1][0], "shows=")
	if !ok1 || !ok2 {
		return "", false
	}
	before, beforeTop, _ := strings.Cut(before, " ")
	after, afterTop, _ := strings.Cut(after, " ")
	if before == after {
		return fmt.Sprintf("mount %s: its own mode or owner: %s -> %s", mounted(now), beforeTop, afterTop), true
	}
	return fmt.Sprintf("mount %s: %s", mounted(now), e.changedFiles(strconv.Quote(before), strconv.Quote(after))), true
}

func quotedWords(line string) (words []string) {
	for line != "" {
		var w string
		w, line = cutWord(line)
		if u, err := strconv.Unquote(w); err == nil {
			w = u
		}
		words = append(words, w)
	}
	return words
}

// reason words one difference; was or now is "" where the fact is new or gone.
func (e *engine) reason(kind, was, now string) string {
	switch kind {
	case "parent":
		return "the tree it starts from changed"
	case "files":
		return e.changedFiles(was, now)
	case "env":
		name := variable(cmp.Or(now, was))
		switch {
		case was == "":
			return "variable " + name + " is new"
		case now == "":
			return "variable " + name + " is gone"
		}
		return fmt.Sprintf("variable %s: %s -> %s", name, valueOf(was), valueOf(now))
	case "run":
		return "the command changed"
	case "mount":
		switch {
		case was == "":
			return "mount " + mounted(now) + " is new"
		case now == "":
			return "mount " + mounted(was) + " is gone"
		}
		if text, ok := e.changedMount(was, now); ok {
			return text
		}
	case "mk":
		return "another version of mk's cache format"
	}
	switch {
	case was == "":
		return kind + " " + now + " is new"
	case now == "":
		return kind + " " + was + " is gone"
	}
	return fmt.Sprintf("%s: %s -> %s", kind, was, now)
}

func valueOf(quoted string) string {
	kv, err := strconv.Unquote(quoted)
	if err != nil {
		return quoted
	}
	_, value, _ := strings.Cut(kv, "=")
	return strconv.Quote(value)
}

// explainFiles is how many changed files are named before the rest is counted.
const explainFiles = 5

// changedFiles names the files that differ between two digests.
func (e *engine) changedFiles(was, now string) string {
	before, after := listingOf(e.Records, was), listingOf(e.Records, now)
	if before == "" || after == "" {
		return "the files changed"
	}
	changes := CompareListings(before, after)
	var words []string
	for i, c := range changes {
		if i == explainFiles {
			words = append(words, fmt.Sprintf("and %d more", len(changes)-i))
			break
		}
		words = append(words, c.Path+": "+c.What)
	}
	if len(words) == 0 {
		return "the files changed"
	}
	return strings.Join(words, ", ")
}

// listingOf reads the listing of a digest as a key has it; "" is that there is none.
func listingOf(r *Records, quoted string) string {
	d, err := strconv.Unquote(quoted)
	if err != nil {
		return ""
	}
	f, err := r.OpenListing(digest.Digest(d))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return string(text)
}
