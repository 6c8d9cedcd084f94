package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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
	return []*work{
		b.runTrue(), b.fiftySteps(), b.noOpRebuild(), b.copyFiles(), b.writeFilesInStep(), b.save(), b.memory(),
	}
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
	return all
}

func (b *bench) runTrue() *work {
	w := &work{name: "run image true", mark: "≤ 30 ms"}
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
	w := &work{name: "50 RUN steps, cold", mark: "≤ floor + 15 ms a step"}
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
	w := &work{name: "no-op rebuild, 30 steps, 10,000 files", mark: "≤ 150 ms"}
	w.contestants = append(w.contestants, contestant{name: "floor",
		prepare: func() error { return err },
		measure: func() error { return statAll(b.path("small")) },
	})
	w.contestants = append(w.contestants, b.builders(recipe, b.path("small"), false)...)
	return w
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
	w := &work{name: "COPY 10,000 files + 500 MiB", mark: "≤ 2.00"}
	floor := b.floor("cp -a $BENCH/files $BENCH/floor")
	if err != nil {
		floor.prepare = func() error { return err }
	}
	w.contestants = append([]contestant{floor}, b.builders(recipe, b.path("files"), true)...)
	return w
}

func (b *bench) writeFilesInStep() *work {
	recipe, err := b.recipe("Write", "FROM bench", "RUN "+write20000)
	w := &work{name: "RUN writing 20,000 files", mark: "≤ 1.10 (later)"}
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
	w := &work{name: "save it as an OCI archive, gzip", mark: "≤ 1.10 (later)"}
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
	return w
}

// memory is the highest resident set of any process of a cold COPY of the large context.
func (b *bench) memory() *work {
	w := b.copyFiles()
	w.name, w.mark, w.memory = "peak memory of that COPY", "≤ 100 MiB", true
	w.contestants = w.contestants[1:]
	return w
}
