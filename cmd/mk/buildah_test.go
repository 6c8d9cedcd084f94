package main

// mk and buildah build the same recipes, as the same user, and the images are compared
// file by file and field by field. Buildah's differences are known, written into each
// recipe's file, with the reason; any other fails the test.

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rogpeppe/go-internal/txtar"
)

// TestBuildahAgrees builds each testdata/buildah/*.txtar: a context with its Recipe. The
// file setup.sh, if there is one, makes of it what txtar cannot hold. The file known has
// a regular expression a line for what may differ: a line of listImage behind "mk " or
// "buildah ", for who has it and the other has not.
func TestBuildahAgrees(t *testing.T) {
	requireMode(t)
	if testMode() != "subid" {
		t.Skip("mode " + testMode() + ": once is enough, where most people are; buildah wants a range of IDs")
	}
	t.Parallel()
	buildah := newBuildah(t)
	files, err := filepath.Glob("testdata/buildah/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recipes in testdata/buildah: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := txtar.Write(archive, dir); err != nil {
				t.Fatal(err)
			}
			known := knownDifferences(t, filepath.Join(dir, "known"))
			buildah.setup(t, dir)
			ours, theirs := filepath.Join(dir, "mk.tar"), filepath.Join(dir, "buildah.tar")
			buildah.run(t, dir, mkBinary(t), "build", "--progress", "plain", "-o", "type=oci,dest="+ours, "context")
			buildah.run(t, dir, "buildah", append(buildah.store, "build", "--quiet", "--layers", "--isolation", "chroot",
				"--format", "docker", "-f", "context/Recipe", "-t", "x", "context")...)
			buildah.run(t, dir, "buildah", append(buildah.store, "push", "--quiet", "x", "docker-archive:"+theirs)...)
			mine, its := listImage(t, ours), listImage(t, theirs)
			for _, line := range slices.Concat(only("mk", mine, its), only("buildah", its, mine)) {
				if !slices.ContainsFunc(known, func(re *regexp.Regexp) bool { return re.MatchString(line) }) {
					t.Error(line)
				}
			}
		})
	}
}

// knownDifferences reads a file known; lines of # are the reasons.
func knownDifferences(t *testing.T, file string) []*regexp.Regexp {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	known := []*regexp.Regexp{
		// Of every image: buildah signs what it makes.
		regexp.MustCompile(`^buildah label io\.buildah\.version=`),
		// RUN with --isolation=chroot leaves mount points behind that the base has not.
		regexp.MustCompile(`^buildah file /(dev|proc|run|sys) 5 0755 0:0$`),
		regexp.MustCompile(`^buildah file /etc/(hosts|hostname|resolv.conf) 0 0755 0:0 0 `),
		// FROM scratch: BuildKit and mk say that the working directory is /, buildah says nothing.
		regexp.MustCompile(`^(mk workdir /|buildah workdir )$`),
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		re, err := regexp.Compile("^(?:" + line + ")$")
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, re)
	}
	return known
}

// only lists the lines that a has and b has not.
func only(who string, a, b []string) []string {
	var lines []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			lines = append(lines, who+" "+line)
		}
	}
	return lines
}

// buildahPeer is buildah with a store of its own, and the bases at our registry.
type buildahPeer struct {
	store []string // its flags that name the store
	env   []string
}

func newBuildah(t *testing.T) *buildahPeer {
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "mk-buildah-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeTree(dir); err != nil {
			t.Errorf("remove buildah's store: %v", err)
		}
	})
	registry := sharedRegistry(t)
	if err := serveBase("busybox"); err != nil {
		t.Skip(err)
	}
	for name, text := range map[string]string{
		"registries.conf": fmt.Sprintf("unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nprefix = \"docker.io\"\nlocation = %q\ninsecure = true\n", registry),
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"home", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &buildahPeer{
		// overlay would leave attributes of its own in the layers, and is no faster here.
		store: []string{"--storage-driver", "vfs", "--root", dir + "/store", "--runroot", dir + "/runroot", "--signature-policy", dir + "/policy.json"},
		env: append(os.Environ(), "HOME="+dir+"/home", "XDG_RUNTIME_DIR="+dir+"/run", "TMPDIR="+dir+"/tmp", // else its caches lie in /var/tmp, whoever made them
			"CONTAINERS_REGISTRIES_CONF="+dir+"/registries.conf",
			"MK_ROOT="+dir+"/mk", "MK_REGISTRY_MIRRORS=docker.io=http://"+registry, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"),
	}
}

func (b *buildahPeer) run(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = dir, b.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
}

// setup runs the recipe's setup.sh in its context.
func (b *buildahPeer) setup(t *testing.T, dir string) {
	if _, err := os.Stat(filepath.Join(dir, "setup.sh")); err == nil {
		b.run(t, filepath.Join(dir, "context"), "sh", "-euc", ". ../setup.sh")
	}
}

// listImage tells in sorted lines what is in an image: each file of the whole tree, and
// each field of the config that says how it is run.
func listImage(t *testing.T, file string) []string {
	t.Helper()
	img, err := readImage(t, file)
	if err != nil {
		t.Fatal(err)
	}
	lines := listConfig(t, img)
	files := map[string]string{} // by path
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		r, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if err := overlay(files, r); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		lines = append(lines, "file "+name+" "+files[name])
	}
	return lines
}

