package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// A container is made by a thread of this process, where it can be: the thread leaves for new
// namespaces, mounts what is to be mounted, pivots, and forks the child that becomes the command
// (see newborn); then it comes back for its mounts, and stays until the container has ended, since
// the child dies with it. There is no program to start before the command, which would be most
// of the time: 6 of 8 ms.
//
// Not so when somebody else's processes would see the child before its execve: in a pid namespace
// that is not its own, who has SYS_PTRACE could take it over, and with it a copy of this process's
// memory and descriptors. Such a container is made by an exec'd init (see Init).

// here tells whether a container can be made by a thread.
func (s *Spec) here() bool {
	ns := &s.Namespaces
	if !ns.ownPID() || len(ns.Shared) > 0 || ns.Time != nil || s.OOMScore != 0 { // which is of a process, not of a thread
		return false
	}
	proc := false
	for i, m := range s.Mounts {
		if m.Type == Proc {
			if path.Clean(m.Dest) != "/proc" || proc {
				return false
			}
			proc = true
		}
		for _, later := range s.Mounts[i+1:] {
			if s.last(&m) && strings.HasPrefix(path.Clean(later.Dest)+"/", path.Clean(m.Dest)+"/") {
				return false
			}
		}
	}
	return proc
}

// last tells whether a mount can be made only by the child itself.
func (s *Spec) last(m *Mount) bool {
	return m.Type == Proc || m.Type == Cgroup2 && s.Namespaces.Cgroup
}

// maker is a thread that makes a container, and what comes of it.
type maker struct {
	spec    *Spec
	root    *os.File
	sources []*os.File
	stdio   IO

	home     int    // the mounts that the thread comes back to
	reaper   int    // pid 1, with Spec.Init
	file     string // of the command
	command  *newborn
	pid      int      // of the command
	control  *os.File // for reports of the command
	terminal *os.File
	notices  []string
	fds      []int // to be closed when the child has been forked, see release
	outer    int   // the same, of lastMounts; or -1
}

// startHere makes a container by a thread, which lives until p.done is closed and takes work until then.
func (p *Process) startHere(spec *Spec, root *os.File, sources []*os.File, stdio IO) error {
	m := &maker{spec: spec, root: root, sources: sources, stdio: stdio, home: -1, outer: -1}
	work, forked, settled := make(chan func()), make(chan error), make(chan struct{})
	left := make(chan struct{})
	go threadOfItsOwn(func() {
		err := m.make()
		if err != nil {
			m.release()
			m.leave()
			forked <- err
			return
		}
		forked <- nil
		m.release() // while the child is listened to
		<-settled
		m.leave()
		close(left)
		for {
			select {
			case f := <-work:
				f()
			case <-p.done:
				return
			}
		}
	})
	err := <-forked
	if m.reaper != 0 { // a child of ours: its number is not another's before we wait for it
		p.reaper, _ = os.FindProcess(m.reaper)
	}
	if err != nil {
		p.bury()
		if m.terminal != nil {
			m.terminal.Close()
		}
		return startError(err)
	}
	defer m.control.Close()
	p.terminal, p.left = m.terminal, left
	p.joiner.adopt(work)
	p.proc, _ = os.FindProcess(m.pid)
	p.takeOwned(sources)
	err = m.listen(m.command, m.control, func(f *os.File) (err error) {
		p.stopListener, err = spec.Listener(f, p.Pid(), p.owned)
		return err
	})
	p.notices = m.notices
	close(settled)
	if err != nil {
		p.proc.Kill()
		p.wait()
		if p.terminal != nil {
			p.terminal.Close()
		}
		return startError(err)
	}
	return nil
}

// startError gives an error the exit status of docker, unless it has one.
func startError(err error) error {
	var start *StartError
	if errors.As(err, &start) {
		return err
	}
	return &StartError{Code: 125, Err: err}
}

// threadOfItsOwn calls f on a thread that ends with it. The first thread of a process is never it:
// Go keeps that one for ever.
func threadOfItsOwn(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		threadOfItsOwn(f) // on another, as this one is taken
		close(done)
	}()
	<-done
	runtime.UnlockOSThread()
}

