package main

// What an image holds, read by go-containerregistry and archive/tar and not by mk's
// own packages: the scripts' independent eye.

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/rogpeppe/go-internal/testscript"
)

// tree [-t] IMAGE [LAYER...]
// prints the entries of an image's layers, or of the ones with these numbers (0 is the
// base, -1 the last): type, mode, owner, path, then size, link or device, then xattrs;
// with -t also the time. IMAGE is a name in the store, an archive, or an OCI directory.
func cmdTree(ts *testscript.TestScript, neg bool, args []string) {
	times := false
	if len(args) > 0 && args[0] == "-t" {
		times, args = true, args[1:]
	}
	if len(args) == 0 {
		ts.Fatalf("usage: tree [-t] IMAGE [LAYER...]")
	}
	layers, err := openImage(ts, args[0]).Layers()
	ts.Check(err)
	for _, layer := range pick(ts, layers, args[1:]) {
		r, err := layer.Uncompressed()
		ts.Check(err)
		ts.Check(listTar(ts.Stdout(), r, times))
		r.Close()
	}
}

// listTar writes a line for each entry, in the archive's order.
func listTar(w io.Writer, r io.Reader, times bool) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		what := ""
		switch h.Typeflag {
		case tar.TypeReg:
			what = fmt.Sprintf(" %d", h.Size)
		case tar.TypeSymlink:
			what = " -> " + h.Linkname
		case tar.TypeLink:
			what = " = " + h.Linkname
		case tar.TypeChar, tar.TypeBlock:
			what = fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		}
		kind := map[byte]string{tar.TypeReg: "-", tar.TypeDir: "d", tar.TypeSymlink: "l", tar.TypeLink: "h", tar.TypeChar: "c", tar.TypeBlock: "b", tar.TypeFifo: "p"}[h.Typeflag]
		fmt.Fprintf(w, "%s %04o %d:%d %s%s", kind, h.Mode&0o7777, h.Uid, h.Gid, h.Name, what)
		var xattrs []string
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				xattrs = append(xattrs, fmt.Sprintf(" %s=%q", name, value))
			}
		}
		slices.Sort(xattrs)
		fmt.Fprint(w, strings.Join(xattrs, ""))
		if times {
			fmt.Fprint(w, " ", h.ModTime.UTC().Format(time.RFC3339Nano))
		}
		if h.Uname+h.Gname != "" {
			fmt.Fprintf(w, " names=%s:%s", h.Uname, h.Gname)
		}
		fmt.Fprintln(w)
	}
}

// pick returns the elements with these numbers, or all when there are none; a negative
// number counts from the end.
func pick[T any](ts *testscript.TestScript, list []T, numbers []string) []T {
	if len(numbers) == 0 {
		return list
	}
	var picked []T
	for _, number := range numbers {
		n, err := strconv.Atoi(number)
		ts.Check(err)
		if n < 0 {
			n += len(list)
		}
		if n < 0 || n >= len(list) {
			ts.Fatalf("no layer %s: the image has %d", number, len(list))
		}
		picked = append(picked, list[n])
	}
	return picked
}

// layers IMAGE [LAYER...]
// prints the digests of uncompressed layers, base first.
func cmdLayers(ts *testscript.TestScript, neg bool, args []string) {
	config, err := openImage(ts, args[0]).ConfigFile()
	ts.Check(err)
	for _, diff := range pick(ts, config.RootFS.DiffIDs, args[1:]) {
		fmt.Fprintln(ts.Stdout(), diff)
	}
}

// config IMAGE
// prints the image's config file as indented JSON, after checking every digest and
// size of the image, and that history tells of as many layers as there are.
func cmdConfig(ts *testscript.TestScript, neg bool, args []string) {
	img := openImage(ts, args[0])
	ts.Check(validate.Image(img))
	file, err := img.ConfigFile()
	ts.Check(err)
	told := 0
	for _, h := range file.History {
		if !h.EmptyLayer {
			told++
		}
	}
	if told != len(file.RootFS.DiffIDs) {
		ts.Fatalf("history tells of %d layers, the image has %d", told, len(file.RootFS.DiffIDs))
	}
	raw, err := img.RawConfigFile()
	ts.Check(err)
	var config any
	ts.Check(json.Unmarshal(raw, &config))
	enc := json.NewEncoder(ts.Stdout())
	enc.SetIndent("", "\t")
	enc.SetEscapeHTML(false)
	ts.Check(enc.Encode(config))
}

// openImage opens an archive or an OCI directory of the script, or saves the image of
// that name from the store first.
func openImage(ts *testscript.TestScript, arg string) v1.Image {
	s := theScript(ts)
	path := ts.MkAbs(arg)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(s.t.TempDir(), "saved.tar")
		ts.Check(ts.Exec(s.binary, "save", "-o", path, arg))
	}
	img, err := readImage(s.t, path)
	ts.Check(err)
	return img
}

// readImage reads the only image of a docker archive, an OCI archive or OCI directory.
func readImage(t *testing.T, path string) (v1.Image, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		if img, err := tarball.ImageFromPath(path, nil); err == nil {
			return img, nil
		}
		dir := t.TempDir()
		if err := unpackPlain(path, dir); err != nil {
			return nil, err
		}
		path = dir
	}
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images, not one", path, len(manifest.Manifests))
	}
	desc := manifest.Manifests[0]
	if desc.MediaType.IsIndex() {
		inner, err := index.ImageIndex(desc.Digest)
		if err != nil {
			return nil, err
		}
		m, err := inner.IndexManifest()
		if err != nil {
			return nil, err
		}
		return inner.Image(m.Manifests[0].Digest)
	}
	return index.Image(desc.Digest)
}

// unpackPlain unpacks an archive of our own making: files and directories only.
func unpackPlain(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.MkdirAll(filepath.Clean(h.Name), 0o755); err != nil {
				return err
			}
		case tar.TypeReg:
			if err := root.MkdirAll(filepath.Dir(h.Name), 0o755); err != nil {
				return err
			}
			out, err := root.Create(h.Name)
			if err != nil {
				return err
			}
			_, err = io.Copy(out, tr)
			if err := errors.Join(err, out.Close()); err != nil {
				return err
			}
		}
	}
}
