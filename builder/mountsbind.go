package builder

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"mk/container"
	"mk/snapshot"
)

// bind mounts what a --mount=type=bind shows. A writable one is a draft that is
// discarded when the step has ended: the next step sees the tree as it was.
func (r *runStep) bind(ctx context.Context, m *runMount, held *runHeld) (mount container.Mount, err error) {
	snap, source, err := r.shown(ctx, m)
	if err != nil {
		return mount, err
	}
	var tree *os.File
	if snap != nil && m.ReadOnly {
		tree, err = snap.Mount()
	} else {
		draft, err := r.Trees.NewDraft(snap)
		if err != nil {
			return mount, err
		}
		held.add(draft.Discard)
		if tree, err = draft.Mount(); err != nil {
			return mount, err
		}
	}
	if err != nil {
		return mount, err
	}
	held.add(tree.Close)
	mount = container.Mount{Type: container.Attach, File: tree, Dest: m.target, ReadOnly: m.ReadOnly, Owned: true}
	if source == "/" {
		return mount, nil
	}
	// A part of a detached mount can be bound only since Linux 6.15, and so this
	// one is attached for a while, where only this process sees it.
	etc, err := r.etcFiles()
	if err != nil {
		return mount, err
	}
	detach, err := etc.Attach(tree)
	if err != nil {
		return mount, err
	}
	held.add(detach)
	mount.Type = container.Bind
	if mount.File, err = openInTree(tree, source); err == nil {
		held.add(mount.File.Close)
	}
	return mount, err
}

// shown gives the snapshot that a bind is of, nil for scratch, and the path in it.
func (r *runStep) shown(ctx context.Context, m *runMount) (*snapshot.Snapshot, string, error) {
	if m.from.Files == nil {
		snap, err := r.tree(ctx, m.from)
		return snap, m.source(), err
	}
	return r.copied(ctx, m)
}

// copied gives a snapshot with the caller's files in it, and where: a directory
// is the top, a file is /file. Once made it serves every later step that shows the
// same, of this build and of others, until prune takes it.
func (r *runStep) copied(ctx context.Context, m *runMount) (*snapshot.Snapshot, string, error) {
	at, dest := "/", "/"
	top := &m.sel.roots[0].entry
	if top.dir == nil {
		at, dest = "/file", "/file"
	}
	turn, _ := r.copying.LoadOrStore(m.sum, new(sync.Mutex))
	turn.(*sync.Mutex).Lock()
	defer turn.(*sync.Mutex).Unlock()

	question := "copy for mounts " + m.sum
	if id, ok := r.Records.Memo(question); ok {
		if snap, err := r.Trees.Get(snapshot.ID(id)); err == nil {
			return snap, at, nil
		}
	}
	draft, err := r.Trees.NewDraft(nil)
	if err != nil {
		return nil, "", err
	}
	defer draft.Discard() // no-op after Commit
	if err := r.copyInto(ctx, draft, m, dest); err != nil {
		return nil, "", err
	}
	snap, err := draft.Commit()
	if err != nil {
		return nil, "", err
	}
	return snap, at, r.Records.SetMemo(question, string(snap.ID()))
}

func (r *runStep) copyInto(ctx context.Context, draft *snapshot.Draft, m *runMount, dest string) error {
	root, err := draft.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	into := CopyInto{Root: root, Dest: dest}
	if r.Trees.Remembers() {
		into.Owners, into.Remember = draft.Owners(), true
	}
	if err := m.sel.CopyTo(ctx, into); err != nil {
		return err
	}
	if dest != "/" {
		return nil
	}
	mode, _, _ := m.top()
	return unix.Fchmodat(int(root.Fd()), ".", mode, 0)
}

// openInTree opens (O_PATH) a path of a tree as a process with that root would:
// links, absolute ones too, do not lead out of it.
func openInTree(tree *os.File, path string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(tree.Fd()), path, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), path), nil
		case unix.EAGAIN, unix.EINTR: // something was renamed on the way
		case unix.ENOENT, unix.ENOTDIR:
			return nil, errNotFound(path)
		default:
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
}
