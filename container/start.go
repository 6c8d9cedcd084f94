package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// defaultGrace is the time between SIGTERM and SIGKILL at the end of a context: enough for a shell to
// go, and short enough for someone who pressed Ctrl-C.
const defaultGrace = 500 * time.Millisecond

// Process is a started container.
type Process struct {
	proc     *os.Process
	reaper   *os.Process // pid 1 when proc is not
	main     bool        // of Start, and not of Exec
	terminal *os.File
	notices  []string
	stubs    stubs

	stopListener func()         // of Spec.Listener; nil
	served       sync.WaitGroup // the Listeners of commands of Exec
	cause        func() error   // why Start's context ended
	unwatch      func() bool
	done         chan struct{} // closed when proc has been waited for
	left         chan struct{} // nil, or closed when the maker is out of the container's mounts
	spec         *Spec
	joiner       joiner // see Exec
	birth        *birthplace
	mounts       uint64     // see sweep
	owned        []*os.File // the mounts that are Owned, for the Listener of Exec
}

// StartError is the failure to become the container. Code is the exit status that docker gives to
// it: 127 not found, 126 cannot be invoked, 125 anything else.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// ExitStatus is how the container ended.
type ExitStatus struct {
	Code   int            // the command's own, or 128+n
	Signal syscall.Signal // that ended the command; not known, but for Code, where an exec'd init has passed it on

	OOMKilled bool // the memory limit of Spec.Cgroup has killed a process of it
}

// Start makes the container and returns when its command has been exec'd. root is a detached
// mount, as snapshots and open_tree(2) give it; it is the caller's to close, any time after Start.
// It must be writable where mount points are missing. The end of ctx ends the container, with
// SIGTERM and, after Spec.Grace, SIGKILL; so does the end of this process. A failure inside the
// container is a *StartError. Wait must be called.
func Start(ctx context.Context, spec *Spec, root *os.File, stdio IO) (_ *Process, err error) {
	defer func() {
		if err != nil && spec.Cgroup != nil {
			spec.Cgroup.Remove()
		}
	}()
	if err := spec.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sources, err := openSources(spec.Mounts)
	if err != nil {
		return nil, err
	}
	defer closeAll(sources)
	stubs, err := makeStubs(root, spec.Mounts, func(i int) bool { return mountsDirectory(&spec.Mounts[i], sources[i]) })
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			stubs.remove()
		}
	}()
	if spec.here() {
		p := newProcess(ctx, spec, stubs)
		if err := p.startHere(spec, root, sources, stdio); err != nil {
			return nil, err
		}
		p.watch(ctx)
		return p, nil
	}
	birth, err := spec.birthplace()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			birth.close()
		}
	}()
	proc, control, err := spawnInit(spec, root, sources, birth, stdio)
	if err != nil && spec.Cgroup != nil && spec.Cgroup.spare { // clone3(2) may be filtered
		spec.Cgroup.Remove()
		spec.Cgroup = nil
		proc, control, err = spawnInit(spec, root, sources, birth, stdio)
	}
	if err != nil {
		return nil, err
	}
	defer control.Close()

	p := newProcess(ctx, spec, stubs)
	p.proc, p.birth = proc, birth
	if birth != nil {
		p.joiner.work = birth.work
	}
	p.watch(ctx)
	p.takeOwned(sources)
	err = p.listen(control, spec.Listener, p.owned)
	if err != nil {
		p.unwatch()
		p.proc.Kill()
		p.wait()
		if p.terminal != nil {
			p.terminal.Close()
		}
		return nil, err
	}
	p.remember()
	return p, nil
}

func newProcess(ctx context.Context, spec *Spec, stubs stubs) *Process {
	return &Process{main: true, stubs: stubs, done: make(chan struct{}), spec: spec,
		cause: func() error { return context.Cause(ctx) }}
}

// takeOwned keeps the sources that are the Listener's to know, and leaves nil for them.
func (p *Process) takeOwned(sources []*os.File) {
	for i, m := range p.spec.Mounts {
		if m.Owned && sources[i] != nil && p.spec.Listener != nil {
			p.owned, sources[i] = append(p.owned, sources[i]), nil
		}
	}
}

