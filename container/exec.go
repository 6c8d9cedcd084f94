package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// Exec is another command for a running container. What it does not say is as in the container's
// Spec: environment, capabilities, filter, limits.
type Exec struct {
	Args       []string
	Env        []string // NAME=value, over the container's
	Cwd        string   // "" is the container's
	User       string   // as LookupUser has it, looked up in the container; "" is the container's
	Privileged bool     // all capabilities, no filter
	Terminal   *Size    // non-nil: a pty of this size
}

// Exec starts a command in a running container, in all of its namespaces, and returns when it has
// been exec'd. Its parent is this process; it ends with the container. Wait must be called. The
// errors are those of Start.
//
//	holder                                   mk:init
//	a thread that joined the pid namespace:
//	clone                                →   exec (a read-only mk); read the orders
//	                                         join mnt, net, ipc, uts, cgroup: nothing of the outside is left
//	Terminal                             ←   user, pty, directory, look the command up
//	Exec returns                         ←   become what the container may be; execve
//
// Processes of the container see the helper, by its pid, before it has become one of theirs. They
// may not touch it, since it has capabilities that they lack; in a container that was given all of
// them, or SYS_PTRACE, root could. Such a container is a convenience and no boundary.
func (p *Process) Exec(e *Exec, stdio IO) (_ *Process, err error) {
	spec := *p.spec
	spec.Args = e.Args
	spec.Mounts, spec.Masked, spec.ReadOnly, spec.Sysctls = nil, nil, nil, nil
	spec.Terminal = e.Terminal
	if e.Cwd != "" {
		spec.Cwd = e.Cwd
	}
	if e.Privileged {
		spec.Unconfine()
	}
	if err := spec.check(); err != nil {
		return nil, err
	}
	init, err := p.pidfd()
	if err != nil {
		return nil, err
	}
	defer init.Close()
	// The helper joins the cgroup last: a limit of processes may be less than a Go program has threads.
	var members *os.File
	if spec.Cgroup != nil {
		if Frozen(spec.Cgroup.path) {
			return nil, ErrPaused
		}
		if members, err = spec.Cgroup.members(); err != nil {
			return nil, fmt.Errorf("join the container's cgroup: %w", err)
		}
	}
	o := orders{Spec: &spec, Join: e}
	if members != nil {
		o.Sources = []bool{true}
	}
	told, err := writeOrders(o)
	if err != nil {
		return nil, err
	}
	defer told.Close()
	self, err := readOnlySelf()
	if err != nil {
		return nil, err
	}
	defer dissolve(self)
	control, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr, told, theirs, init, self}
	if members != nil {
		defer members.Close()
		files = append(files, members)
	}
	for i, f := range files {
		if f == nil || i < 3 && e.Terminal != nil {
			files[i] = null
		}
	}
	work, err := p.joiner.thread(init, !spec.Namespaces.HostPID)
	if err != nil {
		if hasEnded(init, err) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	joined := &Process{done: make(chan struct{}), spec: &spec, unwatch: func() bool { return true }}
	started := make(chan error)
	start := func() {
		joined.proc, err = os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", selfFD), []string{userns.InitName}, &os.ProcAttr{
			Env:   []string{},
			Files: files,
			Sys:   &syscall.SysProcAttr{Setsid: true}, // its parent has no pid there: Go's check for Pdeathsig would kill it
		})
		started <- err
	}
	select {
	case work <- start:
	case <-p.done:
		return nil, ErrNotRunning
	}
	if err := <-started; err != nil {
		if hasEnded(init, err) {
			return nil, ErrNotRunning
		}
		return nil, fmt.Errorf("start a process in the container: %w", err)
	}
	theirs.Close()
	// Who answers its calls is to look at the container as pid 1 sees it: the helper has joined with
	// one thread, which need not be the one that /proc/PID shows.
	listener := func(f *os.File, _ int, owned []*os.File) (func(), error) { return p.listenOn(f, owned) }
	if err := joined.listen(control, listener, p.owned); err != nil {
		joined.proc.Kill()
		joined.wait()
		if joined.terminal != nil {
			joined.terminal.Close()
		}
		if hasEnded(init, err) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	return joined, nil
}

