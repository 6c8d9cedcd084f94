package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"mk/container"
	"mk/userns"
)

// session is a connection of this process, in the stage host, with a command in a container: its
// own, or one of exec.
type session struct {
	conn    *container.Conn
	id      string
	streams map[string]*os.File // stdin, stdout, stderr; tty is both ways
	child   *userns.Child       // the holder, if this process started it

	signals chan os.Signal // for the command, from launch on: none may be lost between two who listen

	tty, stdin bool // what the user asked for
	sigProxy   bool
	keys       []byte // that leave a terminal; nil: none
}

// errDetached: the user left, the container goes on.
var errDetached = errors.New("detached")

// launch starts a container's holder with a command line of mk, and returns when the container
// runs. If it does not come to that, inside has said why, and its exit status is the error.
func (a *app) launch(choice userns.Choice, w *words, args []string) (*session, error) {
	neighbours, err := w.findNeighbours(choice.Mode)
	if err != nil {
		return nil, err
	}
	defer neighbours.close()
	conn, theirs, err := container.ConnPair()
	if err != nil {
		return nil, err
	}
	child, err := neighbours.enter(choice, args, theirs)
	theirs.Close()
	if err != nil {
		conn.Close()
		return nil, err
	}
	if w.hasNeighbours() {
		neighbours.give(conn) // when it fails, inside has said why
	}
	// Until there is a container, what is for mk is for inside.
	s := &session{conn: conn, child: child, signals: make(chan os.Signal, 16)}
	signal.Notify(s.signals, unix.SIGTERM, unix.SIGHUP)
	begun, passed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case sig := <-s.signals:
				child.Signal(sig)
			case <-begun:
				return
			}
		}
	}()
	reply, files, err := conn.Next()
	close(begun)
	<-passed
	if err != nil {
		signal.Stop(s.signals)
		conn.Close()
		status, werr := child.Wait()
		if werr != nil {
			return nil, werr
		}
		if status == 0 {
			return nil, fmt.Errorf("start the container: %w", err)
		}
		return nil, &exitError{status: status}
	}
	s.take(reply, files)
	return s, nil
}

// take takes what a holder's first reply brings.
func (s *session) take(reply container.Reply, files []*os.File) {
	s.id = reply.Started
	s.streams = map[string]*os.File{}
	for i, name := range reply.Streams {
		if i < len(files) {
			s.streams[name] = files[i]
		}
	}
}

func (s *session) close() {
	s.conn.Close()
	for _, f := range s.streams {
		f.Close()
	}
}

// relay connects mk's standard streams with the command's, until that ends, and ends with its
// exit status. Leaving by the detach keys is success.
func (s *session) relay() error {
	status, err := s.run()
	if errors.Is(err, errDetached) {
		return nil
	}
	if err != nil {
		return err
	}
	if status != 0 {
		return &exitError{status: status}
	}
	return nil
}

func (s *session) run() (status int, err error) {
	if s.signals == nil {
		s.signals = make(chan os.Signal, 16)
	}
	var going chan os.Signal // asked to, as by a terminal that is closed: the container goes on
	if s.sigProxy {
		defer s.passSignals()()
	} else {
		going = s.signals
		signal.Notify(going, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		defer signal.Stop(going)
	}
	if s.tty {
		restore, err := s.useTerminal()
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	left := make(chan struct{})
	if in := s.input(); in != nil {
		go s.copyIn(in, left)
	}
	var out sync.WaitGroup
	for name, to := range map[string]io.Writer{"stdout": &stdout, "stderr": os.Stderr, "tty": &stdout} {
		if from := s.streams[name]; from != nil {
			if name == "tty" {
				out.Go(func() { copyTerminal(to, from) })
			} else {
				out.Go(func() {
					io.Copy(to, from)
					from.Close() // where to cannot be written, the command may not wait for a reader
				})
			}
		}
	}
	type end struct {
		reply container.Reply
		err   error
	}
	ended := make(chan end, 1)
	go func() {
		reply, _, err := s.conn.Next()
		ended <- end{reply, err}
	}()
	select {
	case <-left:
		if t := s.streams["tty"]; t != nil {
			s.conn.Send(container.Request{Op: "keep"}, t)
		}
		return 0, errDetached
	case sig := <-going:
		return 128 + int(sig.(unix.Signal)), nil
	case e := <-ended:
		if e.err != nil {
			if errors.Is(e.err, container.ErrKilled) {
				return 128 + int(unix.SIGKILL), nil
			}
			return 0, e.err
		}
		if s.streams["tty"] == nil {
			out.Wait()
		} else {
			drain(&out)
		}
		if e.reply.OOM {
			fmt.Fprintln(os.Stderr, "mk: the container reached its memory limit, and the kernel killed a process of it")
		}
		return e.reply.Code, nil
	}
}

// copyTerminal prints what is written to a terminal, until nobody has it open or nobody reads here.
func copyTerminal(to io.Writer, terminal *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := container.ReadTerminal(terminal, buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil { // EIO
			return
		}
	}
}

// input is where what is typed goes, or nil.
func (s *session) input() *os.File {
	if !s.stdin {
		return nil
	}
	if t := s.streams["tty"]; t != nil {
		return t
	}
	return s.streams["stdin"]
}

// copyIn passes standard input on. Its end is the end of the command's, except for a terminal.
func (s *session) copyIn(to *os.File, left chan<- struct{}) {
	buf := make([]byte, 32<<10)
	keys := keySequence{want: s.keys}
	for {
		n, err := os.Stdin.Read(buf)
		piece := buf[:n]
		gone := false
		if s.tty {
			piece, gone = keys.filter(piece)
		}
		if len(piece) > 0 {
			if _, werr := to.Write(piece); werr != nil {
				break
			}
		}
		if gone {
			close(left)
			return
		}
		if err != nil {
			break
		}
	}
	if !s.tty {
		to.Close()
		delete(s.streams, "stdin")
	}
}

// useTerminal makes mk's own terminal raw while it lasts, and tells the command its size.
func (s *session) useTerminal() (restore func(), err error) {
	var old *term.State
	if s.stdin && term.IsTerminal(int(os.Stdin.Fd())) {
		if old, err = term.MakeRaw(int(os.Stdin.Fd())); err != nil {
			return nil, err
		}
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			s.resize()
			select {
			case <-resized:
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(resized)
		close(done)
		if old != nil {
			term.Restore(int(os.Stdin.Fd()), old)
		}
	}, nil
}

func (s *session) resize() {
	size := terminalSize()
	if t := s.streams["tty"]; t != nil {
		unix.IoctlSetWinsize(int(t.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
		return
	}
	s.conn.Send(container.Request{Op: "resize", Size: &size})
}

// passSignals passes on the signals that ask a command for something.
func (s *session) passSignals() (stop func()) {
	signal.Notify(s.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for sig := range s.signals {
			s.conn.Send(container.Request{Op: "signal", Signal: int(sig.(unix.Signal))})
		}
	}()
	return func() {
		signal.Stop(s.signals)
		close(s.signals)
	}
}
