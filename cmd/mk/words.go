package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"mk/builder"
	"mk/container"
)

// words are what a command line says of a container beyond its record: kept with it, and made
// into a spec at every start.
type words struct {
	Hosts    []string
	Domain   string `json:",omitempty"` // NIS
	ReadOnly bool
	Init     bool
	Rootfs   string // a directory that is the root itself, in place of an image's tree
	CapAdd   []string
	CapDrop  []string
	Places   []place // of -v, --mount and --tmpfs, settled

	networking
	security
	spaces

	Limits       container.Limits
	CgroupParent string

	limits      limits
	volumes     []string
	volumesFrom []string
	tmpfs       []string
	mounts      []string
}

// place is one mount that was asked for.
type place struct {
	Type     string // bind, volume, tmpfs, image
	Source   string // a path; the name of a volume; an image, and once settled its ID
	Dest     string
	Options  string // of a tmpfs
	ReadOnly bool
	Own      bool // an anonymous volume: it goes with the container
}

func (w *words) define(fl *pflag.FlagSet) {
	fl.VarP((*list)(&w.volumes), "volume", "v", "bind mount, as HOST:CONTAINER[:ro], or a volume, as NAME:CONTAINER[:ro]")
	fl.Var((*list)(&w.mounts), "mount", "mount, as type=bind|volume|tmpfs|image,source=…,target=…[,readonly]")
	fl.Var((*list)(&w.volumesFrom), "volumes-from", "the mounts of another container, as NAME[:ro]")
	fl.StringVar(&w.Rootfs, "rootfs", "", "directory that is the container's root, in place of IMAGE")
	fl.Var((*list)(&w.tmpfs), "tmpfs", "empty tmpfs, as PATH[:options]")
	fl.Var((*list)(&w.Hosts), "add-host", "line of /etc/hosts, as name:address")
	fl.StringVar(&w.Domain, "domainname", "", "NIS domain name")
	fl.BoolVar(&w.ReadOnly, "read-only", false, "make the root file system read-only")
	fl.BoolVar(&w.Init, "init", false, "run an init that passes signals on and reaps processes")
	fl.Var((*list)(&w.CapAdd), "cap-add", "add a capability")
	fl.Var((*list)(&w.CapDrop), "cap-drop", "drop a capability")
	w.networking.define(fl)
	w.security.define(fl)
	w.limits.define(fl)
	w.spaces.define(fl)
}

// settle reads the flags that depend on where mk was called.
func (w *words) settle() error {
	if err := w.networking.settle(); err != nil {
		return err
	}
	if _, err := container.ParseCaps(w.CapAdd, w.CapDrop); err != nil {
		return err
	}
	if _, err := hostLines(w.Hosts, "127.0.0.1"); err != nil {
		return err
	}
	if err := w.spaces.settle(); err != nil {
		return err
	}
	var err error
	if w.Limits, err = w.limits.parse(container.Limits{}); err != nil {
		return err
	}
	w.CgroupParent = w.limits.parent
	if w.Rootfs != "" {
		if w.Rootfs, err = filepath.Abs(w.Rootfs); err != nil {
			return err
		}
		if st, err := os.Stat(w.Rootfs); err != nil {
			return fmt.Errorf("--rootfs: %w", err)
		} else if !st.IsDir() {
			return fmt.Errorf("--rootfs %s: it is not a directory", w.Rootfs)
		}
	}
	w.Places = nil
	for _, v := range w.volumes {
		p, err := parseVolume(v)
		if err != nil {
			return err
		}
		w.Places = append(w.Places, p)
	}
	for _, m := range w.mounts {
		p, err := parseMount(m)
		if err != nil {
			return fmt.Errorf("--mount %s: %w", m, err)
		}
		w.Places = append(w.Places, p)
	}
	for _, t := range w.tmpfs {
		dest, options, _ := strings.Cut(t, ":")
		if !path.IsAbs(dest) {
			return fmt.Errorf("--tmpfs %s: want an absolute path", t)
		}
		w.Places = append(w.Places, place{Type: container.Tmpfs, Dest: dest, Options: options, ReadOnly: slices.Contains(strings.Split(options, ","), "ro")})
	}
	for i, p := range w.Places {
		if occupied(w.Places[:i], p.Dest) {
			return fmt.Errorf("mount on %s: something else is to be mounted there, too", path.Clean(p.Dest))
		}
	}
	return w.security.settle()
}

