package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteDir writes a directory that is no snapshot's, on which containers worked, by the
// rules of WriteLayer: in a store that remembers, files have the owners that their
// marks say. Nobody may be changing it.
func (s *Store) WriteDir(ctx context.Context, dir string, w io.Writer) error {
	out := streamTo(w)
	owners := NewOwners()
	err := inheritOwners(dir, nil, owners, s.remember)
	if err == nil {
		err = scan(ctx, s, []string{dir}, nil, owners, nil, func(it *item) error { return out.item(ctx, it, nil) })
	}
	if err == nil {
		err = out.end()
	}
	if err != nil {
		return fmt.Errorf("write directory %s: %w", dir, err)
	}
	return nil
}

// ReadDir makes a directory, which must not exist and lies on the store's file system, of
// a layer's tar: WriteDir's other way. It appears whole, by a rename, or not at all.
func (s *Store) ReadDir(ctx context.Context, layer io.Reader, dir string) error {
	if err := s.readDir(ctx, layer, dir); err != nil {
		return fmt.Errorf("read directory %s: %w", dir, err)
	}
	return nil
}

func (s *Store) readDir(ctx context.Context, layer io.Reader, dir string) error {
	draft, err := s.NewDraft(nil)
	if err != nil {
		return err
	}
	defer draft.Discard() // what the rename leaves
	if err := draft.Apply(ctx, layer); err != nil {
		return err
	}
	if s.remember {
		if err := MarkOwners(draft.Upper(), draft.Owners()); err != nil {
			return err
		}
	} else if paths := draft.Owners().Paths(); len(paths) > 0 {
		return fmt.Errorf("%q is a device or has attributes that cannot be set: %w", paths[0], unix.EPERM)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(dir), unix.EEXIST)
	}
	return os.Rename(draft.Upper(), dir)
}
