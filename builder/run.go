package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"mk/container"
	"mk/recipe"
	"mk/snapshot"
)

// Sandbox is what every RUN step gets besides its tree.
type Sandbox struct {
	Network  string             // of steps that do not say: "default" (which is host), "none" or "host"
	Hosts    []string           // more lines of /etc/hosts: "10.1.2.3\tname"
	Hostname string             // "" is buildkitsandbox
	Proxies  []string           // NAME=value of the proxy variables: in the environment of RUN, never in a key
	ShmSize  int64              // of /dev/shm, in bytes; 0 is docker's 64 MiB
	Rlimits  []container.Rlimit // of every process of a step
	Limits   container.Limits   // of each step; no key has them: what a step makes does not depend on how fast
	Parent   string             // of the cgroups of steps with limits, or ""
	NewPrivs *bool              // whether set-user-ID programs may raise a step; nil: one that is not root's (see newPrivs)
	Dir      string             // an empty directory, mounted over in this process's own namespace

	Caps    container.CapSet  // of steps that are not insecure
	Volumes []container.Mount // directories of the host in every step; a key has their place and not what is in them

	Insecure bool // --allow security.insecure: steps may ask for it
	HostNet  bool // --allow network.host: steps may ask for it although Network is none

	Caches  *CacheMounts      // where --mount=type=cache keeps its directories
	CacheNS string            // BUILDKIT_CACHE_MOUNT_NS: prefix of the IDs of caches
	Secrets map[string]Secret // by ID
	Agents  map[string]*Agent // by ID
}

// runStep is one RUN.
type runStep struct {
	*engine
	node   *Node
	step   *recipe.Run
	mounts []*runMount
	open   []io.Closer
}

func (e *engine) newRun(ctx context.Context, n *Node, st *recipe.Run) (_ action, err error) {
	r := &runStep{engine: e, node: n, step: st}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	sockets := 0
	for i, m := range st.Mounts {
		mount := &runMount{Mount: m, from: n.From[i]}
		if mount.target, err = m.TargetIn(n.Dir); err != nil {
			return nil, err
		}
		if mount.target != "" {
			mount.target = path.Clean(mount.target)
		}
		if m.Type == "ssh" {
			if mount.target == "" {
				mount.target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", sockets)
			}
			sockets++
		}
		if err := r.identify(ctx, mount); err != nil {
			return nil, err
		}
		r.mounts = append(r.mounts, mount)
	}
	return r, nil
}

// permit refuses, before anything is executed, the steps that want what no step
// can have, or what this build does not give.
func (b *Builder) permit(p *Plan) error {
	for _, s := range p.Stages {
		for _, n := range s.Nodes {
			if st, ok := n.Step.(*recipe.Run); ok {
				if err := b.Sandbox.permit(st, n.Dir); err != nil {
					return at(st.At(), err)
				}
			}
		}
	}
	return nil
}

func (s *Sandbox) permit(st *recipe.Run, dir string) error {
	for _, m := range st.Mounts {
		if _, err := m.TargetIn(dir); err != nil {
			return err
		}
	}
	switch {
	case len(st.Args) == 0 || len(st.Files) == 0 && strings.Join(st.Args, "") == "":
		return errors.New("RUN requires at least one argument")
	case len(st.Devices) > 0:
		return fmt.Errorf("RUN --device=%s: an ordinary user can make no device available to a step, and mk reads no CDI specifications", st.Devices[0].Name)
	case st.Security == "insecure" && !s.Insecure:
		return errors.New("security.insecure is not allowed: say mk build --allow security.insecure")
	case st.Network == "host" && s.Network == "none" && !s.HostNet:
		return errors.New("network.host is not allowed: the build has --network none; say --allow network.host to let a step have it all the same")
	}
	return nil
}