// spec describes a run of the container in root. What it opened is the caller's to close after the
// start, whatever the error.
func (w *words) spec(ctx context.Context, s *store, c *container.Container, root *os.File, opened *[]*os.File) (*container.Spec, error) {
	var err error
	spec := container.DefaultSpec(w.namespaces())
	if w.IPC == "none" {
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m container.Mount) bool { return m.Dest == "/dev/shm" })
	}
	if w.IPC == "host" {
		for i := range spec.Mounts {
			if m := &spec.Mounts[i]; m.Dest == "/dev/shm" || m.Dest == "/dev/mqueue" && exists(m.Dest) {
				m.Type, m.Source, m.Data = container.Bind, m.Dest, ""
			}
		}
	}
	if spec.Caps, err = container.ParseCaps(w.CapAdd, w.CapDrop); err != nil {
		return nil, err
	}
	if spec.Seccomp, err = container.DefaultFilter(spec.Caps); err != nil {
		return nil, err
	}
	var home string
	if spec.User, home, err = container.LookupUser(root, c.User); err != nil {
		return nil, err
	}
	env := environ(slices.Clone(c.Env))
	if !env.has("HOME") {
		env.set("HOME=" + home)
	}
	if !env.has("HOSTNAME") {
		env.set("HOSTNAME=" + c.Hostname)
	}
	if c.Tty && !env.has("TERM") {
		env.set("TERM=xterm")
	}
	spec.Args, spec.Env, spec.Cwd = c.Command, env, c.Dir
	if err := builder.MakeDirs(root, spec.Cwd, 0, 0); err != nil {
		return nil, fmt.Errorf("working directory %s: %w", spec.Cwd, err)
	}
	spec.Init = w.Init
	spec.RootReadOnly = w.ReadOnly
	spec.Hostname, spec.Domainname = c.Hostname, w.Domain
	spec.Name = c.Name
	for _, name := range w.Groups {
		if _, err := strconv.ParseUint(name, 10, 32); err != nil {
			named, _, err := container.LookupUser(root, "0:"+name)
			if err != nil {
				return nil, fmt.Errorf("--group-add %s: %w", name, err)
			}
			spec.User.Groups = append(spec.User.Groups, named.GID)
		}
	}
	mounts, err := w.outerMounts(ctx, s, opened)
	if err != nil {
		return nil, err
	}
	spec.Mounts = append(append(spec.Mounts, mounts...), ownEtc(c, mounts)...)
	return spec, w.security.apply(spec)
}

// ownEtc are the files of /etc that are the container's own, over what was asked for on /etc, unless it
// was such a file itself. Where /etc is somebody's directory that lacks one, it is made there, empty, and
// stays, as with docker: another container may have its own on it. A read-only one stays without.
func ownEtc(c *container.Container, asked []container.Mount) (mounts []container.Mount) {
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		m := container.Mount{Type: container.Bind, Source: filepath.Join(c.Path("etc"), name), Dest: "/etc/" + name}
		itself := false
		for _, a := range asked {
			itself = itself || a.Dest == m.Dest
			m.Optional = m.Optional || a.Dest == "/etc" || a.Dest == "/"
		}
		if !itself {
			mounts = append(mounts, m)
		}
	}
	return mounts
}

// outerMounts are what was asked for: volumes, binds, images, and each tmpfs, those nearer to the root
// first, so that none hides another; "a/.." is nothing, as with docker.
// What it opened is the caller's to close after use, whatever the error.
func (w *words) outerMounts(ctx context.Context, s *store, opened *[]*os.File) (mounts []container.Mount, err error) {
	for _, p := range w.Places {
		m := container.Mount{Type: p.Type, Source: p.Source, Dest: path.Clean(p.Dest), Data: p.Options, ReadOnly: p.ReadOnly}
		switch p.Type {
		case container.Tmpfs:
			m.NoSuid, m.NoDev, m.NoExec = true, true, !slices.Contains(strings.Split(p.Options, ","), "exec")
			m.Data = tmpfsOptions(p.Options)
		case "volume":
			m.Type, m.Owned = container.Bind, true
			if m.Source, err = s.volumeDir(p.Source); err != nil {
				return nil, err
			}
		case "image":
			tree, err := s.mountImage(ctx, p.Source)
			if err != nil {
				return nil, fmt.Errorf("mount %s on %s: %w", p.Source, p.Dest, err)
			}
			*opened = append(*opened, tree)
			m.Type, m.Source, m.File, m.Owned = container.Attach, "", tree, true
		}
		mounts = append(mounts, m)
	}
	depth := func(i int) int { return strings.Count(strings.TrimSuffix(mounts[i].Dest, "/"), "/") }
	sort.SliceStable(mounts, func(i, j int) bool { return depth(i) < depth(j) })
	return mounts, nil
}

// cgroup makes the cgroup of a run of a container; nil where none is to be had and none was asked for.
func (w *words) cgroup(c *container.Container) (*container.Cgroup, error) {
	return container.NewCgroup(container.CgroupWish{
		Name: c.ID, Parent: w.CgroupParent, Limits: w.Limits, Spare: w.CgroupParent == "" && w.Limits.IsZero()})
}

// occupied tells that one of these is to be mounted on dest.
func occupied(places []place, dest string) bool {
	return slices.ContainsFunc(places, func(p place) bool { return path.Clean(p.Dest) == path.Clean(dest) })
}

