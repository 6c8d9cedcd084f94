package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// How others talk to a container's holder: packets of JSON on the socket "control" in its
// directory. A connection begins with one Request and is about that until its end:
//
//	attach  ← streams, with descriptors; then ended
//	exec    ← started, with a descriptor when a terminal was asked for; then ended
//	wait    ← ended
//	signal, stop, root  ← done
//	share               ← done, with the descriptors that were asked for: "user", "bridge:NETWORK", and those of Process.Share
//	connect, disconnect ← done; a bridge may come with connect: see Run.Rewire
//
// Who starts a holder may send it "given", with what its neighbours share, before its first reply.
//
// On a connection of attach or exec, signal and resize may follow; they have no answer. Neither has
// keep, by which a client that leaves a command of exec gives its terminal back.
// ErrKilled is what a caller makes of an end of file in place of an answer.

// Request is what a holder is asked for.
type Request struct {
	Op      string
	Signal  int             `json:",omitempty"` // signal
	Seconds int             `json:",omitempty"` // stop: before SIGKILL; -1: never
	Stdin   bool            `json:",omitempty"` // attach: wants to write, too
	Size    *Size           `json:",omitempty"` // resize
	Exec    *Exec           `json:",omitempty"` // comes with three descriptors, or none for -d
	Words   json.RawMessage `json:",omitempty"` // connect, disconnect
	Streams []string        `json:",omitempty"` // share: what is wanted; exec, given: which descriptors came
}

// Reply is what it says. Err is for ever the last.
type Reply struct {
	Done    bool     `json:",omitempty"`
	Started string   `json:",omitempty"` // the container's ID, to who started it
	Streams []string `json:",omitempty"` // which descriptors came: stdin, stdout, stderr, tty
	Notices []string `json:",omitempty"`
	Ended   bool     `json:",omitempty"`
	Code    int      `json:",omitempty"` // with Ended
	OOM     bool     `json:",omitempty"` // with Ended: Status.OOMKilled
	Err     *failure `json:",omitempty"`
}

// Conn is one connection, of either side.
type Conn struct {
	c  *net.UnixConn
	of *Container // whose holder is the other side; nil where somebody made a pair
}

// NewConn makes a connection of one end of a socketpair, which it takes over.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s is not a unix socket", f.Name())
	}
	return &Conn{c: unixConn}, nil
}

// ConnPair makes the two ends of a connection.
func ConnPair() (ours *Conn, theirs *os.File, err error) {
	a, b, err := controlPair()
	if err != nil {
		return nil, nil, err
	}
	ours, err = NewConn(a)
	if err != nil {
		b.Close()
	}
	return ours, b, err
}

// Dial connects to the holder. ErrNotRunning when there is none.
func (c *Container) Dial() (*Conn, error) {
	var conn *Conn
	err := c.atSocket(func(path string) error {
		u, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		conn = &Conn{u, c}
		return err
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		if _, err := c.Status(); err != nil { // what a killed holder left ends here, too
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", c.Name, ErrNotRunning)
	} else if err != nil {
		return nil, fmt.Errorf("ask the holder of %s: %w", c.Name, err)
	}
	return conn, nil
}

// atSocket calls f with a path of the socket that is short enough for an address, which takes 107
// bytes, however deep the store lies.
func (c *Container) atSocket(f func(path string) error) error {
	dir, err := os.OpenFile(c.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/control", dir.Fd()))
}

// Close ends the connection.
func (k *Conn) Close() error { return k.c.Close() }

// Send sends one packet.
func (k *Conn) Send(v any, files ...*os.File) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if len(text) > maxControl {
		return k.sendLarge(text, files)
	}
	_, _, err = k.c.WriteMsgUnix(text, rights, nil)
	return err
}

// sendLarge sends a text that no packet takes, a command line or environment of more than 64 KB, as a
// file before the others.
func (k *Conn) sendLarge(text []byte, files []*os.File) error {
	if len(text) > maxLarge {
		return fmt.Errorf("%d bytes: %w", len(text), unix.E2BIG)
	}
	fd, err := unix.MemfdCreate("packet", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a large packet: %w", err)
	}
	body := os.NewFile(uintptr(fd), "packet")
	defer body.Close()
	if _, err := body.Write(text); err != nil {
		return fmt.Errorf("make a large packet: %w", err)
	}
	fds := []int{fd}
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	_, _, err = k.c.WriteMsgUnix([]byte(largePacket), unix.UnixRights(fds...), nil)
	return err
}

// largePacket is a packet whose text is its first file.
const largePacket = "large"

// maxLarge bounds that text, in bytes: the kernel takes 6 MB of arguments and environment (execve(2)),
// and JSON may write a byte as six.
const maxLarge = 40 << 20

// maxControl bounds the text of any other packet, in bytes.
const maxControl = 64 << 10

// maxFiles bounds the descriptors of a packet.
const maxFiles = 16

// Receive takes the next packet into v, and the descriptors that came with it. io.EOF when the
// other side is gone.
func (k *Conn) Receive(v any) ([]*os.File, error) {
	text, oob := make([]byte, maxControl), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := k.c.ReadMsgUnix(text, oob)
	if err != nil || n == 0 {
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return nil, err
	}
	var files []*os.File
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range msgs {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				continue
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "passed"))
			}
		}
	}
	text = text[:n]
	if string(text) == largePacket && len(files) > 0 {
		text, err = io.ReadAll(io.NewSectionReader(files[0], 0, maxLarge))
		files[0].Close()
		if files = files[1:]; err != nil {
			closeAll(files)
			return nil, fmt.Errorf("read a packet: %w", err)
		}
	}
	if err := json.Unmarshal(text, v); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("read a packet: %w", err)
	}
	return files, nil
}

