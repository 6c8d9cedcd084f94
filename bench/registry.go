package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// distribution is a docker-registry of the bench's own, and an image in it.
//
//	registry/data   what it keeps
//	layer           the image's one layer as the registry has it, gzip
type distribution struct {
	host   string
	digest string // of the layer
	stop   func()
}

// floorPull is the least that a pull can be: the layer's bytes over HTTP, written and hashed.
const floorPull = `
mkdir $BENCH/floor && curl -sf http://$1/v2/bench/blobs/$2 | tee $BENCH/floor/layer | sha256sum >$BENCH/floor/sum
`

// floorUnpack is the least that a pull can be that leaves the files: the same, inflated and unpacked meanwhile.
const floorUnpack = `
mkdir -p $BENCH/floor/tree && mkfifo $BENCH/floor/pipe && { pigz -dc <$BENCH/floor/pipe | tar -C $BENCH/floor/tree -xf - & } &&
curl -sf http://$1/v2/bench/blobs/$2 | tee $BENCH/floor/layer $BENCH/floor/pipe | sha256sum >$BENCH/floor/sum && wait
`

// floorPush is the least that a push can be: the layer's bytes over HTTP, hashed before.
const floorPush = `
sha256sum $BENCH/layer >/dev/null
location() { tr -d '\r' | sed -n 's/^[Ll]ocation: //p'; }
at=$(curl -sf -D - -o /dev/null -X POST http://$1/v2/floor/blobs/uploads/ | location)
at=$(curl -sf -D - -o /dev/null -X PATCH -H 'Content-Type: application/octet-stream' -T $BENCH/layer "$at" | location)
curl -sf -X PUT "$at&digest=$2"
`

// startRegistry starts the registry and puts the image of 10,000 files + 500 MiB into it, once.
func (b *bench) startRegistry() (*distribution, error) {
	dir := b.path("registry")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	text := "version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: " + dir + "/data}}\nhttp: {addr: '127.0.0.1:0'}\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	run := exec.Command("docker-registry", "serve", config)
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := run.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := run.Start(); err != nil {
		return nil, err
	}
	daemons = append(daemons, run.Process.Pid)
	r := &distribution{stop: func() { run.Process.Kill(); run.Wait() }}
	at := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if _, rest, ok := strings.Cut(lines.Text(), "listening on "); ok {
				addr, _, _ := strings.Cut(rest, "\"")
				at <- addr
				break
			}
		}
		io.Copy(io.Discard, said)
	}()
	select {
	case r.host = <-at:
	case <-time.After(20 * time.Second):
		r.stop()
		return nil, fmt.Errorf("docker-registry does not come up")
	}
	recipe, err := b.recipe("Pushed", "FROM scratch", "COPY . /files")
	if err != nil {
		r.stop()
		return nil, err
	}
	script := `"$0" build -q -t $1/bench -f "$2" $BENCH/files && "$0" push -q $1/bench &&
digest=$(curl -s -H 'Accept: application/vnd.oci.image.manifest.v1+json' http://$1/v2/bench/manifests/latest | tr -d ' \n' | sed 's/.*"layers"//; s/.*"digest":"\(sha256:[0-9a-f]*\)".*/\1/') &&
curl -sf -o $BENCH/layer http://$1/v2/bench/blobs/$digest && echo $digest >$BENCH/layer.digest`
	if out, err := b.command("sh", "-c", script, b.mk, r.host, recipe).CombinedOutput(); err != nil {
		r.stop()
		return nil, fmt.Errorf("push the bench's image: %w: %s", err, out)
	}
	digest, err := os.ReadFile(b.path("layer.digest"))
	r.digest = strings.TrimSpace(string(digest))
	return r, err
}

// overRegistry gives a contestant the registry when its turn comes first: a bench of other lines needs none.
func (b *bench) overRegistry() func() (*distribution, error) {
	return sync.OnceValues(func() (*distribution, error) {
		r, err := b.startRegistry()
		if err == nil {
			b.closers = append(b.closers, r.stop)
		}
		return r, err
	})
}

// turn makes a contestant of a command that wants the registry; fresh is what is not timed before each round.
func turn(name string, start func() (*distribution, error), fresh func(*distribution) error, command func(*distribution) *exec.Cmd) contestant {
	var r *distribution
	return contestant{name: name, prepare: func() (err error) {
		if r, err = start(); err != nil {
			return err
		}
		return fresh(r)
	}, command: func() *exec.Cmd { return command(r) }}
}

