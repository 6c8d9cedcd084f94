package snapshot

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Rebase gives the layer of a snapshot that has no parent another one: nil for
// none, which is the snapshot itself. It is what COPY --link is made of: the
// files are copied once, whatever they then lie on.
//
// The new snapshot stands by itself: its directories are its own, its files are
// hardlinks to those of layer, so it costs a link a file and no bytes, and either
// may be removed first. Its tar, and so its DiffID, is the one that layer has;
// its Content comes from those of layer and parent, without reading a file. The
// root directory is the parent's: a layer without a parent has nothing to say
// about it.
//
// Two names of one file in the layer stay two names of one file. Beyond that,
// st_nlink of its files counts the snapshots too; no layer tells of it, since a
// name that is not in the tree is not written.
func (s *Store) Rebase(layer, parent *Snapshot) (*Snapshot, error) {
	if layer.parent != nil {
		return nil, fmt.Errorf("rebase snapshot %s: it has a parent", layer.id)
	}
	if parent == nil {
		return layer, nil
	}
	snap, err := s.rebase(layer, parent)
	if err != nil {
		return nil, fmt.Errorf("rebase snapshot %s: %w", layer.id, err)
	}
	return snap, nil
}

func (s *Store) rebase(layer, parent *Snapshot) (*Snapshot, error) {
	d, err := s.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer d.Discard() // no-op after Commit
	d.meta.epoch = layer.meta.epoch
	owners, err := layer.table()
	if err != nil {
		return nil, err
	}
	for _, p := range owners.Paths() {
		o, _ := owners.lookup(p)
		d.owners.Set(p, o)
	}
	from, err := openAt(unix.AT_FDCWD, layer.tree(), oDir, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: layer.tree(), Err: err}
	}
	defer unix.Close(from)
	to, err := openAt(unix.AT_FDCWD, d.Upper(), oDir, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.Upper(), Err: err}
	}
	defer unix.Close(to)
	if err := linkTree(from, to, "", nil); err != nil {
		return nil, err
	}
	d.alone = layer
	return d.Commit()
}

// linkTree makes what is in the directory from, called prefix, also in to: all of it, or
// what keep wants, which is not asked about what is in a directory that it does not want.
// Overlay's marks stay behind: in a tree without a parent they hide nothing, in
// the new one they would.
func linkTree(from, to int, prefix string, keep keeper) error {
	names, err := readNames(from)
	if err != nil {
		return &fs.PathError{Op: "read directory", Path: prefix, Err: err}
	}
	for _, name := range names {
		st, err := statAt(from, name)
		switch {
		case err != nil:
		case isWhiteout(&st):
		case keep != nil && !keep(prefix+name, &st):
		case isDir(&st):
			err = linkDir(from, to, name, prefix+name, &st, keep)
		default:
			err = unix.Linkat(from, name, to, name, 0)
		}
		if err != nil {
			return &fs.PathError{Op: "link", Path: prefix + name, Err: err}
		}
	}
	return nil
}

// linkDir makes the directory name of from in to: owner, attributes and mode, what
// is in it, and last its time.
func linkDir(from, to int, name, p string, st *unix.Stat_t, keep keeper) error {
	src, err := openAt(from, name, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	dst, err := openAt(to, name, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	attrs, err := attrsAt(-1, "", src)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if err := unix.Fsetxattr(dst, a.name, []byte(a.value), 0); err != nil {
			return fmt.Errorf("set %s: %w", a.name, err)
		}
	}
	if o, ok := ReadMark(procName(from, name), true); ok {
		if err := WriteMark(procName(to, name), true, o); err != nil {
			return fmt.Errorf("mark: %w", err)
		}
	}
	if err := linkTree(src, dst, p+"/", keep); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	return setTime(to, name, st.Mtim)
}

// contentOfRebased is the Content of a layer, known without a parent, on one.
func contentOfRebased(alone, parent digest.Digest) digest.Digest {
	return digest.FromString("mk content of rebased 1\n" + alone.String() + "\n" + parent.String() + "\n")
}

// On gives the digests of a layer, known without a parent, on a tree with that Content, but
// for the Chain, which Content does not tell.
func (d Digests) On(parent digest.Digest) Digests {
	return Digests{Alone: d.Content, Content: contentOfRebased(d.Content, parent), DiffID: d.DiffID, Size: d.Size}
}

// rebased gives the digests of a layer on another parent.
func rebased(alone Digests, parent *Digests) Digests {
	d := alone.On(parent.Content)
	d.Chain = chainID(parent, alone.DiffID)
	return d
}
