package main

// Base images for scripts and examples, made of what the machine has: busybox from
// Debian's busybox-static, debian by mmdebstrap from the machine's own apt sources,
// golang from the Go installation that runs the tests.
//
// debian takes twenty seconds to make, so its tarball is kept in the test cache,
// named by the apt sources it came from. An ordinary user without subuids cannot run
// mmdebstrap at all and lives on a cached one.

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// bases make each base image, at most once a process.
var bases = map[string]func() (v1.Image, error){
	"busybox": busybox,
	"debian":  sync.OnceValues(debianBase),
	"golang":  sync.OnceValues(golangBase),
}

var busybox = sync.OnceValues(busyboxBase)

var served sync.Map // base name → func() error that pushed it

// serveBase pushes a base to the shared registry as library/NAME:latest.
func serveBase(base string) error {
	build, ok := bases[base]
	if !ok {
		return fmt.Errorf("no such base")
	}
	push, _ := served.LoadOrStore(base, sync.OnceValue(func() error {
		img, err := build()
		if err != nil {
			return err
		}
		ref, err := name.NewTag(shared.registry+"/library/"+base+":latest", name.Insecure)
		if err != nil {
			return err
		}
		return remote.Write(ref, img)
	}))
	return push.(func() error)()
}

const basePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// busyboxBase is one gzip layer: the static binary, a link per applet, and the few
// files of /etc that name users.
func busyboxBase() (v1.Image, error) {
	var buf bytes.Buffer
	if err := writeBusybox(&buf); err != nil {
		return nil, err
	}
	layer, err := newLayer(buf.Bytes(), true)
	if err != nil {
		return nil, err
	}
	return baseImage(layer, v1.Config{Env: []string{basePath}, Cmd: []string{"sh"}})
}

func writeBusybox(w io.Writer) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	if err := checkStatic(path); err != nil {
		return err
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	tw := tar.NewWriter(w)
	dir := func(name string, mode int64) error {
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: time.Unix(0, 0)})
	}
	file := func(name string, mode int64, content string) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.WriteString(tw, content)
		return err
	}
	errs := []error{
		dir("bin", 0o755), file("bin/busybox", 0o755, string(binary)),
		dir("etc", 0o755),
		file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		file("etc/group", 0o644, "root:x:0:\ndaemon:x:1:\nstaff:x:50:app\napp:x:1000:\nnogroup:x:65534:\n"),
		dir("home", 0o755), dir("root", 0o700), dir("tmp", 0o1777), dir("usr", 0o755), dir("var", 0o755), dir("var/tmp", 0o1777),
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet == "busybox" {
			continue
		}
		errs = append(errs, tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777, ModTime: time.Unix(0, 0),
		}))
	}
	return errors.Join(append(errs, tw.Close())...)
}

func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamic; the package busybox-static has a static one", path)
		}
	}
	return nil
}

// debianBase is what mmdebstrap makes, device nodes and all, as one uncompressed layer.
func debianBase() (v1.Image, error) {
	sources, err := aptSources()
	if err != nil {
		return nil, err
	}
	key := sha256.New()
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		key.Write(text)
	}
	path, err := cached(fmt.Sprintf("debian-%x.tar", key.Sum(nil)[:6]), func(path string) error {
		suite, err := osRelease("VERSION_CODENAME")
		if err != nil {
			return err
		}
		args := append([]string{"--variant=minbase", "--format=tar", suite, path}, sources...)
		out, err := exec.Command("mmdebstrap", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("mmdebstrap: %w: %s", err, lastLine(out))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	layer, err := newFileLayer(path)
	if err != nil {
		return nil, err
	}
	return baseImage(layer, v1.Config{Env: []string{basePath}, Cmd: []string{"bash"}})
}

// aptSources returns the distribution's own source files; those of other vendors are
// left out, since their keys and suites are their own affair.
func aptSources() ([]string, error) {
	var found []string
	for _, path := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list.d/ubuntu.sources"} {
		text, err := os.ReadFile(path)
		if err == nil && len(bytes.TrimSpace(text)) > 0 {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no apt sources of a Debian or Ubuntu in /etc/apt")
	}
	return found, nil
}

func osRelease(key string) (string, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			return strings.Trim(strings.TrimSpace(value), `"`), nil
		}
	}
	return "", fmt.Errorf("/etc/os-release has no %s", key)
}

