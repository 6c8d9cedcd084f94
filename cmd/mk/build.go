package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"mk/builder"
	"mk/recipe"
	"mk/userns"
)

const buildHelp = `Build an image from a recipe (Dockerfile syntax) and a context, which COPY takes
files from: a directory, a git repository (URL.git#ref:subdir), the URL of a tar
or of a recipe, or - for either on standard input.

Without -f, the recipe is Recipe, Dockerfile or Containerfile in the context.
Without -o, the image goes into mk's store, under the names given with -t.

A step that was executed before on the same files is not executed again;
'mk build --plan' shows the steps, '--explain' why each was executed.`

// buildFlags are the words of one mk build.
type buildFlags struct {
	file        string
	tags        []string
	args        []string
	labels      []string
	contexts    []string
	target      string
	platforms   []string
	noCache     bool
	noCacheOf   []string
	pull        string
	network     string
	hosts       []string
	outputs     []string
	load        bool
	push        bool
	registry    registryFlags
	iidfile     string
	metadata    string
	annotations []string
	progress    string
	quiet       bool
	jobs        int
	plan        bool
	explain     bool
	steps       stepFlags
	podman      podmanFlags
	check       bool
	call        string
	debug       bool
	policy      string // --source-policy-file
	expect      string // --expect-cached: "*" or a stage's name
	attest      attestFlags
	verify      bool
	cacheFrom   []string
	cacheTo     []string
}

func newBuild(a *app) *cobra.Command {
	var f buildFlags
	var refused *error
	c := &cobra.Command{
		Use:   "build [flags] CONTEXT",
		Short: "Build an image from a recipe",
		Long:  buildHelp,
		Args: func(c *cobra.Command, args []string) error {
			if *refused != nil {
				return *refused
			}
			return oneContext(args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.spellOut(c.Flags().Changed); err != nil {
				return reportBuild(nil, err)
			}
			src, err := a.build(c.Context(), &f, args[0])
			return reportBuild(src, err)
		},
	}
	fl := c.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "the recipe: a path, a URL, or - for standard input")
	fl.VarP((*list)(&f.tags), "tag", "t", "name of the image, as name[:tag] (may be repeated)")
	fl.Var((*list)(&f.args), "build-arg", "value of an ARG, as NAME=value, or NAME to take it from the environment")
	fl.Var((*list)(&f.labels), "label", "label of the image, as key=value")
	fl.Var((*list)(&f.contexts), "build-context", "another context, as name[::platform]=DIR, docker-image://REF, oci-layout://DIR[:TAG], a git repository or the URL of a tar")
	fl.StringVar(&f.target, "target", "", "the stage to build (default: the last)")
	fl.Var((*list)(&f.platforms), "platform", "build for these platforms, as os/arch[/variant],…; several make an index")
	fl.BoolVar(&f.noCache, "no-cache", false, "execute every step")
	fl.StringSliceVar(&f.noCacheOf, "no-cache-filter", nil, "execute every step of these stages")
	fl.StringVar(&f.pull, "pull", "missing", "when to ask registries for bases: always, missing, never, or newer (always, but the store's when that fails)")
	fl.Lookup("pull").NoOptDefVal = "always"
	f.registry.registerConnection(fl)
	fl.StringVar(&f.network, "network", "default", "network of RUN steps: default, none or host")
	fl.Var((*list)(&f.hosts), "add-host", "line of /etc/hosts for RUN steps, as name:address")
	fl.VarP((*list)(&f.outputs), "output", "o", "where the result goes: type=image|oci|docker|tar|local[,dest=…]")
	fl.BoolVar(&f.load, "load", false, "put the image into mk's store beside other outputs: short for -o type=image")
	fl.BoolVar(&f.push, "push", false, "push the image under its names: short for -o type=registry")
	fl.Var((*list)(&f.annotations), "annotation", "annotation, as [manifest|index|manifest-descriptor|index-descriptor[PLATFORM]:]key=value")
	fl.StringVar(&f.metadata, "metadata-file", "", "write the result's digests and names to this file, as JSON")
	fl.StringVar(&f.iidfile, "iidfile", "", "write the image's ID to this file")
	fl.StringVar(&f.progress, "progress", envOr("BUILDKIT_PROGRESS", "auto"), "auto, plain, tty, rawjson or quiet")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's ID and nothing else")
	fl.IntVar(&f.jobs, "jobs", 0, "steps at work at once (default: one a processor, at least four)")
	fl.BoolVar(&f.plan, "plan", false, "print the steps and build nothing")
	f.steps.register(fl)
	fl.BoolVar(&f.explain, "explain", false, "say of each executed step why it was")
	fl.StringVar(&f.policy, "source-policy-file", "", "allow, deny and convert sources by the rules of this file, in BuildKit's JSON")
	fl.BoolVar(&f.check, "check", false, "check the recipe against the lint rules and build nothing: short for --call=check")
	fl.StringVar(&f.call, "call", "", "build, or answer instead: check, outline or targets[,format=json]")
	fl.BoolVarP(&f.debug, "debug", "D", false, "show each warning with its rule and its lines")
	fl.Var((*list)(&f.cacheFrom), "cache-from", "take steps from a cache: NAME:TAG, type=registry,ref=NAME, type=local,src=DIR, or a repository with an image a step")
	fl.Var((*list)(&f.cacheTo), "cache-to", "leave a cache: NAME:TAG, type=registry,ref=NAME[,mode=max], type=local,dest=DIR, type=inline, or a repository for an image a step")
	fl.StringVar(&f.expect, "expect-cached", "", "fail when a step (of this stage) had to be executed")
	fl.Lookup("expect-cached").NoOptDefVal = "*"
	f.attest.register(fl)
	fl.BoolVar(&f.verify, "verify", false, "execute every step twice and fail, with the files, where one makes something else the second time")
	f.podman.register(fl)
	a.usernsFlag(c)
	refused = registerElsewhere(fl)
	return c
}

