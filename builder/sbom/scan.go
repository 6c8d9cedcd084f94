package sbom

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Package is one package of a tree.
type Package struct {
	Type      string // of its package URL: deb, apk, rpm, golang, npm
	Namespace string // of its package URL: debian, alpine, a scope; may be empty
	Name      string
	Version   string
	Epoch     string // rpm
	Arch      string
	Distro    string // debian-13
	Upstream  string // the source package, where that has another name
	Supplier  string // "Person: …" or "Organization: …", as SPDX has it
	License   string // as the package says it, which is no SPDX expression everywhere
	Homepage  string
	Checksums map[string]string // SHA256, SHA512, …: hex digits
	From      string            // the file that told of it
}

// Inventory is what Scan found.
type Inventory struct {
	Packages []Package // sorted, each once
	Notices  []string  // what there is and could not be read
}

const (
	maxDatabase = 512 << 20 // bytes
	maxLock     = 64 << 20
	maxDepth    = 512 // directories in each other
)

// Scan reads a whole tree. root is a descriptor of its top directory and stays the
// caller's.
func Scan(ctx context.Context, root *os.File) (Inventory, error) {
	s := &scan{ctx: ctx, root: root}
	distro, err := s.distribution()
	if err != nil {
		return s.found, err
	}
	for _, read := range []func(distribution) error{s.dpkg, s.apk, s.rpm} {
		if err := read(distro); err != nil {
			return s.found, err
		}
	}
	top, err := openIn(root, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return s.found, fmt.Errorf("scan: %w", err)
	}
	defer top.Close()
	if err := s.walk(top, "", 0); err != nil {
		return s.found, err
	}
	sort.Slice(s.found.Packages, func(i, j int) bool {
		a, b := s.found.Packages[i], s.found.Packages[j]
		return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name),
			strings.Compare(a.Version, b.Version), strings.Compare(a.Arch, b.Arch), strings.Compare(a.From, b.From)) < 0
	})
	s.found.Packages = slices.CompactFunc(s.found.Packages, func(a, b Package) bool {
		return a.URL() == b.URL() && a.From == b.From
	})
	return s.found, nil
}

type scan struct {
	ctx   context.Context
	root  *os.File
	found Inventory
}

func (s *scan) add(p Package) { s.found.Packages = append(s.found.Packages, p) }

func (s *scan) notice(format string, args ...any) {
	s.found.Notices = append(s.found.Notices, fmt.Sprintf(format, args...))
}

// distribution is what os-release says.
type distribution struct{ id, version string }

func (d distribution) String() string {
	if d.version == "" {
		return d.id
	}
	return d.id + "-" + d.version
}

func (s *scan) distribution() (distribution, error) {
	var d distribution
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		text, err := s.read(name, 1<<20)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return d, err
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			value = strings.Trim(value, `"'`)
			switch key {
			case "ID":
				d.id = value
			case "VERSION_ID":
				d.version = value
			}
		}
		return d, nil
	}
	return d, nil
}

// openIn opens a path as a process with that root would: no link leads out of it.
func openIn(root *os.File, name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, &how)
		if err == unix.EAGAIN || err == unix.EINTR { // something was renamed on the way
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// open opens a regular file; fs.ErrNotExist where there is none of that name. The
// caller closes.
func (s *scan) open(name string) (*os.File, error) {
	f, err := openIn(s.root, name, unix.O_RDONLY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, fs.ErrNotExist // no such file, whatever lies there
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// read reads a file of at most max bytes.
func (s *scan) read(name string, max int64) ([]byte, error) {
	f, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, name, max)
}

func readAll(r io.Reader, name string, max int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("longer than %d bytes", max)
	}
	if err != nil {
		return nil, fmt.Errorf("read /%s: %w", name, err)
	}
	return text, nil
}

// names lists a directory, sorted; nothing where there is none.
func (s *scan) names(dir string) ([]string, error) {
	f, err := openIn(s.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// walk looks at every regular file below a directory, in order, following no link.
func (s *scan) walk(dir *os.File, prefix string, depth int) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("scan /%s: more than %d directories in each other", prefix, maxDepth)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("scan /%s: %w", prefix, err)
	}
	slices.Sort(names)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("scan /%s: %w", path.Join(prefix, name), err)
		}
		at := path.Join(prefix, name)
		kind := st.Mode & unix.S_IFMT
		program := kind == unix.S_IFREG && st.Mode&0o111 != 0 && st.Size > 4096
		if kind != unix.S_IFDIR && !program && !(kind == unix.S_IFREG && name == "package-lock.json" && !inModules(prefix)) {
			continue
		}
		flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
		fd, err := unix.Openat(int(dir.Fd()), name, flags, 0)
		if err != nil {
			return fmt.Errorf("scan /%s: %w", at, err)
		}
		f := os.NewFile(uintptr(fd), at)
		switch {
		case kind == unix.S_IFDIR:
			err = s.walk(f, at, depth+1)
		case program:
			s.goProgram(f, at)
		default:
			err = s.npm(f, at)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// inModules says whether a directory is in a node_modules, whose packages the lock
// above it names.
func inModules(dir string) bool {
	return slices.Contains(strings.Split(dir, "/"), "node_modules")
}
