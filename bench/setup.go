package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// bench is the place of all works: contexts, stores, and the root that floors use.
//
//	root/      a busybox tree, the lower directory of the floors' overlays
//	base/      the context and recipe of the image "bench", the same for all
//	files/     10,000 small files and 500 MiB in five large ones
//	small/     10,000 small files
//	many/      200,000 tiny files, made for the lines that want them
//	mk/ peers/ the stores
//	registry/  docker-registry's, and pulled/ copied/ what came from it
//	buildkit/  its daemon's
type bench struct {
	dir      string
	mk       string
	peers    []peer
	buildkit *buildkit // nil where there is none

	closers []func() // end what the bench started
}

// peer is another builder: the flags before every subcommand, and those of a build.
type peer struct {
	name      string
	args      []string
	buildArgs []string
}

const baseRecipe = `FROM scratch
COPY busybox /bin/busybox
COPY dirs /
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENV PATH=/bin
`

func newBench(mk string, alone bool) (*bench, error) {
	if os.Geteuid() == 0 {
		fmt.Fprintln(os.Stderr, "bench: you are root: this is not what users of mk are; make bench takes an ordinary user")
	}
	dir, err := os.MkdirTemp("", "mk-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, mk: mk}
	if err := b.setup(alone); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *bench) Close() {
	for _, end := range b.closers {
		end()
	}
	if remove(b.dir) != nil { // files of subordinate IDs, of peers
		exec.Command("unshare", "--map-root-user", "--map-auto", "rm", "-rf", b.dir).Run()
	}
}

// remove removes a tree with directories that may not be read: the kernel makes those
// beside an overlay.
func remove(dir string) error {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

func (b *bench) setup(alone bool) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("a static busybox is needed: %w", err)
	}
	binary, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	for _, dir := range []string{"base/dirs/proc", "base/dirs/sys", "base/dirs/dev", "base/dirs/etc", "root/bin", "root/proc", "run"} {
		if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
			return err
		}
	}
	for _, file := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{
		{"base/busybox", binary, 0o755}, {"base/Dockerfile", []byte(baseRecipe), 0o644}, {"root/bin/busybox", binary, 0o755},
		{"policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644},
	} {
		if err := os.WriteFile(b.path(file.name), file.text, file.mode); err != nil {
			return err
		}
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		os.Symlink("busybox", b.path("root/bin", applet))
	}
	if err := writeFiles(b.path("small"), 10000, 0); err != nil {
		return err
	}
	if err := writeFiles(b.path("files"), 10000, 5); err != nil {
		return err
	}
	if out, err := b.command(b.mk, "build", "-t", "bench", "-f", b.path("base/Dockerfile"), b.path("base")).CombinedOutput(); err != nil {
		return fmt.Errorf("mk build of the base: %w\n%s", err, out)
	}
	if !alone {
		b.findPeers()
	}
	return nil
}

// many makes the large context, the first time that it is wanted.
func (b *bench) many() error {
	if _, err := os.Stat(b.path("many")); err == nil {
		return nil
	}
	dir := b.path("many.new")
	for i := range 200_000 {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i%400))
		if i < 400 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%06d", i)), []byte(strconv.Itoa(i)), 0o644); err != nil {
			return err
		}
	}
	return os.Rename(dir, b.path("many"))
}

// writeFiles makes small files of 100 bytes to 4 kB in 100 directories, and large ones of
// 100 MiB that do not compress well: every other block is noise.
func writeFiles(dir string, small, large int) error {
	noise := rand.NewChaCha8([32]byte{7})
	dice := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 1<<20)
	for i := range small {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%100))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		size := 100 + dice.IntN(4000)
		noise.Read(buf[:size])
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%05d", i)), buf[:size], 0o644); err != nil {
			return err
		}
	}
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), 1<<20/44+1)[:1<<20]
	for i := range large {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("large%d", i)))
		if err != nil {
			return err
		}
		for j := range 100 {
			block := text
			if j%2 == 0 {
				noise.Read(buf)
				block = buf
			}
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// command runs with stores of the bench's own.
func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "MK_ROOT="+b.path("mk"), "HOME="+b.path("home"), "XDG_RUNTIME_DIR="+b.path("run"), "BENCH="+b.dir)
	return cmd
}

// findPeers keeps the peers that can build the base here. crun wants pure cgroup v2, so
// that runc is tried where it is there; what nothing mends is said.
func (b *bench) findPeers() {
	store := func(name string) []string {
		return []string{"--root", b.path("peers", name, "root"), "--runroot", b.path("peers", name, "run"), "--storage-driver", "overlay"}
	}
	buildah, podman := store("buildah"), append(store("podman"), "--cgroup-manager", "cgroupfs")
	for _, ways := range [][]peer{
		{{"buildah", buildah, nil}, {"buildah", buildah, []string{"--runtime", "runc"}}, {"buildah", buildah, []string{"--isolation", "chroot"}}},
		{{"podman", podman, nil}, {"podman", append(slices.Clone(podman), "--runtime", "runc"), nil}},
	} {
		if _, err := exec.LookPath(ways[0].name); err != nil {
			fmt.Fprintf(os.Stderr, "%s is left out: %v\n", ways[0].name, err)
			continue
		}
		var err error
		var out []byte
		for _, p := range ways {
			if out, err = b.command(p.name, p.build("--no-cache", "-t", "bench", b.path("base"))...).CombinedOutput(); err == nil {
				b.peers = append(b.peers, p)
				break
			}
		}
		if err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			fmt.Fprintf(os.Stderr, "%s is left out: %v: %s\n", ways[0].name, err, lines[len(lines)-1])
		}
	}
	k, err := b.startBuildkit()
	if err != nil {
		fmt.Fprintf(os.Stderr, "buildkit is left out: %v\n", err)
		return
	}
	b.buildkit = k
	b.closers = append(b.closers, k.stop)
}

// build is the peer's command line for a build with its cache on, and with the host's
// network, as mk's RUN has.
func (p peer) build(args ...string) []string {
	return slices.Concat(p.args, []string{"build", "--layers", "--network", "host"}, p.buildArgs, args)
}

// command line of anything else.
func (p peer) command(args ...string) []string { return slices.Concat(p.args, args) }

// describe says what machine the numbers are of.
func (b *bench) describe() {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("Linux %s, %d processors, uid %d\n", strings.TrimSpace(string(kernel)), runtime.NumCPU(), os.Getuid())
	version := func(name string, args ...string) {
		if out, err := b.command(name, args...).Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			fmt.Println(strings.TrimSpace(first))
		}
	}
	version(b.mk, "version")
	for _, p := range b.peers {
		version(p.name, "--version")
		if len(p.buildArgs) > 0 {
			fmt.Println("  with", strings.Join(p.buildArgs, " "))
		}
	}
	if b.buildkit != nil {
		version("buildkitd", "--version")
	}
	fmt.Println()
}