// listenOn has the calls of a command of Exec answered, and of what it leaves behind: a service that it
// started. stop, at the command's end, does not wait for those; the end of the container does.
func (p *Process) listenOn(f *os.File, owned []*os.File) (stop func(), err error) {
	init, err := p.pidfd()
	if err != nil {
		return nil, err
	}
	used, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		init.Close()
		return nil, fmt.Errorf("keep the listener: %w", err)
	}
	end, err := p.spec.Listener(f, p.Pid(), owned)
	if err != nil {
		init.Close()
		unix.Close(used)
		return nil, err
	}
	p.served.Add(1)
	return func() {
		// POLLHUP comes when nobody has the filter any more.
		over := []unix.PollFd{{Fd: int32(used)}, {Fd: int32(init.Fd()), Events: unix.POLLIN}}
		finish := func() {
			end()
			unix.Close(used)
			init.Close()
			p.served.Done()
		}
		if n, err := unix.Poll(over, 0); n > 0 || err != nil {
			finish()
			return
		}
		go func() {
			for {
				if _, err := unix.Poll(over, -1); err != unix.EINTR {
					break
				}
			}
			finish()
		}()
	}, nil
}

// hasEnded tells whether a failure to get into the container is that it has ended. A process loses its
// namespaces, then its pid: setns(2) says ESRCH, EPERM in between, and the pidfd a moment later.
func hasEnded(pidfd *os.File, err error) bool {
	var start *StartError
	if errors.As(err, &start) && start.Code != 125 {
		return false // it was there, to look the command up in
	}
	n, perr := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 100)
	return perr == nil && n > 0
}

// ErrNotRunning is the answer to what only a running container can do.
var ErrNotRunning = errors.New("the container is not running")

// ErrPaused is the answer where a process would have to run.
var ErrPaused = errors.New("the container is paused: unpause it first")

// pidfd is a descriptor of pid 1, which names its namespaces for setns(2).
func (p *Process) pidfd() (*os.File, error) {
	select {
	case <-p.done:
		return nil, ErrNotRunning
	default:
	}
	fd, err := unix.PidfdOpen(p.Pid(), 0)
	if err != nil {
		return nil, ErrNotRunning
	}
	return os.NewFile(uintptr(fd), "pid 1"), nil
}

// joiner is a thread whose children are born in the container's pid namespace. To join that takes
// a thread for ever, and a child ends with the thread that started it: so there is one a
// container, its birthplace or else one made for the first Exec.
type joiner struct {
	once sync.Once
	work chan func()
	err  error
}

func (j *joiner) thread(init *os.File, joins bool) (chan<- func(), error) {
	j.once.Do(func() {
		if j.work == nil {
			j.work = newThread()
		}
		if !joins {
			return
		}
		joined := make(chan error)
		j.work <- func() { joined <- unix.Setns(int(init.Fd()), unix.CLONE_NEWPID) }
		if err := <-joined; err != nil {
			j.err = fmt.Errorf("join the container's pid namespace: %w", err)
		}
	})
	return j.work, j.err
}

// adopt takes a thread that is there already.
func (j *joiner) adopt(work chan func()) { j.once.Do(func() { j.work = work }) }

// controlPair is the socket between Start and init.
func controlPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the socket to init: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control of init"), nil
}

// join is stage init for Exec: a process of the container's pid namespace that is still everywhere
// else. It returns only with an error.
func join(spec *Spec, e *Exec, members []int) error {
	runtime.LockOSThread() // namespaces, identity and filters belong to threads
	if err := takeOOMScore(spec); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	// A thread that shares its directories with others cannot join a mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	denied := setgroupsDenied()
	if err := unix.Setns(rootFD, spec.Namespaces.flags()); err != nil {
		return fmt.Errorf("join the container's namespaces: %w", err)
	}

	// Where: in the container, still with all capabilities.
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if e.User != "" {
		user, home, err := LookupUser(root, e.User)
		if err != nil {
			return fail(126, "%w", err)
		}
		if user.UID != spec.User.UID {
			spec.Env = setEnv(spec.Env, "HOME="+home)
		}
		spec.User = user
	}
	for _, kv := range e.Env {
		spec.Env = setEnv(spec.Env, kv)
	}
	tty := -1
	if spec.Terminal != nil {
		master, slave, err := newTerminal(int(root.Fd()), spec)
		if err != nil {
			return fmt.Errorf("open a terminal: %w", err)
		}
		if err := send(packet{Terminal: true}, master); err != nil {
			return err
		}
		tty = slave
	}
	file, err := settleIn(spec, tty, true)
	if err != nil {
		return err
	}
	if err := closeRest(); err != nil {
		return err
	}
	if len(members) == 1 {
		if _, err := unix.Write(members[0], []byte("0")); err != nil {
			return fmt.Errorf("join the container's cgroup: %w", err)
		}
	}
	if err := become(spec, denied); err != nil {
		return err
	}
	return execError(spec, file, syscall.Exec(file, spec.Args, spec.Env))
}

// setEnv sets one NAME=value, in place of one of that name.
func setEnv(env []string, kv string) []string {
	name, _, _ := strings.Cut(kv, "=")
	env = slices.Clone(env)
	for i, old := range env {
		if strings.HasPrefix(old, name+"=") {
			env[i] = kv
			return env
		}
	}
	return append(env, kv)
}
