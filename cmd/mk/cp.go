package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/container"
	"mk/snapshot"
)

const cpHelp = `Copy files between a container, running or not, and the machine. One side is
CONTAINER:PATH; the other a path, or - for a tar on standard input or output.

As with cp -a, a directory is copied into one that is there and becomes one that
is not; with /. at its end, what is in it is copied. A symlink is copied as one,
without --follow-link. Files come to the container
as root's, and to the machine as yours.`

func newCp(a *app) *cobra.Command {
	var archive, follow, quiet bool
	c := &cobra.Command{Use: "cp [flags] CONTAINER:SOURCE DEST|-  or  SOURCE|- CONTAINER:DEST", Short: "Copy files from or to a container", Long: cpHelp, Args: cobra.ExactArgs(2)}
	c.RunE = func(c *cobra.Command, args []string) error {
		from, fromPath, out := cutContainer(args[0])
		to, toPath, in := cutContainer(args[1])
		if in == out {
			return errors.New("cp: one of the two must be CONTAINER:PATH")
		}
		name := from
		if in {
			name = to
		}
		return a.insideOf(func(c *cobra.Command, s *store, ctr *container.Container) error {
			return s.withRoot(c.Context(), ctr, func(root *os.File, view *snapshot.Snapshot) error {
				x := copying{ctx: c.Context(), store: s, root: root, view: view, follow: follow}
				switch {
				case out && args[1] == "-":
					return x.toTar(fromPath, &stdout)
				case out:
					return x.out(fromPath, args[1])
				case args[0] == "-":
					return x.fromTar(&stdin, toPath)
				}
				return x.in(args[0], toPath)
			})
		})(c, []string{name})
	}
	c.Flags().BoolVarP(&archive, "archive", "a", false, "keep owners in a tar; other copies go as said above")
	c.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what a symlink leads to")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "as in docker; mk cp prints nothing")
	a.usernsFlag(c)
	return c
}

// cutContainer splits CONTAINER:PATH. A path that begins with / or . is one of the machine.
func cutContainer(word string) (name, file string, ok bool) {
	name, file, ok = strings.Cut(word, ":")
	if !ok || name == "" || strings.HasPrefix(word, "/") || strings.HasPrefix(word, ".") || strings.Contains(name, "/") {
		return "", word, false
	}
	return name, file, true
}

// withRoot calls f with a container's root, of a running one with all that is mounted there. Another
// is furnished with its volumes and binds, and nobody can start it meanwhile.
func (s *store) withRoot(ctx context.Context, c *container.Container, f func(root *os.File, view *snapshot.Snapshot) error) error {
	unlock, err := c.Change()
	if err != nil {
		return err
	}
	defer unlock()
	view, err := s.trees.View(c.Path("layer"))
	if err != nil {
		return err
	}
	_, files, err := c.Ask(container.Request{Op: "root"})
	switch {
	case errors.Is(err, container.ErrNotRunning):
		return s.withFurnished(ctx, c, func(root *os.File) error { return f(root, view) })
	case err != nil:
		return err
	case len(files) != 1:
		return errors.New("the holder gave no root")
	}
	defer files[0].Close()
	return f(files[0], view)
}

// withFurnished calls f with the root of a container that is not running. Its change lock is held.
func (s *store) withFurnished(ctx context.Context, c *container.Container, f func(root *os.File) error) error {
	layer, err := s.openLayer(c)
	if err != nil {
		return err
	}
	defer layer.Close()
	v, err := look(c)
	if err != nil {
		return err
	}
	root, err := v.words.openRoot(layer.Mount)
	if err != nil {
		return err
	}
	defer root.Close()
	var opened []*os.File
	mounts, err := v.words.outerMounts(ctx, s, &opened)
	var strip func() error
	if err == nil {
		strip, err = container.Furnish(root, mounts, c.Path("etc"))
	}
	for _, f := range opened {
		f.Close()
	}
	if err != nil {
		return err
	}
	return errors.Join(f(root), strip())
}

// copying is one mk cp.
type copying struct {
	ctx    context.Context
	store  *store
	root   *os.File // the container's
	view   *snapshot.Snapshot
	follow bool
}

// inside is the container's tree as something to copy from.
func (x *copying) files() *builder.Files {
	return &builder.Files{Root: x.root, Owners: x.owner}
}

func (x *copying) owner(p string) (snapshot.Owner, bool) {
	o, ok, err := x.view.Owner(p)
	return o, ok && err == nil
}

// in copies from the machine into the container.
func (x *copying) in(source, dest string) error {
	contents := strings.HasSuffix(source, "/.") || source == "."
	follow := x.follow || contents || strings.HasSuffix(source, "/")
	source, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	base, stat := filepath.Base(source), os.Lstat
	if follow {
		stat = os.Stat
		if source, err = filepath.EvalSymlinks(source); err != nil {
			return fmt.Errorf("cp: %w", err)
		}
	}
	st, err := stat(source)
	if err != nil {
		return fmt.Errorf("cp: %w", err)
	}
	parent, err := os.OpenFile(filepath.Dir(source), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("cp: %w", err)
	}
	defer parent.Close()
	dest, err = copyDest(x.root, dest, base, st.IsDir(), contents)
	if err != nil {
		return err
	}
	sel, err := (&builder.Files{Root: parent, Local: true}).Select(x.ctx, builder.CopySources{Words: []string{filepath.Base(source)}, Literal: true, Links: !follow})
	if err != nil {
		return err
	}
	return sel.CopyTo(x.ctx, builder.CopyInto{Root: x.root, Dest: dest, Owner: &builder.CopyOwner{}})
}

