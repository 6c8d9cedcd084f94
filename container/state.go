package container

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Store is the directory of all containers that are kept, running or not. Any number of processes
// may use it at once.
//
//	containers/
//	  lock               flock: held for moments, by who makes, renames or removes a container
//	  events             Event: what happened, a line each; events.old has what was before
//	  names/<name>       a symlink to the ID of the container that has the name
//	  <id>/              one container
//	    config.json      Record: what it is
//	    status.json      Status: how it began and ended; missing until it was started
//	    change           flock: held while somebody starts, copies into or removes it
//	    running          write-locked (OFD) exactly while its holder lives
//	    control          the holder's socket
//	    network.json     NetworkStatus: its network, while it runs and has one of its own
//	    log              what it wrote: docker's JSON lines
//	    etc/             its own hosts, hostname and resolv.conf
//	    layer/           what it changed: a kept draft of package snapshot
//
// Rules:
//   - config.json, by its rename, is the commit point of making a container; a directory without
//     one, whose change lock is free, is what a killed mk left.
//   - A name counts only if the container it leads to says that it has it. So killed between any
//     two steps, making, renaming and removing leave nothing that lies.
//   - The container is running exactly while the lock of running is taken, whatever a pid or
//     status.json says.
//   - Whoever starts it takes change, then running, and then gives change back. Removing takes
//     change, finds running free, and goes: config.json, the name, the layer, the rest.
type Store struct{ dir string }

// Container is a directory of state; it is running exactly while someone holds its lock.
type Container struct {
	Record
	store *Store
	dir   string
}

// Record is what a container is, and all that is needed to start it again.
type Record struct {
	ID      string
	Name    string
	Created time.Time

	Image       string // as it was named
	ImageID     string // digest of its config
	ImageTarget string // digest of what the name meant: the manifest or index
	Mode        string // of the files: package userns

	Command    []string // entrypoint and arguments
	Entrypoint int      // how many words of Command are the entrypoint
	Env        []string
	Dir        string
	User       string
	Hostname   string
	Labels     map[string]string
	Tty        bool
	Stdin      bool // standard input is kept open

	StopSignal  string
	StopTimeout int // seconds; -1: no end
	AutoRemove  bool
	Restart     string // no, always, unless-stopped, on-failure[:N]
	Health      *Check // nil: none

	Words json.RawMessage // the rest of the command line, for who wrote it
}

// Status is how a container began and ended last.
type Status struct {
	Running   bool `json:"-"` // by its lock
	Paused    bool `json:"-"` // by its cgroup
	Pid       int  // of pid 1, as the holder's host sees it; 0 when not running
	Started   time.Time
	Finished  time.Time
	Code      int
	Error     string
	OOMKilled bool   // the memory limit killed a process of it
	Cgroup    string // its directory; "" when it had none
	Loose     bool   // no pid namespace of its own ends with it: see sweepLate
	Restarts  int
	Stopped   bool    // somebody asked for the end
	Health    *Health // of this run or the last one; nil without a check
}

// The words for what a container does.
const (
	StateCreated = "created"
	StateRunning = "running"
	StatePaused  = "paused"
	StateExited  = "exited"
)

// State is docker's word.
func (s Status) State() string {
	switch {
	case s.Paused:
		return StatePaused
	case s.Running:
		return StateRunning
	case s.Started.IsZero() && s.Finished.IsZero():
		return StateCreated
	}
	return StateExited
}

// Sentinels of the store.
var (
	ErrNotFound  = errors.New("no such container")
	ErrAmbiguous = errors.New("more than one container's ID begins like that")
	ErrNameTaken = errors.New("the name is in use")
	ErrRunning   = errors.New("the container is running")
)

// OpenStore opens a directory of containers, making it if it is not there.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "names"), 0o700); err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}
	return &Store{dir}, nil
}

// NewID makes a container's ID: 64 hexadecimal digits, as docker's.
func NewID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// isID tells whether a name of a directory is a container's.
func isID(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 32
}

// lock keeps others from making, renaming and removing.
func (s *Store) lock() (unlock func(), err error) {
	f, err := lockFile(filepath.Join(s.dir, "lock"), os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("lock containers: %w", err)
	}
	return func() { f.Close() }, nil
}