// watch ends the container when ctx ends.
func (p *Process) watch(ctx context.Context) {
	grace := p.spec.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	p.unwatch = context.AfterFunc(ctx, func() { p.end(grace) })
}

// spawnInit clones stage init into the namespaces of spec.
func spawnInit(spec *Spec, root *os.File, sources []*os.File, birth *birthplace, stdio IO) (_ *os.Process, control *os.File, err error) {
	o := orders{Spec: spec, Sources: make([]bool, len(sources)), Await: spec.Cgroup != nil && !spec.Cgroup.limits.IsZero()}
	for i, f := range sources {
		o.Sources[i] = f != nil
	}
	told, err := writeOrders(o)
	if err != nil {
		return nil, nil, err
	}
	defer told.Close()
	self, err := readOnlySelf()
	if err != nil {
		return nil, nil, err
	}
	defer dissolve(self)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the socket to init: %w", err)
	}
	control, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control of init")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		control.Close()
		return nil, nil, err
	}
	defer null.Close()
	orNull := func(f *os.File) *os.File {
		if f == nil || spec.Terminal != nil {
			return null
		}
		return f
	}
	files := []*os.File{orNull(stdio.Stdin), orNull(stdio.Stdout), orNull(stdio.Stderr), told, theirs, root, self}
	for _, f := range sources {
		if f != nil {
			files = append(files, f)
		}
	}

	kinds := spec.Namespaces.flags() &^ unix.CLONE_NEWCGROUP // that is made inside it
	if spec.Network != nil {
		kinds &^= unix.CLONE_NEWNET
	}
	sys := &syscall.SysProcAttr{
		Cloneflags: uintptr(kinds),
		Setsid:     true, // not the caller's terminal: nothing can be typed into it (TIOCSTI)
	}
	if spec.Namespaces.ownPID() {
		sys.Cloneflags |= unix.CLONE_NEWPID
		sys.Pdeathsig = unix.SIGKILL // else see watchHolder
	}
	for _, n := range spec.Namespaces.Shared {
		sys.Cloneflags &^= uintptr(n.Kind)
	}
	if spec.Cgroup != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(spec.Cgroup.dir.Fd()) // clone3(2), Linux 5.7
	}
	name := userns.InitName
	if spec.Name != "" {
		name += " " + spec.Name
	}
	on := onSpawner
	if birth != nil {
		on = birth.spawn
	} else if spec.Namespaces.Net && spec.Network != nil {
		on = spec.Network.spawn
	}
	proc, err := on(func() (*os.Process, error) {
		return os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", selfFD), []string{name}, &os.ProcAttr{
			Env:   []string{}, // nothing of ours: it would be in the container's /proc/1/environ
			Files: files,
			Sys:   sys,
		})
	})
	if err != nil {
		control.Close()
		if spec.Namespaces.Time != nil && errors.Is(err, unix.EINVAL) {
			return nil, nil, errOldTime
		}
		if spec.Cgroup != nil {
			return nil, nil, fmt.Errorf("start in cgroup %s: %w", spec.Cgroup.path, err)
		}
		return nil, nil, userns.Explain(userns.OpClone, "", err)
	}
	return proc, control, nil
}

// flags are those of clone(2) and setns(2), but for the pid namespace.
func (n *Namespaces) flags() int {
	flags := unix.CLONE_NEWNS
	for _, f := range []struct {
		is   bool
		flag int
	}{{n.Net, unix.CLONE_NEWNET}, {n.Cgroup, unix.CLONE_NEWCGROUP}, {!n.HostIPC, unix.CLONE_NEWIPC}, {!n.HostUTS, unix.CLONE_NEWUTS}} { // new ones and Shared
		if f.is {
			flags |= f.flag
		}
	}
	return flags
}

