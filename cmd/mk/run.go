package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"mk/builder"
	"mk/container"
	"mk/image"
)

const runHelp = `Run a command in a new container made of an image.

The image is a name in mk's store or at a registry (it is pulled if it is not
here), an image ID, or oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE.
Without a command, the image's own is run.

The exit status is the command's own; 128+n if signal n ended it; 125 if mk
failed, 126 if the command cannot be executed, 127 if there is none of that name.`

// runFlags are the words of one mk run.
type runFlags struct {
	rm          bool
	interactive bool
	tty         bool
	env         []string
	envFiles    []string
	workdir     string
	user        string
	volumes     []string
	tmpfs       []string
	entrypoint  string
	network     string
	hostname    string
	hosts       []string
	readOnly    bool
	init        bool
	pull        string
	platform    string
	capAdd      []string
	capDrop     []string
}

func newRun(a *app) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a command in a new container",
		Long:  runHelp,
		Args:  cobra.MinimumNArgs(1),
	}
	c.RunE = a.inside(func(c *cobra.Command, args []string) error {
		return a.run(&f, c.Flags().Changed("entrypoint"), args[0], args[1:])
	})
	fl := c.Flags()
	fl.SetInterspersed(false) // what follows the image is the command's
	fl.BoolVar(&f.rm, "rm", false, "remove the container when it ends")
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment variable, as NAME=value, or NAME to pass it on")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "file of environment variables, one a line")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fl.StringVarP(&f.user, "user", "u", "", "user[:group], by name or number")
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil, "bind mount, as HOST:CONTAINER[:ro]")
	fl.StringArrayVar(&f.tmpfs, "tmpfs", nil, "empty tmpfs, as PATH[:options]")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "what is executed in place of the image's ENTRYPOINT")
	fl.StringVar(&f.network, "network", "host", "host or none")
	fl.StringVar(&f.network, "net", "host", "")
	fl.MarkHidden("net")
	fl.StringVarP(&f.hostname, "hostname", "h", "", "host name")
	fl.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts, as name:address")
	fl.BoolVar(&f.readOnly, "read-only", false, "make the root file system read-only")
	fl.BoolVar(&f.init, "init", false, "run an init that passes signals on and reaps processes")
	fl.StringVar(&f.pull, "pull", "missing", "when to ask the registry: always, missing or never")
	fl.StringVar(&f.platform, "platform", "", "platform of the image, as os/arch[/variant]")
	fl.StringArrayVar(&f.capAdd, "cap-add", nil, "add a capability")
	fl.StringArrayVar(&f.capDrop, "cap-drop", nil, "drop a capability")
	fl.Bool("help", false, "help for run") // -h is --hostname, as in docker
	a.usernsFlag(c)
	return c
}

// run runs one container in the foreground. It is in the stage inside.
func (a *app) run(f *runFlags, entrypointSet bool, name string, args []string) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	img, err := s.imageFor(a.life, name, f.pull, f.platform)
	if err != nil {
		return err
	}
	b := &builder.Builder{Images: s.images, Trees: s.trees, Inside: true}
	top, err := b.Unpack(a.life, img)
	if err != nil {
		return err
	}
	draft, err := s.trees.NewDraft(top)
	if err != nil {
		return err
	}
	defer draft.Discard()
	root, err := draft.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	spec, err := f.spec(img, root, entrypointSet, args)
	if err != nil {
		return err
	}
	hosts, err := hostLines(f.hosts)
	if err != nil {
		return err
	}
	etc, err := builder.NewEtc(s.path("tmp"), spec.Hostname, hosts)
	if err != nil {
		return err
	}
	spec.Mounts = append(spec.Mounts, etc.Mounts()...)
	if emulate := s.emulate(); emulate != nil {
		emulate(spec, root)
	}
	status, err := a.attach(spec, root, f.interactive, f.tty)
	if err != nil {
		return err
	}
	if status != 0 {
		return &exitError{status: status}
	}
	return nil
}

