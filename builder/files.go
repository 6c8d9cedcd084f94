package builder

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// The engine of COPY, ADD and of bind mounts from a tree, in three steps:
//
//	files := &Files{Root: dir, Ignore: patterns, Local: true, Cache: cache}
//	sel, err := files.Select(ctx, CopySources{Words: []string{"src", "*.go"}})
//	sel.Digest()                                             // what the step's key takes
//	sel.CopyTo(ctx, CopyInto{Root: draft, Dest: "/app/"})    // the same bytes
//
// Select works in any stage of mk and needs no privilege. CopyTo needs what
// setting the owners needs; see OwnerTable for trees whose owners are
// remembered. Paths of either tree are never joined and opened: every step is
// an *at call on a descriptor of the directory before it, with O_NOFOLLOW, and
// symlinks are read and walked here, clamped to the root. So a tree that
// somebody else changes meanwhile can spoil the result, never lead outside.

// Files is a tree that COPY, ADD and bind mounts take from: the build context,
// a named local context, or the root of a stage or an image. It may be used by
// several goroutines.
type Files struct {
	// Root is a descriptor of the tree's top directory, O_PATH or readable, on
	// a detached mount or not. It stays the caller's and must outlive every
	// Selection made from it.
	Root *os.File

	// Ignore are the patterns of .dockerignore, in order, as moby/patternmatcher
	// takes them. What they match does not exist for the build.
	Ignore []string

	// Local says that owners are the caller's accident and mean nothing: all
	// files count as 0:0, and access control lists are left behind.
	Local bool

	// Owners tells what was remembered for a path of the tree ("usr/bin/su", "."
	// for the root) where the file system could not hold it. Nil: nothing was.
	Owners func(path string) (snapshot.Owner, bool)

	// Time is that of what was fetched: of the commit, or Last-Modified. Zero: it is
	// not known, or these are the caller's own files.
	Time time.Time

	// From is what they were fetched from. Nil: a tree of the caller's or of the build's.
	From *Material

	// Cache keeps the digests of files between builds. Nil: hash them all.
	Cache *StatCache

	knownOnly bool // a file that Cache does not know ends a Select with ErrNeedsInside
}

// errNotFound is that a source does not exist, in BuildKit's words.
type errNotFound string

func (e errNotFound) Error() string        { return fmt.Sprintf("%q: not found", string(e)) }
func (e errNotFound) Is(target error) bool { return target == os.ErrNotExist }

// maxLinks is how many symlinks one path may lead through, as in path_resolution(7).
const maxLinks = 40

// filePlace is where a path leads: a name in an open directory.
type filePlace struct {
	dir     *dirHandle // a reference: release it
	name    string     // "" is the directory itself
	path    string     // without symlinks, relative to the root; "" is the root
	st      fileStat
	missing bool       // only the name is missing, and the rules allowed that
	ignored matchState // of path
	hidden  bool       // path is ignored; a directory may still hold what is not
}

// walkRules say how walkPath walks.
type walkRules struct {
	follow  bool        // a symlink at the end is followed
	missing bool        // a name missing at the end is an answer
	ignore  *patternSet // what does not exist

	// mkdir, if set, makes a directory that is missing on the way; at the end
	// too if mkdirLast.
	mkdir     func(dir *dirHandle, name, path string) error
	mkdirLast bool
}

// walkPath resolves p inside root as the kernel would for a process that had
// made root its /: links are followed within it, and ".." stops at it. The
// directories on the way are held open, so that renaming them meanwhile does
// not lead the walk out. Errors are ENOENT (also for what is ignored), ENOTDIR,
// ELOOP and those of open, wrapped with the path.
func walkPath(root *os.File, p string, rules walkRules) (filePlace, error) {
	defer runtime.KeepAlive(root)
	type step struct {
		dir     *dirHandle
		path    string
		ignored matchState
		hidden  bool
	}
	stack := []step{{dir: borrowDir(int(root.Fd())), ignored: rules.ignore.start()}}
	pop := func(n int) {
		for len(stack) > n {
			stack[len(stack)-1].dir.release()
			stack = stack[:len(stack)-1]
		}
	}
	defer func() { pop(0) }()
	fail := func(at string, err error) (filePlace, error) {
		return filePlace{}, &os.PathError{Op: "open", Path: "/" + at, Err: err}
	}

	rest := pathParts(p) // the next one last
	for links := 0; len(rest) > 0; {
		name := rest[len(rest)-1]
		rest = rest[:len(rest)-1]
		if name == ".." {
			pop(max(1, len(stack)-1))
			continue
		}
		top := stack[len(stack)-1]
		here := joinPath(top.path, name)
		ignored, hidden := top.ignored, false
		if rules.ignore != nil {
			hidden, ignored = rules.ignore.match(here, top.ignored)
		}
		var st fileStat
		err := statAt(top.dir.fd, name, &st)
		if err == unix.ENOENT && rules.mkdir != nil && (len(rest) > 0 || rules.mkdirLast) {
			if err = rules.mkdir(top.dir, name, here); err == nil {
				err = statAt(top.dir.fd, name, &st)
			}
		}
		last := len(rest) == 0
		switch {
		case err == unix.ENOENT && last && rules.missing:
			return filePlace{dir: top.dir.ref(), name: name, path: here, missing: true}, nil
		case err != nil:
			return fail(here, err)
		case st.isLink() && (!last || rules.follow):
			if hidden {
				return fail(here, unix.ENOENT)
			}
			if links++; links > maxLinks {
				return fail(here, unix.ELOOP)
			}
			target, err := readLinkAt(top.dir.fd, name)
			if err != nil {
				return fail(here, err)
			}
			if strings.HasPrefix(target, "/") {
				pop(1)
			}
			rest = append(rest, pathParts(target)...)
			continue
		case last:
			return filePlace{top.dir.ref(), name, here, st, false, ignored, hidden}, nil
		case !st.isDir():
			return fail(here, unix.ENOTDIR)
		}
		fd, err := openAt(top.dir.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fail(here, err)
		}
		stack = append(stack, step{newDir(fd), here, ignored, hidden})
	}
	top := stack[len(stack)-1]
	var st fileStat
	if err := statFd(top.dir.fd, &st); err != nil {
		return fail(top.path, err)
	}
	return filePlace{top.dir.ref(), "", top.path, st, false, top.ignored, top.hidden}, nil
}

// open opens the directory at p for use as the directory of *at calls; flags
// O_RDONLY or O_PATH.
func (p *filePlace) open(flags int) (*dirHandle, error) {
	name := p.name
	if name == "" {
		name = "."
	}
	fd, err := openAt(p.dir.fd, name, flags|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + p.path, Err: err}
	}
	return newDir(fd), nil
}

// pathParts splits p at slashes, the first part last, without those that mean
// nothing.
func pathParts(p string) []string {
	var parts []string
	for p != "" {
		i := strings.LastIndexByte(p, '/')
		if part := p[i+1:]; part != "" && part != "." {
			parts = append(parts, part)
		}
		p = p[:max(i, 0)]
	}
	return parts
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// find resolves the source p, following symlinks, with follow one at its end, too. What is missing
// or ignored is errNotFound.
func (f *Files) find(p string, follow bool, ignore *patternSet) (filePlace, error) {
	p = path.Clean("/" + p)
	place, err := walkPath(f.Root, p, walkRules{follow: follow, ignore: ignore})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return place, errNotFound(p)
	}
	if err != nil {
		return place, err
	}
	if place.hidden && !(place.st.isDir() && ignore.mayMatchBelow(place.path)) {
		place.dir.release()
		return filePlace{}, errNotFound(p)
	}
	return place, nil
}