// release closes what the child has its own copies of. It takes time where a mount was not attached in
// the end, see dissolve. The outer /proc always is one.
func (m *maker) release() {
	if m.outer >= 0 {
		dissolve(os.NewFile(uintptr(m.outer), "/proc"))
	}
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds, m.outer = nil, -1
}

// make makes the container, up to the fork of its child.
func (m *maker) make() (err error) {
	spec := m.spec
	denied := setgroupsDenied()
	if m.home, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open our mounts: %w", err)
	}
	kinds := spec.Namespaces.flags() &^ unix.CLONE_NEWCGROUP // that is of the child's cgroup
	if spec.Network != nil && spec.Namespaces.Net {
		kinds &^= unix.CLONE_NEWNET
		if err := unix.Setns(int(spec.Network.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join the container's network: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWPID | kinds); err != nil {
		return userns.Explain(userns.OpClone, "", err)
	}
	if spec.Cgroup != nil {
		if err := spec.Cgroup.settle(besides(spec.Init, true)); err != nil {
			return err
		}
	}

	// Where: the mounts of stage inside, with the new root beside them. The outer /proc, /sys
	// and /dev are needed: fresh ones may be mounted only while these can be seen.
	if err := namesOf(spec); err != nil {
		return err
	}
	if spec.Namespaces.Net {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
	}
	fresh, err := m.mount()
	if err != nil {
		return err
	}

	// Where: in the container's root, nothing else mounted; still with all capabilities.
	enterCwd(spec.Cwd) // for a relative PATH; the child goes there, and fails, by itself
	if m.file, err = lookPath(spec); err != nil {
		return err
	}
	n, err := prepare(spec, m.file, denied, m.notice)
	if err != nil {
		return err
	}
	if n.tty {
		n.stdio = [3]int{fresh.tty, fresh.tty, fresh.tty}
	} else if err := m.streams(n); err != nil {
		return err
	}
	if spec.Init {
		if err := m.reap(n, fresh, denied); err != nil {
			return err
		}
	} else {
		n.mounts(fresh)
	}
	m.command = n
	m.pid, m.control, err = m.fork(n)
	return err
}

// reap makes a pid 1 that buries orphans, and is the first in the namespaces of the command.
func (m *maker) reap(command *newborn, fresh *lastMounts, denied bool) error {
	s := *m.spec
	s.Caps, s.NoNewPrivs, s.User, s.Notify, s.Terminal, s.Cwd = 0, true, User{}, nil, nil, "/"
	s.Args, s.Env = []string{strings.TrimSpace(userns.InitName + " " + s.Name)}, nil
	n, err := prepare(&s, "", denied, m.notice)
	if err != nil {
		return err
	}
	programs, err := tiny()
	if err != nil {
		return err
	}
	n.program, n.argv, n.noChildren = programs[tinyReaper], n.argv[1:], true
	n.mounts(fresh)
	null, err := m.null()
	if err != nil {
		return err
	}
	n.stdio = [3]int{null, null, null}
	pid, control, err := m.fork(n)
	if err != nil {
		return err
	}
	defer control.Close()
	m.reaper = pid
	if err := m.listen(n, control, nil); err != nil {
		return err
	}
	if command.newCgroup {
		command.newCgroup = false
		if command.cgroup, err = unix.PidfdOpen(pid, 0); err != nil {
			return fmt.Errorf("open the cgroup namespace: %w", err)
		}
		m.fds = append(m.fds, command.cgroup)
	}
	return nil
}

func (m *maker) notice(text string) { m.notices = append(m.notices, text) }

// mount executes the mount plan and pivots, and prepares what is left for the child.
func (m *maker) mount() (*lastMounts, error) {
	spec := m.spec
	last := &lastMounts{outer: -1}
	defer func() { m.fds, m.outer = append(m.fds, last.fds()...), last.outer }()
	for i := range spec.Mounts {
		if p := &spec.Mounts[i]; p.Type == Proc {
			if fd, err := outerTree("/proc", p); err == nil {
				last.outer = fd
			}
		}
	}
	root, err := attachRoot(int(m.root.Fd()), spec.RootReadOnly)
	if err != nil {
		return nil, err
	}
	if root != int(m.root.Fd()) {
		m.fds = append(m.fds, root)
	}
	for i := range spec.Mounts {
		p := &spec.Mounts[i]
		if spec.last(p) {
			if err := last.add(root, p); err != nil && !p.Optional {
				return nil, userns.Explain(userns.OpMount, p.Type+" on "+p.Dest, err)
			}
			continue
		}
		source := -1
		if m.sources[i] != nil {
			source = int(m.sources[i].Fd())
		}
		if err := mountOn(root, spec, p, source); err != nil {
			return nil, err
		}
	}
	if spec.Terminal != nil {
		master, slave, err := openTerminal(root, spec)
		if err != nil {
			return nil, fmt.Errorf("open a terminal: %w", err)
		}
		m.terminal = os.NewFile(uintptr(master), "terminal")
		m.fds = append(m.fds, slave)
		last.tty = slave
	}
	if err := last.protect(root, spec); err != nil {
		return nil, err
	}
	if last.covered, err = pivot(root); err != nil {
		return nil, fmt.Errorf("pivot into the root: %w", err)
	}
	return last, nil
}

// lastMounts is what the child mounts, prepared.
type lastMounts struct {
	fresh  []fresh // /proc first
	outer  int     // a copy of the outer /proc, or -1
	masked []masked
	frozen []*byte
	sysctl []sysctl
	tty    int

	covered bool // see pivot: the outer /proc has to stay as long
}

// add prepares one mount.
func (l *lastMounts) add(root int, m *Mount) error {
	dest, err := reach(root, m.Dest, true, func(int, string) error { return nil })
	if err != nil {
		return err
	}
	f := fresh{dest: dest, attr: uintptr(m.attributes()), optional: m.Optional, outer: -1, is: "cgroup2"}
	if m.Type == Proc {
		f.is, f.outer = "proc", l.outer
	}
	f.name, _ = unix.BytePtrFromString(f.is)
	if m.Type == Proc {
		l.fresh = append([]fresh{f}, l.fresh...)
	} else {
		l.fresh = append(l.fresh, f)
	}
	return nil
}

// protect protects what is there, and prepares it for what lies below /proc.
func (l *lastMounts) protect(root int, spec *Spec) error {
	var rest Spec
	for name, value := range spec.Sysctls {
		p, err := unix.BytePtrFromString("sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil || value == "" {
			return fmt.Errorf("set sysctl %s to %q: %w", name, value, unix.EINVAL)
		}
		l.sysctl = append(l.sysctl, sysctl{p, []byte(value), fmt.Sprintf("%s to %q", name, value)})
	}
	for _, name := range spec.ReadOnly {
		if p, ok := below("/proc", name); ok {
			l.frozen = append(l.frozen, p)
		} else {
			rest.ReadOnly = append(rest.ReadOnly, name)
		}
	}
	null := -1
	for _, name := range spec.Masked {
		p, ok := below("/proc", name)
		if !ok {
			rest.Masked = append(rest.Masked, name)
			continue
		}
		if null < 0 {
			var err error
			if null, err = openDevice("null"); err != nil {
				return err
			}
			defer unix.Close(null)
		}
		// What it is, the outer /proc tells. Were it wrong, the kernel would not mount the one on the other.
		var st unix.Stat_t
		if err := unix.Stat(path.Clean("/"+name), &st); err == unix.ENOENT && noProcHas(name) {
			continue
		}
		cover, err := coverFor(st.Mode&unix.S_IFMT == unix.S_IFDIR, null)
		if err != nil {
			return userns.Explain(userns.OpMount, "a mask on "+name, err)
		}
		l.masked = append(l.masked, masked{p, cover})
	}
	return protect(root, &rest)
}

// noProcHas tells whether what the outer /proc lacks, the child's lacks too: so it is with all that is
// not of a process, if the outer one is whole (see subset= in proc(5)). A cover that nothing is found
// for would be dissolved again, see release.
func noProcHas(name string) bool {
	first := strings.TrimPrefix(path.Clean("/"+name), "/proc/")
	return (first[0] < '0' || first[0] > '9') && unix.Access("/proc/stat", unix.F_OK) == nil
}

func (l *lastMounts) fds() (all []int) {
	for _, f := range l.fresh {
		all = append(all, f.dest)
	}
	for _, m := range l.masked {
		all = append(all, m.cover)
	}
	return all
}

// mounts gives a child what it is to mount.
func (n *newborn) mounts(l *lastMounts) {
	n.fresh, n.masked, n.frozen, n.sysctls, n.covered = l.fresh, l.masked, l.frozen, l.sysctl, l.covered
}

// streams gives a child its standard streams, by descriptors beyond those that they become.
func (m *maker) streams(n *newborn) error {
	null := -1
	for i, f := range []*os.File{m.stdio.Stdin, m.stdio.Stdout, m.stdio.Stderr} {
		if f != nil {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return fmt.Errorf("set up the standard streams: %w", err)
			}
			m.fds = append(m.fds, fd)
			giveStream(fd, m.spec.User)
			n.stdio[i] = fd
			continue
		}
		if null < 0 {
			var err error
			if null, err = m.null(); err != nil {
				return err
			}
		}
		n.stdio[i] = null
	}
	return nil
}

