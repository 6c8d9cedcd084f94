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

	"github.com/opencontainers/go-digest"
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
	a := &applier{ctx: ctx, owners: d.owners, remember: d.store.remember, parent: d.Parent(), lower: -1,
		max: max, buf: make([]byte, 256<<10), uid: os.Geteuid(), names: d.names, travels: d.travels}
	upper, err := os.OpenFile(d.Upper(), oDir, 0)
	if err != nil {
		return fmt.Errorf("apply layer: %w", err)
	}
	defer upper.Close()
	a.upper = int(upper.Fd())
	if a.parent != nil {
		lower, err := a.parent.Mount()
		if err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
		defer lower.Close()
		a.lower = int(lower.Fd())
		if a.inherits, err = a.parent.remembers(); err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
	}
	in := &countingReader{ctx: ctx, r: layer}
	if err := a.all(bufio.NewReaderSize(in, 256<<10)); err != nil {
		return err
	}
	d.read, d.names, d.travels = in.n, a.names, a.travels
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
	owners   *Owners
	remember bool
	inherits bool      // a parent's table has entries, which ours must override
	parent   *Snapshot // nil: nothing to white out
	upper    int       // the root of what we write
	lower    int       // the root of what the parent shows; -1
	uid      int       // ours

	current     *place // where the last entry went; nil
	currentName string // as the layer calls it
	// copied are files of the parent that a hardlink of this layer made us copy
	// up: in upper, but still the parent's to be whited out.
	copied map[string]bool
	names  []uint64 // nil, or of files that are not made: see ApplyListing
	// travels is the chain that the first file must name: see ApplyOutline. "" is that it did, or need not.
	travels digest.Digest

	max   limits
	bytes int64
	buf   []byte
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
	if a.travels != "" {
		if h.Name != travelName || h.Typeflag != tar.TypeReg {
			return fmt.Errorf("not what an outline begins with: %w", errName)
		}
		return a.travelled(h, r)
	}
	p, err := entryPath(h.Name)
	if err != nil {
		return err
	}
	if p == "." {
		return a.root(h)
	}
	dir, name := splitPath(p)
	if rest, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
		return a.whiteout(dir, rest)
	}
	if a.bytes += h.Size; a.bytes > a.max.bytes || h.Size < 0 {
		return fmt.Errorf("the layer's files have more than %d bytes", a.max.bytes)
	}
	at, err := a.enter(dir, h.ModTime)
	if err != nil {
		return err
	}
	return a.create(at, name, h, r)
}

// root gives the root directory what its entry says.
func (a *applier) root(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errName
	}
	if err := a.leave(); err != nil {
		return err
	}
	if err := stripAttrs(a.upper, h); err != nil {
		return err
	}
	return a.describe(&place{real: ".", upper: a.upper, lower: a.lower}, ".", a.upper, h)
}
