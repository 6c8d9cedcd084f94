package main

// Whether two images hold the same, entry by entry: what modes owe each other.

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// same [-but REGEXP] IMAGE IMAGE
// compares the layers of two images: paths, types, modes, owners, devices, xattrs, hardlinks,
// content; not times, and not the content of regular files whose path matches REGEXP. It prints
// counts for each layer, which end in "same", and fails with the first differences.
func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	var but *regexp.Regexp
	if len(args) == 4 && args[0] == "-but" {
		re, err := regexp.Compile(args[1])
		ts.Check(err)
		but, args = re, args[2:]
	}
	if neg || len(args) != 2 {
		ts.Fatalf("usage: same [-but REGEXP] IMAGE IMAGE")
	}
	a, err := openImage(ts, args[0]).Layers()
	ts.Check(err)
	b, err := openImage(ts, args[1]).Layers()
	ts.Check(err)
	if len(a) != len(b) {
		ts.Fatalf("%s has %d layers, %s has %d", args[0], len(a), args[1], len(b))
	}
	differences := 0
	for i := range a {
		ra, err := a[i].Uncompressed()
		ts.Check(err)
		one, err := entriesOf(ra, but)
		ts.Check(errors.Join(err, ra.Close()))
		rb, err := b[i].Uncompressed()
		ts.Check(err)
		other, err := entriesOf(rb, but)
		ts.Check(errors.Join(err, rb.Close()))
		differ := differing(one, other)
		fmt.Fprintf(ts.Stdout(), "layer %d: %s: ", i, countEntries(other))
		if differences += len(differ); len(differ) == 0 {
			fmt.Fprintln(ts.Stdout(), "same")
			continue
		}
		fmt.Fprintf(ts.Stdout(), "%d differ\n", len(differ))
		for _, path := range differ[:min(len(differ), 40)] {
			ts.Logf("layer %d: %s: %s: %s\nlayer %d: %s: %s: %s", i, args[0], path, one[path].text, i, args[1], path, other[path].text)
		}
	}
	if differences > 0 {
		ts.Fatalf("%d entries differ", differences)
	}
}

// layerEntry is all that is compared of one.
type layerEntry struct {
	kind  byte
	owned bool // by others than root
	attrs int
	text  string
}

func entriesOf(r io.Reader, but *regexp.Regexp) (map[string]layerEntry, error) {
	entries := map[string]layerEntry{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		} else if err != nil {
			return nil, err
		}
		e := layerEntry{kind: h.Typeflag, owned: h.Uid != 0 || h.Gid != 0}
		e.text = fmt.Sprintf("%c %04o %d:%d", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid)
		switch h.Typeflag {
		case tar.TypeReg:
			if but != nil && but.MatchString(h.Name) {
				break
			}
			sum := sha256.New()
			if _, err := io.Copy(sum, tr); err != nil {
				return nil, err
			}
			e.text += fmt.Sprintf(" %d bytes %x", h.Size, sum.Sum(nil)[:8])
		case tar.TypeSymlink, tar.TypeLink:
			e.text += " to " + h.Linkname
		case tar.TypeChar, tar.TypeBlock:
			e.text += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				e.text += fmt.Sprintf(" %s=%q", name, h.PAXRecords[key])
				e.attrs++
			}
		}
		entries[h.Name] = e
	}
}

// differing lists the paths at which the two differ.
func differing(a, b map[string]layerEntry) []string {
	var paths []string
	for path, e := range a {
		if b[path] != e {
			paths = append(paths, path)
		}
	}
	for path := range b {
		if _, ok := a[path]; !ok {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

func countEntries(entries map[string]layerEntry) string {
	kinds := map[byte]int{}
	owned, attrs := 0, 0
	for _, e := range entries {
		kinds[e.kind]++
		if e.owned {
			owned++
		}
		attrs += e.attrs
	}
	return fmt.Sprintf("%d entries: %d files, %d directories, %d symlinks, %d hardlinks, %d devices, %d fifos; %d of others than root, %d xattrs",
		len(entries), kinds[tar.TypeReg], kinds[tar.TypeDir], kinds[tar.TypeSymlink], kinds[tar.TypeLink],
		kinds[tar.TypeChar]+kinds[tar.TypeBlock], kinds[tar.TypeFifo], owned, attrs)
}