// pull brings the image into a store that has nothing, beside skopeo into a directory.
func (b *bench) pull(start func() (*distribution, error)) *work {
	gone := func(name string) func(*distribution) error {
		return func(*distribution) error { return remove(b.path(name)) }
	}
	return &work{name: "pull 10,000 files + 500 MiB", mark: "≤ skopeo", contestants: []contestant{
		turn("floor", start, gone("floor"), func(r *distribution) *exec.Cmd { return b.command("sh", "-c", floorPull, "sh", r.host, r.digest) }),
		turn("mk", start, gone("pulled"), func(r *distribution) *exec.Cmd {
			cmd := b.command(b.mk, "pull", "-q", r.host+"/bench")
			cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("pulled"))
			return cmd
		}),
		turn("skopeo to a directory", start, gone("copied"), func(r *distribution) *exec.Cmd {
			return b.command("skopeo", "--policy", b.path("policy.json"), "copy", "-q", "--src-tls-verify=false", "docker://"+r.host+"/bench", "dir:"+b.path("copied"))
		}),
	}}
}

// unpack brings the image into an empty store as a tree.
func (b *bench) unpack(start func() (*distribution, error)) *work {
	gone := func(name string) func(*distribution) error {
		return func(*distribution) error { return remove(b.path(name)) }
	}
	w := &work{name: "pull and unpack it", mark: "≤ 1.30", contestants: []contestant{
		turn("floor", start, gone("floor"), func(r *distribution) *exec.Cmd { return b.command("sh", "-c", floorUnpack, "sh", r.host, r.digest) }),
		turn("mk", start, gone("unpacked"), func(r *distribution) *exec.Cmd {
			cmd := b.command(b.mk, "create", r.host+"/bench", "true")
			cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("unpacked"))
			return cmd
		}),
	}}
	for _, p := range b.peers {
		w.contestants = append(w.contestants, turn(p.name, start, func(r *distribution) error {
			b.command(p.name, p.command("rmi", "-f", r.host+"/bench")...).Run() // the first time there is none
			return nil
		}, func(r *distribution) *exec.Cmd {
			return b.command(p.name, p.command("pull", "-q", "--tls-verify=false", r.host+"/bench")...)
		}))
	}
	if b.buildkit != nil { // it pulls what something is laid on
		recipe := b.path("Pulled")
		w.contestants = append(w.contestants, turn("buildkit", start, func(r *distribution) error {
			_, err := b.recipe("Pulled", "FROM "+r.host+"/bench", "COPY Dockerfile /")
			return errors.Join(err, b.emptyBuildkit())
		}, func(r *distribution) *exec.Cmd { return b.buildkitBuild(recipe, b.path("base")) }))
	}
	return w
}

// listed puts the image into the registry a second time, its layer with a listing (zstd:chunked). Where
// skopeo remembers the layer in another form, by its cache in XDG_DATA_HOME, it would take that.
func (b *bench) listed(r *distribution) error {
	script := `"$0" save -q -o $BENCH/listed.tar $1/bench &&
XDG_DATA_HOME=$BENCH/listed skopeo --policy $BENCH/policy.json copy -q --format oci --dest-tls-verify=false --dest-compress --dest-compress-format zstd:chunked docker-archive:$BENCH/listed.tar docker://$1/listed/bench &&
rm $BENCH/listed.tar`
	if out, err := b.command("sh", "-c", script, b.mk, r.host).CombinedOutput(); err != nil {
		return fmt.Errorf("make the bench's image zstd:chunked: %w: %s", err, out)
	}
	return nil
}

// cached has mk build on the image once, and leave a cache that knows what is in it.
func (b *bench) cached(r *distribution) error {
	build := b.command(b.mk, "build", "-q", "-f", b.path("OnBase"), "--cache-to", "type=registry,ref="+r.host+"/mk/one:cache", b.path("one"))
	build.Env = append(build.Env, "MK_ROOT="+b.path("onbase"))
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("leave a cache: %w: %s", err, out)
	}
	return remove(b.path("onbase"))
}

