package container

import (
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// streams are the standard streams of a held container: what it writes goes to its log and to
// everybody who is attached; what they write goes to it.
//
//	container → pipe or terminal → copy → log
//	                                    → pipe of each attached client
//	client    → the pipe or terminal itself
//
// A client that does not read holds the container up, as a pipe would: nothing is lost. One that
// goes away is forgotten at the next write.
type streams struct {
	log    *logWriter // nil: none is kept
	tty    bool
	copies sync.WaitGroup

	mu    sync.Mutex
	in    *os.File   // what clients write to; nil when there is none, or it was handed out
	sinks []*sink    // those attached
	ours  []*os.File // the container's ends, closed when it has them
}

// sink is one attached client's end of a stream.
type sink struct {
	stream string
	f      *os.File
}

// open makes the container's side. With a terminal there is nothing yet: see terminal.
func (s *streams) open(stdin bool) (stdio IO, err error) {
	if s.tty {
		return IO{}, nil
	}
	pipe := func(name string) (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	var out, errs *os.File
	out, stdio.Stdout = pipe("stdout")
	errs, stdio.Stderr = pipe("stderr")
	if stdin {
		stdio.Stdin, s.in = pipe("stdin")
	}
	if err != nil {
		return IO{}, err
	}
	s.ours = []*os.File{stdio.Stdout, stdio.Stderr}
	if stdin {
		s.ours = append(s.ours, stdio.Stdin)
	}
	for _, f := range s.ours {
		unix.SetNonblock(int(f.Fd()), false) // no program expects anything else
	}
	s.copies.Go(func() { s.copy("stdout", out) })
	s.copies.Go(func() { s.copy("stderr", errs) })
	return stdio, nil
}

// started lets go of the container's ends, and begins with its terminal.
func (s *streams) started(terminal *os.File) {
	closeAll(s.ours)
	s.ours = nil
	if terminal != nil {
		s.mu.Lock()
		s.in = terminal
		s.mu.Unlock()
		s.copies.Go(func() { s.copy("stdout", terminal) })
	}
}

// copyBuffer is what is copied at a time; a pipe holds 64 KiB.
const copyBuffer = 64 << 10

// copy ends with the container, whose last process held the other end.
func (s *streams) copy(stream string, from *os.File) {
	buf := make([]byte, copyBuffer)
	read := (*os.File).Read
	if s.tty {
		read = ReadTerminal
	}
	for {
		n, err := read(from, buf)
		if n > 0 {
			if s.log != nil {
				s.log.write(stream, buf[:n])
			}
			s.spread(stream, buf[:n])
		}
		if err != nil { // EOF; EIO of a terminal
			break
		}
	}
	if !s.tty {
		from.Close()
	}
}

func (s *streams) spread(stream string, piece []byte) {
	s.mu.Lock()
	list := slices.Clone(s.sinks)
	s.mu.Unlock()
	for _, k := range list {
		if k.stream != stream {
			continue
		}
		if _, err := k.f.Write(piece); err != nil { // EPIPE
			s.forget(k)
		}
	}
}

func (s *streams) forget(gone *sink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.sinks, gone); i >= 0 {
		s.sinks = slices.Delete(s.sinks, i, i+1)
		gone.f.Close()
	}
}

// attach makes a client's ends of what the container writes. The caller closes them when they are
// sent. What is written before is not among it.
func (s *streams) attach() (names []string, files []*os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stream := range []string{"stdout", "stderr"} {
		if stream == "stderr" && s.tty {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		s.sinks = append(s.sinks, &sink{stream, w})
		names, files = append(names, stream), append(files, r)
	}
	return names, files, nil
}

// input is what a client writes to, for the caller to close when it is sent; nil when there is
// nothing, or another client has it: the end of file of a pipe is to reach the container (docker's
// StdinOnce).
func (s *streams) input() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.in
	if in == nil {
		return nil, nil
	}
	if !s.tty {
		s.in = nil
		return in, nil
	}
	fd, err := unix.FcntlInt(in.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// end waits for the last output of a run of the container, which has ended.
func (s *streams) end() {
	s.copies.Wait()
	if s.log != nil {
		s.log.flush()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil {
		s.in.Close()
		s.in = nil
	}
}

// close lets all clients see the end of file.
func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.sinks {
		k.f.Close()
	}
	s.sinks = nil
	if s.log != nil {
		s.log.f.Close()
	}
}