// Ask sends a request and returns the first reply. The error is the holder's, ErrKilled, or
// ErrNotRunning when the container has ended before the holder came to the request.
func (k *Conn) Ask(r Request, files ...*os.File) (reply Reply, passed []*os.File, err error) {
	err = k.Send(r, files...)
	if err == nil {
		reply, passed, err = k.Next()
	} else if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		err = ErrKilled
	} else {
		err = fmt.Errorf("ask the holder: %w", err)
	}
	if errors.Is(err, ErrKilled) && k.of != nil {
		if s, serr := k.of.Status(); serr == nil && !s.Running && s.Error == "" {
			err = fmt.Errorf("%s: %w", k.of.Name, ErrNotRunning)
		}
	}
	return reply, passed, err
}

// ErrKilled is the end of a connection without an answer: somebody killed the holder, and with it
// the container.
var ErrKilled = errors.New("the container's holder was killed")

// Next returns the next reply.
func (k *Conn) Next() (Reply, []*os.File, error) {
	var reply Reply
	files, err := k.Receive(&reply)
	if err == io.EOF {
		err = ErrKilled
	}
	if err == nil && reply.Err != nil {
		err = reply.Err.startError()
	}
	return reply, files, err
}

// Ask asks a container's holder for something that is done at once.
func (c *Container) Ask(r Request, with ...*os.File) (Reply, []*os.File, error) {
	return c.await(context.Background(), r, with...)
}

// await asks a container's holder for something that may take its time. When ctx ends, the waiting does;
// the holder goes on.
func (c *Container) await(ctx context.Context, r Request, with ...*os.File) (Reply, []*os.File, error) {
	k, err := c.Dial()
	if err != nil {
		return Reply{}, nil, err
	}
	defer k.Close()
	defer context.AfterFunc(ctx, func() { k.Close() })()
	reply, files, err := k.Ask(r, with...)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = ctx.Err()
	case strings.HasPrefix(err.Error(), ErrNotRunning.Error()):
		err = fmt.Errorf("%s: %w", c.Name, ErrNotRunning)
	}
	return reply, files, err
}

// Stop sends the container a signal and waits for its end, after some seconds with SIGKILL; -1: never.
// The container is stopped even when ctx ends before.
func (c *Container) Stop(ctx context.Context, signal unix.Signal, seconds int) error {
	_, _, err := c.await(ctx, Request{Op: "stop", Signal: int(signal), Seconds: seconds})
	return err
}

// Wait waits for the end of the container's run and gives its exit status.
func (c *Container) Wait(ctx context.Context) (int, error) {
	reply, _, err := c.await(ctx, Request{Op: "wait"})
	if err == nil {
		return reply.Code, nil
	}
	if !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrKilled) {
		return 0, err
	}
	s, err := c.Status()
	return s.Code, err
}
