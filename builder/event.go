package builder

import (
	"time"

	"github.com/opencontainers/go-digest"

	"mk/recipe"
)

// Event tells the front what a build is doing. A vertex begins, may log and
// report statuses, and ends exactly once; only the event's set fields are news.
//
// Events of one vertex come in order; events of several interleave. The
// function given as Builder.Progress is called from many goroutines.
type Event struct {
	Vertex *Vertex
	Kind   EventKind
	Time   time.Time
	Log    []byte // Log: bytes as the step wrote them, not cut at lines
	Stderr bool   // Log: which of the two it wrote to
	Status string // Status: what part is at work: "layer sha256:…"
	Done   int64  // Status: bytes so far
	Total  int64  // Status: bytes expected; 0: it is no matter of bytes, and done
	Err    error  // Ended: nil when it went well
}

// EventKind is what happened to the vertex.
type EventKind int

const (
	Started EventKind = iota
	Logged
	Progressed
	Cached // it ends here: nothing was executed
	Ended
)

// Vertex is one line of work in the progress display: a step, the loading of
// a base's metadata, an export. Digest names it in machine-readable progress.
type Vertex struct {
	Name   string
	Digest digest.Digest
	Inputs []*Vertex
	Pos    recipe.Position
}

// NewVertex makes a vertex of its display name.
func NewVertex(name string) *Vertex {
	return &Vertex{Name: name, Digest: digest.FromString(name)}
}

// Task runs work as a vertex of its own: it reports its begin and its end.
func (r Reporter) Task(name string, work func(v *Vertex) error) error {
	v := NewVertex(name)
	r.Start(v)
	err := work(v)
	r.End(v, err)
	return err
}

// Reporter is where events go; the zero Reporter drops them.
type Reporter func(Event)

func (r Reporter) send(e Event) {
	if r == nil {
		return
	}
	e.Time = time.Now()
	r(e)
}

func (r Reporter) Start(v *Vertex)          { r.send(Event{Vertex: v, Kind: Started}) }
func (r Reporter) Cached(v *Vertex)         { r.send(Event{Vertex: v, Kind: Cached}) }
func (r Reporter) End(v *Vertex, err error) { r.send(Event{Vertex: v, Kind: Ended, Err: err}) }
func (r Reporter) Status(v *Vertex, what string, done, total int64) {
	r.send(Event{Vertex: v, Kind: Progressed, Status: what, Done: done, Total: total})
}

// Writer is what a vertex's command writes its output to.
func (r Reporter) Writer(v *Vertex, stderr bool) LogWriter { return LogWriter{r, v, stderr} }

// LogWriter turns writes into Logged events.
type LogWriter struct {
	to     Reporter
	vertex *Vertex
	stderr bool
}

func (w LogWriter) Write(p []byte) (int, error) {
	w.to.send(Event{Vertex: w.vertex, Kind: Logged, Log: append([]byte(nil), p...), Stderr: w.stderr})
	return len(p), nil
}