func (r *runStep) describe(t *KeyText) {
	n := r.node
	t.Add("run", n.Args...)
	for _, f := range r.step.Files {
		t.Add("file", f.Name, f.Data)
	}
	for _, kv := range n.Env {
		t.Add("env", kv)
	}
	t.Add("user", n.User)
	t.Add("dir", n.Dir)
	t.Add("network", r.network())
	for _, m := range r.mounts {
		m.describe(t, r.Sandbox.CacheNS)
	}
	s := &r.Sandbox
	if r.step.Security == "insecure" {
		t.Add("security", "insecure")
	}
	for _, line := range s.Hosts {
		t.Add("host", line)
	}
	if s.NewPrivs != nil {
		t.Add("new-privileges", strconv.FormatBool(*s.NewPrivs))
	}
	if s.Hostname != "" {
		t.Add("hostname", s.Hostname)
	}
	if s.ShmSize > 0 {
		t.Add("shm", strconv.FormatInt(s.ShmSize, 10))
	}
	if s.Caps != container.DefaultCaps {
		t.Add("caps", fmt.Sprintf("%#x", uint64(s.Caps)))
	}
	for _, m := range s.Volumes {
		t.Add("volume", m.Source, m.Dest, strconv.FormatBool(m.ReadOnly))
	}
	for _, l := range s.Rlimits {
		t.Add("limit", fmt.Sprintf("%d=%d:%d", l.Resource, l.Soft, l.Hard))
	}
}

func (r *runStep) network() string { return r.Sandbox.network(r.step) }

// network is the network of one step: none or host.
func (s *Sandbox) network(st *recipe.Run) string {
	for _, n := range []string{st.Network, s.Network} {
		if n != "" && n != "default" {
			return n
		}
	}
	return "host"
}

func (r *runStep) Close() error {
	var err error
	for _, f := range r.open {
		err = errors.Join(err, f.Close())
	}
	r.open = nil
	return err
}

func (r *runStep) perform(ctx context.Context, draft *snapshot.Draft) (err error) {
	if r.Foreign != nil {
		if err := r.Foreign(r.node.Stage.Platform.Architecture); err != nil {
			return err
		}
	}
	bottom, err := r.bottom(ctx)
	if err != nil {
		return err
	}
	root, err := draft.MountOn(bottom)
	if err != nil {
		return err
	}
	defer root.Close()
	spec, err := r.spec(root)
	if err != nil {
		return err
	}
	held := &runHeld{}
	defer func() { err = errors.Join(err, held.release()) }()
	if err := r.addMounts(ctx, spec, held); err != nil {
		return err
	}
	if r.Emulate != nil {
		r.Emulate(spec, root)
	}
	code, oom, err := r.start(ctx, spec, root, &held.mask)
	if err == nil && code != 0 {
		err = &ExitError{Args: r.node.Args, Code: code, OOM: oom, Memory: r.Sandbox.Limits.Memory}
	}
	return err
}

// ExitError is a RUN whose command ended with another status than 0.
type ExitError struct {
	Args   []string
	Code   int
	OOM    bool  // a process of it was killed at the memory limit
	Memory int64 // which that is, in bytes
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Args, " "), e.Code)
	if e.OOM {
		text += fmt.Sprintf(": the memory limit of %d MiB was reached, and the kernel killed a process of the step", e.Memory>>20)
	}
	return text
}

// spec describes the container of this step, without the mounts of its own.
func (r *runStep) spec(root *os.File) (*container.Spec, error) {
	n := r.node
	user, home, err := container.LookupUser(root, n.User)
	if err != nil {
		return nil, err
	}
	if err := MakeDirs(root, n.Dir, 0, 0); err != nil {
		return nil, fmt.Errorf("WORKDIR %s: %w", n.Dir, err)
	}
	etc, err := r.etcFiles()
	if err != nil {
		return nil, err
	}
	spec := container.DefaultSpec(container.Namespaces{Net: r.network() == "none", Cgroup: true})
	spec.NoNewPrivs = !r.newPrivs(user)
	if r.step.Security == "insecure" {
		spec.Unconfine()
	} else if r.Sandbox.Caps != spec.Caps {
		spec.Caps = r.Sandbox.Caps
		if spec.Seccomp, err = container.DefaultFilter(spec.Caps); err != nil {
			return nil, err
		}
	}
	spec.Mounts = append(spec.Mounts, r.Sandbox.Volumes...)
	spec.Name = n.Vertex.Name
	spec.Args = n.Args
	spec.Env = slices.Clone(n.Env)
	for _, kv := range slices.Concat(r.Sandbox.Proxies, []string{"HOME=" + home, "HOSTNAME=" + etc.Hostname}) {
		if name, value, _ := strings.Cut(kv, "="); !hasEnv(spec.Env, name) {
			spec.Env = append(spec.Env, name+"="+value)
		}
	}
	spec.Cwd = n.Dir
	spec.User = user
	spec.Init = true
	spec.Hostname = etc.Hostname
	spec.Rlimits = r.Sandbox.Rlimits
	if r.Sandbox.ShmSize > 0 {
		for i := range spec.Mounts {
			if m := &spec.Mounts[i]; m.Dest == "/dev/shm" {
				m.Data = fmt.Sprintf("size=%d,mode=1777", r.Sandbox.ShmSize)
			}
		}
	}
	spec.Mounts = append(spec.Mounts, etc.Mounts()...)
	if n.Script != nil {
		src, err := etc.Add(fmt.Sprintf("script-%p", n), n.Script.Data, 0o755)
		if err != nil {
			return nil, err
		}
		spec.Mounts = append(spec.Mounts, container.Mount{
			Type: container.Bind, Source: src, Dest: path.Join(recipe.PipesDir, n.Script.Name), ReadOnly: true,
		})
	}
	return spec, nil
}