func lockFile(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Draft is a container being made: its directory is there, for the caller to fill, and nobody
// sees it before Commit. Close removes it.
type Draft struct {
	Container
	change    *os.File
	committed bool
}

// New begins a container; the record's ID says where. The caller ends it with Commit or Close. A name
// that is wrong or taken is refused here, before anything is made for it, and once more by Commit.
func (s *Store) New(r Record) (*Draft, error) {
	if r.Name != "" {
		if err := s.nameIsFree(r.Name); err != nil {
			return nil, fmt.Errorf("create container: %w", err)
		}
	}
	d := &Draft{Container: Container{Record: r, store: s, dir: filepath.Join(s.dir, r.ID)}}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	var err error
	if d.change, err = lockFile(d.Path("change"), os.O_CREATE); err != nil {
		os.RemoveAll(d.dir)
		return nil, fmt.Errorf("create container: %w", err)
	}
	return d, nil
}

// Commit gives the container its name, one made up where the record has none, and makes it one.
func (d *Draft) Commit() (*Container, error) {
	unlock, err := d.store.lock()
	if err != nil {
		return nil, err
	}
	if d.Name == "" {
		err = d.store.takeAnyName(&d.Record)
	} else {
		err = d.store.takeName(d.Name, d.ID)
	}
	if err == nil {
		err = d.save()
	}
	unlock()
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	d.committed = true
	d.tell("create", nil)
	return &d.Container, nil
}

// Close gives the container's change lock back; one that was not committed is removed, but for its
// layer, which is the caller's to remove before.
func (d *Draft) Close() error {
	defer d.change.Close()
	if d.committed {
		return nil
	}
	return os.RemoveAll(d.dir)
}

// takeName makes a name lead to id, if it leads nowhere yet. The store's lock is held.
func (s *Store) takeName(name, id string) error {
	if err := s.nameIsFree(name); err != nil {
		return err
	}
	path := filepath.Join(s.dir, "names", name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // it was left by the dead
		return err
	}
	return os.Symlink(id, path)
}

// nameIsFree says why a name cannot be taken.
func (s *Store) nameIsFree(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	id, err := os.Readlink(filepath.Join(s.dir, "names", name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if c, err := s.load(id); err == nil && c.Name == name {
		return fmt.Errorf("%q: %w by container %s", name, ErrNameTaken, c.ID[:12])
	}
	return nil
}

func (s *Store) dropName(name, id string) error {
	path := filepath.Join(s.dir, "names", name)
	if to, err := os.Readlink(path); err != nil || to != id {
		return nil
	}
	return os.Remove(path)
}

// checkName holds a name to docker's rule.
func checkName(name string) error {
	ok := len(name) > 1
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && strings.ContainsRune("_.-", r))
	}
	if !ok {
		return fmt.Errorf("name %q: want letters, digits, _, . and -, two at least, a letter or digit first", name)
	}
	return nil
}

// load reads a container by its whole ID.
func (s *Store) load(id string) (*Container, error) {
	c := &Container{store: s, dir: filepath.Join(s.dir, id)}
	text, err := os.ReadFile(c.Path("config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &c.Record); err != nil {
		return nil, fmt.Errorf("read %s: %w", c.Path("config.json"), err)
	}
	return c, nil
}

// List lists all containers, the newest first.
func (s *Store) List() ([]*Container, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var all []*Container
	for _, e := range entries {
		if !isID(e.Name()) {
			continue
		}
		c, err := s.load(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // being made, or being removed
		} else if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Created.After(all[j].Created) })
	return all, nil
}

// Sweep ends what is left of containers whose holders were killed. It is for commands that care about
// no one container: of most it reads how they ended and nothing else, a third of what List takes.
func (s *Store) Sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, e := range entries {
		if !isID(e.Name()) {
			continue
		}
		unread := &Container{store: s, dir: filepath.Join(s.dir, e.Name())}
		if last, err := unread.readStatus(); err != nil || last.Pid == 0 {
			continue
		}
		if c, err := s.load(e.Name()); err == nil {
			c.Status() // an error of one is for the verb to tell, if it is meant
		}
	}
	return nil
}

