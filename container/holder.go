package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Holder keeps one container while it runs: it is the process in stage inside that started it. It
// has the container's lock and its socket, copies what it writes, starts other commands in it,
// restarts it, and writes down how it ended. There is one a container, and nothing else: no daemon.
type Holder struct {
	c       *Container
	run     Run
	lock    *os.File
	socket  *net.UnixListener
	streams *streams
	ended   chan struct{}  // closed when the last run is over, and written down
	enough  chan struct{}  // closed when no run is to follow this one
	code    int            // set before ended is closed
	told    sync.WaitGroup // those who are to hear of the end

	mu     sync.Mutex
	proc   *Process // of this run; nil between two
	status Status
}

// Run is what a holder is told.
type Run struct {
	// Start makes the container: a root, a spec, a process. It is called again for every restart.
	Start func(ctx context.Context, stdio IO) (*Process, error)
	// After is called when the process of a Start has ended, and all that wrote is read.
	After func()
	// Last is called when no Start will follow, with the lock held: what --rm removes.
	Last func() error
	// Bridge gives a copy of the network with a name that the container is on, running or between two
	// runs. Rewire connects it with another, or disconnects it: r.Op says which, r.Words the rest.
	Bridge func(name string) (*os.File, error)
	Rewire func(r Request, files []*os.File) (notices []string, err error)
	// Ready is called once the container runs and is written down.
	Ready func(notices []string)

	Signals <-chan os.Signal // for the container; those that come before it runs wait

	Direct *IO  // the container's streams as they are, in place of a log and attached clients
	Log    bool // keep a log

	// Client is a connection of who started this; it may be nil. With Attach, it gets the streams.
	Client *Conn
	Attach bool
	Stdin  bool // of Client
}

// Hold runs a container to its end, restarts included. It returns an error when it could not be
// started; how it ended is in its status. ErrRunning when another process holds it.
func (c *Container) Hold(ctx context.Context, run Run) error {
	lock, err := c.hold()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := c.sweep(); err != nil {
		return err
	}
	h := &Holder{c: c, run: run, lock: lock, streams: &streams{tty: c.Tty}, ended: make(chan struct{}), enough: make(chan struct{})}
	if err := h.listen(); err != nil {
		return err
	}
	defer h.socket.Close()
	if run.Log && run.Direct == nil {
		if h.streams.log, err = newLogWriter(c.Path("log")); err != nil {
			return fmt.Errorf("open the log of %s: %w", c.Name, err)
		}
	}
	defer h.streams.close()
	reply := Reply{Started: c.ID}
	var files []*os.File
	if run.Attach && run.Direct == nil {
		if reply.Streams, files, err = h.streams.attach(); err != nil {
			return err
		}
		defer closeAll(files)
	}
	if err := h.start(ctx); err != nil {
		h.failed(err)
		return err
	}
	reply.Notices = h.proc.Notices()
	if run.Attach && run.Stdin && run.Direct == nil {
		in, err := h.streams.input()
		if err == nil && in != nil {
			reply.Streams, files = append(reply.Streams, "stdin"), append(files, in)
		}
	}
	if run.Client != nil {
		run.Client.Send(reply, files...)
		closeAll(files)
		files = nil
		h.told.Add(1)
		go h.follow(run.Client, nil)
	} else {
		closeAll(files)
	}
	run.Ready(reply.Notices)
	go h.serve()
	go h.passSignals()
	return h.last(h.keep(ctx))
}