// golangBase is busybox and the Go toolchain without its tests: enough for go build
// with CGO_ENABLED=0 and no network.
func golangBase() (v1.Image, error) {
	path, err := cached("golang-"+runtime.Version()+".tar", func(path string) error {
		goroot, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("go env GOROOT: %w", err)
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := writeToolchain(f, strings.TrimSpace(string(goroot))); err != nil {
			return err
		}
		return f.Close()
	})
	if err != nil {
		return nil, err
	}
	under, err := busybox()
	if err != nil {
		return nil, err
	}
	layer, err := newFileLayer(path)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(under, layer)
	if err != nil {
		return nil, err
	}
	return mutate.Config(img, v1.Config{
		Env:        []string{basePath + ":/usr/local/go/bin", "GOTOOLCHAIN=local", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false"},
		WorkingDir: "/src",
	})
}

func writeToolchain(w io.Writer, goroot string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(goroot, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(goroot, path)
		if err != nil {
			return err
		}
		top, rest, _ := strings.Cut(rel, "/")
		switch {
		case top == "test" || top == "doc" || top == "api" || top == "misc",
			d.Name() == "testdata",
			top == "src" && strings.HasPrefix(rest, "cmd/") && !strings.HasPrefix(rest, "cmd/internal") && !strings.HasPrefix(rest, "cmd/vendor"):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case strings.HasSuffix(rel, "_test.go"):
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = filepath.Join("usr/local/go", rel), 0, 0, "", ""
		if d.IsDir() {
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	return errors.Join(err, tw.Close())
}

// cached returns the path of a file of the test cache, made by build when it is not
// there yet. A rename puts it there, so that two test runs at once are no harm.
func cached(file string, build func(path string) error) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, file)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp(dir, ".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := build(filepath.Join(tmp, file)); err != nil {
		return "", err
	}
	return path, os.Rename(filepath.Join(tmp, file), path)
}

// cacheDir is $MK_TEST_CACHE, else .cache/bases of the checkout, else the user's own
// cache where the checkout is another's.
func cacheDir() (string, error) {
	if dir := os.Getenv("MK_TEST_CACHE"); dir != "" {
		return dir, nil
	}
	checkout, err := filepath.Abs("../../.cache/bases")
	if err != nil {
		return "", err
	}
	if os.MkdirAll(checkout, 0o755) == nil {
		if probe, err := os.MkdirTemp(checkout, ".probe-"); err == nil {
			return checkout, os.Remove(probe)
		}
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(user, "mk-test")
	return dir, os.MkdirAll(dir, 0o755)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// baseImage is an OCI image of one layer.
func baseImage(layer v1.Layer, config v1.Config) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layer)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, file)
}

// tarLayer is a layer of known bytes, sent as they are.
type tarLayer struct {
	open         func() (io.ReadCloser, error)
	uncompressed func() (io.ReadCloser, error)
	digest, diff v1.Hash
	size         int64
	media        types.MediaType
}

func (l *tarLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *tarLayer) DiffID() (v1.Hash, error)             { return l.diff, nil }
func (l *tarLayer) Compressed() (io.ReadCloser, error)   { return l.open() }
func (l *tarLayer) Uncompressed() (io.ReadCloser, error) { return l.uncompressed() }
func (l *tarLayer) Size() (int64, error)                 { return l.size, nil }
func (l *tarLayer) MediaType() (types.MediaType, error)  { return l.media, nil }

var _ v1.Layer = (*tarLayer)(nil)

// newFileLayer is an uncompressed layer that is a tar file.
func newFileLayer(path string) (*tarLayer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	digest, size, err := v1.SHA256(f)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return os.Open(path) }
	return &tarLayer{open: open, uncompressed: open, digest: digest, diff: digest, size: size, media: types.OCIUncompressedLayer}, nil
}

// newLayer is a layer of bytes in memory, gzip compressed if wanted.
func newLayer(content []byte, compress bool) (*tarLayer, error) {
	bytesOf := func(b []byte) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	diff, size, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	plain := bytesOf(content)
	if !compress {
		return &tarLayer{open: plain, uncompressed: plain, digest: diff, diff: diff, size: size, media: types.OCIUncompressedLayer}, nil
	}
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	if _, err := zw.Write(content); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	digest, size, err := v1.SHA256(bytes.NewReader(buf.Bytes()))
	if err != nil {
		return nil, err
	}
	return &tarLayer{open: bytesOf(buf.Bytes()), uncompressed: plain, digest: digest, diff: diff, size: size, media: types.OCILayer}, nil
}