// Find finds a container by its name, its ID, or the beginning of its ID.
func (s *Store) Find(name string) (*Container, error) {
	if isID(name) {
		return s.load(name)
	}
	if checkName(name) == nil {
		if id, err := os.Readlink(filepath.Join(s.dir, "names", name)); err == nil {
			if c, err := s.load(id); err == nil && c.Name == name {
				return c, nil
			}
		}
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("find container: %w", err)
	}
	var found *Container
	for _, e := range entries {
		if name == "" || !isID(e.Name()) || !strings.HasPrefix(e.Name(), name) {
			continue
		}
		c, err := s.load(e.Name())
		if err != nil {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s: %w", name, ErrAmbiguous)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	return found, nil
}

// Litter lists directories that are no containers and that nobody is making or removing: what
// killed processes left. Each is the path of one, with perhaps a layer in it.
func (s *Store) Litter() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(s.dir, e.Name())
		if !isID(e.Name()) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "config.json")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, "change"), os.O_RDWR, 0)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			f.Close()
		}
		if err == unix.EWOULDBLOCK {
			continue
		}
		c := Container{store: s, dir: dir}
		if running, err := c.Running(); err == nil && !running { // else its holder is removing it
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// Path is a file of the container's directory.
func (c *Container) Path(name string) string { return filepath.Join(c.dir, name) }

// ShortID is how an ID is printed: 12 digits.
func (c *Container) ShortID() string { return c.ID[:12] }

func (c *Container) save() error { return WriteJSON(c.Path("config.json"), c.Record) }

// WriteJSON makes v the content of a file that only its owner may read. The rename is the commit point.
func WriteJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// Change keeps others from starting, changing and removing the container until unlock.
// ErrNotFound when it is gone.
func (c *Container) Change() (unlock func(), err error) {
	f, err := lockFile(c.Path("change"), 0)
	if err == nil {
		if _, err = os.Stat(c.Path("config.json")); err != nil {
			f.Close()
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", c.Name, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("lock container %s: %w", c.Name, err)
	}
	return func() { f.Close() }, nil
}

// hold takes the lock that means running.
func (c *Container) hold() (*os.File, error) {
	f, err := os.OpenFile(c.Path("running"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err != nil {
		f.Close()
		if err == unix.EAGAIN || err == unix.EACCES {
			err = ErrRunning
		}
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return f, nil
}

// Running asks the lock, without taking it for even a moment.
func (c *Container) Running() (bool, error) {
	f, err := os.OpenFile(c.Path("running"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("ask for the lock of %s: %w", c.Name, err)
	}
	return l.Type != unix.F_UNLCK, nil
}

// killedCode is the exit status of a container whose holder was killed, and it with it.
const killedCode = 128 + int(unix.SIGKILL)

// killed says of a container that it ended with its holder.
func (s *Status) killed() { s.Pid, s.Code, s.Error = 0, killedCode, "its holder was killed" }

// Status tells how the container does. What is left of one whose holder was killed is ended, first:
// see sweepLate.
func (c *Container) Status() (Status, error) {
	running, err := c.Running() // first: what ends meanwhile has written its status
	if err != nil {
		return Status{}, err
	}
	s, err := c.readStatus()
	if err != nil {
		return s, err
	}
	s.Running = running
	s.Paused = running && s.Pid != 0 && Frozen(s.Cgroup)
	if !running && s.Pid != 0 {
		err := c.sweepLate(s)
		s.killed()
		if err != nil {
			s.Error += "; " + err.Error()
		}
	}
	return s, nil
}

// readStatus reads what the holder wrote down; nothing is the zero Status.
func (c *Container) readStatus() (s Status, err error) {
	text, err := os.ReadFile(c.Path("status.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", c.Path("status.json"), err)
	}
	return s, nil
}

func (c *Container) setStatus(s Status) error { return WriteJSON(c.Path("status.json"), s) }

// Rename gives the container another name.
func (c *Container) Rename(name string) error {
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	now, err := c.store.load(c.ID) // it may have been renamed or removed since it was found
	if err != nil {
		unlock()
		return err
	}
	c.Record = now.Record
	old := c.Name
	err = c.store.takeName(name, c.ID)
	if err == nil {
		c.Name = name
		err = c.save()
	}
	if err == nil {
		err = c.store.dropName(old, c.ID)
	}
	unlock()
	if err == nil {
		c.tell("rename", map[string]string{"oldName": "/" + old})
	}
	return err
}

// Amend changes what is written down of a container.
func (c *Container) Amend(change func(*Record) error) error {
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	now, err := c.store.load(c.ID)
	if err != nil {
		return err
	}
	if err := change(&now.Record); err != nil {
		return err
	}
	c.Record = now.Record
	return c.save()
}

// Remove removes the container, which the caller holds the change lock of, or is the holder of: the
// processes and the cgroup that a killed holder left, then config.json, by which it is no container
// any more, then its name, its files by the caller's hand, and the directory. What a killed mk leaves
// of that is Litter.
func (c *Container) Remove(files func() error) error {
	if err := c.sweep(); err != nil {
		return err
	}
	st, err := c.readStatus()
	if err != nil {
		return err
	}
	if err := RemoveCgroup(st.Cgroup); err != nil {
		return err
	}
	known, err := c.forget()
	if err == nil {
		err = files()
	}
	if err == nil {
		err = os.RemoveAll(c.dir)
	}
	if known {
		c.tell("destroy", nil)
	}
	return err
}

// forget removes the container's record and its name, which may be another than when it was found.
func (c *Container) forget() (known bool, err error) {
	unlock, err := c.store.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	if now, err := c.store.load(c.ID); err == nil {
		c.Name = now.Name
	}
	err = os.Remove(c.Path("config.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return err == nil, c.store.dropName(c.Name, c.ID)
}
