package builder

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// WriteDir copies a result's whole tree into a directory of the caller's, which
// is made if it is not there. Everything in it belongs to the caller, who may not be one who
// makes devices: those that are left out for that are returned.
func (b *Builder) WriteDir(ctx context.Context, r *Result, dir string) (leftOut []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = b.withTree(ctx, r, func(files *Files) error {
		sel, err := files.Select(ctx, CopySources{Words: []string{"/"}})
		if err != nil {
			return err
		}
		return sel.CopyTo(ctx, CopyInto{Root: root, Dest: "/", Owner: &CopyOwner{},
			Refused: func(path string) { leftOut = append(leftOut, path) }})
	})
	return leftOut, err
}

// withTree calls f with the tree of a result.
func (b *Builder) withTree(ctx context.Context, r *Result, f func(*Files) error) error {
	top, err := b.top(ctx, r)
	if err != nil {
		return err
	}
	if top == nil {
		return nil // no layers: nothing to write
	}
	root, err := top.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	return f(&Files{Root: root, Owners: func(p string) (snapshot.Owner, bool) {
		o, ok, err := top.Owner(p)
		return o, ok && err == nil
	}})
}

// top is the snapshot that shows a result's whole tree, nil for none.
func (b *Builder) top(ctx context.Context, r *Result) (*snapshot.Snapshot, error) {
	if n := len(r.Layers); n > 0 && r.Layers[n-1].Base == nil {
		return r.engine.tree(ctx, r.Plan.Target.Tree) // NeedTree has brought it
	}
	if img := r.Plan.Target.Tree.Image; img != nil {
		return b.Unpack(ctx, img)
	}
	return nil, nil
}

// WriteTar writes a result's whole tree as one tar, owners and all.
func (b *Builder) WriteTar(ctx context.Context, r *Result, w io.Writer) error {
	top, err := b.top(ctx, r)
	if err != nil {
		return err
	}
	if top == nil {
		return tar.NewWriter(w).Close()
	}
	if err := top.WriteTree(ctx, w); err != nil {
		return fmt.Errorf("write tree: %w", err)
	}
	return nil
}
