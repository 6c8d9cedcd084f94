package builder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"mk/container"
)

// ssh gives a step the socket of an agent. One that was not given is an error
// only if the mount requires it.
func (r *runStep) ssh(m *runMount, spec *container.Spec, held *runHeld) ([]container.Mount, error) {
	a, ok := r.Sandbox.Agents[m.ID]
	if !ok {
		if m.Required {
			return nil, fmt.Errorf("no SSH key %q forwarded from the client", m.ID)
		}
		return nil, nil
	}
	etc, err := r.etcFiles()
	if err != nil {
		return nil, err
	}
	path, socket, err := etc.listen("ssh")
	if err != nil {
		return nil, fmt.Errorf("ssh agent %s: %w", m.ID, err)
	}
	door := &agentDoor{agent: a, socket: socket}
	held.add(func() error { return errors.Join(door.close(), os.Remove(path)) })
	if err := r.giveMount(etc, path, m); err != nil {
		return nil, fmt.Errorf("ssh agent %s: %w", m.ID, err)
	}
	go door.serve()
	if !hasEnv(spec.Env, "SSH_AUTH_SOCK") {
		spec.Env = append(spec.Env, "SSH_AUTH_SOCK="+m.target)
	}
	return []container.Mount{{
		Type: container.Bind, Source: path, Dest: m.target, NoSuid: true, NoDev: true, NoExec: true, Owned: true,
	}}, nil
}

// agentDoor lets one step in to an agent, as long as the step runs.
type agentDoor struct {
	agent  *Agent
	socket net.Listener

	mu     sync.Mutex // guards what follows
	open   map[net.Conn]bool
	closed bool
	work   sync.WaitGroup
}

func (d *agentDoor) serve() {
	for {
		conn, err := d.socket.Accept()
		if err != nil {
			return // closed
		}
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			conn.Close()
			return
		}
		if d.open == nil {
			d.open = map[net.Conn]bool{}
		}
		d.open[conn] = true
		d.work.Go(func() {
			d.agent.serve(conn)
			conn.Close()
			d.mu.Lock()
			delete(d.open, conn)
			d.mu.Unlock()
		})
		d.mu.Unlock()
	}
}

// close ends all connections and waits until nobody is served.
func (d *agentDoor) close() error {
	err := d.socket.Close()
	d.mu.Lock()
	d.closed = true
	for conn := range d.open {
		conn.Close()
	}
	d.mu.Unlock()
	d.work.Wait()
	return err
}

// giveMount gives a file of etc the owner and mode that a mount asks for.
func (r *runStep) giveMount(etc *Etc, file string, m *runMount) error {
	if err := r.giveAway(unix.AT_FDCWD, file, uint32(*m.UID), uint32(*m.GID)); err != nil {
		return err
	}
	return unix.Fchmodat(unix.AT_FDCWD, file, uint32(*m.Mode)&0o7777, 0)
}