// null opens the machine's /dev/null, as it is in the container.
func (m *maker) null() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/null: %w", err)
	}
	m.fds = append(m.fds, fd)
	return fd, nil
}

// fork forks a child, in the container's cgroup.
func (m *maker) fork(n *newborn) (pid int, control *os.File, err error) {
	ours, theirs, err := controlPair()
	if err != nil {
		return 0, nil, err
	}
	defer func() {
		theirs.Close()
		if err != nil {
			ours.Close()
		}
	}()
	n.ours = int(ours.Fd())
	if n.control, err = unix.FcntlInt(theirs.Fd(), unix.F_DUPFD_CLOEXEC, 10); err != nil { // not 3, where it will be
		return 0, nil, err
	}
	defer unix.Close(n.control)
	cgroup := -1
	if m.spec.Cgroup != nil {
		cgroup = int(m.spec.Cgroup.dir.Fd())
	}
	pid, e := n.fork(cgroup)
	if g := m.spec.Cgroup; e != 0 && g != nil {
		if !g.spare { // clone3(2) may be filtered
			return 0, nil, fmt.Errorf("start in cgroup %s: %w", g.path, e)
		}
		g.Remove()
		m.spec.Cgroup = nil
		pid, e = n.fork(-1)
	}
	if e != 0 {
		return 0, nil, userns.Explain(userns.OpClone, "", e)
	}
	return pid, ours, nil
}

