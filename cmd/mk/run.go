package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"mk/builder"
	"mk/container"
	"mk/image"
	"mk/snapshot"
	"mk/userns"
)

const runHelp = `Run a command in a new container made of an image.

The image is a name in mk's store or at a registry (it is pulled if it is not
here), an image ID, or oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE.
Without a command, the image's own is run.

With --build CONTEXT the image is built first, and with --rootfs DIR the directory
is the container's root itself, which it changes; no IMAGE is named then.

The container is kept until 'mk rm', or, with --rm, until it ends. With -d it
runs in the background; ctrl-p ctrl-q leaves a container that has a terminal.

The exit status is the command's own; 128+n if signal n ended it; 125 if mk
failed, 126 if the command cannot be executed, 127 if there is none of that name.`

// runFlags are the words of one mk run or mk create.
type runFlags struct {
	first buildFirst // --build
	diff  bool

	words // what is kept with the container

	health        healthFlags
	rm            bool
	detach        bool
	interactive   bool
	tty           bool
	name          string
	cidfile       string
	labels        []string
	labelFiles    []string
	env           []string
	envFiles      []string
	envHost       bool
	unset         []string
	unsetAll      bool
	attach        []string
	quiet         bool
	logDriver     string
	workdir       string
	user          string
	entrypoint    string
	entrypointSet bool
	hostname      string
	pull          string
	platform      string
	restart       string
	stopSignal    string
	stopTimeout   int
	detachKeys    string
	sigProxy      bool
}

func newRun(a *app) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a command in a new container",
		Long:  runHelp,
		Args:  f.arguments,
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		f.entrypointSet = c.Flags().Changed("entrypoint")
		if err := a.takeUserns(&f.words); err != nil {
			return err
		}
		if a.stage == userns.StageInside {
			name, args := f.image(args)
			return a.run(c.Context(), &f, name, args)
		}
		if err := f.check(); err != nil {
			return err
		}
		line := os.Args[1:]
		if f.first.context != "" {
			var err error
			if line, err = f.first.build(c.Context(), c.Name(), line); err != nil {
				return err
			}
		}
		return a.runOutside(&f, line)
	}
	f.define(c.Flags())
	fl := c.Flags()
	fl.BoolVarP(&f.detach, "detach", "d", false, "run in the background, and print the container's ID")
	fl.BoolVar(&f.rm, "rm", false, "remove the container when it ends")
	fl.StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave a container with a terminal")
	fl.BoolVar(&f.sigProxy, "sig-proxy", true, "pass signals on to the command")
	fl.BoolVar(&f.diff, "diff", false, "list, when it has ended, what it changed in its files")
	f.first.define(fl)
	a.usernsFlag(c)
	return c
}

// arguments holds the line to IMAGE [COMMAND...], or, with what stands for an image, [COMMAND...].
func (f *runFlags) arguments(c *cobra.Command, args []string) error {
	if f.Rootfs != "" || f.first.context != "" {
		return nil
	}
	return cobra.MinimumNArgs(1)(c, args)
}

// image is the name of the image, and the command.
func (f *runFlags) image(args []string) (string, []string) {
	switch {
	case f.first.id != "":
		return f.first.id, args
	case f.Rootfs != "":
		return "", args
	}
	return args[0], args[1:]
}

// define adds the flags that run and create share.
func (f *runFlags) define(fl *pflag.FlagSet) {
	fl.SetInterspersed(false) // what follows the image is the command's
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fl.StringVar(&f.name, "name", "", "name of the container (default: one is made up)")
	fl.StringVar(&f.cidfile, "cidfile", "", "file to write the container's ID to")
	fl.VarP((*list)(&f.labels), "label", "l", "label, as KEY=value")
	fl.Var((*list)(&f.labelFiles), "label-file", "file of labels, one a line")
	fl.VarP((*list)(&f.env), "env", "e", "environment variable, as NAME=value, or NAME to pass it on")
	fl.Var((*list)(&f.envFiles), "env-file", "file of environment variables, one a line")
	fl.BoolVar(&f.envHost, "env-host", false, "pass on all variables of mk's own")
	fl.Var((*list)(&f.unset), "unsetenv", "take a variable of the image away")
	fl.BoolVar(&f.unsetAll, "unsetenv-all", false, "take all variables of the image away")
	fl.VarP((*list)(&f.attach), "attach", "a", "only this of stdin, stdout and stderr (default: all)")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "as in docker; a pull prints nothing")
	fl.StringVar(&f.logDriver, "log-driver", "json-file", "as in docker; there is only json-file")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fl.StringVarP(&f.user, "user", "u", "", "user[:group], by name or number")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "what is executed in place of the image's ENTRYPOINT")
	fl.StringVarP(&f.hostname, "hostname", "h", "", "host name")
	fl.StringVar(&f.pull, "pull", "missing", "when to ask the registry: always, missing or never")
	fl.StringVar(&f.platform, "platform", "", "platform of the image, as os/arch[/variant]")
	fl.StringVar(&f.restart, "restart", "no", "when to start it again: no, on-failure[:N], always, unless-stopped")
	fl.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks it to end (default: the image's, or SIGTERM)")
	fl.IntVar(&f.stopTimeout, "stop-timeout", 10, "seconds before mk stop ends it with SIGKILL; -1: never")
	f.words.define(fl)
	f.health.define(fl)
	fl.Bool("help", false, "help for this command") // -h is --hostname, as in docker
}