// writeOrders puts the orders into a memfd: init reads them at once, and nobody has to feed a pipe.
func writeOrders(o orders) (*os.File, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("orders", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a memory file for the orders: %w", err)
	}
	f := os.NewFile(uintptr(fd), "orders")
	if _, err := f.WriteAt(text, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write the orders: %w", err)
	}
	return f, nil
}

// listen takes what init has to say, until it has exec'd or failed.
func (p *Process) listen(control *os.File, listener func(*os.File, int, []*os.File) (func(), error), owned []*os.File) (err error) {
	for {
		packet, file, err := receive(control)
		switch {
		case err != nil:
			return fmt.Errorf("listen to init: %w", err)
		case packet == nil:
			return nil
		case packet.Failure != nil:
			return packet.Failure.startError()
		case packet.Terminal:
			p.terminal = file
		case packet.Ready:
			if err := p.spec.Cgroup.settle(besides(p.spec.Init, p.spec.Namespaces.ownPID())); err != nil {
				return err
			}
			if _, err := control.Write([]byte{1}); err != nil {
				return fmt.Errorf("answer init: %w", err)
			}
		case packet.Listener:
			if p.stopListener, err = listener(file, p.Pid(), owned); err != nil {
				return err
			}
		default:
			p.notices = append(p.notices, packet.Notice)
		}
	}
}

// end asks the container to end, and then makes it.
func (p *Process) end(grace time.Duration) {
	p.proc.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		p.Kill()
	}
}

// Wait waits for the end of the container, every process of it, and takes the mount points away
// that Start made. When the container ended because Start's context did, the error is the cause
// of that.
func (p *Process) Wait() (ExitStatus, error) {
	status, err := p.wait()
	if g := p.spec.Cgroup; g != nil && p.main {
		status.OOMKilled = g.OOMKills() > 0
		err = errors.Join(err, g.Remove())
	}
	if !p.unwatch() && err == nil {
		err = p.cause()
	}
	return status, errors.Join(err, p.stubs.remove())
}

func (p *Process) wait() (ExitStatus, error) {
	state, err := p.proc.Wait()
	p.bury()
	close(p.done)
	if p.main {
		p.sweep()
		p.birth.close()
	}
	closeAll(p.owned)
	if p.left != nil {
		<-p.left
	}
	p.served.Wait()
	if p.stopListener != nil {
		p.stopListener() // before the mount points are taken away, which it would keep busy
	}
	if err != nil {
		return ExitStatus{Code: 125}, fmt.Errorf("wait for the container: %w", err)
	}
	ws := state.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return ExitStatus{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}, nil
	}
	return ExitStatus{Code: ws.ExitStatus()}, nil
}

// bury ends pid 1, and with it whoever is left, where that is a reaper.
func (p *Process) bury() {
	if p.reaper != nil {
		p.reaper.Kill()
		p.reaper.Wait()
	}
}

// Signal sends a signal to the container's command, through its init when it has one.
func (p *Process) Signal(sig os.Signal) error { return p.proc.Signal(sig) }

// Kill ends all processes of the container, though one without a pid namespace of its own only by
// the time that Wait returns.
func (p *Process) Kill() error {
	if p.reaper != nil {
		return p.reaper.Kill()
	}
	return p.proc.Kill()
}

// Pid is the container's pid 1, as stage inside sees it.
func (p *Process) Pid() int {
	if p.reaper != nil {
		return p.reaper.Pid
	}
	return p.proc.Pid
}

// Cgroup is the path of the container's cgroup, or "".
func (p *Process) Cgroup() string {
	if p.spec.Cgroup == nil {
		return ""
	}
	return p.spec.Cgroup.path
}

// Notices are what the machine did not allow and the container goes without, a sentence each.
func (p *Process) Notices() []string { return p.notices }

// spawner is the one thread that clones. A container dies with its parent by PR_SET_PDEATHSIG, and
// to the kernel the parent is a thread: one that the Go scheduler ended would take its containers
// with it. This one never ends.
var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func onSpawner(start func() (*os.Process, error)) (proc *os.Process, err error) {
	done := make(chan struct{})
	spawner() <- func() {
		proc, err = start()
		close(done)
	}
	<-done
	return proc, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
