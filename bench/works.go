package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	inmemory "github.com/google/go-containerregistry/pkg/registry"
)

// floorStep is the least that a step or a container can be: namespaces, an overlay over
// the same tree, /proc, a chroot, the command. $1 is a fresh directory, $2... the command.
const floorStep = `
dir=$1; shift
mkdir -p $dir/upper $dir/work $dir/merged
exec unshare -Urmpf sh -c '
	mount -t overlay -o userxattr,volatile,lowerdir=$BENCH/root,upperdir=$0/upper,workdir=$0/work overlay $0/merged &&
	mount -t proc proc $0/merged/proc && exec chroot $0/merged "$@"' $dir "$@"
`

// write20000 is the same text for the floor and the RUN step.
const write20000 = `mkdir /d && cd /d && i=0; while [ $i -lt 20000 ]; do echo $i > $i; i=$((i+1)); done`

func (b *bench) works() []*work {
	debian := sync.OnceValue(b.debian)
	return append([]*work{
		b.version(), b.runTrue(), b.fiftySteps(), b.sleeps(), b.chain(), b.fan(), b.plan(),
		b.noOpRebuild(), b.noOpCache(), b.oneChanged(), b.copyFiles(), b.writeFilesInStep(), b.save(), b.copyAndSave(), b.memory(),
		b.noOpMany(), b.hashMany(), b.memoryMany(), b.published(), b.wayOut(), b.layerDigest(),
	}, slices.Concat(b.containers(), b.modes(debian), []*work{b.installs(debian)}, b.registryWorks())...)
}

// recipe writes one into the bench's directory.
func (b *bench) recipe(name string, lines ...string) (string, error) {
	path := b.path(name)
	return path, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// floor runs floorStep on a directory that is removed before the next round.
func (b *bench) floor(script string) contestant {
	return contestant{
		name:    "floor",
		prepare: func() error { return remove(b.path("floor")) },
		command: func() *exec.Cmd { return b.command("sh", "-c", script) },
	}
}

// builders has mk and the peers build the same recipe and context, without the cache
// when cold.
func (b *bench) builders(recipe, context string, cold bool) []contestant {
	args := []string{"-t", "work", "-f", recipe}
	if cold {
		args = append(args, "--no-cache")
	}
	args = append(args, context)
	all := []contestant{{name: "mk", command: func() *exec.Cmd {
		return b.command(b.mk, append([]string{"build"}, args...)...)
	}}}
	for _, p := range b.peers {
		all = append(all, contestant{name: p.name, command: func() *exec.Cmd {
			return b.command(p.name, p.build(args...)...)
		}})
	}
	if b.buildkit != nil {
		all = append(all, contestant{name: "buildkit", command: func() *exec.Cmd {
			if cold {
				return b.buildkitBuild(recipe, context, "--no-cache")
			}
			return b.buildkitBuild(recipe, context)
		}})
	}
	return all
}

func (b *bench) runTrue() *work {
	w := &work{name: "run image true", mark: "≤ 3.00"}
	w.contestants = append(w.contestants, b.floor("set -- $BENCH/floor true; "+floorStep),
		contestant{name: "mk", command: func() *exec.Cmd { return b.command(b.mk, "run", "--rm", "bench", "true") }})
	for _, p := range b.peers {
		if p.name == "podman" {
			w.contestants = append(w.contestants, contestant{name: "podman", command: func() *exec.Cmd {
				return b.command("podman", p.command("run", "--rm", "--network", "host", "bench", "true")...)
			}})
		}
	}
	if _, err := exec.LookPath("bwrap"); err == nil {
		w.contestants = append(w.contestants, contestant{name: "bwrap (no overlay)", command: func() *exec.Cmd {
			return b.command("bwrap", "--unshare-all", "--bind", b.path("root"), "/", "--proc", "/proc", "true")
		}})
	}
	return w
}

func (b *bench) fiftySteps() *work {
	lines := []string{"FROM bench"}
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("RUN true %d", i))
	}
	recipe, err := b.recipe("Fifty", lines...)
	w := &work{name: "50 RUN steps, cold", mark: "≤ 3.00"}
	floor := b.floor("step() {\n(" + floorStep + ")\n}\nfor i in $(seq 50); do step $BENCH/floor/$i true || exit; done")
	if err != nil {
		floor.prepare = func() error { return err }
	}
	w.contestants = append([]contestant{floor}, b.builders(recipe, b.path("base"), true)...)
	return w
}

