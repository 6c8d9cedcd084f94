package builder

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"mk/snapshot"
)

// Difference is a step of a recipe that made something else in a second build of the
// same, and what.
type Difference struct {
	Step  *Node
	Files []FileDifference // by path
	// Cause is the first step of the whole recipe that made something else, where that
	// is an earlier one, of another stage.
	Cause *Difference
	// Image says that the step's layer is one of the image's. Else the image is the same
	// all the same.
	Image bool
}

// FileDifference is one path of a step's layer, and all that differs of it.
type FileDifference struct {
	Path string
	What []string // "mode: 0644, 0600"
}

// Compare finds the first layer of the image that is not the same in two results of
// one recipe, executed apart. Where all are, it is the first step of another stage
// that made something else, and where there is none of that either, nil.
//
// Times of files count where there is an epoch. Without one they tell when a
// step was executed, and are never the same.
func (b *Builder) Compare(ctx context.Context, first, second *Result) (*Difference, error) {
	c := comparison{Builder: b, first: first.engine.nodes, second: second.engine.nodes, times: first.Plan.Epoch != nil}
	var layers []*Node
	for t := first.Plan.Target.Tree; t.Node != nil; t = t.Node.Parent {
		layers = append(layers, t.Node)
	}
	slices.Reverse(layers)
	other := map[*Node]*Node{}
	var all []*Node
	for i, st := range first.Plan.Stages {
		for j, n := range st.Nodes {
			if len(second.Plan.Stages) <= i || len(second.Plan.Stages[i].Nodes) <= j {
				return nil, errors.New("compare builds: the second has fewer steps")
			}
			other[n] = second.Plan.Stages[i].Nodes[j]
			all = append(all, n)
		}
	}
	image, err := c.firstOf(ctx, layers, other)
	if err != nil {
		return nil, err
	}
	cause, err := c.firstOf(ctx, all, other)
	if image == nil || err != nil {
		return cause, err
	}
	image.Image = true
	if cause.Step != image.Step {
		image.Cause = cause
	}
	return image, nil
}

// comparison is of two builds.
type comparison struct {
	*Builder
	first, second map[*Node]*made
	times         bool
}

// firstOf finds the first of some steps whose layers differ.
func (c *comparison) firstOf(ctx context.Context, steps []*Node, other map[*Node]*Node) (*Difference, error) {
	for _, n := range steps {
		one, two := c.first[n], c.second[other[n]]
		if one == nil || two == nil {
			return nil, fmt.Errorf("compare builds: %s was not executed in both", n.Vertex.Name)
		}
		if c.times && one.digests.DiffID == two.digests.DiffID || !c.times && one.digests.Content == two.digests.Content {
			continue
		}
		files, err := c.compareLayers(ctx, one.id, two.id, c.times)
		return &Difference{Step: n, Files: files}, err
	}
	return nil, nil
}

func (b *Builder) compareLayers(ctx context.Context, one, two snapshot.ID, times bool) ([]FileDifference, error) {
	first, err := b.layerFiles(ctx, one)
	if err != nil {
		return nil, err
	}
	second, err := b.layerFiles(ctx, two)
	if err != nil {
		return nil, err
	}
	both := maps.Clone(first)
	maps.Copy(both, second)
	var list []FileDifference
	located := false
	for _, name := range slices.Sorted(maps.Keys(both)) {
		a, b2 := first[name], second[name]
		what := differences(a, b2, times)
		if a != nil && b2 != nil && a.sum != b2.sum && !located {
			located = true // reading both once more is for the first of them
			at, err := b.firstByte(ctx, one, two, name)
			if err != nil {
				return nil, err
			}
			what = append(what, fmt.Sprintf("content: differs from byte %d on", at))
		} else if a != nil && b2 != nil && a.sum != b2.sum {
			what = append(what, fmt.Sprintf("content: sha256 %.12s, %.12s", a.sum, b2.sum))
		}
		if len(what) > 0 {
			list = append(list, FileDifference{path.Join("/", name), what})
		}
	}
	return list, nil
}