// errNoContext says what mk build wants, and the hint how it is mostly written.
var errNoContext = errors.New("mk build requires 1 argument, the context: a directory, a URL, or - for standard input")

func oneContext(args []string) error {
	switch len(args) {
	case 0:
		return errNoContext
	case 1:
		return nil
	}
	return fmt.Errorf("mk build requires 1 argument, the context, and got %d: %s", len(args), strings.Join(args, " "))
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// build is the command. It runs in the stage host first, where a build that the
// records know whole ends; else the same runs again inside.
func (a *app) build(ctx context.Context, f *buildFlags, contextArg string) (*recipeFile, error) {
	outputs, err := parseOutputs(f)
	if err != nil {
		return nil, err
	}
	attest, err := parseAttests(&f.attest, outputs)
	if err != nil {
		return nil, err
	}
	if contextArg == "-" && f.file == "-" {
		return nil, errStdinTwice
	}
	remote := isRemote(contextArg) || isHTTP(f.file) && !exists(f.file)
	if remote && a.stage == userns.StageHost {
		return nil, a.enter()
	}
	var src *recipeFile
	var files *builder.Files
	if !remote {
		if src, err = readRecipe(f.file, contextArg); err != nil {
			return nil, err
		}
		if files, err = openContext(contextArg, src.path, f.podman.ignoreFile); err != nil {
			return src, err
		}
		defer files.Root.Close()
	}
	s, err := a.open()
	if err != nil {
		return src, err
	}
	defer s.Close()
	if files != nil {
		files.Cache = s.statCache(contextArg)
	}

	b := &building{app: a, flags: f, store: s, src: src, context: files, contextArg: contextArg, outputs: outputs, attest: attest, started: time.Now().UTC(), id: buildID()}
	b.fetch = &fetcher{store: s, inside: a.stage == userns.StageInside, ignoreFile: f.podman.ignoreFile}
	defer b.fetch.Close()
	err = b.run(ctx)
	if errors.Is(err, builder.ErrNeedsInside) && a.stage == userns.StageHost {
		s.Close()
		return src, a.enter()
	}
	return b.src, err
}

// building is one mk build at work.
type building struct {
	*app
	flags      *buildFlags
	store      *store
	fetch      *fetcher
	src        *recipeFile    // nil until it is fetched
	context    *builder.Files // the same
	contextArg string
	outputs    []output
	attest     attests
	started    time.Time
	id         string // of this build, like no other's
	recipe     *recipe.Recipe
	args       map[string]string // --build-arg
	bases      foundBases
	contexts   map[string]builder.Tree // --build-context
	names      imageNames
	policy     *sourcePolicy
	warnings   []recipe.Warning
	notices    []string // for the user, at the end
	display    display
}

func (b *building) run(ctx context.Context) (err error) {
	f := b.flags
	call, err := parseCall(f.call, f.check)
	if err != nil {
		return err
	}
	if call.what == "build" && !f.plan {
		if err := removeStale(f.iidfile); err != nil {
			return err
		}
	}
	if b.args, err = buildArgs(f.args); err != nil {
		return err
	}
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	if b.display, err = newDisplay(mode, os.Stderr); err != nil {
		return err
	}
	// Outside, nothing is shown until it is known that nothing must be executed:
	// inside, the same build shows itself from the start.
	progress := builder.Reporter(b.display.Event)
	held := &heldEvents{}
	if b.stage == userns.StageHost && call.what == "build" {
		progress = held.add
	}
	defer func() {
		again := errors.Is(err, builder.ErrNeedsInside) && b.stage == userns.StageHost
		if !again {
			held.release(b.display)
			b.display.Warn(b.src, b.warnings, f.debug)
		}
		b.display.Close()
		if !again && !f.quiet {
			for _, text := range b.notices {
				fmt.Fprintln(os.Stderr, "mk: notice:", text)
			}
		}
	}()
	b.fetch.progress = progress
	if b.fetch.policy, err = readPolicy(f.policy); err != nil {
		return err
	}
	secrets, err := parseSecrets(f.steps.secrets)
	if err != nil {
		return err
	}
	b.fetch.auth = builder.GitAuth(secrets)
	if b.src == nil {
		if b.src, b.context, err = b.fetch.source(ctx, f.file, b.contextArg); err != nil {
			return err
		}
	}
	b.loaded(progress)
	b.recipe, err = recipe.Parse(b.src.name, b.src.text, recipe.ParseOptions{Check: b.args["BUILDKIT_DOCKERFILE_CHECK"]})
	if call.what != "build" {
		return b.call(ctx, call, progress, err)
	}
	b.warnings = b.recipe.Warnings
	if err != nil {
		return err
	}
	b.noticeSyntax(progress)
	if from := f.podman.from; from != "" {
		b.recipe.Stages[0].Base = from
	}
	return b.make(ctx, progress)
}

// removeStale removes the ID that an earlier build wrote: a script that reads the file after
// a build that failed must not take that image for its own. A pipe or a device stays.
func removeStale(iidfile string) error {
	if st, err := os.Lstat(iidfile); err != nil || !st.Mode().IsRegular() {
		return nil // nothing stale; what is wrong with the path, writing says
	}
	if err := os.Remove(iidfile); err != nil {
		return fmt.Errorf("remove the image ID of an earlier build: %w", err)
	}
	return nil
}

// noticeSyntax says that the frontend which "# syntax=" or BUILDKIT_SYNTAX names is not
// fetched: one of docker's is what mk reads itself; what another would do is not done.
func (b *building) noticeSyntax(progress builder.Reporter) {
	name := b.recipe.Syntax
	if arg := b.args["BUILDKIT_SYNTAX"]; arg != "" {
		name = arg
	}
	switch repo, tag, _ := strings.Cut(strings.TrimPrefix(name, "docker.io/"), ":"); {
	case name == "" || name == "dockerfile.v0":
	case (repo == "docker/dockerfile" || repo == "docker/dockerfile-upstream") && !strings.Contains(tag, "labs"):
		progress.Task("[internal] syntax "+name+" is built in: nothing is fetched", func(*builder.Vertex) error { return nil })
	default:
		b.notices = append(b.notices, fmt.Sprintf("# syntax=%s is not fetched: the recipe is read as docker/dockerfile:1 would", name))
	}
}

const definitionTitle = "[internal] load build definition from "

// loaded shows what was read before the first step, as buildx does.
func (b *building) loaded(progress builder.Reporter) {
	progress.Task(definitionTitle+b.src.name, func(v *builder.Vertex) error {
		progress.Status(v, "transferring dockerfile: "+size(int64(len(b.src.text))), 0, 0)
		return nil
	})
	progress.Task("[internal] load .dockerignore", func(v *builder.Vertex) error {
		n := 0
		if b.context != nil {
			n = len(strings.Join(b.context.Ignore, "\n"))
		}
		progress.Status(v, "transferring context: "+size(int64(n)), 0, 0)
		return nil
	})
}

// make plans, lints, builds and sends the result where the outputs say.
func (b *building) make(ctx context.Context, progress builder.Reporter) error {
	f := b.flags
	opt, err := b.options(ctx, progress)
	if err != nil {
		return err
	}
	plans, err := b.plans(ctx, opt)
	if err != nil {
		return err
	}
	if err := b.policy.steps(plans); err != nil {
		return err
	}
	if err := b.lint(opt); err != nil {
		return err
	}
	if f.plan {
		for _, p := range plans {
			if err := printPlan(&stdout, p); err != nil {
				return err
			}
		}
		return nil
	}
	work, err := b.builder(progress)
	if err != nil {
		return err
	}
	to, err := b.caches(work)
	if err != nil {
		return err
	}
	emulators := &emulators{app: b.app}
	defer emulators.Close()
	work.Foreign = emulators.need
	why := &reasons{}
	if f.explain || f.expect != "" {
		work.Explain = why.add
	}
	scans, err := b.scans(ctx, plans, progress)
	if err != nil {
		return err
	}
	results, err := work.Build(ctx, slices.Concat(plans, scans)...)
	if err == nil && f.podman.squashAll {
		err = work.Squash(ctx, results)
	}
	if f.explain && !errors.Is(err, builder.ErrNeedsInside) {
		why.print(os.Stderr)
	}
	if err == nil && f.expect != "" {
		err = why.unexpected(f.expect)
	}
	if err != nil {
		return err
	}
	for _, o := range b.outputs {
		if (o.needsInside() || b.attest.sbom != nil && o.kind != "cacheonly") && b.stage == userns.StageHost {
			return builder.ErrNeedsInside
		}
	}
	if f.verify {
		if err := b.verify(ctx, opt, work, results[:len(plans)]); err != nil {
			return err
		}
	}
	out := &built{building: b, work: work, results: results[:len(plans)], scanned: results[len(plans):]}
	if out.index, err = b.wantsIndex(len(plans)); err != nil {
		return err
	}
	var saved error // the image comes first, whatever becomes of the caches
	if b.stage == userns.StageHost {
		if saved = out.saveCaches(ctx, progress, to); errors.Is(saved, builder.ErrNeedsInside) {
			return saved
		}
	}
	e, err := out.export(ctx, progress)
	if err != nil {
		return err
	}
	if b.stage == userns.StageInside {
		saved = out.saveCaches(ctx, progress, to)
	}
	if saved != nil {
		return saved
	}
	if f.metadata != "" {
		if err := out.writeMetadata(f.metadata, e); err != nil {
			return err
		}
	}
	if f.iidfile != "" {
		if err := os.WriteFile(f.iidfile, []byte(e.id().String()), 0o644); err != nil {
			return fmt.Errorf("write image ID: %w", err)
		}
	}
	if f.quiet && !slices.ContainsFunc(b.outputs, func(o output) bool { return o.dest == "-" }) {
		fmt.Fprintln(&stdout, e.id())
	}
	return nil
}

// plans makes a plan for each platform.
func (b *building) plans(ctx context.Context, opt builder.PlanOptions) ([]*builder.Plan, error) {
	platforms, err := parsePlatforms(b.flags.platforms)
	if err != nil {
		return nil, err
	}
	var plans []*builder.Plan
	if len(platforms) > 1 {
		plans, err = builder.NewPlans(ctx, b.recipe, opt, platforms)
	} else {
		var plan *builder.Plan
		plan, err = builder.NewPlan(ctx, b.recipe, opt)
		plans = append(plans, plan)
	}
	if err != nil {
		return nil, err
	}
	epoch, given, err := outputEpoch(b.outputs)
	if err != nil {
		return nil, err
	}
	for _, p := range plans {
		if given {
			p.Epoch = epoch
		}
	}
	return plans, nil
}

// options gathers what the command line says to a plan.
func (b *building) options(ctx context.Context, progress builder.Reporter) (builder.PlanOptions, error) {
	f := b.flags
	opt := builder.PlanOptions{
		Target: f.target, Args: b.args, Context: b.context,
		NoCache: f.noCache || f.verify, NoCacheStages: f.noCacheOf,
		Contexts: map[string]builder.Tree{},
	}
	var err error
	if opt.Labels, err = keyValues("--label", f.labels); err != nil {
		return opt, err
	}
	platforms, err := parsePlatforms(f.platforms)
	if err != nil {
		return opt, err
	}
	if len(platforms) > 0 {
		opt.Platform = &platforms[0]
	}
	pull, err := pullPolicy(f.pull)
	if err != nil {
		return opt, err
	}
	if err := f.registry.apply(b.store.client, ""); err != nil {
		return opt, err
	}
	if err := f.podman.apply(&opt); err != nil {
		return opt, err
	}
	opt.Epoch = func(ctx context.Context, word string) (*time.Time, error) { return b.epoch(ctx, opt, word) }
	if b.policy, err = readPolicy(f.policy); err != nil {
		return opt, err
	}
	find := &finder{store: b.store, pull: pull, policy: b.policy, progress: progress, fetch: b.fetch, names: &b.names}
	opt.Base = b.bases.remember(find.base)
	for _, kv := range f.contexts {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" || value == "" {
			return opt, fmt.Errorf("--build-context %s: want name=value", kv)
		}
		name, platform, err := contextName(name, opt.Platform)
		if err != nil {
			return opt, fmt.Errorf("--build-context %s: %w", kv, err)
		}
		t, err := find.context(ctx, value, platform)
		if err != nil {
			return opt, fmt.Errorf("--build-context %s: %w", builder.Redact(kv), err)
		}
		opt.Contexts[name] = t
	}
	b.contexts = opt.Contexts
	return opt, nil
}