func (b *bench) noOpRebuild() *work {
	lines := []string{"FROM bench", "COPY . /context"}
	for i := range 29 {
		lines = append(lines, fmt.Sprintf("RUN true %d", i))
	}
	recipe, err := b.recipe("NoOp", lines...)
	w := &work{name: "no-op rebuild, 30 steps, 10,000 files", mark: "≤ 1.50 + 15 ms"}
	w.contestants = append(w.contestants, contestant{name: "floor",
		prepare: func() error { return err },
		measure: func() error { return statAll(b.path("small")) },
	})
	w.contestants = append(w.contestants, b.builders(recipe, b.path("small"), false)...)
	return w
}

// noOpCache is noOpRebuild that exports a cache with nothing new in it, to a registry of this
// process; the round that warms up fills it.
func (b *bench) noOpCache() *work {
	w := b.noOpRebuild()
	w.name, w.mark = "the same rebuild with a cache to export, nothing new", "≤ 200 ms more"
	host := registryInMemory()
	for i := range w.contestants[1:] {
		c := &w.contestants[i+1]
		plain := c.command
		to := []string{"--tls-verify=false", "--cache-to", host + "/" + c.name}
		switch c.name {
		case "mk":
			to = []string{"--cache-to", "type=registry,mode=max,ref=" + host + "/mk:cache"}
		case "buildkit":
			to = []string{"--export-cache", "type=registry,mode=max,ref=" + host + "/buildkit:cache"}
		}
		c.command = func() *exec.Cmd {
			cmd := plain()
			last := len(cmd.Args) // buildctl's flags may come last, those of others not after the context
			if c.name != "buildkit" {
				last--
			}
			cmd.Args = slices.Concat(cmd.Args[:last], to, cmd.Args[last:])
			return cmd
		}
	}
	return w
}

// registryInMemory starts a registry of this process, with which it ends, and returns its host and port.
func registryInMemory() string {
	server := httptest.NewServer(inmemory.New(inmemory.Logger(log.New(io.Discard, "", 0))))
	return strings.TrimPrefix(server.URL, "http://")
}

func statAll(dir string) error {
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		_, err = d.Info()
		return err
	})
}

func (b *bench) copyFiles() *work {
	recipe, err := b.recipe("Copy", "FROM scratch", "COPY . /files")
	w := &work{name: "COPY 10,000 files + 500 MiB", mark: "≤ 1.20"}
	floor := b.floor("cp -a $BENCH/files $BENCH/floor")
	if err != nil {
		floor.prepare = func() error { return err }
	}
	w.contestants = append([]contestant{floor}, b.builders(recipe, b.path("files"), true)...)
	return w
}

func (b *bench) writeFilesInStep() *work {
	recipe, err := b.recipe("Write", "FROM bench", "RUN "+write20000)
	w := &work{name: "RUN writing 20,000 files", mark: "≤ 1.10"}
	floor := b.floor("cp -a $BENCH/root $BENCH/floor && exec unshare -Urmpf chroot $BENCH/floor sh -c '" + write20000 + "'")
	if err != nil {
		floor.prepare = func() error { return err }
	}
	w.contestants = append([]contestant{floor}, b.builders(recipe, b.path("base"), true)...)
	return w
}

