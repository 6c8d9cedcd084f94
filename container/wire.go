package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// How Start and init talk. Init finds its descriptors at fixed numbers:
//
//	3  orders   a memfd with one orders value
//	4  control  a socket of packets, from init to Start; one byte goes the other way
//	5  root     the detached mount that becomes the root
//	6  self     the read-only mk that init runs from
//	7… sources  of the mounts that have one, in the order of Spec.Mounts
//
// On control come, as they happen,
//
//	{notice}             the machine did not allow something that the container can go without
//	{terminal} + fd      the master of its pty
//	{listener} + fd      the listener of Spec.Notify; from now on its calls wait for an answer
//	{ready}              all but the end of the way; if orders.Await, it waits for a byte from Start
//	{failure}            why it could not become the container
//	end of file          execve worked: control is close-on-exec
const (
	ordersFD = 3 + iota
	controlFD
	rootFD
	selfFD
	sourcesFD
)

// orders is all that init is told.
type orders struct {
	Spec    *Spec
	Sources []bool // whether Spec.Mounts[i] has a descriptor
	Join    *Exec  `json:",omitempty"` // not a container, but a command in one
	Await   bool   `json:",omitempty"` // say ready, and wait: limits are to be set
}

// packet is one message of init.
type packet struct {
	Notice   string   `json:",omitempty"`
	Terminal bool     `json:",omitempty"` // comes with a descriptor
	Listener bool     `json:",omitempty"` // comes with a descriptor
	Ready    bool     `json:",omitempty"` // waits for one byte
	Failure  *failure `json:",omitempty"`
}

// maxPacket is more than any packet has: the text of an error with two paths in it.
const maxPacket = 64 << 10

// failure is an error that can cross: what the text says, the errno for those who ask, and for the
// advice the operation that the kernel refused.
type failure struct {
	Code  int // exit status: 125, 126, 127
	Text  string
	Errno unix.Errno
	Op    userns.Op `json:",omitempty"`
	What  string    `json:",omitempty"`
}

// fail is an error with the exit status that docker gives to it.
func fail(code int, format string, args ...any) error {
	return &StartError{Code: code, Err: fmt.Errorf(format, args...)}
}

// toFailure packs an error of init.
func toFailure(err error) *failure {
	f := &failure{Code: 125, Text: err.Error()}
	var start *StartError
	if errors.As(err, &start) {
		f.Code = start.Code
	}
	errors.As(err, &f.Errno)
	var refusal *userns.Refusal
	if errors.As(err, &refusal) {
		f.Op, f.What = refusal.Op, refusal.What
	}
	return f
}

// startError unpacks it.
func (f *failure) startError() *StartError {
	var err error = remoteError{f.Text, f.Errno}
	if f.Op != "" {
		err = &remoteRefusal{err, userns.Explain(f.Op, f.What, f.Errno)}
	}
	return &StartError{Code: f.Code, Err: err}
}

// remoteError has init's text and its errno.
type remoteError struct {
	text  string
	errno unix.Errno
}

func (e remoteError) Error() string { return e.text }

func (e remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// remoteRefusal has in addition the refusal that carries the advice for this machine.
type remoteRefusal struct {
	error
	refusal error
}

func (e *remoteRefusal) Unwrap() []error { return []error{e.error, e.refusal} }

// send sends one packet, with a descriptor when fd ≥ 0.
func send(p packet, fd int) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	return unix.Sendmsg(controlFD, text, rights, nil, unix.MSG_NOSIGNAL)
}

// receive takes the next packet, and the descriptor that came with it; nil at the end of file.
func receive(control *os.File) (*packet, *os.File, error) {
	text := make([]byte, maxPacket)
	n, file, err := receiveBytes(control, text)
	if err != nil || n == 0 {
		return nil, nil, err
	}
	p := new(packet)
	if err := json.Unmarshal(text[:n], p); err != nil {
		return nil, nil, err
	}
	return p, file, nil
}

// receiveBytes takes the next packet as it is; 0 bytes at the end of file.
func receiveBytes(control *os.File, text []byte) (n int, file *os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(control.Fd()), text, oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(int(control.Fd()), text, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return 0, nil, err
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			file = os.NewFile(uintptr(fds[0]), "from init")
		}
	}
	return n, file, nil
}
