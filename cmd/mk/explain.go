package main

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"mk/builder"
)

// reasons gathers why steps were executed, for --explain and --expect-cached.
type reasons struct {
	mu   sync.Mutex
	list []builder.Reason
}

func (r *reasons) add(why builder.Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, why)
}

func (r *reasons) print(w io.Writer) {
	for _, why := range r.list {
		fmt.Fprintf(w, "executed %s: %s\n", why.Vertex.Name, why.Text)
	}
	if len(r.list) == 0 {
		fmt.Fprintln(w, "executed nothing")
	}
}

// unexpected is the error of --expect-cached: the first step, of that stage or
// of any ("*"), that had to be executed.
func (r *reasons) unexpected(stage string) error {
	for _, why := range r.list {
		if stage != "*" && !strings.HasPrefix(why.Vertex.Name, "["+stage+" ") {
			continue
		}
		return fmt.Errorf("--expect-cached: %s was executed: %s", why.Vertex.Name, why.Text)
	}
	return nil
}