// overlay lays one layer over what is known of those below it.
func overlay(files map[string]string, layer io.Reader) error {
	below := maps.Clone(files)
	remove := func(name string, itself bool) {
		for have := range below {
			if itself && have == name || strings.HasPrefix(have, strings.TrimSuffix(name, "/")+"/") {
				delete(files, have)
			}
		}
	}
	for tr := tar.NewReader(layer); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		if base, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			if base == ".wh..opq" {
				remove(path.Dir(name), false)
			} else {
				remove(path.Join(path.Dir(name), base), true)
			}
			continue
		}
		if name == "/" {
			continue // the root's mode is who made it first
		}
		if h.Typeflag != tar.TypeDir {
			remove(name, false) // what was below a directory is gone with it
		}
		what := fmt.Sprintf("%c %04o %d:%d", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid)
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, tr); err != nil {
				return err
			}
			what += fmt.Sprintf(" %d %x", h.Size, sum.Sum(nil)[:6])
		case tar.TypeSymlink:
			what += " -> " + h.Linkname
		case tar.TypeLink:
			to := path.Clean("/" + h.Linkname)
			what = files[to]
			if before, _, ok := strings.Cut(what, " shared with "); ok {
				what = before
			}
			// Which of the names comes first is not of the tree.
			pair := []string{name, to}
			slices.Sort(pair)
			files[pair[0]], files[pair[1]] = what+" shared with "+pair[1], what+" shared with "+pair[0]
			continue
		case tar.TypeChar, tar.TypeBlock:
			what += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				what += fmt.Sprintf(" %s=%q", attr, h.PAXRecords[key])
			}
		}
		files[name] = what
	}
}

// listConfig tells what a container of the image would get.
func listConfig(t *testing.T, img v1.Image) []string {
	t.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := file.Config
	lines := []string{
		"author " + file.Author, "platform " + file.OS + "/" + file.Architecture,
		fmt.Sprintf("cmd %q", c.Cmd), fmt.Sprintf("entrypoint %q", c.Entrypoint), fmt.Sprintf("shell %q", c.Shell),
		"user " + c.User, "workdir " + c.WorkingDir, "stopsignal " + c.StopSignal,
		fmt.Sprintf("onbuild %q", c.OnBuild),
	}
	if h := c.Healthcheck; h != nil {
		lines = append(lines, fmt.Sprintf("healthcheck %q %v %v %v %d", h.Test, h.Interval, h.Timeout, h.StartPeriod, h.Retries))
	}
	for _, kv := range c.Env {
		lines = append(lines, "env "+kv)
	}
	for k, v := range c.Labels {
		lines = append(lines, "label "+k+"="+v)
	}
	for p := range c.ExposedPorts {
		lines = append(lines, "port "+p)
	}
	for v := range c.Volumes {
		lines = append(lines, "volume "+v)
	}
	slices.Sort(lines)
	return lines
}

// The comparison itself is looked at, lest it find everything alike.
func TestOverlayOfLayers(t *testing.T) {
	layer := func(headers ...tar.Header) io.Reader {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range headers {
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			tw.Write(make([]byte, h.Size))
		}
		tw.Close()
		return &buf
	}
	files := map[string]string{}
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	for _, l := range []io.Reader{
		layer(dir("d/"), tar.Header{Name: "d/a", Mode: 0o644, Size: 1}, tar.Header{Name: "d/b"}, dir("o/"), tar.Header{Name: "o/x"}, tar.Header{Name: "gone"}),
		layer(tar.Header{Name: "d/.wh.b"}, dir("o/"), tar.Header{Name: "o/.wh..wh..opq"}, tar.Header{Name: "o/y", Uid: 3}, tar.Header{Name: ".wh.gone"},
			tar.Header{Typeflag: tar.TypeLink, Name: "d/l", Linkname: "d/a"}),
	} {
		if err := overlay(files, l); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		got = append(got, name+" "+files[name])
	}
	want := []string{"/d 5 0755 0:0", "/d/a 0 0644 0:0 1 6e340b9cffb3 shared with /d/l", "/d/l 0 0644 0:0 1 6e340b9cffb3 shared with /d/a",
		"/o 5 0755 0:0", "/o/y 0 0000 3:0 0 e3b0c44298fc"}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if d := only("mk", got, want[1:]); len(d) != 1 || d[0] != "mk "+want[0] {
		t.Errorf("differences: %q", d)
	}
}