// listen makes the socket, over one that the dead left.
func (h *Holder) listen() error {
	err := h.c.atSocket(func(path string) error {
		if err := os.Remove(h.c.Path("control")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err == nil {
			l.SetUnlinkOnClose(false) // by its short path, which is another's by then
			h.socket = l
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("make the control socket of %s: %w", h.c.Name, err)
	}
	return nil
}

// start is one run: the process, and the status that says so.
func (h *Holder) start(ctx context.Context) error {
	stdio := IO{}
	if h.run.Direct != nil {
		stdio = *h.run.Direct
	} else {
		var err error
		if stdio, err = h.streams.open(h.c.Stdin); err != nil {
			return err
		}
	}
	p, err := h.run.Start(ctx, stdio)
	var terminal *os.File
	if err == nil {
		terminal = p.Terminal()
	}
	h.streams.started(terminal)
	if err != nil {
		h.streams.end()
		h.run.After()
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.proc = p
	h.status = Status{Pid: p.Pid(), Started: time.Now(), Cgroup: p.Cgroup(), Loose: p.mounts != 0, Restarts: h.status.Restarts, Finished: h.status.Finished, Stopped: h.status.Stopped}
	if h.status.Stopped { // while it was started again: who asked is waiting, and his signal met nobody
		p.Kill()
	}
	if h.c.Health != nil {
		h.status.Health = &Health{Status: HealthStarting}
	}
	if err := h.c.setStatus(h.status); err != nil {
		return err
	}
	h.c.tell("start", nil)
	return nil
}

// failed writes down that nothing could be started.
func (h *Holder) failed(err error) {
	h.status.Pid, h.status.Finished, h.status.Code, h.status.Error = 0, time.Now(), 125, err.Error()
	var start *StartError
	if errors.As(err, &start) {
		h.status.Code = start.Code
	}
	h.c.setStatus(h.status)
	os.Remove(h.c.Path("control"))
}

// keep waits for the end of the container, and starts it again as its policy says.
func (h *Holder) keep(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, time.Minute) {
		running, ended := context.WithCancel(ctx)
		if h.c.Health != nil {
			go h.watch(running, h.proc)
		}
		end, err := h.proc.Wait()
		ended()
		h.streams.end()
		h.run.After()
		h.mu.Lock()
		h.proc = nil
		h.code = end.Code
		h.status.Pid, h.status.Finished, h.status.Code, h.status.OOMKilled = 0, time.Now(), end.Code, end.OOMKilled
		if time.Since(h.status.Started) > 10*time.Second {
			wait = 100 * time.Millisecond // docker's: it ran well
		}
		policy := h.c.Restart
		if now, err := h.c.store.load(h.c.ID); err == nil { // mk update may have been there
			policy = now.Restart
		}
		again := !h.status.Stopped && restarts(policy, end.Code, h.status.Restarts)
		if again {
			h.status.Restarts++
		}
		status := h.status
		h.mu.Unlock()
		if again || !h.c.AutoRemove { // else it goes at once, and a file less with it
			if serr := h.c.setStatus(status); err == nil {
				err = serr
			}
		}
		h.c.tell("die", exitCode(end.Code))
		if err != nil || !again {
			return err
		}
		select {
		case <-time.After(wait):
		case <-h.enough:
			return h.c.setStatus(h.status)
		}
		if err := h.start(ctx); err != nil {
			h.status.Error = err.Error()
			h.c.setStatus(h.status)
			return err
		}
	}
}

// last ends the holding: what --rm removes, the socket, the lock, and only then the word to those
// who wait, so that what they do next finds it all gone.
func (h *Holder) last(err error) error {
	os.Remove(h.c.Path("control"))
	if lerr := h.run.Last(); err == nil {
		err = lerr
	}
	h.streams.close()
	h.lock.Close()
	close(h.ended)
	h.socket.Close()
	h.told.Wait()
	return err
}

// restarts tells whether a policy wants another run.
func restarts(policy string, code, before int) bool {
	name, limit, _ := strings.Cut(policy, ":")
	switch name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		n, err := strconv.Atoi(limit)
		return code != 0 && (err != nil || n == 0 || before < n)
	}
	return false
}

// passSignals: a signal for the holder, as at the end of a session, is for the container.
func (h *Holder) passSignals() {
	for s := range h.run.Signals {
		h.signal(s.(unix.Signal))
	}
}

func (h *Holder) signal(sig unix.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proc == nil {
		return ErrNotRunning
	}
	return h.proc.Signal(sig)
}

// serve answers whoever connects.
func (h *Holder) serve() {
	for {
		c, err := h.socket.AcceptUnix()
		if err != nil {
			return
		}
		go h.answer(&Conn{c: c})
	}
}

// answer is one connection.
func (h *Holder) answer(k *Conn) {
	var r Request
	files, err := k.Receive(&r)
	if err != nil {
		k.Close()
		return
	}
	h.told.Add(1) // an end that comes now is told
	refuse := func(err error) {
		defer h.told.Done()
		k.Send(Reply{Err: toFailure(err)})
		k.Close()
		closeAll(files)
	}
	switch r.Op {
	case "wait":
		h.follow(k, nil)
	case "attach":
		h.attach(k, r, refuse)
	case "exec":
		h.exec(k, r, files, refuse)
	default:
		reply, passed, err := h.do(r, files)
		closeAll(files)
		files = nil
		if err != nil {
			refuse(err)
			return
		}
		k.Send(reply, passed...)
		k.Close()
		closeAll(passed)
		h.told.Done()
	}
}

// do is what has one answer.
func (h *Holder) do(r Request, given []*os.File) (Reply, []*os.File, error) {
	done := Reply{Done: true}
	switch r.Op {
	case "signal":
		if unix.Signal(r.Signal) == unix.SIGKILL {
			h.noRestart()
		}
		err := h.signal(unix.Signal(r.Signal))
		if err == nil {
			h.c.tell("kill", map[string]string{"signal": strconv.Itoa(r.Signal)})
		}
		return done, nil, err
	case "stop":
		h.c.tell("kill", map[string]string{"signal": strconv.Itoa(r.Signal)})
		h.stop(unix.Signal(r.Signal), r.Seconds)
		if unix.Signal(r.Signal) != unix.SIGKILL {
			h.c.tell("stop", nil)
		}
		return Reply{Done: true, Code: h.code}, nil, nil
	case "root":
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.proc == nil {
			return done, nil, ErrNotRunning
		}
		root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", h.proc.Pid()), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return done, nil, ErrNotRunning // it is ending, and will be waited for
		} else if err != nil {
			return done, nil, err
		}
		return done, []*os.File{root}, nil
	case "share":
		files, err := h.share(r.Streams)
		done.Streams = r.Streams
		return done, files, err
	case "connect", "disconnect":
		var err error
		done.Notices, err = h.run.Rewire(r, given)
		return done, nil, err
	}
	return done, nil, fmt.Errorf("the holder does not know %q", r.Op)
}

// share gives copies of what is wanted: a user namespace and bridges also between two runs.
func (h *Holder) share(wants []string) (files []*os.File, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, want := range wants {
		var more []*os.File
		if name, is := strings.CutPrefix(want, "bridge:"); is {
			var f *os.File
			f, err = h.run.Bridge(name)
			more = []*os.File{f}
		} else if want == "user" { // that owns all of them
			var f *os.File
			f, err = os.Open("/proc/self/ns/user")
			more = []*os.File{f}
		} else if h.proc != nil {
			more, err = h.proc.Share([]string{want})
		} else {
			err = ErrNotRunning
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

func (h *Holder) noRestart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.status.Stopped {
		h.status.Stopped = true
		close(h.enough)
	}
}

// stop asks the container to end, and after that many seconds makes it; then it waits for the end.
func (h *Holder) stop(sig unix.Signal, seconds int) {
	h.noRestart()
	h.signal(sig)
	h.thaw() // a paused container would never know
	var late <-chan time.Time
	if seconds >= 0 {
		late = time.After(time.Duration(seconds) * time.Second)
	}
	select {
	case <-h.ended:
	case <-late:
		h.signal(unix.SIGKILL)
		<-h.ended
	}
}

func (h *Holder) thaw() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if Frozen(h.status.Cgroup) {
		Thaw(h.status.Cgroup)
	}
}

// attach gives a client the streams.
func (h *Holder) attach(k *Conn, r Request, refuse func(error)) {
	if h.run.Direct != nil {
		refuse(errors.New("what it writes goes where it was started; only a container without --rm, with -d or with -t can be attached to"))
		return
	}
	names, files, err := h.streams.attach()
	if err != nil {
		refuse(err)
		return
	}
	if r.Stdin {
		if in, err := h.streams.input(); err == nil && in != nil {
			names, files = append(names, "stdin"), append(files, in)
		}
	}
	err = k.Send(Reply{Started: h.c.ID, Streams: names}, files...)
	closeAll(files)
	if err != nil {
		k.Close()
		h.told.Done()
		return
	}
	h.follow(k, nil)
}

// exec starts a command for a client and tells it of the end.
func (h *Holder) exec(k *Conn, r Request, files []*os.File, refuse func(error)) {
	h.mu.Lock()
	main := h.proc
	h.mu.Unlock()
	if main == nil || r.Exec == nil {
		refuse(ErrNotRunning)
		return
	}
	var stdio IO
	for i, name := range r.Streams {
		if i < len(files) {
			switch name {
			case "stdin":
				stdio.Stdin = files[i]
			case "stdout":
				stdio.Stdout = files[i]
			case "stderr":
				stdio.Stderr = files[i]
			}
		}
	}
	p, err := main.Exec(r.Exec, stdio)
	if err != nil {
		refuse(err)
		return
	}
	closeAll(files)
	reply := Reply{Started: strconv.Itoa(p.Pid())}
	var passed []*os.File
	if t := p.Terminal(); t != nil {
		reply.Streams, passed = []string{"tty"}, []*os.File{t}
	}
	k.Send(reply, passed...)
	closeAll(passed) // the client's alone: when it goes, the command gets SIGHUP, unless it asks to keep it
	h.follow(k, p)
}

// follow passes on what a client, counted in told, sends to a command, the container's own if p is
// nil, and tells it of the end.
func (h *Holder) follow(k *Conn, p *Process) {
	defer h.told.Done()
	defer k.Close()
	go func() {
		for {
			var r Request
			files, err := k.Receive(&r)
			if err != nil {
				if h.run.Direct != nil && k == h.run.Client {
					h.orphan()
				}
				return
			}
			if r.Op == "keep" && p != nil && len(files) == 1 {
				go drain(files[0])
				continue
			}
			closeAll(files)
			switch {
			case r.Op == "signal" && p == nil:
				h.signal(unix.Signal(r.Signal))
			case r.Op == "signal":
				p.Signal(unix.Signal(r.Signal))
			case r.Op == "resize" && r.Size != nil && p == nil:
				h.resize(*r.Size)
			}
		}
	}()
	last := Reply{Ended: true}
	if p != nil {
		end, err := p.Wait()
		if err != nil {
			k.Send(Reply{Err: toFailure(err)})
			return
		}
		last.Code = end.Code
	} else {
		<-h.ended
		last.Code, last.OOM = h.code, h.status.OOMKilled
	}
	k.Send(last)
}

// drain reads what a command writes to a terminal that everybody has left, to its end.
func drain(terminal *os.File) {
	io.Copy(io.Discard, terminal)
	terminal.Close()
}

// orphan ends a container whose streams are those of a caller that is gone: nobody else will ever
// look at it.
func (h *Holder) orphan() {
	h.noRestart()
	h.signal(unix.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(orphanGrace):
		h.signal(unix.SIGKILL)
	}
}

// orphanGrace is docker's time for a stop.
const orphanGrace = 10 * time.Second

func (h *Holder) resize(size Size) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proc != nil && h.proc.Terminal() != nil {
		h.proc.Resize(size)
	}
}
