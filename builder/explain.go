package builder

import (
	"cmp"
	"fmt"
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
	before := e.Records.Last(e.place(n))
	if before == "" {
		return "first build of this step"
	}
	after := now.String()
	if before == after {
		return "what it made is gone from the store"
	}
	var reasons []string
	gone, come := difference(before, after)
	for _, line := range come {
		kind, rest, _ := strings.Cut(line, " ")
		was := take(&gone, kind, rest)
		reasons = append(reasons, e.reason(kind, was, rest))
	}
	for _, line := range gone {
		kind, rest, _ := strings.Cut(line, " ")
		reasons = append(reasons, e.reason(kind, rest, ""))
	}
	return strings.Join(reasons, "; ")
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
// for variables of the same name.
func take(gone *[]string, kind, now string) string {
	for i, l := range *gone {
		k, was, _ := strings.Cut(l, " ")
		if k != kind || kind == "env" && variable(was) != variable(now) {
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

func listingOf(r *Records, quoted string) string {
	d, err := strconv.Unquote(quoted)
	if err != nil {
		return ""
	}
	return r.Listing(digest.Digest(d))
}