// check refuses what needs no container to be refused.
func (f *runFlags) check() error {
	if err := checkRestart(f.restart); err != nil {
		return err
	}
	if f.Rootfs != "" && f.first.context != "" {
		return errors.New("--rootfs and --build: want one or the other")
	}
	if f.diff && (f.detach || f.Rootfs != "") {
		return errors.New("--diff: want a container in front, made of an image; mk diff looks at any")
	}
	if err := f.health.check(); err != nil {
		return err
	}
	for _, a := range f.attach {
		if !slices.Contains([]string{"stdin", "stdout", "stderr"}, strings.ToLower(a)) {
			return fmt.Errorf("--attach %s: want stdin, stdout or stderr", a)
		}
	}
	if len(f.attach) > 0 && f.detach {
		return errors.New("--attach and --detach: want one or the other")
	}
	if f.logDriver != "json-file" && f.logDriver != "" {
		return fmt.Errorf("--log-driver %s: there is only json-file: mk logs --follow feeds others", f.logDriver)
	}
	if f.rm && f.restart != "no" && f.restart != "" {
		return errors.New("--rm and --restart: a container that is removed when it ends cannot be started again")
	}
	if f.hostname != "" && f.UTS != "private" && f.UTS != "" {
		return fmt.Errorf("--hostname and --uts %s: the name is not the container's own", f.UTS)
	}
	if f.stopSignal != "" {
		if _, err := parseSignal(f.stopSignal); err != nil {
			return fmt.Errorf("--stop-signal: %w", err)
		}
	}
	if f.tty && f.interactive && !f.detach && !term.IsTerminal(int(os.Stdin.Fd())) {
		return errNotTerminal
	}
	if f.cidfile != "" && exists(f.cidfile) {
		return fmt.Errorf("--cidfile %s: the file is there already: remove it, or name another", f.cidfile)
	}
	return nil
}

func checkRestart(policy string) error {
	switch name, limit, _ := strings.Cut(policy, ":"); name {
	case "no", "always", "unless-stopped", "on-failure", "":
		if _, err := strconv.Atoi(limit); limit != "" && (err != nil || name != "on-failure") {
			return fmt.Errorf("--restart %s: want on-failure:N with a number", policy)
		}
		return nil
	}
	return fmt.Errorf("--restart %s: want no, on-failure[:N], always or unless-stopped", policy)
}

// runOutside is mk run in the stage host: inside makes and holds the container, this process is
// only the first one that is attached to it.
func (a *app) runOutside(f *runFlags, line []string) error {
	choice, err := a.choose()
	if err != nil {
		return err
	}
	s, err := a.launch(choice, &f.words, line)
	if err != nil {
		return err
	}
	defer s.close()
	if f.cidfile != "" {
		if err := os.WriteFile(f.cidfile, []byte(s.id), 0o644); err != nil {
			return err
		}
	}
	if f.detach {
		fmt.Fprintln(&stdout, s.id)
		return nil
	}
	s.tty, s.stdin, s.sigProxy = f.tty, f.interactive && f.attaches("stdin"), f.sigProxy && !f.tty
	for name, stream := range s.streams {
		if name != "tty" && !f.attaches(name) {
			stream.Close()
			delete(s.streams, name)
		}
	}
	if s.keys, err = parseDetachKeys(f.detachKeys); err != nil {
		return err
	}
	err = s.relay()
	if !f.diff {
		return err
	}
	mode := string(choice.Mode)
	diff := anotherMk(context.Background(), "diff", "--userns", mode, s.id)
	diff.Stdout = os.Stderr
	if derr := diff.Run(); derr != nil {
		return errors.Join(err, fmt.Errorf("mk diff %s: %w", s.id, derr))
	}
	if f.rm {
		if rerr := anotherMk(context.Background(), "rm", "--userns", mode, s.id).Run(); rerr != nil {
			return errors.Join(err, fmt.Errorf("mk rm %s: %w", s.id, rerr))
		}
	}
	return err
}

// anotherMk is this mk with another command line, which speaks to the same standard error.
func anotherMk(ctx context.Context, line ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", line...)
	cmd.Args[0] = "mk"
	cmd.Stderr = os.Stderr
	return cmd
}

