package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"mk/recipe"
	"mk/snapshot"
)

// CopyInto says where a Selection goes and what becomes of its metadata.
type CopyInto struct {
	// Root is the top directory of the tree copied into, readable or O_PATH:
	// a draft's mount, or an empty directory for --link. It stays the caller's.
	Root *os.File

	// Dest is absolute in Root. A trailing slash makes it a directory. Symlinks
	// on the way are followed inside Root, and what they lead to is made where
	// it is missing.
	Dest string

	// Owner is --chown: of everything copied and of the directories made for it.
	// Nil: the owners of the source, which are 0:0 for local files.
	Owner *CopyOwner

	// Chmod is --chmod, of everything copied except symlinks and of the
	// directories made for it. "": the modes of the source, and 0755.
	Chmod string

	// Add unpacks sources that are archives; Unpack, if set, decides instead.
	Add    bool
	Unpack *bool

	// OnlyArchives makes a source that is to be unpacked and is no archive an error, not a file to copy.
	OnlyArchives bool

	// Owners takes the numbers of devices that no one in a user namespace can
	// make; nil: to be refused is an error. With Remember, it takes owners and
	// refused attributes too, and owners are not even tried: mode single.
	Owners   OwnerTable
	Remember bool

	// Refused is called with the path of each device that may not be made here, and is
	// left out. Nil: to be refused is an error.
	Refused func(path string)

	// Kept tells of a path in Root whether it is there already as it would be copied. Nil: nothing is.
	Kept func(path string) Kept
}

// CopyOwner is a user and a group by number.
type CopyOwner struct{ UID, GID uint32 }

// OwnerTable takes the owner of each file that is made, with its path relative
// to the root, and is told of each that is removed with all below it. A draft's
// is one; it is used by several goroutines.
type OwnerTable interface {
	Set(path string, o snapshot.Owner)
	Delete(path string)
}

var _ OwnerTable = (*snapshot.Owners)(nil)

// errChanged is that a file is no longer the one that was hashed.
var errChanged = errors.New("the file changed while it was being copied")

// CopyTo copies the selection. The bytes that arrive are those that were
// hashed: a file that is another one by now, or was written to, is an error.
// After an error the destination holds part of the selection.
//
// A directory's contents are merged into Dest; a file goes to Dest, or into it
// if it is a directory. A directory that exists keeps its owner and mode when it
// is Dest, and takes those of the source below. Files replace what has their
// name, but Dest itself or a directly named file never replaces a directory.
func (s *Selection) CopyTo(ctx context.Context, into CopyInto) error {
	c := &copier{sel: s, into: into, jobs: make(chan copyJob, maxHashJobs), links: make(map[[2]uint64]string), batch: make(map[string]bool)}
	if into.Chmod != "" {
		chmod, err := recipe.ParseChmod(into.Chmod)
		if err != nil {
			return err
		}
		c.chmod = chmod
	}
	c.dest = path.Clean("/" + into.Dest)
	c.destDir = c.dest == "/" || strings.HasSuffix(into.Dest, "/") || strings.HasSuffix(into.Dest, "/.")
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	var workers sync.WaitGroup
	for range copyWorkers() {
		workers.Go(c.work)
	}
	for i := range s.roots {
		if err := c.root(&s.roots[i]); err != nil {
			c.cancel(err)
			break
		}
	}
	c.settle()
	close(c.jobs)
	workers.Wait()
	return context.Cause(c.ctx)
}

// copier is one CopyTo. One goroutine walks, makes directories and everything
// that is not a regular file; a few workers fill the files.
type copier struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	sel     *Selection
	into    CopyInto
	chmod   *recipe.Chmod
	dest    string // clean
	destDir bool   // Dest must be a directory

	jobs    chan copyJob
	pending sync.WaitGroup

	// Only the walking goroutine uses these.
	batch map[string]bool      // names that files since the last settle went to
	links map[[2]uint64]string // where the first name of a file with several went
	later []laterLink

	noClone, noRange atomic.Bool // the kernel refused, for all files alike
}

// copyDir is a directory of the destination.
type copyDir struct {
	*dirHandle
	path string // in the root, without symlinks; "" is the root
}

func (d copyDir) ref() copyDir { return copyDir{d.dirHandle.ref(), d.path} }

// copyJob is a regular file to fill.
type copyJob struct {
	src    *dirHandle // a reference; nil: the selection's body
	dst    copyDir    // a reference
	e      *fileEntry
	name   string // in dst
	nested bool   // below a copied directory: may replace a directory
}

// laterLink is one more name for a file that may not be filled yet.
type laterLink struct {
	dst    copyDir // a reference
	name   string
	e      *fileEntry
	nested bool
	first  string
}

// root copies one source.
func (c *copier) root(r *fileRoot) error {
	src, err := c.source(r)
	if err != nil {
		return fmt.Errorf("copy %q: %w", "/"+r.path, err)
	}
	defer src.release()
	if r.entry.dir != nil {
		c.settle()
		dst, err := c.openDest()
		if err != nil {
			return err
		}
		defer dst.release()
		err = c.merge(src, r.entry.dir, dst, r.path)
		c.settle()
		return err
	}
	unpack := c.into.Add
	if c.into.Unpack != nil {
		unpack = *c.into.Unpack
	}
	if unpack && r.entry.st.isRegular() && r.entry.st.size > 0 {
		if done, err := c.unpack(src, r); done || err != nil {
			return err
		}
		if c.into.OnlyArchives {
			return fmt.Errorf("unpack %q: it is not a tar archive", "/"+r.path)
		}
	}
	dst, name, err := c.destFile(r.base)
	if err != nil {
		return err
	}
	defer dst.release()
	if at := joinPath(dst.path, name); c.batch[at] {
		c.settle() // the first one must be there to be replaced
	} else {
		c.batch[at] = true
	}
	e := r.entry
	return c.entry(src, &e, dst, name, false)
}