// leave goes back to the mounts that the thread came from, so that the container's go with the
// container. From other namespaces there is no way back.
func (m *maker) leave() {
	if m.home >= 0 {
		unix.Setns(m.home, unix.CLONE_NEWNS)
		unix.Close(m.home)
	}
}

// starterReport is the size of the starter's report.
const starterReport = 8

// listen hears what a child did not manage, until its execve.
func (m *maker) listen(child *newborn, control *os.File, listener func(*os.File) error) error {
	text := make([]byte, unsafe.Sizeof(report{}))
	for {
		n, file, err := receiveBytes(control, text)
		if err != nil {
			return fmt.Errorf("listen to a process that begins: %w", err)
		}
		if n == starterReport {
			return execError(m.spec, m.file, unix.Errno(binary.NativeEndian.Uint64(text)))
		}
		if n < len(text) {
			return nil
		}
		r := *(*report)(unsafe.Pointer(&text[0]))
		switch {
		case r.fatal != 0:
			return child.explain(r)
		case r.step == stepFresh:
			m.notice(outerProc)
		case r.errno != 0:
			m.notice(noNotify(userns.Explain(userns.OpNotify, "", unix.Errno(r.errno))))
		default:
			if err := listener(file); err != nil {
				return err
			}
		}
	}
}
