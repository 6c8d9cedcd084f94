package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
)

var errSoon = errors.New("not yet")

type Change struct {
	Kind byte // 'A' added, 'C' changed, 'D' deleted
	Path string
}
type Problem struct {
	ID  ID
	Err error
}

func (s *Store) Remove(keep func(ID) bool) (removed int, bytes int64, err error) {
	return 0, 0, errSoon
}
func (s *Store) Check(ctx context.Context) []Problem                             { return nil }
func (d *Draft) Apply(ctx context.Context, layer io.Reader) error                { return errSoon }
func (s *Snapshot) Digests(ctx context.Context) (Digests, error)                 { return Digests{}, errSoon }
func (s *Snapshot) Recorded() (Digests, bool)                                    { return Digests{}, false }
func (s *Snapshot) WriteLayer(ctx context.Context, w io.Writer) error            { return errSoon }
func (s *Snapshot) Changes(ctx context.Context, f func(Change) error) error      { return errSoon }
func (d *Draft) Changes(ctx context.Context, f func(Change) error) error         { return errSoon }
func (s *Snapshot) Owner(path string) (Owner, bool, error)                       { return Owner{}, false, errSoon }
func (s *Snapshot) recordApplied()                                               {}
func inheritOwners(upper string, parent *Snapshot, t *Owners) error              { return nil }
func copyRoot(from, to string) error                                             { return nil }
func removeTree(dir string) error                                                { return os.RemoveAll(dir) }
