package userns

import (
	"context"
	"errors"
	"os"
)

// Choose picks the mode: force is "", "root", "subid" or "single".
func Choose(force string) (Choice, error) { return Choice{}, errors.ErrUnsupported }

// Enter clones this binary, with the same arguments, as stage inside and waits for it. files
// appear there as Inside.Files.
func Enter(ctx context.Context, choice Choice, files ...*os.File) (exitCode int, err error) {
	return 125, errors.ErrUnsupported
}

// Inside is what stage inside knows of itself.
type Inside struct {
	Choice Choice     // what was really entered: its Mode may differ from the host's expectation
	Files  []*os.File // those given to Enter, close-on-exec
}

// Arrive finishes the entry, first thing in stage inside: afterwards the process is root of its
// namespaces, and its mounts are private.
func Arrive() (*Inside, error) { return nil, errors.ErrUnsupported }

// Context ends when the host process died or closed the lifeline, or when stop is called.
func (in *Inside) Context(ctx context.Context) (_ context.Context, stop context.CancelFunc) {
	return context.WithCancel(ctx)
}

// Advice is the sentence and the command that go with err, or "".
func Advice(err error) string { return "" }
