package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"mk/container"
	"mk/recipe"
	"mk/snapshot"
)

// Sandbox is what every RUN step gets besides its tree.
type Sandbox struct {
	Network  string   // of steps that do not say: "default" (which is host), "none" or "host"
	Hosts    []string // more lines of /etc/hosts: "10.1.2.3\tname"
	Hostname string   // "" is buildkitsandbox
	Proxies  []string // NAME=value of the proxy variables: in the environment of RUN, never in a key
	Dir      string   // an empty directory, mounted over in this process's own namespace
}

// runStep is one RUN.
type runStep struct {
	*engine
	node *Node
	step *recipe.Run
}

func (e *engine) newRun(ctx context.Context, n *Node, st *recipe.Run) (action, error) {
	if len(st.Mounts) > 0 {
		return nil, fmt.Errorf("RUN --mount is not supported yet")
	}
	if len(st.Devices) > 0 {
		return nil, fmt.Errorf("RUN --device is not supported")
	}
	if st.Security == "insecure" {
		return nil, fmt.Errorf("RUN --security=insecure is not supported yet")
	}
	return &runStep{engine: e, node: n, step: st}, nil
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
}

func (r *runStep) network() string {
	for _, n := range []string{r.step.Network, r.Sandbox.Network} {
		if n != "" && n != "default" {
			return n
		}
	}
	return "host"
}

func (r *runStep) Close() error { return nil }

func (r *runStep) perform(ctx context.Context, draft *snapshot.Draft) error {
	root, err := draft.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	spec, err := r.spec(root)
	if err != nil {
		return err
	}
	code, err := r.start(ctx, spec, root)
	if err == nil && code != 0 {
		err = &ExitError{Args: r.node.Args, Code: code}
	}
	return err
}

// ExitError is a RUN whose command ended with another status than 0.
type ExitError struct {
	Args []string
	Code int
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Args, " "), e.Code)
}

// spec describes the container of this step.
func (r *runStep) spec(root *os.File) (*container.Spec, error) {
	n := r.node
	user, home, err := container.LookupUser(root, n.User)
	if err != nil {
		return nil, err
	}
	if err := MakeDirs(root, n.Dir, 0, 0); err != nil {
		return nil, fmt.Errorf("WORKDIR %s: %w", n.Dir, err)
	}
	spec := container.DefaultSpec(container.Namespaces{Net: r.network() == "none", Cgroup: true})
	etc, err := r.etcFiles()
	if err != nil {
		return nil, err
	}
	spec.Name = n.Vertex.Name
	spec.Args = n.Args
	spec.Env = slices.Concat(n.Env, r.Sandbox.Proxies)
	if !slices.ContainsFunc(spec.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		spec.Env = append(spec.Env, "HOME="+home)
	}
	spec.Cwd = n.Dir
	spec.User = user
	spec.Init = true
	spec.NoNewPrivs = true
	spec.Hostname = etc.Hostname
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

// start runs the container and passes on what it writes as it writes it.
func (r *runStep) start(ctx context.Context, spec *container.Spec, root *os.File) (code int, err error) {
	var copies sync.WaitGroup
	var ends [2]*os.File
	for i := range ends {
		from, to, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		ends[i] = to
		w := r.Progress.Writer(r.node.Vertex, i == 1)
		copies.Go(func() {
			io.Copy(w, from) // ends with the container: its last process held the other end
			from.Close()
		})
	}
	p, err := container.Start(ctx, spec, root, container.IO{Stdout: ends[0], Stderr: ends[1]})
	ends[0].Close()
	ends[1].Close()
	if err != nil {
		copies.Wait()
		var start *container.StartError
		if errors.As(err, &start) && start.Code != 125 {
			fmt.Fprintln(r.Progress.Writer(r.node.Vertex, true), err)
			return start.Code, nil
		}
		return 0, err
	}
	for _, s := range p.Notices() {
		r.notice(s)
	}
	status, err := p.Wait()
	copies.Wait()
	if err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return status.Code, nil
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