// layerFile is an entry of a layer.
type layerFile struct {
	*tar.Header
	sum string // of a file's bytes
}

// readLayer calls f for every entry of a snapshot's layer.
func (b *Builder) readLayer(ctx context.Context, id snapshot.ID, f func(*tar.Header, io.Reader) error) error {
	snap, err := b.Trees.Get(id)
	if err != nil {
		return err
	}
	from, to := io.Pipe()
	defer from.Close() // ends the writer
	go func() { to.CloseWithError(snap.WriteLayer(ctx, to)) }()
	for t := tar.NewReader(from); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = f(h, t)
		}
		if err != nil {
			return err
		}
	}
}

func (b *Builder) layerFiles(ctx context.Context, id snapshot.ID) (map[string]*layerFile, error) {
	files := map[string]*layerFile{}
	err := b.readLayer(ctx, id, func(h *tar.Header, r io.Reader) error {
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return err
		}
		files[path.Clean(h.Name)] = &layerFile{h, hex.EncodeToString(sum.Sum(nil))}
		return nil
	})
	return files, err
}

var typeNames = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "directory", tar.TypeSymlink: "symbolic link", tar.TypeLink: "hard link",
	tar.TypeChar: "character device", tar.TypeBlock: "block device", tar.TypeFifo: "fifo",
}

// differences tells what two entries of one path do not have in common, but for
// their content. nil is an entry that is not there.
func differences(a, b *layerFile, times bool) []string {
	switch {
	case a == nil:
		return []string{"only in the second build"}
	case b == nil:
		return []string{"only in the first build"}
	case a.Typeflag != b.Typeflag:
		return []string{fmt.Sprintf("type: %s, %s", typeNames[a.Typeflag], typeNames[b.Typeflag])}
	}
	var what []string
	add := func(name, one, two string) {
		if one != two {
			what = append(what, fmt.Sprintf("%s: %s, %s", name, one, two))
		}
	}
	add("mode", fmt.Sprintf("%04o", a.Mode&0o7777), fmt.Sprintf("%04o", b.Mode&0o7777))
	add("owner", fmt.Sprintf("%d:%d", a.Uid, a.Gid), fmt.Sprintf("%d:%d", b.Uid, b.Gid))
	add("size", fmt.Sprint(a.Size), fmt.Sprint(b.Size))
	add("target", a.Linkname, b.Linkname)
	add("device", fmt.Sprintf("%d:%d", a.Devmajor, a.Devminor), fmt.Sprintf("%d:%d", b.Devmajor, b.Devminor))
	if times {
		const form = "2006-01-02T15:04:05.999999999Z"
		add("mtime", a.ModTime.UTC().Format(form), b.ModTime.UTC().Format(form))
	}
	all := maps.Clone(a.PAXRecords)
	maps.Copy(all, b.PAXRecords)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			add("attribute "+name, fmt.Sprintf("%.40q", a.PAXRecords[key]), fmt.Sprintf("%.40q", b.PAXRecords[key]))
		}
	}
	return what
}

// firstByte finds where the contents of one file of two layers part, from 0.
func (b *Builder) firstByte(ctx context.Context, one, two snapshot.ID, name string) (int64, error) {
	at := int64(0)
	found := errors.New("found")
	err := b.readLayer(ctx, one, func(h *tar.Header, first io.Reader) error {
		if path.Clean(h.Name) != name {
			return nil
		}
		err := b.readLayer(ctx, two, func(h *tar.Header, second io.Reader) error {
			if path.Clean(h.Name) != name {
				return nil
			}
			x, y := bufio.NewReader(first), bufio.NewReader(second)
			for ; ; at++ {
				p, err := x.ReadByte()
				q, err2 := y.ReadByte()
				if err != nil || err2 != nil || p != q { // an end is a difference too
					return found
				}
			}
		})
		if err == nil {
			err = found
		}
		return err
	})
	if errors.Is(err, found) {
		err = nil
	}
	return at, err
}
