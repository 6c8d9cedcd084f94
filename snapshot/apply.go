package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// limits bound what one layer may make of a machine. They are far above any real
// image; the disk ends earlier, with an error of its own.
type limits struct {
	entries int64 // headers
	bytes   int64 // of the files, holes included: a sparse terabyte costs no disk but hours
}

var layerLimits = limits{entries: 16 << 20, bytes: 512 << 30}

const (
	maxPath = unix.PathMax - 1
	maxName = 255 // NAME_MAX of Linux
)

// Apply unpacks an uncompressed layer tar on top of the draft, as OCI says, and
// reads layer to its end. The draft must not be mounted meanwhile. After an
// error the draft is good only to be discarded.
//
// Parents missing in the layer are made, root's and 0755, with the time of the
// entry that needed them; a directory that the layer does not name keeps its
// time. A whiteout removes what the parent has, never what this layer brought,
// in whichever order they come. Long zeros become holes. Devices that cannot be
// made, and attributes that are not for the kernel, are remembered in the owners
// table; so are refused owners and attributes in a store that remembers.
func (d *Draft) Apply(ctx context.Context, layer io.Reader) error {
	return d.apply(ctx, layer, layerLimits)
}

func (d *Draft) apply(ctx context.Context, layer io.Reader, max limits) (err error) {
	a := &applier{ctx: ctx, draft: d, owners: d.owners, remember: d.store.remember, max: max,
		buf: make([]byte, 256<<10), uid: os.Geteuid()}
	a.parent.fd = -1
	upper, err := os.OpenFile(d.Upper(), oDir, 0)
	if err != nil {
		return fmt.Errorf("apply layer: %w", err)
	}
	defer upper.Close()
	a.upper = int(upper.Fd())
	root := upper
	if p := d.Parent(); p != nil {
		// Everything goes through the overlay: names resolve as they will for
		// whoever runs in the tree, and removing makes whiteouts by itself.
		if root, err = d.Mount(); err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
		defer root.Close()
		a.lower = p
		if a.inherits, err = p.remembers(); err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
	}
	// The mount's own descriptor may be O_PATH; the root must be readable.
	if a.root, err = openAt(int(root.Fd()), ".", oDir, 0); err != nil {
		return fmt.Errorf("apply layer: open root: %w", err)
	}
	defer unix.Close(a.root)
	if a.rootPath, err = os.Readlink("/proc/self/fd/" + itoa(a.root)); err != nil {
		return fmt.Errorf("apply layer: %w", err)
	}
	in := &countingReader{ctx: ctx, r: layer}
	if err := a.all(bufio.NewReaderSize(in, 256<<10)); err != nil {
		return err
	}
	d.read = in.n
	return nil
}

// countingReader counts, and ends with ctx.
type countingReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// applier unpacks one layer.
type applier struct {
	ctx      context.Context
	draft    *Draft
	owners   *Owners
	remember bool
	inherits bool      // a parent's table has entries, which ours must override
	lower    *Snapshot // nil: nothing to white out
	upper    int       // the upper directory, to tell this layer's files from the parent's
	root     int       // what we write to: the overlay, or upper itself
	rootPath string    // how the kernel calls root, in front of the paths below it
	uid      int
	parent   parentDir
	// copied are files of the parent that a hardlink of this layer made overlay
	// copy up: in upper, but still the parent's.
	copied map[string]bool
	max    limits
	bytes  int64
	buf    []byte
}

func (a *applier) all(r *bufio.Reader) error {
	defer a.leave()
	t := tar.NewReader(r)
	for n := int64(0); ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("apply layer: read entry %d: %w", n+1, err)
		}
		if n >= a.max.entries {
			return fmt.Errorf("apply layer: more than %d entries", a.max.entries)
		}
		if err := a.entry(h, t); err != nil {
			return fmt.Errorf("apply layer: %s %q: %w", typeName(h.Typeflag), clip(h.Name), err)
		}
	}
	if err := a.leave(); err != nil {
		return fmt.Errorf("apply layer: %w", err)
	}
	// Whoever verifies the stream does it at its end, which lies behind the
	// end of the archive.
	if _, err := io.CopyBuffer(io.Discard, r, a.buf); err != nil {
		return fmt.Errorf("apply layer: %w", err)
	}
	return nil
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeDir:
		return "make directory"
	case tar.TypeLink:
		return "link"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeChar, tar.TypeBlock:
		return "make device"
	case tar.TypeFifo:
		return "make fifo"
	}
	return "create"
}