// onBase lays one file, another each time, on that image and pushes the result to another
// repository, from a store that has nothing. how is link; listed, where the image has listings, and mk no --link;
// or cached, where it has none, and mk the cache of another build.
func (b *bench) onBase(start func() (*distribution, error), how string) *work {
	context := b.path("one")
	image, instruction := "/bench", "COPY file /"
	var name string
	var ready func(*distribution) error // before the first
	cache := func(*distribution) []string { return nil }
	switch how {
	case "link":
		name, instruction = "FROM that image, COPY --link a file, push", "COPY --link file /"
	case "listed":
		name, image, ready = "FROM it with listings, COPY a file, push", "/listed/bench", b.listed
	case "cached":
		name, ready = "FROM it, gzip, with a cache: COPY a file, push", b.cached
		cache = func(r *distribution) []string { return []string{"--cache-from", r.host + "/mk/one:cache"} }
	}
	var once sync.Once
	fresh := func(r *distribution) error {
		if err := errors.Join(remove(b.path("onbase")), os.MkdirAll(context, 0o755)); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(context, "file"), []byte(time.Now().String()), 0o644); err != nil {
			return err
		}
		_, err := b.recipe("OnBase", "FROM "+r.host+image, instruction, "LABEL a=file")
		if err == nil { // Debian 12's buildah does not know --link
			_, err = b.recipe("OnBasePeers", "FROM "+r.host+image, "COPY file /", "LABEL a=file")
		}
		if err == nil && ready != nil {
			once.Do(func() { err = ready(r) })
		}
		return err
	}
	w := &work{name: name, mark: "< 1 s", contestants: []contestant{
		turn("mk", start, fresh, func(r *distribution) *exec.Cmd {
			build := append([]string{"build", "-f", b.path("OnBase"), "-t", r.host + "/mk/one", "--push"}, cache(r)...)
			cmd := b.command(b.mk, append(build, context)...)
			cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("onbase"))
			return cmd
		}),
	}}
	for _, p := range b.peers {
		name := func(r *distribution) string { return r.host + "/" + p.name + "/one" }
		w.contestants = append(w.contestants, turn(p.name, start, func(r *distribution) error {
			b.command(p.name, p.command("rmi", "-f", name(r), r.host+image, r.host+"/bench")...).Run() // the first time there is none
			return fresh(r)
		}, func(r *distribution) *exec.Cmd {
			build := p.build("-q", "--tls-verify=false", "-f", b.path("OnBasePeers"), "-t", name(r), context)
			push := p.command("push", "-q", "--tls-verify=false", name(r))
			return b.command("sh", "-c", `"$0" `+quoted(build)+` && exec "$0" `+quoted(push), p.name)
		}))
	}
	if b.buildkit != nil {
		w.contestants = append(w.contestants, turn("buildkit", start, func(r *distribution) error {
			return errors.Join(fresh(r), b.emptyBuildkit())
		}, func(r *distribution) *exec.Cmd {
			return b.buildkitBuild(b.path("OnBase"), context, "--output", "type=image,push=true,name="+r.host+"/buildkit/one")
		}))
	}
	return w
}

// quoted is a command line for a shell.
func quoted(words []string) string {
	return "'" + strings.Join(words, "' '") + "'"
}

// push sends what pull brought to a registry that has nothing.
func (b *bench) push(start func() (*distribution, error)) *work {
	empty := func(r *distribution) error {
		for _, have := range [][]string{
			{"test", "-d", b.path("pulled")}, {"test", "-d", b.path("copied")},
		} {
			if b.command(have[0], have[1:]...).Run() != nil {
				return fmt.Errorf("the line of the pull comes first")
			}
		}
		return remove(b.path("registry", "data"))
	}
	return &work{name: "push it, compressed already", mark: "≤ skopeo", contestants: []contestant{
		turn("floor", start, empty, func(r *distribution) *exec.Cmd { return b.command("sh", "-c", floorPush, "sh", r.host, r.digest) }),
		turn("mk", start, empty, func(r *distribution) *exec.Cmd {
			cmd := b.command(b.mk, "push", "-q", r.host+"/bench", r.host+"/mk")
			cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("pulled"))
			return cmd
		}),
		turn("skopeo from a directory", start, empty, func(r *distribution) *exec.Cmd {
			return b.command("skopeo", "--policy", b.path("policy.json"), "copy", "-q", "--dest-tls-verify=false", "dir:"+b.path("copied"), "docker://"+r.host+"/skopeo")
		}),
	}}
}

// registryWorks are the lines about registries; none where there is no registry to measure with.
func (b *bench) registryWorks() []*work {
	for _, program := range []string{"docker-registry", "skopeo", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Fprintf(os.Stderr, "pull and push are left out: %v\n", err)
			return nil
		}
	}
	start := b.overRegistry()
	pull, push := b.pull(start), b.push(start)
	return []*work{pull, b.unpack(start), b.onBase(start, "link"), b.onBase(start, "listed"), b.onBase(start, "cached"), inMemory(b.pull(start), "peak memory of that pull"), push, inMemory(b.push(start), "peak memory of that push")}
}

// inMemory makes a work's line about peak memory, which has no floor.
func inMemory(w *work, name string) *work {
	w.name, w.mark, w.memory = name, "≤ 150 MiB", true
	w.contestants = w.contestants[1:]
	return w
}
