package snapshot

import (
	"runtime"

	"golang.org/x/sync/errgroup"
)

// sideBySide lets a walk go into directories beside each other, one a processor. The caller
// of the walk counts as one.
type sideBySide struct {
	work chan struct{} // a token a goroutine at work: not of one that waits for others
}

func newSideBySide() *sideBySide {
	s := &sideBySide{make(chan struct{}, runtime.GOMAXPROCS(0))}
	s.work <- struct{}{} // the caller's
	return s
}

// aside calls f in another goroutine if there may be one more, else at once.
func (s *sideBySide) aside(beside *errgroup.Group, f func() error) error {
	select {
	case s.work <- struct{}{}:
		beside.Go(func() error {
			defer func() { <-s.work }()
			return f()
		})
		return nil
	default:
		return f()
	}
}

// wait waits for what is done aside. Somebody else may work meanwhile.
func (s *sideBySide) wait(beside *errgroup.Group) error {
	<-s.work
	defer func() { s.work <- struct{}{} }()
	return beside.Wait()
}