// clip shortens names made to fill a terminal.
func clip(name string) string {
	if len(name) > 512 {
		return name[:512] + "…"
	}
	return name
}

var (
	errOutside = errors.New("the name leads outside")
	errName    = errors.New("not a name for a file")
)

// entryPath is the path relative to the root that a name in a tar means. An
// absolute name means one below the root. No honest layer has "..", so it is
// refused, even where it would stay inside.
func entryPath(name string) (string, error) {
	if len(name) > maxPath {
		return "", unix.ENAMETOOLONG
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errName
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return "", errOutside
		case len(part) > maxName:
			return "", unix.ENAMETOOLONG
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

// entry puts one entry of the layer into the tree.
func (a *applier) entry(h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo,
		tar.TypeCont, tar.TypeGNUSparse:
	default:
		return fmt.Errorf("entry of unknown type %q", h.Typeflag)
	}
	p, err := entryPath(h.Name)
	if err != nil {
		return err
	}
	if p == "." {
		if h.Typeflag != tar.TypeDir {
			return errName
		}
		if err := a.leave(); err != nil {
			return err
		}
		return a.describe(a.root, ".", ".", a.root, h)
	}
	dir, name := splitPath(p)
	if rest, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
		return a.whiteout(dir, rest)
	}
	if a.bytes += h.Size; a.bytes > a.max.bytes || h.Size < 0 {
		return fmt.Errorf("the layer's files have more than %d bytes", a.max.bytes)
	}
	if err := a.enter(dir, h.ModTime); err != nil {
		return err
	}
	a.parent.changed = true
	switch h.Typeflag {
	case tar.TypeDir:
		return a.mkdir(name, h)
	case tar.TypeLink:
		return a.link(name, h)
	case tar.TypeSymlink:
		return a.node(name, h, func(dir int) error { return unix.Symlinkat(h.Linkname, dir, name) })
	case tar.TypeFifo:
		return a.node(name, h, func(dir int) error { return unix.Mknodat(dir, name, unix.S_IFIFO|0o600, 0) })
	case tar.TypeChar, tar.TypeBlock:
		return a.device(name, h)
	}
	return a.file(name, h, r)
}

// replace calls create, which fails with EEXIST if name is taken; then what is
// there is removed and create called again.
func (a *applier) replace(name string, create func() error) error {
	err := create()
	if err != unix.EEXIST {
		if err == nil {
			a.owners.forget(a.parent.join(name))
		}
		return err
	}
	if err := a.remove(name); err != nil {
		return err
	}
	return create()
}

// remove removes name from the current directory with all that is below it.
func (a *applier) remove(name string) error {
	if a.owners.Len() > 0 {
		a.owners.Delete(a.parent.join(name))
	}
	r := remover{top: -1}
	return r.remove(a.parent.fd, name, 0)
}