// wantsIndex says whether the result stands in an index even if it is only one.
func (b *building) wantsIndex(platforms int) (bool, error) {
	word := b.args["BUILDKIT_MULTI_PLATFORM"]
	if word == "" {
		return platforms > 1, nil
	}
	always, err := strconv.ParseBool(word)
	if err != nil {
		return false, fmt.Errorf("invalid boolean value for BUILDKIT_MULTI_PLATFORM: %s", word)
	}
	if !always && platforms > 1 {
		return false, errors.New("several platforms make an index, which BUILDKIT_MULTI_PLATFORM=false forbids")
	}
	return always, nil
}

// builder sets up the builder for this build's flags.
func (b *building) builder(progress builder.Reporter) (*builder.Builder, error) {
	f := b.flags
	sandbox, err := b.sandbox()
	if err != nil {
		return nil, err
	}
	fetched := b.store.fetched()
	fetched.Auth = builder.GitAuth(sandbox.Secrets)
	return &builder.Builder{
		Images: b.store.images, Trees: b.store.trees, Records: b.store.records, Fetched: fetched,
		Progress: progress, Sandbox: sandbox,
		Jobs: f.jobs, CacheTTL: f.podman.cacheTTL, Inside: b.stage == userns.StageInside, Emulate: b.store.emulate(),
		Notice: func(text string) { fmt.Fprintln(os.Stderr, "mk: notice:", text) },
	}, nil
}

// reportBuild ends a build as buildx does: the excerpt of the recipe, then ERROR.
// src is nil where it went wrong before there was a recipe.
func reportBuild(src *recipeFile, err error) error {
	var exit *exitError
	if err == nil || canceled(err) || errors.As(err, &exit) { // inside has said it
		return err
	}
	var placed *recipe.Error
	if errors.As(err, &placed) && src != nil {
		fmt.Fprint(os.Stderr, recipe.Excerpt(src.lines(), placed.Pos))
	}
	fmt.Fprintf(os.Stderr, "ERROR: %v\n", err)
	if h := hint(err); h != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", h)
	}
	return &exitError{status: exitFailed}
}

// heldEvents keeps events until it is known whether they are to be shown.
type heldEvents struct {
	mu   sync.Mutex
	list []builder.Event
}

func (h *heldEvents) add(e builder.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, e)
}

func (h *heldEvents) release(d display) {
	for _, e := range h.list {
		d.Event(e)
	}
}