// imageFor finds the image of a run by the pull policy.
func (s *store) imageFor(ctx context.Context, name, pull, platform string) (*image.Image, error) {
	find := &finder{store: s}
	switch pull {
	case "missing":
	case "always":
		find.pull = always
	case "never":
		return s.images.Resolve(name, nil)
	default:
		return nil, fmt.Errorf("--pull %s: want always, missing or never", pull)
	}
	if platform == "" {
		return find.find(ctx, name, nil)
	}
	p, err := image.ParsePlatform(platform)
	if err != nil {
		return nil, fmt.Errorf("--platform %s: %w", platform, err)
	}
	return find.find(ctx, name, &p)
}

// spec describes the container: the image's config, changed by the flags.
func (f *runFlags) spec(img *image.Image, root *os.File, entrypointSet bool, args []string) (*container.Spec, error) {
	config := img.Config().Config
	switch f.network {
	case "host", "none":
	default:
		return nil, fmt.Errorf("--network %s: want host or none", f.network)
	}
	var err error
	spec := container.DefaultSpec(container.Namespaces{Net: f.network == "none", Cgroup: true})
	if spec.Caps, err = container.ParseCaps(f.capAdd, f.capDrop); err != nil {
		return nil, err
	}
	if spec.Seccomp, err = container.DefaultFilter(spec.Caps); err != nil {
		return nil, err
	}
	if spec.Args, err = commandLine(config, f.entrypoint, entrypointSet, args); err != nil {
		return nil, err
	}
	user := config.User
	if f.user != "" {
		user = f.user
	}
	var home string
	if spec.User, home, err = container.LookupUser(root, user); err != nil {
		return nil, err
	}
	if spec.Env, err = f.environment(config.Env, home); err != nil {
		return nil, err
	}
	spec.Cwd = config.WorkingDir
	if f.workdir != "" {
		if !path.IsAbs(f.workdir) {
			return nil, fmt.Errorf("--workdir %s: want an absolute path", f.workdir)
		}
		spec.Cwd = f.workdir
	}
	if err := builder.MakeDirs(root, spec.Cwd, 0, 0); err != nil {
		return nil, fmt.Errorf("working directory %s: %w", spec.Cwd, err)
	}
	spec.Init = f.init
	spec.RootReadOnly = f.readOnly
	spec.Hostname = f.hostname
	if spec.Hostname == "" {
		spec.Hostname = newContainerID()[:12]
	}
	if !slices.ContainsFunc(spec.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOSTNAME=") }) {
		spec.Env = append(spec.Env, "HOSTNAME="+spec.Hostname)
	}
	spec.Name = spec.Hostname
	if f.tty {
		spec.Env = append([]string{"TERM=xterm"}, spec.Env...)
	}
	mounts, err := f.mounts()
	spec.Mounts = append(spec.Mounts, mounts...)
	return spec, err
}

// commandLine joins ENTRYPOINT and CMD, docker's way: a command on the line
// takes CMD's place, --entrypoint ENTRYPOINT's and with it CMD's.
func commandLine(c image.RunConfig, entrypoint string, entrypointSet bool, args []string) ([]string, error) {
	head, tail := c.Entrypoint, c.Cmd
	if entrypointSet {
		head, tail = nil, nil
		if entrypoint != "" {
			head = []string{entrypoint}
			if list, ok := jsonWords(entrypoint); ok {
				head = list
			}
		}
	}
	if len(args) > 0 {
		tail = args
	}
	line := slices.Concat(head, tail)
	if len(line) == 0 {
		return nil, errors.New("run: no command: the image has none and none was given")
	}
	return line, nil
}