func (a *applier) mkdir(name string, h *tar.Header) error {
	err := unix.Mkdirat(a.parent.fd, name, 0o700)
	existed := err == unix.EEXIST
	if existed {
		st, serr := statAt(a.parent.fd, name)
		if serr != nil {
			return serr
		}
		if !isDir(&st) {
			existed = false
			if err := a.remove(name); err != nil {
				return err
			}
			err = unix.Mkdirat(a.parent.fd, name, 0o700)
		}
	}
	if err != nil && !existed {
		return err
	}
	fd, err := openAt(a.parent.fd, name, oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if existed || a.parent.acl {
		if err := stripAttrs(fd, h); err != nil {
			return err
		}
	}
	return a.describe(a.parent.fd, name, a.parent.join(name), fd, h)
}

func (a *applier) file(name string, h *tar.Header, r io.Reader) error {
	fd := -1
	err := a.replace(name, func() (err error) {
		fd, err = openAt(a.parent.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := a.content(fd, r); err != nil {
		return err
	}
	return a.describe(a.parent.fd, name, a.parent.join(name), fd, h)
}

// node makes a file that has no bytes.
func (a *applier) node(name string, h *tar.Header, create func(dir int) error) error {
	if err := a.replace(name, func() error { return create(a.parent.fd) }); err != nil {
		return err
	}
	return a.describe(a.parent.fd, name, a.parent.join(name), -1, h)
}

// device makes a device node. In a user namespace the kernel never does; then,
// in every mode, an empty file stands for it. 0:0 is overlay's whiteout, and must
// not be made whoever we are.
func (a *applier) device(name string, h *tar.Header) error {
	kind := uint32(unix.S_IFCHR)
	if h.Typeflag == tar.TypeBlock {
		kind = unix.S_IFBLK
	}
	if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
		return fmt.Errorf("device number %d:%d: %w", h.Devmajor, h.Devminor, unix.EINVAL)
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	err := error(unix.EPERM)
	if dev != 0 {
		err = a.replace(name, func() error { return unix.Mknodat(a.parent.fd, name, kind|0o600, int(dev)) })
	}
	if err == nil {
		return a.describe(a.parent.fd, name, a.parent.join(name), -1, h)
	} else if err != unix.EPERM {
		return err
	}
	if err := a.file(name, h, strings.NewReader("")); err != nil {
		return err
	}
	p := a.parent.join(name)
	o, _ := a.owners.lookup(p)
	o.UID, o.GID, o.Mode, o.Rdev = uint32(h.Uid), uint32(h.Gid), kind, dev
	a.owners.Set(p, o)
	return nil
}

// link makes a hardlink to a file of this layer or, through the overlay, of a
// lower one. The first name's header has described the file.
func (a *applier) link(name string, h *tar.Header) error {
	p, err := entryPath(h.Linkname)
	if err != nil {
		return fmt.Errorf("to %q: %w", clip(h.Linkname), err)
	}
	dir, base := splitPath(p)
	fd, err := a.resolve(dir, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("to %q: %w", clip(h.Linkname), err)
	}
	defer unix.Close(fd)
	real, err := a.realPath(fd)
	if err != nil {
		return err
	}
	target, self := joinPath(real, base), a.parent.join(name)
	if target == self {
		return nil
	}
	st, err := statAt(fd, base)
	if err != nil {
		return fmt.Errorf("to %q: %w", clip(h.Linkname), err)
	}
	if isDir(&st) {
		return fmt.Errorf("to %q: a directory", clip(h.Linkname))
	}
	o, remembered := a.owners.lookup(target)
	if a.lower != nil {
		ours, err := a.inUpper(target)
		if err != nil {
			return err
		}
		if !ours {
			if a.copied == nil {
				a.copied = make(map[string]bool)
			}
			a.copied[target] = true
			if o, remembered, err = a.lower.Owner(target); err != nil {
				return err
			}
		}
	}
	err = a.replace(name, func() error { return unix.Linkat(fd, base, a.parent.fd, name, 0) })
	if err != nil {
		return fmt.Errorf("to %q: %w", clip(h.Linkname), err)
	}
	if remembered {
		a.owners.Set(target, o)
		a.owners.Set(self, o)
	}
	return nil
}

// whiteout removes what the parent has at .wh.name in dir, or with the opaque
// mark all that it has in dir.
func (a *applier) whiteout(dir, name string) error {
	if a.lower == nil {
		return nil // there is nothing below; and the layer does not hide its own files
	}
	opaque := name == strings.TrimPrefix(opaqueName, whiteoutPrefix)
	if !opaque && strings.HasPrefix(name, whiteoutPrefix) {
		return nil // other marks of aufs, from images of the first years
	}
	if name == "" || name == "." || name == ".." {
		return errName
	}
	// A directory that is not there has nothing to remove.
	fd, err := a.resolve(dir, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	} else if err != nil {
		return err
	}
	unix.Close(fd)
	if err := a.enterExisting(dir); err != nil {
		return err
	}
	a.parent.changed = true
	if opaque {
		return a.hideAll(a.parent.fd, a.parent.real)
	}
	return a.hide(a.parent.fd, a.parent.join(name), name)
}

// hide removes name from dir as far as it is the parent's.
func (a *applier) hide(dir int, p, name string) error {
	st, err := statAt(dir, name)
	if err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	ours, err := a.inUpper(p)
	if err != nil {
		return err
	}
	if ours && !isDir(&st) && !a.copied[p] {
		return nil
	}
	if ours && isDir(&st) {
		fd, err := openAt(dir, name, oDir, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := a.hideAll(fd, p); err != nil {
			return err
		}
		return setTime(fd, ".", st.Mtim)
	}
	a.owners.Delete(p)
	r := remover{top: -1}
	return r.remove(dir, name, 0)
}

// hideAll is hide for each name in the directory.
func (a *applier) hideAll(fd int, p string) error {
	d, err := openAt(fd, ".", oDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	names, err := readNames(d)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := a.hide(d, joinPath(p, name), name); err != nil {
			return err
		}
	}
	return nil
}

// inUpper tells whether the file that the overlay shows at p, a path without
// symlinks, is in the upper directory.
func (a *applier) inUpper(p string) (bool, error) {
	fd, err := unix.Openat2(a.upper, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch err {
	case nil:
		unix.Close(fd)
		return true, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return false, nil
	}
	return false, err
}
