package builder

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
)

// Agent is what answers behind a --mount=type=ssh: the caller's own ssh-agent, or
// mk itself with the keys of files. A step may list keys and sign with them, and
// do nothing else: it cannot add, remove or lock keys of the caller's.
//
// The protocol is draft-miller-ssh-agent: frames of a length (4 bytes, big-endian), a
// type (1 byte) and what belongs to it. Requests of other types than the two are
// answered here, and do not reach the caller's agent.
type Agent struct {
	socket string // of the caller's agent, or ""
	keys   []agentKey
}

type agentKey struct {
	ssh.Signer
	comment string
}

const (
	agentFailure    = 5
	agentList       = 11
	agentIdentities = 12
	agentSign       = 13
	agentSignature  = 14

	maxAgentFrame = 256 << 10 // as ssh-agent has it
	maxKeyFile    = 100 << 10 // more than any key has, in bytes
	agentPatience = 2 * time.Second
)

// OpenAgent opens the agent of the paths of --ssh id=path,path: one socket, or
// files of unencrypted private keys. No path is the socket of $SSH_AUTH_SOCK.
func OpenAgent(paths []string) (*Agent, error) {
	if len(paths) == 0 || len(paths) == 1 && paths[0] == "" {
		socket := os.Getenv("SSH_AUTH_SOCK")
		if socket == "" {
			return nil, errors.New("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
		}
		paths = []string{socket}
	}
	a := &Agent{}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if st.Mode()&os.ModeSocket != 0 {
			if len(paths) > 1 {
				return nil, errors.New("a socket cannot be combined with another one, or with keys")
			}
			a.socket = p
			conn, err := a.dial() // now, and not when the build is half an hour old
			if err != nil {
				return nil, err
			}
			return a, conn.Close()
		}
		key, err := readKey(p)
		if err != nil {
			return nil, err
		}
		a.keys = append(a.keys, key)
	}
	return a, nil
}

func readKey(path string) (agentKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return agentKey{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return agentKey{}, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return agentKey{}, fmt.Errorf("%s has a passphrase: add the key to an ssh-agent, and give that", path)
	}
	if err != nil {
		return agentKey{}, fmt.Errorf("failed to parse %s: %w", path, err)
	}
	return agentKey{signer, path}, nil
}

func (a *Agent) dial() (net.Conn, error) { return net.DialTimeout("unix", a.socket, agentPatience) }

// serve answers one connection until it ends.
func (a *Agent) serve(conn net.Conn) error {
	var up net.Conn
	if a.socket != "" {
		var err error
		if up, err = a.dial(); err != nil {
			return err
		}
		defer up.Close()
	}
	for {
		request, err := readFrame(conn)
		if err != nil {
			return err
		}
		answer := []byte{agentFailure}
		if request[0] == agentList || request[0] == agentSign {
			if up == nil {
				answer = a.answer(request)
			} else if err = writeFrame(up, request); err == nil {
				answer, err = readFrame(up)
			}
			if err != nil {
				return err
			}
		}
		if err := writeFrame(conn, answer); err != nil {
			return err
		}
	}
}

// answer answers a request with the keys of files.
func (a *Agent) answer(request []byte) []byte {
	if request[0] == agentList {
		answer := binary.BigEndian.AppendUint32([]byte{agentIdentities}, uint32(len(a.keys)))
		for _, k := range a.keys {
			answer = append(answer, ssh.Marshal(struct{ Key, Comment string }{string(k.PublicKey().Marshal()), k.comment})...)
		}
		return answer
	}
	var want struct {
		Key, Data []byte
		Flags     uint32
	}
	if err := ssh.Unmarshal(request[1:], &want); err != nil {
		return []byte{agentFailure}
	}
	for _, k := range a.keys {
		if !bytes.Equal(k.PublicKey().Marshal(), want.Key) {
			continue
		}
		sig, err := k.sign(want.Data, want.Flags)
		if err != nil {
			break
		}
		return append([]byte{agentSignature}, ssh.Marshal(struct{ Sig []byte }{ssh.Marshal(sig)})...)
	}
	return []byte{agentFailure}
}

// sign signs as the flags want it: they choose the hash of RSA.
func (k agentKey) sign(data []byte, flags uint32) (*ssh.Signature, error) {
	algorithm := ""
	switch {
	case k.PublicKey().Type() != ssh.KeyAlgoRSA:
	case flags&4 != 0: // SSH_AGENT_RSA_SHA2_512
		algorithm = ssh.KeyAlgoRSASHA512
	case flags&2 != 0: // SSH_AGENT_RSA_SHA2_256
		algorithm = ssh.KeyAlgoRSASHA256
	}
	signer, ok := k.Signer.(ssh.AlgorithmSigner)
	if algorithm == "" || !ok {
		return k.Sign(rand.Reader, data)
	}
	return signer.SignWithAlgorithm(rand.Reader, data, algorithm)
}

// readFrame reads a message; it has at least its type.
func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n == 0 || n > maxAgentFrame {
		return nil, fmt.Errorf("ssh agent: a message of %d bytes", n)
	}
	message := make([]byte, n)
	_, err := io.ReadFull(r, message)
	return message, err
}

func writeFrame(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...))
	return err
}