// newPrivs tells whether the step may gain privileges by executing a file (PR_SET_NO_NEW_PRIVS(2const)).
// Root has nothing to gain, so its steps may not. A step after USER app that calls sudo or su is in
// many recipes, and BuildKit lets it.
func (r *runStep) newPrivs(user container.User) bool {
	if r.Sandbox.NewPrivs != nil {
		return *r.Sandbox.NewPrivs
	}
	return user.UID != 0
}

// noNewPrivs sees in what a step writes that sudo missed its rights. A message that comes in two
// pieces is missed: it is an aid, not a promise.
type noNewPrivs struct {
	io.Writer
	found func()
}

func (w noNewPrivs) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("no new privileges")) {
		w.found()
	}
	return w.Writer.Write(b)
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// setEnv puts a variable into env, in place of one of that name.
func setEnv(env []string, name, value string) []string {
	env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	return append(env, name+"="+value)
}

// start runs the container and passes on what it writes as it writes it, save
// for the secrets in it.
func (r *runStep) start(ctx context.Context, spec *container.Spec, root *os.File, mask *secretMask) (code int, oom bool, err error) {
	var copies sync.WaitGroup
	var ends [2]*os.File
	for i := range ends {
		from, end, err := os.Pipe()
		if err != nil {
			return 0, false, err
		}
		ends[i] = end
		w := mask.writer(r.Progress.Writer(r.node.Vertex, i == 1))
		var to io.Writer = w
		if spec.NoNewPrivs {
			to = noNewPrivs{w, func() {
				r.notice("steps of root run with no_new_privs; where one calls sudo as another user, say mk build --security-opt no-new-privileges=false")
			}}
		}
		copies.Go(func() {
			io.Copy(to, from) // ends with the container: its last process held the other end
			w.Close()
			from.Close()
		})
	}
	if l := r.Sandbox.Limits; !l.IsZero() || r.Sandbox.Parent != "" {
		spec.Cgroup, err = container.NewCgroup(container.CgroupWish{Name: "step-" + container.NewID()[:12], Parent: r.Sandbox.Parent, Limits: l})
	}
	var p *container.Process
	if err == nil {
		p, err = container.Start(ctx, spec, root, container.IO{Stdout: ends[0], Stderr: ends[1]})
	}
	ends[0].Close()
	ends[1].Close()
	if err != nil {
		copies.Wait()
		var start *container.StartError
		if errors.As(err, &start) && start.Code != 125 {
			fmt.Fprintln(r.Progress.Writer(r.node.Vertex, true), err)
			return start.Code, false, nil
		}
		return 0, false, err
	}
	for _, s := range p.Notices() {
		r.notice(s)
	}
	status, err := p.Wait()
	copies.Wait()
	if err != nil {
		return 0, false, err
	}
	if ctx.Err() != nil {
		return 0, false, context.Cause(ctx)
	}
	return status.Code, status.OOMKilled, nil
}

// notice tells once in a build what the machine makes its steps go without.
func (e *engine) notice(text string) {
	e.mu.Lock()
	said := e.said[text]
	if !said {
		if e.said == nil {
			e.said = map[string]bool{}
		}
		e.said[text] = true
	}
	e.mu.Unlock()
	if !said && e.Notice != nil {
		e.Notice(text)
	}
}

const defaultHostname = "buildkitsandbox"

// etcFiles makes the build's own files of /etc, the first time that a step needs them.
func (e *engine) etcFiles() (*Etc, error) {
	e.etcOnce.Do(func() {
		hostname := e.Sandbox.Hostname
		if hostname == "" {
			hostname = defaultHostname
		}
		e.etc, e.etcErr = NewEtc(e.Sandbox.Dir, hostname, e.Sandbox.Hosts)
	})
	return e.etc, e.etcErr
}