// takeFrom adds the mounts of other containers, those that nothing of its own lies on.
func (w *words) takeFrom(s *store) error {
	for _, v := range w.volumesFrom {
		name, mode, _ := strings.Cut(v, ":")
		if mode != "" && mode != "ro" && mode != "rw" {
			return fmt.Errorf("--volumes-from %s: want NAME[:ro]", v)
		}
		c, err := s.containers.Find(name)
		if err != nil {
			return fmt.Errorf("--volumes-from %w", err)
		}
		var theirs words
		if err := json.Unmarshal(c.Words, &theirs); err != nil {
			return fmt.Errorf("--volumes-from %s: %w", v, err)
		}
		for _, p := range theirs.Places {
			if p.Type == container.Tmpfs || occupied(w.Places, p.Dest) {
				continue
			}
			p.Own, p.ReadOnly = false, p.ReadOnly || mode == "ro"
			w.Places = append(w.Places, p)
		}
	}
	return nil
}

// pinImages puts the IDs of images in place of the names that are to be mounted, pulling those that
// are not here, so that every start sees the same.
func (w *words) pinImages(ctx context.Context, s *store, pull string) error {
	for i := range w.Places {
		p := &w.Places[i]
		if p.Type != "image" {
			continue
		}
		img, err := s.imageFor(ctx, p.Source, pull, "")
		if err != nil {
			return fmt.Errorf("--mount type=image: %w", err)
		}
		p.Source = img.Target().Digest.String()
	}
	return nil
}

// mountImage is the tree of an image, as a detached mount that is the caller's to close.
func (s *store) mountImage(ctx context.Context, name string) (*os.File, error) {
	img, err := s.images.Resolve(name, nil)
	if err != nil {
		return nil, err
	}
	top, err := (&builder.Builder{Images: s.images, Trees: s.trees, Inside: true}).Unpack(ctx, img)
	if err != nil {
		return nil, err
	}
	return top.Mount()
}

// tmpfsOptions leaves of docker's options those that are the file system's own.
func tmpfsOptions(options string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		switch o {
		case "rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "":
			return true
		}
		return false
	}), ",")
}

// parseVolume reads -v HOST:CONTAINER[:options], NAME:CONTAINER[:options], or CONTAINER alone for
// an anonymous volume. A host path that is not there is made, as docker does.
func parseVolume(v string) (place, error) {
	parts := strings.Split(v, ":")
	if len(parts) > 3 || v == "" {
		return place{}, fmt.Errorf("--volume %s: want HOST:CONTAINER[:options]", v)
	}
	p := place{Type: container.Bind}
	switch {
	case len(parts) == 1:
		p.Type, p.Dest, p.Own = "volume", parts[0], true
		p.Source = container.NewID()
	case !strings.ContainsRune(parts[0], '/') && parts[0] != "." && parts[0] != "..":
		p.Type, p.Source, p.Dest = "volume", parts[0], parts[1]
	default:
		p.Source, p.Dest = parts[0], parts[1]
	}
	if !path.IsAbs(p.Dest) {
		return p, fmt.Errorf("--volume %s: %s is not absolute", v, p.Dest)
	}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "ro", "readonly":
				p.ReadOnly = true
			case "rw", "z", "Z", "rprivate", "private", "rbind", "nocopy":
			default:
				return p, fmt.Errorf("--volume %s: unknown option %q", v, o)
			}
		}
	}
	if p.Type == "volume" {
		return p, nil
	}
	var err error
	if p.Source, err = filepath.Abs(p.Source); err != nil {
		return p, err
	}
	if !exists(p.Source) {
		if err := os.MkdirAll(p.Source, 0o755); err != nil {
			return p, fmt.Errorf("--volume %s: %w", v, err)
		}
	}
	return p, nil
}

// parseMount reads the value of --mount.
func parseMount(text string) (place, error) {
	p := place{Type: "volume"}
	size, mode := "", ""
	for _, field := range strings.Split(text, ",") {
		key, value, set := strings.Cut(field, "=")
		switch key {
		case "type":
			p.Type = value
		case "source", "src":
			p.Source = value
		case "target", "destination", "dst":
			p.Dest = value
		case "readonly", "ro":
			p.ReadOnly = !set || value == "true" || value == "1"
		case "tmpfs-size", "size":
			size = value
		case "tmpfs-mode":
			mode = value
		case "bind-propagation", "consistency", "volume-nocopy":
		default:
			return p, fmt.Errorf("unknown field %q", key)
		}
	}
	if !path.IsAbs(p.Dest) {
		return p, fmt.Errorf("target %q is not an absolute path", p.Dest)
	}
	switch p.Type {
	case "bind":
		if p.Source == "" {
			return p, fmt.Errorf("a bind mount wants a source")
		}
		var err error
		if p.Source, err = filepath.Abs(p.Source); err != nil {
			return p, err
		}
		if _, err := os.Stat(p.Source); err != nil {
			return p, err
		}
	case "volume":
		if p.Source == "" {
			p.Source, p.Own = container.NewID(), true
		}
	case "image":
		if p.Source == "" {
			return p, fmt.Errorf("a mount of an image wants its name as source")
		}
		p.ReadOnly = true
	case "tmpfs":
		var options []string
		if size != "" {
			options = append(options, "size="+size)
		}
		if mode != "" {
			options = append(options, "mode="+mode)
		}
		p.Options = strings.Join(options, ",")
	default:
		return p, fmt.Errorf("type %q: want bind, volume, tmpfs or image", p.Type)
	}
	return p, nil
}