// run makes a container and holds it to its end. It is in the stage inside.
func (a *app) run(ctx context.Context, f *runFlags, name string, args []string) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	d, layer, err := s.createContainer(ctx, f, name, args)
	if err != nil {
		return err
	}
	defer layer.Close() // no-op after Discard
	c, err := d.Commit()
	if err != nil {
		layer.Discard()
		d.Close()
		return err
	}
	h := holding{
		store: s, c: c, layer: layer,
		attach: !f.detach, stdin: f.interactive, settled: d.Close,
	}
	if f.rm && !f.detach && !f.tty {
		// Nobody else will ever ask for its output: it goes where mk's goes, with nothing between.
		h.direct = &container.IO{}
		if f.attaches("stdout") {
			h.direct.Stdout = os.Stdout
		}
		if f.attaches("stderr") {
			h.direct.Stderr = os.Stderr
		}
		if f.interactive && f.attaches("stdin") {
			h.direct.Stdin = os.Stdin
		}
	}
	return a.hold(ctx, h)
}

// createContainer makes all of a container but its commit: what it is, and its layer on the image's.
func (s *store) createContainer(ctx context.Context, f *runFlags, name string, args []string) (_ *container.Draft, _ *snapshot.Draft, err error) {
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	var config image.RunConfig
	var top *snapshot.Snapshot // nil below a --rootfs
	origin := container.Record{Image: name}
	if f.Rootfs == "" {
		img, err := s.imageFor(ctx, name, f.pull, f.platform)
		if err != nil {
			return nil, nil, err
		}
		b := &builder.Builder{Images: s.images, Trees: s.trees, Inside: true}
		if top, err = b.Unpack(ctx, img); err != nil {
			return nil, nil, err
		}
		config = img.Config().Config
		origin.ImageID, origin.ImageTarget = img.ID().String(), img.Target().Digest.String()
	}
	record, err := f.record(origin, config, args)
	if err != nil {
		return nil, nil, err
	}
	if name, ok := strings.CutPrefix(f.UTS, ofContainer); ok {
		other, err := s.containers.Find(name)
		if err != nil {
			return nil, nil, fmt.Errorf("--uts %w", err)
		}
		record.Hostname = other.Hostname
	}
	if record.Mode = string(s.mode); f.Rootfs != "" {
		record.Image = f.Rootfs
	}
	if err := f.words.takeFrom(s); err != nil {
		return nil, nil, err
	}
	if err := f.words.pinImages(ctx, s, f.pull); err != nil {
		return nil, nil, err
	}
	f.anonymousVolumes(config.Volumes)
	if record.Words, err = json.Marshal(f.words); err != nil {
		return nil, nil, err
	}
	d, err := s.containers.New(*record)
	if err != nil {
		return nil, nil, err
	}
	layer, err := s.trees.NewKept(d.Path("layer"), top)
	if err != nil {
		d.Close()
		return nil, nil, err
	}
	if err := writeEtc(d.Path("etc"), record.Hostname); err != nil {
		layer.Discard()
		d.Close()
		return nil, nil, err
	}
	if err := f.provide(ctx, s, layer, top); err != nil {
		layer.Discard()
		d.Close()
		return nil, nil, err
	}
	return d, layer, nil
}

// provide makes a container's volumes.
func (f *runFlags) provide(ctx context.Context, s *store, layer *snapshot.Draft, tree *snapshot.Snapshot) error {
	var root *os.File
	defer func() {
		if root != nil {
			root.Close()
		}
	}()
	return s.provideVolumes(ctx, f.Places, tree, func() (_ *os.File, err error) {
		if root == nil {
			root, err = f.openRoot(layer.Mount)
		}
		return root, err
	})
}

// record is what the flags make of an image: all that does not depend on the machine's state at
// the time of a start, but for the words.
func (f *runFlags) record(origin container.Record, config image.RunConfig, args []string) (*container.Record, error) {
	r := &container.Record{
		ID: container.NewID(), Name: f.name, Created: time.Now(),
		Image: origin.Image, ImageID: origin.ImageID, ImageTarget: origin.ImageTarget,
		User: config.User, Dir: config.WorkingDir, Hostname: f.hostname,
		Tty: f.tty, Stdin: f.interactive,
		StopSignal: config.StopSignal, StopTimeout: f.stopTimeout, AutoRemove: f.rm && !f.diff, Restart: f.restart,
	}
	var err error
	if r.Command, r.Entrypoint, err = commandLine(config, f.entrypoint, f.entrypointSet, args); err != nil {
		return nil, err
	}
	if f.user != "" {
		r.User = f.user
	}
	if f.workdir != "" {
		if !filepath.IsAbs(f.workdir) {
			return nil, fmt.Errorf("--workdir %s: want an absolute path", f.workdir)
		}
		r.Dir = f.workdir
	}
	if f.stopSignal != "" {
		r.StopSignal = f.stopSignal
	}
	if r.Health, err = f.health.of(config); err != nil {
		return nil, err
	}
	if r.Env, err = f.environment(config.Env); err != nil {
		return nil, err
	}
	if r.Labels, err = f.labelsOver(config.Labels); err != nil {
		return nil, err
	}
	f.Exposed = slices.Sorted(maps.Keys(config.ExposedPorts))
	if err := f.words.settle(); err != nil {
		return nil, err
	}
	if r.Hostname == "" {
		r.Hostname = r.ID[:12]
		if !f.isolated() || f.UTS == "host" {
			if name, err := os.Hostname(); err == nil {
				r.Hostname = name
			}
		}
	}
	return r, nil
}