// out copies from the container to the machine.
func (x *copying) out(source, dest string) error {
	contents := strings.HasSuffix(source, "/.") || path.Clean("/"+source) == "/"
	links := !x.follow && !contents && !strings.HasSuffix(source, "/") && isLink(x.root, source)
	isDir, found := kind(x.root, source)
	if isDir = isDir && !links; !found && !links {
		return fmt.Errorf("cp: %s: %w in the container", source, fs.ErrNotExist)
	}
	dest, slash := filepath.Clean(dest), strings.HasSuffix(dest, "/")
	abs, err := filepath.Abs(dest)
	if err != nil {
		return err
	}
	machine, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer machine.Close()
	if slash {
		abs += "/"
	}
	into, err := copyDest(machine, abs, path.Base(path.Clean("/"+source)), isDir, contents)
	if err != nil {
		return err
	}
	sel, err := x.files().Select(x.ctx, builder.CopySources{Words: []string{source}, Literal: true, Links: links})
	if err != nil {
		return err
	}
	return sel.CopyTo(x.ctx, builder.CopyInto{Root: machine, Dest: into, Owner: &builder.CopyOwner{}})
}

// copyDest decides where a source called base goes, by docker's rules, and refuses what they refuse.
func copyDest(root *os.File, dest, base string, isDir, contents bool) (string, error) {
	clean := path.Clean("/" + dest)
	destDir, found := kind(root, clean)
	switch {
	case !found && isDir:
	case !found && strings.HasSuffix(dest, "/"):
		return "", fmt.Errorf("cp: %s: there is no such directory", dest)
	case !found:
		if dir, ok := kind(root, path.Dir(clean)); !ok || !dir {
			return "", fmt.Errorf("cp: %s: there is no such directory", path.Dir(clean))
		}
	case destDir && !(isDir && contents):
		return path.Join(clean, base), nil
	case !destDir && isDir:
		return "", fmt.Errorf("cp: %s is a file: a directory cannot go there", dest)
	}
	return clean, nil
}

// kind tells what a path in a root leads to.
func kind(root *os.File, name string) (isDir, found bool) {
	f, err := pathrs.OpenatInRoot(root, name)
	if err != nil {
		return false, false
	}
	defer f.Close()
	st, err := f.Stat()
	return err == nil && st.IsDir(), err == nil
}

// isLink tells whether a path in a root is itself a symlink.
func isLink(root *os.File, name string) bool {
	name = path.Clean("/" + name)
	dir, err := pathrs.OpenatInRoot(root, path.Dir(name))
	if err != nil {
		return false
	}
	defer dir.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// fdPath is a path of an open directory, for calls that want one.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d/.", f.Fd()) }

// fromTar unpacks standard input into a directory of the container.
func (x *copying) fromTar(r io.Reader, dest string) error {
	if dir, ok := kind(x.root, dest); !ok || !dir {
		return fmt.Errorf("cp: %s: there is no such directory in the container", dest)
	}
	tmp := x.store.path("tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	spool, err := os.CreateTemp(tmp, "")
	if err != nil {
		return err
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil { // it is gone with this process
		return err
	}
	if n, err := io.Copy(spool, r); err != nil {
		return fmt.Errorf("cp: read the tar: %w", err)
	} else if n == 0 {
		return errors.New("cp: standard input is empty, and no tar")
	}
	sel, err := builder.SelectFile("-", 0o600, time.Time{}, spool)
	if err != nil {
		return err
	}
	unpack := true
	into := builder.CopyInto{Root: x.root, Dest: path.Clean("/"+dest) + "/", Unpack: &unpack, OnlyArchives: true}
	if !x.store.trees.Remembers() {
		return sel.CopyTo(x.ctx, into)
	}
	owners := snapshot.NewOwners()
	into.Owners, into.Remember = owners, true
	if err := sel.CopyTo(x.ctx, into); err != nil {
		return err
	}
	return snapshot.MarkOwners(fdPath(x.root), owners)
}

// toTar writes a file or directory of the container as a tar whose names begin with its own.
func (x *copying) toTar(source string, w io.Writer) error {
	f, err := pathrs.OpenatInRoot(x.root, path.Dir(path.Clean("/"+source)))
	if err != nil {
		return fmt.Errorf("cp: %s: %w", source, err)
	}
	defer f.Close()
	parent, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	defer parent.Close()
	base := path.Base(path.Clean("/" + source))
	if base == "/" {
		base = "."
	}
	out := tar.NewWriter(w)
	err = fs.WalkDir(parent.FS(), base, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := x.ctx.Err(); err != nil {
			return err
		}
		info, err := parent.Lstat(name)
		if err != nil || info.Mode()&fs.ModeSocket != 0 {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = parent.Readlink(name); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name, h.Uname, h.Gname = name, "", ""
		if info.IsDir() {
			h.Name += "/"
		}
		if o, ok := x.owner(path.Join(path.Dir(path.Clean("/" + source))[1:], name)); ok {
			h.Uid, h.Gid = int(o.UID), int(o.GID)
		}
		if err := out.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		file, err := parent.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.CopyN(out, file, h.Size)
		return err
	})
	if err != nil {
		return fmt.Errorf("cp: %s: %w", source, err)
	}
	return out.Close()
}