// environment is the image's, then files, then flags; later ones win.
func (f *runFlags) environment(base []string, home string) ([]string, error) {
	env := slices.Clone(base)
	set := func(kv string) error {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" {
			return fmt.Errorf("--env %s: want NAME=value", kv)
		}
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				env = slices.DeleteFunc(env, func(o string) bool { return strings.HasPrefix(o, k+"=") })
				return nil
			}
		}
		for i, o := range env {
			if strings.HasPrefix(o, k+"=") {
				env[i] = k + "=" + v
				return nil
			}
		}
		env = append(env, k+"="+v)
		return nil
	}
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		env = append(env, "HOME="+home)
	}
	for _, file := range f.envFiles {
		lines, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		for scan := bufio.NewScanner(lines); scan.Scan(); {
			line := strings.TrimLeft(scan.Text(), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			if err := set(line); err != nil {
				lines.Close()
				return nil, fmt.Errorf("--env-file %s: %w", file, err)
			}
		}
		lines.Close()
	}
	for _, kv := range f.env {
		if err := set(kv); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// mounts are those of -v and --tmpfs.
func (f *runFlags) mounts() ([]container.Mount, error) {
	var mounts []container.Mount
	for _, v := range f.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	for _, t := range f.tmpfs {
		dest, options, _ := strings.Cut(t, ":")
		if !path.IsAbs(dest) {
			return nil, fmt.Errorf("--tmpfs %s: want an absolute path", t)
		}
		mounts = append(mounts, container.Mount{Type: container.Tmpfs, Dest: dest, Data: options, NoSuid: true, NoDev: true, NoExec: true})
	}
	return mounts, nil
}

// parseVolume reads -v HOST:CONTAINER[:options]. A host path that is not there
// is made, as docker does.
func parseVolume(v string) (container.Mount, error) {
	parts := strings.Split(v, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return container.Mount{}, fmt.Errorf("--volume %s: want HOST:CONTAINER[:options]", v)
	}
	m := container.Mount{Type: container.Bind, Dest: parts[1]}
	if !path.IsAbs(m.Dest) {
		return m, fmt.Errorf("--volume %s: %s is not absolute", v, m.Dest)
	}
	if !strings.ContainsRune(parts[0], '/') && parts[0] != "." && parts[0] != ".." {
		return m, fmt.Errorf("--volume %s: named volumes are not supported yet; for a directory write ./%s", v, parts[0])
	}
	var err error
	if m.Source, err = filepath.Abs(parts[0]); err != nil {
		return m, err
	}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "ro", "readonly":
				m.ReadOnly = true
			case "rw", "z", "Z", "rprivate", "private", "rbind":
			default:
				return m, fmt.Errorf("--volume %s: unknown option %q", v, o)
			}
		}
	}
	if _, err := os.Stat(m.Source); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return m, fmt.Errorf("--volume %s: %w", v, err)
		}
	}
	return m, nil
}

// attach starts a container on mk's own standard streams and waits for it.
// Signals go to the container; it ends when the process outside does.
func (a *app) attach(spec *container.Spec, root *os.File, interactive, tty bool) (status int, err error) {
	io := container.IO{Stdout: os.Stdout, Stderr: os.Stderr}
	if tty {
		if interactive && !term.IsTerminal(int(os.Stdin.Fd())) {
			return 0, errNotTerminal
		}
		size := terminalSize()
		spec.Terminal = &size
		io = container.IO{}
	} else if interactive {
		io.Stdin = os.Stdin
	}
	p, err := container.Start(a.life, spec, root, io)
	if err != nil {
		var start *container.StartError
		if errors.As(err, &start) {
			return 0, &exitError{status: start.Code, err: err}
		}
		return 0, err
	}
	for _, n := range p.Notices() {
		fmt.Fprintln(os.Stderr, "mk:", n)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			p.Signal(s.(unix.Signal))
		}
	}()
	if tty {
		t, err := openTerminal(p, interactive)
		if err != nil {
			return 0, err
		}
		defer t.close()
	}
	end, err := p.Wait()
	return end.Code, err
}