// start starts one run of a container. stop is to be called when it has ended.
func (s *store) start(ctx context.Context, c *container.Container, w *words, layer *snapshot.Draft, at *socket, stdio container.IO) (_ *container.Process, stop func(), err error) {
	stop = func() {}
	root, err := w.openRoot(layer.Remount)
	if err != nil {
		return nil, stop, err
	}
	stop = func() { root.Close() }
	network, unplug, err := s.openNetwork(ctx, c, w, at)
	stop = func() {
		unplug()
		root.Close()
	}
	if err == nil {
		err = s.writeNames(c, w, network)
	}
	if err != nil {
		return nil, stop, err
	}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	spec, err := w.spec(ctx, s, c, root, &opened)
	if err != nil {
		return nil, stop, err
	}
	spec.Network = network
	if err := w.join(spec, at.given); err != nil {
		return nil, stop, err
	}
	if c.Tty {
		size := terminalSize()
		spec.Terminal = &size
	}
	if emulate := s.emulate(); emulate != nil {
		emulate(spec, root)
	}
	if spec.Cgroup, err = w.cgroup(c); err != nil {
		return nil, stop, err
	}
	p, err := container.Start(ctx, spec, root, stdio)
	if err != nil {
		return nil, stop, err
	}
	unmounted, undo := s.sayMounted(c, w), stop
	return p, func() { undo(); unmounted() }, nil
}

// anonymousVolumes adds those that an image's VOLUME asks for, and nothing else lies on.
func (w *words) anonymousVolumes(volumes map[string]struct{}) {
	for _, dest := range slices.Sorted(maps.Keys(volumes)) {
		if filepath.IsAbs(dest) && !slices.ContainsFunc(w.Places, func(p place) bool { return filepath.Clean(p.Dest) == filepath.Clean(dest) }) {
			w.Places = append(w.Places, place{Type: "volume", Source: container.NewID(), Dest: dest, Own: true})
		}
	}
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

// commandLine joins ENTRYPOINT and CMD, docker's way: a command on the line
// takes CMD's place, --entrypoint ENTRYPOINT's and with it CMD's. entry is how
// many words are the entrypoint's.
func commandLine(c image.RunConfig, entrypoint string, entrypointSet bool, args []string) (line []string, entry int, err error) {
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
	line = slices.Concat(head, tail)
	if len(line) == 0 {
		return nil, 0, errors.New("run: no command: the image has none and none was given")
	}
	return line, len(head), nil
}

// environment is the image's, then files, then flags; later ones win.
func (f *runFlags) environment(base []string) ([]string, error) {
	env := environ(slices.Clone(base))
	if f.unsetAll {
		env = nil
	}
	for _, name := range f.unset {
		env.unset(name)
	}
	if f.envHost {
		for _, kv := range os.Environ() {
			env.set(kv)
		}
	}
	if !env.has("PATH") {
		env.set("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	err := env.add(f.env, f.envFiles)
	return env, err
}

// attaches tells whether mk run is to be connected with a stream.
func (f *runFlags) attaches(name string) bool {
	return len(f.attach) == 0 || slices.ContainsFunc(f.attach, func(a string) bool { return strings.EqualFold(a, name) })
}

// labelsOver adds the flags' labels to an image's.
func (f *runFlags) labelsOver(base map[string]string) (map[string]string, error) {
	labels := map[string]string{}
	for k, v := range base {
		labels[k] = v
	}
	add := func(word string) error {
		k, v, _ := strings.Cut(word, "=")
		if k == "" {
			return fmt.Errorf("--label %s: want KEY=value", word)
		}
		labels[k] = v
		return nil
	}
	for _, file := range f.labelFiles {
		if err := eachLine(file, add); err != nil {
			return nil, fmt.Errorf("--label-file: %w", err)
		}
	}
	for _, word := range f.labels {
		if err := add(word); err != nil {
			return nil, err
		}
	}
	return labels, nil
}
