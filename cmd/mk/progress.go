package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"mk/builder"
	"mk/recipe"
)

// display shows what a build does. Events may come from many goroutines; Close
// ends the display and leaves the terminal as it was.
type display interface {
	Event(builder.Event)
	// Warn takes the lint warnings, once, before Close; expand shows their lines too.
	Warn(src *recipeFile, warnings []recipe.Warning, expand bool)
	Close()
}

// newDisplay picks the form that --progress asks for. auto is a live display
// where stderr is a terminal and plain text where it is not.
func newDisplay(mode string, w *os.File) (display, error) {
	switch mode {
	case "", "auto":
		if term.IsTerminal(int(w.Fd())) && os.Getenv("TERM") != "dumb" {
			return newLive(w), nil
		}
		return newPlain(w), nil
	case "tty":
		if !term.IsTerminal(int(w.Fd())) {
			return nil, fmt.Errorf("--progress tty: standard error is not a terminal")
		}
		return newLive(w), nil
	case "plain":
		return newPlain(w), nil
	case "rawjson":
		return newRawJSON(w), nil
	case "quiet", "none":
		return quiet{}, nil
	}
	return nil, fmt.Errorf("--progress %s: want auto, plain, tty, rawjson or quiet", mode)
}

type quiet struct{}

func (quiet) Event(builder.Event)                      {}
func (quiet) Warn(*recipeFile, []recipe.Warning, bool) {}
func (quiet) Close()                                   {}

// ending is what a display prints after the last event: the logs of what failed,
// and the warnings.
type ending struct{ warnings string }

func (e *ending) Warn(src *recipeFile, warnings []recipe.Warning, expand bool) {
	var b strings.Builder
	printWarnings(&b, src.lines(), warnings, expand)
	e.warnings = b.String()
}

// print repeats the last lines of each vertex that failed, between rules, and
// then gives the warnings.
func (e *ending) print(w io.Writer, order []*track) {
	for _, t := range order {
		if t.err == nil || canceled(t.err) {
			continue
		}
		fmt.Fprintf(w, "------\n > %s:\n", t.v.Name)
		for _, line := range t.log.lines {
			fmt.Fprintln(w, line)
		}
		fmt.Fprintln(w, "------")
	}
	io.WriteString(w, e.warnings)
}

// track is what a display knows of one vertex.
type track struct {
	n       int // its number, in order of appearance
	v       *builder.Vertex
	started time.Time
	ended   time.Time
	cached  bool
	err     error
	partial [2][]byte // of stdout and stderr, what came after the last newline
	status  string
	log     ring
}

// ring keeps the end of a step's output, for the block that a failure closes with.
type ring struct{ lines []string }

// ringLines is how much of a failed step is repeated at the end, as with buildx.
const ringLines = 10

func (r *ring) add(line string) {
	if len(r.lines) == ringLines {
		copy(r.lines, r.lines[1:])
		r.lines = r.lines[:ringLines-1]
	}
	r.lines = append(r.lines, line)
}

// tracks numbers vertices.
type tracks struct {
	byVertex map[*builder.Vertex]*track
	order    []*track
}

func (t *tracks) of(v *builder.Vertex) *track {
	if tr := t.byVertex[v]; tr != nil {
		return tr
	}
	if t.byVertex == nil {
		t.byVertex = map[*builder.Vertex]*track{}
	}
	tr := &track{n: len(t.order) + 1, v: v}
	t.byVertex[v] = tr
	t.order = append(t.order, tr)
	return tr
}

// lines cuts log bytes at newlines and keeps what is after the last one, apart
// for each stream: one does not end the other's lines.
func (t *track) lines(e builder.Event, each func(string)) {
	part := &t.partial[0]
	if e.Stderr {
		part = &t.partial[1]
	}
	*part = append(*part, e.Log...)
	for {
		i := bytes.IndexByte(*part, '\n')
		if i < 0 {
			return
		}
		each(strings.TrimRight(string((*part)[:i]), "\r"))
		*part = (*part)[i+1:]
	}
}

// rest gives what never ended in a newline.
func (t *track) rest(each func(string)) {
	for i, part := range t.partial {
		if len(part) > 0 {
			each(string(part))
			t.partial[i] = nil
		}
	}
}

// plain prints buildx's plain progress, which scripts read:
//
//	#5 [2/3] RUN make
//	#5 0.123 cc main.c
//	#5 DONE 1.2s
//
// A vertex that is left while it works is closed with "#5 ..." and opened
// again with its name.
type plain struct {
	mu      sync.Mutex
	w       io.Writer
	tracks  tracks
	current *track
	ending
}

func newPlain(w io.Writer) *plain { return &plain{w: w} }

func (p *plain) Event(e builder.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tracks.of(e.Vertex)
	switch e.Kind {
	case builder.Started:
		t.started = e.Time
		p.open(t)
	case builder.Logged:
		t.lines(e, func(line string) { p.logged(t, e.Time, line) })

	case builder.Progressed:
		switch {
		case e.Total == 0: // a thing done at once
			p.open(t)
			fmt.Fprintf(p.w, "#%d %s done\n", t.n, e.Status)
		case e.Done >= e.Total:
			p.open(t)
			fmt.Fprintf(p.w, "#%d %s %s / %s done\n", t.n, e.Status, size(e.Done), size(e.Total))
		}
	case builder.Cached:
		p.open(t)
		fmt.Fprintf(p.w, "#%d CACHED\n", t.n)
		p.close()
	case builder.Ended:
		t.ended, t.err = e.Time, e.Err
		p.open(t)
		t.rest(func(line string) { p.logged(t, e.Time, line) })
		switch {
		case e.Err == nil:
			fmt.Fprintf(p.w, "#%d DONE %.1fs\n", t.n, e.Time.Sub(t.started).Seconds())
		case canceled(e.Err):
			fmt.Fprintf(p.w, "#%d CANCELED\n", t.n)
		default:
			fmt.Fprintf(p.w, "#%d ERROR: %v\n", t.n, e.Err)
		}
		p.close()
	}
}

// logged prints one line of a step's output.
func (p *plain) logged(t *track, at time.Time, line string) {
	p.open(t)
	stamped := fmt.Sprintf("%.3f %s", at.Sub(t.started).Seconds(), line)
	t.log.add(stamped)
	fmt.Fprintf(p.w, "#%d %s\n", t.n, stamped)
}

func (p *plain) open(t *track) {
	if p.current == t {
		return
	}
	if p.current != nil {
		fmt.Fprintf(p.w, "#%d ...\n\n", p.current.n)
	}
	fmt.Fprintf(p.w, "#%d %s\n", t.n, t.v.Name)
	p.current = t
}

func (p *plain) close() {
	fmt.Fprintln(p.w)
	p.current = nil
}

func (p *plain) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending.print(p.w, p.tracks.order)
}

// size prints bytes as docker does: 1.5MB.
func size(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if f < 1000 {
			return strings.TrimSuffix(fmt.Sprintf("%.4g", f), ".0") + unit
		}
		f /= 1000
	}
	return fmt.Sprintf("%.4gTB", f)
}