// save compresses: the archive of the image of 10,000 files + 500 MiB. Each contestant
// has built the image before.
func (b *bench) save() *work {
	recipe, recipeErr := b.recipe("Save", "FROM scratch", "COPY . /files")
	prepare := func(name string, args ...string) func() error {
		return func() error {
			if recipeErr != nil {
				return recipeErr
			}
			os.Remove(b.path("saved.tar"))
			args := append(slices.Clone(args), "-t", "saved", "-f", recipe, b.path("files"))
			out, err := b.command(name, args...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
	}
	w := &work{name: "save it as an OCI archive, gzip", mark: "≤ 1.00"}
	w.contestants = append(w.contestants,
		b.floor("tar -C $BENCH/files -cf - . | pigz -6 > $BENCH/saved.tar"),
		contestant{name: "mk", prepare: prepare(b.mk, "build"), command: func() *exec.Cmd {
			return b.command(b.mk, "build", "-f", recipe, "-o", "type=oci,dest="+b.path("saved.tar"), b.path("files"))
		}})
	for _, p := range b.peers {
		if p.name == "buildah" {
			w.contestants = append(w.contestants, contestant{name: "buildah", prepare: prepare("buildah", p.build()...), command: func() *exec.Cmd {
				return b.command("buildah", p.command("push", "-q", "--signature-policy", b.path("policy.json"), "saved", "oci-archive:"+b.path("saved.tar"))...)
			}})
		}
	}
	// A blob that it compressed once it does not compress again: the image is built anew each time.
	return b.withBuildkit(w, func() error {
		if recipeErr != nil {
			return recipeErr
		}
		os.Remove(b.path("saved.tar"))
		return b.buildkitBuild(recipe, b.path("files"), "--no-cache").Run()
	}, func() *exec.Cmd {
		return b.buildkitBuild(recipe, b.path("files"), "--output", "type=oci,dest="+b.path("saved.tar"))
	})
}

// copyAndSave is the COPY of the large context and the archive of it, by one command where there is one.
func (b *bench) copyAndSave() *work {
	recipe, err := b.recipe("CopyAndSave", "FROM scratch", "COPY . /files")
	fresh := func() error { return errors.Join(err, os.RemoveAll(b.path("saved.tar"))) }
	w := &work{name: "COPY 10,000 files + 500 MiB and save it, gzip", mark: "≤ 1.20", contestants: []contestant{
		b.floor("cp -a $BENCH/files $BENCH/floor && tar -C $BENCH/files -cf - . | pigz -6 > $BENCH/saved.tar"),
		{name: "mk", prepare: fresh, command: func() *exec.Cmd {
			return b.command(b.mk, "build", "--no-cache", "-f", recipe, "-o", "type=oci,dest="+b.path("saved.tar"), b.path("files"))
		}},
	}}
	return b.withBuildkit(w, fresh, func() *exec.Cmd {
		return b.buildkitBuild(recipe, b.path("files"), "--no-cache", "--output", "type=oci,dest="+b.path("saved.tar"))
	})
}

// memory is the highest resident set of any process of a cold COPY of the large context.
func (b *bench) memory() *work {
	w := b.copyFiles()
	w.name, w.mark, w.memory = "peak memory of that COPY", "≤ 120 MB", true
	w.contestants = w.contestants[1:]
	for i := range w.contestants {
		if c := &w.contestants[i]; c.name == "buildkit" {
			c.weigh = b.weighBuildkit(c.command)
		}
	}
	return w
}

// version is what every command pays: the start of the binary.
func (b *bench) version() *work {
	return &work{name: "mk version", mark: "≤ 4 ms", contestants: []contestant{
		{name: "floor", command: func() *exec.Cmd { return b.command(b.path("root/bin/true")) }},
		{name: "mk", command: func() *exec.Cmd { return b.command(b.mk, "version") }},
	}}
}

// sleeps are four stages that have nothing to do with each other.
func (b *bench) sleeps() *work {
	var lines []string
	for i := range 4 {
		lines = append(lines, fmt.Sprintf("FROM bench AS s%d", i), fmt.Sprintf("RUN sleep 2; echo %d > /made", i))
	}
	lines = append(lines, "FROM scratch")
	for i := range 4 {
		lines = append(lines, fmt.Sprintf("COPY --from=s%d /made /%d", i, i))
	}
	recipe, err := b.recipe("Sleeps", lines...)
	w := &work{name: "4 stages of sleep 2", mark: "≤ 1.05"}
	floor := b.floor("sleep 2")
	if err != nil {
		floor.prepare = func() error { return err }
	}
	w.contestants = append([]contestant{floor}, b.builders(recipe, b.path("base"), true)...)
	return w
}

// stages compares a recipe of 200 stages with the same of 100: the floor is mk itself, and
// a ratio of 2 is time that grows with the work.
func (b *bench) stages(name string, recipe func(n int) []string) *work {
	w := &work{name: name + " of 200 stages, to 100", mark: "≤ 2.2"}
	var last string
	for i, n := range []int{100, 200} {
		path, err := b.recipe(fmt.Sprintf("%s%d", name, n), recipe(n)...)
		last = path
		w.contestants = append(w.contestants, contestant{name: []string{"floor", "mk"}[i],
			prepare: func() error { return err },
			command: func() *exec.Cmd {
				return b.command(b.mk, "build", "--no-cache", "-t", "work", "-f", path, b.path("base"))
			},
		})
	}
	return b.withBuildkit(w, nil, func() *exec.Cmd { return b.buildkitBuild(last, b.path("base"), "--no-cache") })
}

func (b *bench) chain() *work {
	return b.stages("chain", func(n int) []string {
		lines := []string{"FROM bench AS s0"}
		for i := range n {
			lines = append(lines, fmt.Sprintf("FROM s%d AS s%d", i, i+1), fmt.Sprintf("COPY Dockerfile /f%d", i))
		}
		return lines
	})
}

func (b *bench) fan() *work {
	return b.stages("fan", func(n int) []string {
		var lines, last []string
		for i := range n {
			lines = append(lines, fmt.Sprintf("FROM bench AS s%d", i), fmt.Sprintf("COPY Dockerfile /f%d", i))
			last = append(last, fmt.Sprintf("COPY --from=s%d /f%d /", i, i))
		}
		return append(append(lines, "FROM scratch"), last...)
	})
}

// plan is a recipe that is read, expanded and drawn up, and nothing else.
func (b *bench) plan() *work {
	lines := []string{"FROM bench"}
	for i := range 5000 {
		lines = append(lines, fmt.Sprintf("RUN true %d", i))
	}
	recipe, err := b.recipe("Plan", lines...)
	return &work{name: "plan of 5,000 steps", mark: "≤ 100 ms", contestants: []contestant{
		{name: "floor", measure: func() error { _, err := os.ReadFile(recipe); return err }, prepare: func() error { return err }},
		{name: "mk", command: func() *exec.Cmd { return b.command(b.mk, "build", "--plan", "-f", recipe, b.path("base")) }},
	}}
}

// oneChanged rebuilds a COPY of 10,000 files of which one changed.
func (b *bench) oneChanged() *work {
	recipe, err := b.recipe("One", "FROM scratch", "COPY . /files")
	round := 0
	change := func() error {
		round++
		return errors.Join(err, os.WriteFile(b.path("small/d00/f00000"), []byte(fmt.Sprintf("round %d\n", round)), 0o644))
	}
	w := &work{name: "COPY of 10,000 files, one changed", mark: "≤ 150 ms"}
	// Links to the context's own files would change their ctime, and mk would read all of them again.
	floor := b.floor("[ -d $BENCH/again ] || cp -a $BENCH/small $BENCH/again; cp -al $BENCH/again $BENCH/floor")
	w.contestants = append([]contestant{floor}, b.builders(recipe, b.path("small"), false)...)
	for i := range w.contestants[1:] {
		w.contestants[1+i].prepare = change
	}
	return w
}

// noOpMany is the no-op rebuild of a context of 200,000 files, warm.
func (b *bench) noOpMany() *work {
	recipe, err := b.recipe("Many", "FROM scratch", "COPY . /files")
	ready := func() error { return errors.Join(err, b.many()) }
	w := &work{name: "no-op rebuild, 200,000 files", mark: "≤ 1.50", contestants: []contestant{
		{name: "floor", prepare: ready, measure: func() error { return statAll(b.path("many")) }},
		{name: "mk", prepare: ready, command: func() *exec.Cmd { return b.command(b.mk, "build", "-q", "-t", "many", "-f", recipe, b.path("many")) }},
	}}
	return b.withBuildkit(w, ready, func() *exec.Cmd { return b.buildkitBuild(recipe, b.path("many")) })
}

// hashMany is the same rebuild without the record of what was hashed before: all files are
// read, and nothing is copied, since their bytes are the same. The floor reads them once.
func (b *bench) hashMany() *work {
	w := b.noOpMany()
	w.name, w.mark = "first hashing of 200,000 files", "≤ 1.30"
	w.contestants[0].measure = nil
	w.contestants[0].command = func() *exec.Cmd { return b.command("tar", "-C", b.path("many"), "-cf", b.path("read.tar"), ".") }
	w.contestants = w.contestants[:2] // BuildKit has no such record
	ready := w.contestants[1].prepare
	w.contestants[1].prepare = func() error { return errors.Join(ready(), os.RemoveAll(b.path("mk/stat"))) }
	return w
}

// memoryMany is the highest resident set of any process of that hashing.
func (b *bench) memoryMany() *work {
	w := b.hashMany()
	w.name, w.mark, w.memory = "peak memory of that hashing", "≤ 120 MB", true
	w.contestants = w.contestants[1:]
	return w
}

// zeros are 2 GB to send: a file without blocks, so that no disk is measured.
const zeros = "mkdir -p $BENCH/zeros && truncate -s 2G $BENCH/zeros/large || exit\n"

// published is what it costs to come into a container by a published port: curl reads from an httpd
// in one, which has the machine's network for the floor.
func (b *bench) published() *work {
	serve := func(flags, at string) *exec.Cmd {
		return b.command("sh", "-c", zeros+`
			id=$(`+b.mk+` run -d --rm -v $BENCH/zeros:/zeros `+flags+` -h /zeros 2>/dev/null) || exit
			i=0
			until curl -sfI -o /dev/null http://`+at+`/large || [ $((i+=1)) = 100 ]; do sleep 0.01; done
			curl -sf -o /dev/null http://`+at+`/large
			status=$?
			`+b.mk+` stop -t 0 $id >/dev/null
			exit $status`)
	}
	return &work{name: "2 GB in by a published port", mark: "–", contestants: []contestant{
		{name: "floor", command: func() *exec.Cmd {
			return serve("--network host bench httpd -f -p 127.0.0.1:18097", "127.0.0.1:18097")
		}},
		{name: "mk", command: func() *exec.Cmd { return serve("-p 127.0.0.1:18098:80 bench httpd -f -p 80", "127.0.0.1:18098") }},
	}}
}

// wayOut is what it costs to go out of a private network: wget in a container reads from an httpd on
// the machine's own address, through the machine's network for the floor.
func (b *bench) wayOut() *work {
	fetch := func(network string) *exec.Cmd {
		return b.command("sh", "-c", zeros+`
			at=$(hostname -I | cut -d' ' -f1)
			busybox httpd -f -p $at:18099 -h $BENCH/zeros &
			server=$!
			sleep 0.05
			`+b.mk+` run --rm --network `+network+` bench wget -q -O /dev/null http://$at:18099/large
			status=$?
			kill $server
			exit $status`)
	}
	return &work{name: "2 GB out of a private network", mark: "–", contestants: []contestant{
		{name: "floor", command: func() *exec.Cmd { return fetch("host") }},
		{name: "mk", command: func() *exec.Cmd { return fetch("private") }},
	}}
}
