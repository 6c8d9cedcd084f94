package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// selectWalk lists and hashes directories with a few goroutines. Directories
// to read form a stack, so that few are open at a time; files to hash go
// through a channel, whose bound also bounds the open descriptors.
type selectWalk struct {
	ctx             context.Context
	cancel          context.CancelCauseFunc
	files           *Files
	ignore, exclude *patternSet
	hash            chan hashJob
	hashers         sync.WaitGroup

	mu    sync.Mutex
	wake  *sync.Cond
	stack []dirJob
	open  int // jobs on the stack or being done
}

// dirJob is a directory to list into e.
type dirJob struct {
	parent  *dirHandle // a reference
	name    string     // "" is parent itself
	e       *fileEntry
	path    string      // in the tree
	rel     string      // below the source that it was found in
	key     pathKey     // of path
	include *patternSet // --parents: what is wanted; nil is all

	ignored, excluded, included matchState
}

// hashJob is a file to read: its bytes, unless the cache knows their digest, and
// its attributes.
type hashJob struct {
	known bool
	dir   *dirHandle // a reference
	e     *fileEntry
	path  string // of the directory
	key   pathKey
}

// copyWorkers is how many goroutines read or copy at once: with less than two
// a slow disk is left idle, with more than eight it is only made to seek.
func copyWorkers() int { return min(max(runtime.NumCPU(), 2), 8) }

const maxHashJobs = 256

func newSelectWalk(ctx context.Context, f *Files, ignore, exclude *patternSet) *selectWalk {
	w := &selectWalk{files: f, ignore: ignore, exclude: exclude, hash: make(chan hashJob, maxHashJobs)}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.wake = sync.NewCond(&w.mu)
	for range copyWorkers() {
		w.hashers.Go(w.hashFiles)
	}
	return w
}

// stop ends what run has not ended, and frees what it holds.
func (w *selectWalk) stop() {
	w.cancel(context.Canceled)
	if w.hash != nil {
		close(w.hash)
		w.hashers.Wait()
	}
	for _, j := range w.stack {
		j.parent.release()
	}
}

// add takes a source into e. It consumes the place's reference.
func (w *selectWalk) add(p filePlace, e *fileEntry, include *patternSet) {
	e.name, e.st, e.hidden = p.name, p.st, p.hidden
	key := keyOfPath(p.path)
	if p.st.isDir() {
		e.dir = &fileDir{}
		w.push(dirJob{parent: p.dir, name: p.name, e: e, path: p.path, key: key, include: include,
			ignored: p.ignored, excluded: w.exclude.start(), included: include.start()})
		return
	}
	if err := w.leaf(p.dir, e, p.path[:len(p.path)-len(p.name)], key); err != nil {
		w.cancel(err)
	}
	p.dir.release()
}

func (w *selectWalk) push(j dirJob) {
	w.mu.Lock()
	w.stack = append(w.stack, j)
	w.open++
	w.mu.Unlock()
	w.wake.Signal()
}

// run lists and hashes everything that was added.
func (w *selectWalk) run() error {
	// Taking the lock orders the broadcast after a waiter's look at ctx.
	quit := context.AfterFunc(w.ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wake.Broadcast()
	})
	defer quit()
	var listers sync.WaitGroup
	for range copyWorkers() {
		listers.Go(w.listDirs)
	}
	listers.Wait()
	close(w.hash)
	w.hashers.Wait()
	w.hash = nil
	return context.Cause(w.ctx)
}

func (w *selectWalk) listDirs() {
	reader := newDirReader()
	for {
		w.mu.Lock()
		for len(w.stack) == 0 && w.open > 0 && w.ctx.Err() == nil {
			w.wake.Wait()
		}
		if w.open == 0 || w.ctx.Err() != nil {
			w.wake.Broadcast()
			w.mu.Unlock()
			return
		}
		j := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		w.mu.Unlock()

		if err := w.list(j, reader); err != nil {
			w.cancel(err)
		}
		w.mu.Lock()
		w.open--
		if w.open == 0 {
			w.wake.Broadcast()
		}
		w.mu.Unlock()
	}
}

// list reads one directory into its entry.
func (w *selectWalk) list(j dirJob, reader *dirReader) error {
	defer j.parent.release()
	name := j.name
	if name == "" {
		name = "."
	}
	fd, err := openAt(j.parent.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + j.path, Err: err}
	}
	dir := newDir(fd)
	defer dir.release()
	names, err := reader.read(fd)
	if err != nil {
		return &os.PathError{Op: "read", Path: "/" + j.path, Err: err}
	}
	xattrs, err := readXattrs(fd, w.files.Local)
	if err != nil {
		return &os.PathError{Op: "read attributes of", Path: "/" + j.path, Err: err}
	}
	j.e.setXattrs(xattrs)
	w.remembered(j.e, j.path)

	filtered := w.ignore != nil || w.exclude != nil || j.include != nil
	entries := make([]fileEntry, 0, len(names)) // never grows: pointers into it are kept
	for _, n := range names {
		var v fileVerdict
		if filtered {
			if v = w.judge(&j, n); v.skip {
				continue
			}
		}
		e := fileEntry{name: n.name, hidden: v.hidden, implied: v.implied}
		if err := statx(fd, n.cname(), unix.AT_SYMLINK_NOFOLLOW, &e.st); err == unix.ENOENT {
			continue // gone since the directory was read
		} else if err != nil {
			return &os.PathError{Op: "stat", Path: "/" + joinPath(j.path, n.name), Err: err}
		}
		key := j.key.child(n.name)
		if e.st.isDir() {
			e.dir = &fileDir{}
			entries = append(entries, e)
			w.push(dirJob{parent: dir.ref(), name: n.name, e: &entries[len(entries)-1],
				path: joinPath(j.path, n.name), rel: joinPath(j.rel, n.name), key: key, include: j.include,
				ignored: v.ignored, excluded: v.excluded, included: v.included})
			continue
		}
		if v.hidden || v.implied {
			continue
		}
		entries = append(entries, e)
		if err := w.leaf(dir, &entries[len(entries)-1], j.path, key); err != nil {
			return err
		}
	}
	j.e.dir.entries = entries
	return nil
}