// source opens the directory that a source is in, or the source itself if it is
// a directory.
func (c *copier) source(r *fileRoot) (*dirHandle, error) {
	if c.sel.body != nil {
		return nil, nil
	}
	place, err := walkPath(c.sel.files.Root, r.path, walkRules{})
	if errors.Is(err, os.ErrNotExist) {
		return nil, errChanged
	}
	if err != nil {
		return nil, err
	}
	if r.entry.dir == nil {
		return place.dir, nil
	}
	defer place.dir.release()
	if place.st.ino != r.entry.st.ino || place.st.dev != r.entry.st.dev {
		return nil, errChanged
	}
	return place.open(unix.O_PATH)
}

// merge copies the entries of a directory into dst. at is the path of src, for
// messages.
func (c *copier) merge(src *dirHandle, d *fileDir, dst copyDir, at string) error {
	// Large files first: else one worker would have the last of them when there is nothing left for the others.
	for i := range d.entries {
		if e := &d.entries[i]; e.large() {
			if err := c.entry(src, e, dst, e.name, true); err != nil {
				return err
			}
		}
	}
	for i := range d.entries {
		if c.ctx.Err() != nil {
			return nil
		}
		e := &d.entries[i]
		if e.large() {
			continue
		}
		if e.dir == nil {
			if err := c.entry(src, e, dst, e.name, true); err != nil {
				return err
			}
			continue
		}
		if c.kept(joinPath(dst.path, e.name)) == KeptBelow {
			continue
		}
		path := joinPath(at, e.name)
		fd, err := openAt(src.fd, e.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return &os.PathError{Op: "copy", Path: "/" + path, Err: gone(err)}
		}
		from := newDir(fd)
		into, err := c.enter(dst, e)
		if err == nil {
			err = c.merge(from, e.dir, into, path)
			into.release()
		}
		from.release()
		if err != nil {
			return err
		}
	}
	return nil
}

// large says that copying the file takes as long as some thousand small ones.
func (e *fileEntry) large() bool { return e.st.isRegular() && e.st.size >= 8<<20 }

func (c *copier) kept(at string) Kept {
	if c.into.Kept == nil {
		return 0
	}
	return c.into.Kept(at)
}

// entry makes e, which is not a directory, as name in dst: at once, or by a
// worker if it is a regular file.
func (c *copier) entry(src *dirHandle, e *fileEntry, dst copyDir, name string, nested bool) error {
	at := joinPath(dst.path, name)
	switch c.kept(at) {
	case KeptLinked:
		c.remember(at, &e.st, c.meta(e), nil)
		return nil
	case KeptBelow:
		return nil
	}
	if !e.st.isRegular() {
		return c.special(e, dst, name, nested)
	}
	if e.st.nlink > 1 {
		id := [2]uint64{e.st.dev, e.st.ino}
		if first, ok := c.links[id]; ok {
			c.later = append(c.later, laterLink{dst.ref(), name, e, nested, first})
			if len(c.later) >= maxHashJobs { // each holds its directory open
				c.linkLater()
			}
			return nil
		}
		c.links[id] = at
	}
	if src != nil {
		src.ref()
	}
	c.pending.Add(1)
	select {
	case c.jobs <- copyJob{src, dst.ref(), e, name, nested}:
	case <-c.ctx.Done():
		src.release()
		dst.release()
		c.pending.Done()
	}
	return nil
}

// settle waits until everything is in place, and forgets where files went:
// another source may replace them.
func (c *copier) settle() {
	c.linkLater()
	clear(c.batch)
	clear(c.links)
}

// linkLater waits for the workers and makes the hardlinks.
func (c *copier) linkLater() {
	c.pending.Wait()
	for _, l := range c.later {
		if c.ctx.Err() == nil {
			if err := c.hardlink(l); err != nil {
				c.cancel(&os.PathError{Op: "link", Path: "/" + joinPath(l.dst.path, l.name), Err: err})
			}
		}
		l.dst.release()
	}
	c.later = c.later[:0]
}

func (c *copier) hardlink(l laterLink) error {
	first, err := walkPath(c.into.Root, l.first, walkRules{})
	if err != nil {
		return err
	}
	defer first.dir.release()
	at := joinPath(l.dst.path, l.name)
	err = c.create(l.dst, l.name, l.nested, func() error {
		return unix.Linkat(first.dir.fd, first.name, l.dst.fd, l.name, 0)
	})
	if err == nil && c.into.Remember {
		uid, gid := c.owner(&l.e.st)
		c.into.Owners.Set(at, snapshot.Owner{UID: uid, GID: gid})
	}
	return err
}

func (c *copier) work() {
	w := &copyWorker{copier: c, fileHasher: newFileHasher()}
	for j := range c.jobs {
		if c.ctx.Err() == nil {
			if err := w.file(j); err != nil {
				c.cancel(fmt.Errorf("copy to %q: %w", "/"+joinPath(j.dst.path, j.name), err))
			}
		}
		j.src.release()
		j.dst.release()
		c.pending.Done()
	}
}
