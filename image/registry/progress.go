package registry

import (
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Progress is told what happens to each blob. Calls come one at a time, and
// must return soon: transfers wait for them. nil tells nobody.
type Progress func(Event)

// Event is a blob's state.
type Event struct {
	State  State
	Digest digest.Digest // "" while a layer is compressed on its way out
	Done   int64         // bytes
	Total  int64         // bytes; -1: not known
}

// State of a blob in a pull or push.
type State string

const (
	Waiting  State = "waiting"  // its turn will come
	Moving   State = "moving"   // Done of Total bytes are there
	Complete State = "complete" // and verified
	Exists   State = "exists"   // was there already
	Mounted  State = "mounted"  // the registry took it from another repository of its own
)

// serialize makes calls of p come one at a time.
func serialize(p Progress) Progress {
	if p == nil {
		return func(Event) {}
	}
	var mu sync.Mutex
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		p(e)
	}
}

// reportStep is how many bytes pass between two events of a blob.
const reportStep = 512 << 10

// counter reports the bytes that pass.
type counter struct {
	r        io.Reader
	event    Event
	reported int64
	progress Progress
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.event.Done += int64(n)
	if c.event.Done-c.reported >= reportStep {
		c.reported = c.event.Done
		c.progress(c.event)
	}
	return n, err
}
