package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// buildkit is a peer that is a daemon: the bench starts one for the whole run, as root of a user
// namespace or as root, with the machine's network (as mk's RUN has) and without garbage collection.
//
//	buildkit/root   its state
//	buildkit/log    what it said
type buildkit struct {
	addr   string
	daemon *exec.Cmd
	base   string // a registry's name of the image "bench", which recipes are FROM
}

const buildkitConfig = `
root = %q
[grpc]
  address = [%q]
[worker.oci]
  enabled = true
  snapshotter = "overlayfs"
  networkMode = "host"
  gc = false
[worker.containerd]
  enabled = false
`

// startBuildkit waits until the daemon serves. There is nothing to end after an error.
func (b *bench) startBuildkit() (*buildkit, error) {
	for _, program := range []string{"buildctl", "buildkitd", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	k := &buildkit{addr: "unix://" + b.path("buildkit/socket")}
	if err := os.MkdirAll(b.path("buildkit"), 0o755); err != nil {
		return nil, err
	}
	config := b.path("buildkit/buildkitd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, buildkitConfig, b.path("buildkit/root"), k.addr), 0o644); err != nil {
		return nil, err
	}
	said, err := os.Create(b.path("buildkit/log"))
	if err != nil {
		return nil, err
	}
	defer said.Close()
	// unshare turns into the daemon, and keeps its mounts from the machine.
	args := []string{"--mount", "buildkitd", "--config", config}
	if os.Geteuid() != 0 {
		args = append([]string{"--map-root-user", "--map-auto"}, append(args, "--rootless")...)
	}
	k.daemon = b.command("unshare", args...)
	k.daemon.Stdout, k.daemon.Stderr = said, said
	if err := k.daemon.Start(); err != nil {
		return nil, err
	}
	daemons = append(daemons, k.daemon.Process.Pid)
	for begin := time.Now(); b.buildctl(k, "debug", "workers").Run() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			k.stop()
			text, _ := os.ReadFile(said.Name())
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			return nil, fmt.Errorf("buildkitd does not come up: %s", lines[len(lines)-1])
		}
	}
	k.base = registryInMemory() + "/bench"
	if out, err := b.command(b.mk, "push", "-q", "bench", k.base).CombinedOutput(); err != nil {
		k.stop()
		return nil, fmt.Errorf("push the base for BuildKit: %w: %s", err, out)
	}
	return k, nil
}

func (k *buildkit) stop() {
	k.daemon.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(10*time.Second, func() { k.daemon.Process.Kill() })
	k.daemon.Wait()
	kill.Stop()
}

func (b *bench) buildctl(k *buildkit, args ...string) *exec.Cmd {
	return b.command("buildctl", append([]string{"--addr", k.addr}, args...)...)
}

// buildkitBuild is the command of a build; more are flags of `buildctl build`.
func (b *bench) buildkitBuild(recipe, context string, more ...string) *exec.Cmd {
	return b.buildctl(b.buildkit, slices.Concat([]string{"build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context=" + context, "--local", "dockerfile=" + filepath.Dir(recipe), "--opt", "filename=" + filepath.Base(recipe),
		"--opt", "context:bench=docker-image://" + b.buildkit.base}, more)...)
}

// withBuildkit adds BuildKit to a work, if it is here.
func (b *bench) withBuildkit(w *work, prepare func() error, command func() *exec.Cmd) *work {
	if b.buildkit != nil {
		w.contestants = append(w.contestants, contestant{name: "buildkit", prepare: prepare, command: command})
	}
	return w
}

// emptyBuildkit has the daemon forget all that it has.
func (b *bench) emptyBuildkit() error {
	if out, err := b.buildctl(b.buildkit, "prune", "--all").CombinedOutput(); err != nil {
		return fmt.Errorf("buildctl prune: %w: %s", err, out)
	}
	return nil
}

// weighBuildkit is the highest resident set of the daemon during a command, and of the client that the command is.
func (b *bench) weighBuildkit(command func() *exec.Cmd) func() (int64, error) {
	proc := fmt.Sprintf("/proc/%d/", b.buildkit.daemon.Process.Pid)
	return func() (int64, error) {
		if err := os.WriteFile(proc+"clear_refs", []byte("5"), 0); err != nil { // proc_pid_clear_refs(5): begins VmHWM anew
			return 0, err
		}
		cmd := command()
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		status, err := os.ReadFile(proc + "status")
		if err != nil {
			return 0, err
		}
		_, high, _ := strings.Cut(string(status), "VmHWM:")
		high, _, ok := strings.Cut(strings.TrimSpace(high), " kB")
		daemon, err := strconv.ParseInt(high, 10, 64)
		if !ok || err != nil {
			return 0, fmt.Errorf("no VmHWM in %sstatus", proc)
		}
		return (daemon + cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) << 10, nil
	}
}
