package main

import (
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"mk/builder"
	"mk/recipe"
)

// rawJSON prints BuildKit's SolveStatus objects, one a line: vertexes, statuses
// and logs, each only where there is news. Tools that read
// "buildx build --progress rawjson" read this.
type rawJSON struct {
	mu     sync.Mutex
	enc    *json.Encoder
	tracks tracks
}

type solveStatus struct {
	Vertexes []vertexJSON `json:"vertexes,omitempty"`
	Statuses []statusJSON `json:"statuses,omitempty"`
	Logs     []logJSON    `json:"logs,omitempty"`
	Warnings []noteJSON   `json:"warnings,omitempty"`
}

// noteJSON is BuildKit's VertexWarning.
type noteJSON struct {
	Vertex digest.Digest `json:"vertex,omitempty"`
	Level  int           `json:"level,omitempty"`
	Short  []byte        `json:"short,omitempty"`
	Detail [][]byte      `json:"detail,omitempty"`
	URL    string        `json:"url,omitempty"`
	Source *sourceJSON   `json:"sourceInfo,omitempty"`
	Range  []rangeJSON   `json:"range,omitempty"`
}

// notes makes BuildKit's warnings of lint's. They belong to the vertex that read the recipe.
func notes(src *recipeFile, warnings []recipe.Warning) []noteJSON {
	var out []noteJSON
	for _, w := range warnings {
		out = append(out, noteJSON{
			Vertex: builder.NewVertex(definitionTitle + src.name).Digest, Level: 1,
			Short: []byte(shortWarning(w)), Detail: [][]byte{[]byte(w.Description)}, URL: ruleURL(w.Rule),
			Source: &sourceJSON{src.name, src.text, "Dockerfile"}, Range: locate(w.Pos).Ranges,
		})
	}
	return out
}

type vertexJSON struct {
	Digest    digest.Digest   `json:"digest"`
	Inputs    []digest.Digest `json:"inputs,omitempty"`
	Name      string          `json:"name"`
	Started   *time.Time      `json:"started,omitempty"`
	Completed *time.Time      `json:"completed,omitempty"`
	Cached    bool            `json:"cached,omitempty"`
	Error     string          `json:"error,omitempty"`
}

type statusJSON struct {
	ID        string        `json:"id"`
	Vertex    digest.Digest `json:"vertex"`
	Name      string        `json:"name"`
	Total     int64         `json:"total,omitempty"`
	Current   int64         `json:"current"`
	Timestamp time.Time     `json:"timestamp"`
}

type logJSON struct {
	Vertex    digest.Digest `json:"vertex"`
	Stream    int           `json:"stream"`
	Data      []byte        `json:"data"`
	Timestamp time.Time     `json:"timestamp"`
}

func newRawJSON(w io.Writer) *rawJSON { return &rawJSON{enc: json.NewEncoder(w)} }

func (r *rawJSON) Close() {}

func (r *rawJSON) Warn(src *recipeFile, warnings []recipe.Warning, _ bool) {
	if len(warnings) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enc.Encode(solveStatus{Warnings: notes(src, warnings)})
}

func (r *rawJSON) Event(e builder.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tracks.of(e.Vertex)
	var s solveStatus
	switch e.Kind {
	case builder.Logged:
		stream := 1
		if e.Stderr {
			stream = 2
		}
		s.Logs = []logJSON{{Vertex: e.Vertex.Digest, Stream: stream, Data: e.Log, Timestamp: e.Time}}
	case builder.Progressed:
		s.Statuses = []statusJSON{{ID: e.Status, Vertex: e.Vertex.Digest, Name: e.Status, Total: e.Total, Current: e.Done, Timestamp: e.Time}}
	default:
		v := vertexJSON{Digest: e.Vertex.Digest, Name: e.Vertex.Name}
		for _, in := range e.Vertex.Inputs {
			v.Inputs = append(v.Inputs, in.Digest)
		}
		if t.started.IsZero() {
			t.started = e.Time
		}
		v.Started = &t.started
		if e.Kind != builder.Started {
			v.Completed = &e.Time
			v.Cached = e.Kind == builder.Cached
			if e.Err != nil {
				v.Error = e.Err.Error()
			}
		}
		s.Vertexes = []vertexJSON{v}
	}
	r.enc.Encode(s)
}
