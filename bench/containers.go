package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Containers: what starts them, comes into them, and keeps them.

func (b *bench) containers() []*work {
	return []*work{b.runMode("single"), b.runMode("subid"), b.fiftyAtOnce(), b.execTrue(), b.holder("RSS", "Rss:"), b.holder("PSS", "Pss:")}
}

// in is a command of mk in a store of that mode's own.
func (b *bench) in(mode string, args ...string) *exec.Cmd {
	cmd := b.command(b.mk, args...)
	cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("mk-"+mode), "MK_USERNS="+mode)
	return cmd
}

// output runs a command that is only a preparation.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// runMode is run image true in one mode, beside what is less than a container.
func (b *bench) runMode(mode string) *work {
	floor := b.floor("set -- $BENCH/floor true; " + floorStep)
	if mode == "subid" { // newuidmap and newgidmap are of the floor, too
		floor = b.floor("set -- $BENCH/floor true; " + strings.Replace(floorStep, "unshare -Urmpf", "unshare --map-root-user --map-auto -mpf", 1))
	}
	w := &work{name: "run image true, mode " + mode, mark: map[string]string{"single": "≤ 3.00", "subid": "≤ 20 ms"}[mode]}
	w.contestants = []contestant{floor, {
		name: "mk",
		prepare: func() error {
			_, err := output(b.in(mode, "build", "-q", "-t", "bench", "-f", b.path("base/Dockerfile"), b.path("base")))
			return err
		},
		command: func() *exec.Cmd { return b.in(mode, "run", "--rm", "bench", "true") },
	}}
	if _, err := exec.LookPath("bwrap"); err == nil {
		w.contestants = append(w.contestants, contestant{name: "bwrap (no overlay)", command: func() *exec.Cmd {
			return b.command("bwrap", "--unshare-all", "--bind", b.path("root"), "/", "--proc", "/proc", "true")
		}})
	}
	for runtime, flags := range map[string][]string{"crun": {"--cgroup-manager", "disabled"}, "runc": nil} {
		if _, err := exec.LookPath(runtime); err != nil {
			continue
		}
		args := append(append([]string{"--root", b.path(runtime)}, flags...), "run", "--bundle", b.path("bundle"), "bench")
		w.contestants = append(w.contestants, contestant{name: runtime + " (no overlay)", prepare: b.bundle, command: func() *exec.Cmd {
			return b.command(runtime, args...)
		}})
	}
	return w
}

// bundle is crun's and runc's form of the floor's root.
func (b *bench) bundle() error {
	config := b.path("bundle/config.json")
	if _, err := os.Stat(config); err == nil {
		return nil
	}
	if err := errors.Join(os.MkdirAll(b.path("bundle"), 0o755), os.Symlink(b.path("root"), b.path("bundle/rootfs"))); err != nil {
		return err
	}
	for _, runtime := range []string{"runc", "crun"} { // crun takes runc's, which has mappings
		spec := b.command(runtime, "spec", "--rootless")
		spec.Dir = b.path("bundle")
		if _, err := output(spec); err == nil {
			break
		}
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var c map[string]any
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	process, ok := c["process"].(map[string]any)
	if !ok {
		return errors.New("crun spec wrote no process")
	}
	process["args"], process["terminal"] = []string{"/bin/true"}, false
	c["root"] = map[string]any{"path": b.path("root"), "readonly": true}
	if text, err = json.Marshal(c); err != nil {
		return err
	}
	return os.WriteFile(config, text, 0o644)
}

// fiftyAtOnce starts fifty containers that do nothing, without waiting for each other.
func (b *bench) fiftyAtOnce() *work {
	w := &work{name: "50 containers at once", mark: "–"}
	w.contestants = []contestant{
		b.floor("step() {\n(" + floorStep + ")\n}\nfor i in $(seq 50); do step $BENCH/floor/$i true & done; wait"),
		{name: "mk", command: func() *exec.Cmd {
			return b.command("sh", "-c", `for i in $(seq 50); do "$0" run --rm bench true || touch $BENCH/failed & done; wait; ! rm $BENCH/failed 2>/dev/null`, b.mk)
		}},
	}
	for _, p := range b.peers {
		if p.name == "podman" {
			args := strings.Join(p.command("run", "--rm", "--network", "host", "bench", "true"), " ")
			w.contestants = append(w.contestants, contestant{name: "podman", command: func() *exec.Cmd {
				return b.command("sh", "-c", "for i in $(seq 50); do podman "+args+" & done; wait")
			}})
		}
	}
	return w
}

// background starts a container that sleeps, and gives its ID and the pid of its pid 1. It ends with
// the bench.
func (b *bench) background() (id, pid string, err error) {
	cmd := b.command(b.mk, "run", "-d", "--network", "none", "bench", "sleep", "3600")
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("mk run -d: %w", err)
	}
	id = strings.TrimSpace(string(out))
	b.closers = append(b.closers, func() { b.command(b.mk, "rm", "-f", id).Run() })
	pid, err = output(b.command(b.mk, "inspect", "-f", "{{.State.Pid}}", id))
	return id, pid, err
}

// execTrue is exec beside nsenter into the same namespaces, which drops no rights.
func (b *bench) execTrue() *work {
	var id, pid string
	start := func() (err error) {
		if id == "" {
			id, pid, err = b.background()
		}
		return err
	}
	return &work{name: "exec true in a running container", mark: "≤ 15 ms", contestants: []contestant{
		{name: "floor", prepare: start, command: func() *exec.Cmd {
			return b.command("nsenter", "-t", pid, "-U", "--preserve-credentials", "-m", "-p", "-n", "-i", "-u", "--", "/bin/true")
		}},
		{name: "mk", prepare: start, command: func() *exec.Cmd { return b.command(b.mk, "exec", id, "true") }},
	}}
}

// holder is the memory of the one process that keeps a container in the background, two seconds
// after its start. RSS counts pages of the program that others share, PSS its part of them.
func (b *bench) holder(name, field string) *work {
	return &work{name: "memory of a holder, " + name, mark: map[string]string{"RSS": "≤ 15 MB", "PSS": "–"}[name], memory: true, contestants: []contestant{
		{name: "mk", weigh: func() (int64, error) {
			_, pid, err := b.background()
			if err != nil {
				return 0, err
			}
			time.Sleep(2 * time.Second)
			status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
			if err != nil {
				return 0, err
			}
			return memoryOf(after(string(status), "PPid:"), field)
		}},
	}}
}

// memoryOf is one number of /proc/PID/smaps_rollup, in bytes.
func memoryOf(pid, field string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	kB, err := strconv.ParseInt(after(string(text), field), 10, 64)
	return kB << 10, err
}

// after is the word behind a field's name at the beginning of a line.
func after(text, field string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return words[0]
			}
		}
	}
	return ""
}