// fileVerdict is what the patterns say of one path.
type fileVerdict struct {
	skip    bool // neither it nor anything below it is wanted
	hidden  bool // ignored
	implied bool // not wanted by --parents or --exclude

	ignored, excluded, included matchState // for what is below
}

func (w *selectWalk) judge(j *dirJob, n dirName) (v fileVerdict) {
	at, rel := joinPath(j.path, n.name), joinPath(j.rel, n.name)
	if n.kind != unix.DT_DIR && n.kind != unix.DT_UNKNOWN {
		v.skip = w.ignore.matches(at, j.ignored) || w.exclude.matches(rel, j.excluded) ||
			j.include != nil && !j.include.matches(rel, j.included)
		return v
	}
	v.hidden, v.ignored = w.ignore.match(at, j.ignored)
	out, excluded := w.exclude.match(rel, j.excluded)
	in, included := true, matchState(nil)
	if j.include != nil {
		in, included = j.include.match(rel, j.included)
	}
	v.excluded, v.included, v.implied = excluded, included, out || !in
	v.skip = v.hidden && !w.ignore.mayMatchBelow(at) ||
		out && !w.exclude.mayMatchBelow(rel) ||
		!in && !j.include.mayInclude(rel)
	return v
}

// leaf fills in what is not a directory. The path of dir is only for messages,
// and with that of the entry for remembered owners.
func (w *selectWalk) leaf(dir *dirHandle, e *fileEntry, dirPath string, key pathKey) (err error) {
	defer func() {
		if err != nil {
			err = &os.PathError{Op: "read", Path: "/" + joinPath(dirPath, e.name), Err: err}
		}
	}()
	if w.files.Owners != nil {
		w.remembered(e, joinPath(dirPath, e.name))
		if e.standIn {
			return nil
		}
	}
	switch e.st.kind() {
	case unix.S_IFLNK:
		link, err := readLinkAt(dir.fd, e.name)
		e.rest = &fileRest{link: link}
		return err
	case unix.S_IFREG:
		plain, known := w.files.Cache.lookup(key, &e.st, &e.sum)
		if known && plain {
			return nil
		}
		if !known && w.files.knownOnly {
			return ErrNeedsInside
		}
		select {
		case w.hash <- hashJob{known, dir.ref(), e, dirPath, key}:
		case <-w.ctx.Done():
			dir.release()
		}
	}
	return nil
}

// remembered puts into e what the file system could not hold.
func (w *selectWalk) remembered(e *fileEntry, path string) {
	if w.files.Owners == nil {
		return
	}
	if path == "" {
		path = "."
	}
	o, ok := w.files.Owners(path)
	if !ok {
		return
	}
	e.st.uid, e.st.gid = o.UID, o.GID
	if kind := o.Mode & unix.S_IFMT; kind != 0 && kind != e.st.kind() {
		e.st.mode = e.st.mode&^unix.S_IFMT | kind
		e.st.rdev, e.standIn = o.Rdev, true
	}
	e.setXattrs(mergeXattrs(e.xattrs(), o.Xattrs))
}

func (w *selectWalk) hashFiles() {
	h := newFileHasher()
	for j := range w.hash {
		if w.ctx.Err() == nil {
			if err := w.hashFile(h, j); err != nil {
				w.cancel(&os.PathError{Op: "read", Path: "/" + joinPath(j.path, j.e.name), Err: err})
			}
		}
		j.dir.release()
	}
}

var errChanging = errors.New("the file is being written to")

// hashFile reads one file. If somebody writes to it meanwhile, its bytes have
// no digest: after a few tries that is an error.
func (w *selectWalk) hashFile(h *fileHasher, j hashJob) error {
	fd, err := openAt(j.dir.fd, j.e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	st := j.e.st
	for range 3 {
		started := clock()
		if err := statFd(fd, &st); err != nil {
			return err
		}
		if !st.isRegular() {
			return fmt.Errorf("%w: it is not the file that was listed", errChanging)
		}
		if !j.known || !st.same(&j.e.st) {
			if err := h.sum(fd, st.size, &j.e.sum); err != nil {
				return err
			}
		}
		xattrs, err := readXattrs(fd, w.files.Local)
		if err != nil {
			return err
		}
		var after fileStat
		if err := statFd(fd, &after); err != nil {
			return err
		}
		if !after.same(&st) {
			continue
		}
		w.files.Cache.store(j.key, j.path, j.e.name, &st, &j.e.sum, len(xattrs) == 0, started)
		j.e.recent = isRecent(&st, started)
		st.uid, st.gid = j.e.st.uid, j.e.st.gid // as remembered
		j.e.st = st
		j.e.setXattrs(mergeXattrs(xattrs, xattrMap(j.e.xattrs())))
		return nil
	}
	return errChanging
}
