package builder

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/recipe"
)

// Provenance says how a result came to be, in the form of SLSA's predicates with
// the build types and fields of BuildKit, so that what reads BuildKit's reads
// these: https://slsa.dev/spec/v1.1/provenance and BuildKit's docs/attestations.
//
// Without Max it holds no build argument, label, environment or command: those are
// where people put what they should not. Values of secrets are in neither: nothing
// here ever has them.
type Provenance struct {
	Result   *Result
	Max      bool
	Filename string            // of the recipe
	Source   []byte            // the recipe
	From     *Material         // what recipe or context were fetched from; nil: the caller's own
	Args     map[string]string // what the build was asked for, by BuildKit's names: target, build-arg:X, label:X, …
	Builder  string            // a URI that names the builder
	// Reproducible is the user's claim that another build gives the same bytes.
	Reproducible bool
	// Invocation names this build like no other. "" leaves out the name and the times: then
	// the same build gives the same bytes.
	Invocation        string
	Started, Finished time.Time
	ImageName         func(*image.Image) string // by which it was found; of a file, "oci-archive://base.tar"
	LocalName         func(*Files) string
}

// Predicate types, and the build types of BuildKit's forms.
const (
	SLSA1  = "https://slsa.dev/provenance/v1"
	SLSA02 = "https://slsa.dev/provenance/v0.2"

	buildType1  = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	buildType02 = "https://mobyproject.org/buildkit@v1"
)

// What both versions have in common.
type (
	digestSet map[string]string

	slsaMaterial struct {
		URI    string    `json:"uri"`
		Digest digestSet `json:"digest,omitempty"`
	}
	slsaRequest struct {
		Frontend string            `json:"frontend,omitempty"`
		Args     map[string]string `json:"args,omitempty"`
		Secrets  []slsaID          `json:"secrets,omitempty"`
		SSH      []slsaID          `json:"ssh,omitempty"`
		Locals   []slsaLocal       `json:"locals,omitempty"`
	}
	slsaID struct {
		ID       string `json:"id"`
		Optional bool   `json:"optional,omitempty"`
	}
	slsaLocal struct {
		Name string `json:"name"`
	}
	slsaBuilder struct {
		ID string `json:"id"`
	}
	slsaMetadata struct {
		Source *slsaSource `json:"source,omitempty"`
	}
	slsaSource struct {
		Locations map[string]slsaLocations `json:"locations,omitempty"`
		Infos     []slsaSourceInfo         `json:"infos,omitempty"`
	}
	slsaSourceInfo struct {
		Filename string `json:"filename,omitempty"`
		Language string `json:"language,omitempty"`
		Data     []byte `json:"data,omitempty"` // base64 in JSON
	}
	slsaLocations struct {
		Locations []slsaLocation `json:"locations"`
	}
	slsaLocation struct {
		Ranges []slsaRange `json:"ranges"`
	}
	slsaRange struct {
		Start slsaLine `json:"start"`
		End   slsaLine `json:"end"`
	}
	slsaLine struct {
		Line int `json:"line"`
	}
)

// predicate1 is SLSA v1.
type predicate1 struct {
	BuildDefinition struct {
		BuildType          string `json:"buildType"`
		ExternalParameters struct {
			ConfigSource struct {
				URI    string    `json:"uri,omitempty"`
				Digest digestSet `json:"digest,omitempty"`
				Path   string    `json:"path,omitempty"`
			} `json:"configSource"`
			Request slsaRequest `json:"request"`
		} `json:"externalParameters"`
		InternalParameters struct {
			BuildConfig     *buildConfig `json:"buildConfig,omitempty"`
			BuilderPlatform string       `json:"builderPlatform"`
		} `json:"internalParameters"`
		ResolvedDependencies []slsaMaterial `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder  slsaBuilder `json:"builder"`
		Metadata struct {
			InvocationID string        `json:"invocationID,omitempty"`
			StartedOn    *time.Time    `json:"startedOn,omitempty"`
			FinishedOn   *time.Time    `json:"finishedOn,omitempty"`
			BuildKit     *slsaMetadata `json:"buildkit_metadata,omitempty"`
			Hermetic     bool          `json:"buildkit_hermetic,omitempty"`
			Completeness struct {
				Request              bool `json:"request"`
				ResolvedDependencies bool `json:"resolvedDependencies"`
			} `json:"buildkit_completeness"`
			Reproducible bool `json:"buildkit_reproducible,omitempty"`
		} `json:"metadata"`
	} `json:"runDetails"`
}

// predicate02 is SLSA v0.2.
type predicate02 struct {
	Builder    *slsaBuilder   `json:"builder,omitempty"`
	BuildType  string         `json:"buildType"`
	Materials  []slsaMaterial `json:"materials,omitempty"`
	Invocation struct {
		ConfigSource struct {
			URI        string    `json:"uri,omitempty"`
			Digest     digestSet `json:"digest,omitempty"`
			EntryPoint string    `json:"entryPoint,omitempty"`
		} `json:"configSource"`
		Parameters  slsaRequest `json:"parameters"`
		Environment struct {
			Platform string `json:"platform"`
		} `json:"environment"`
	} `json:"invocation"`
	BuildConfig *buildConfig `json:"buildConfig,omitempty"`
	Metadata    *metadata02  `json:"metadata,omitempty"`
}

type metadata02 struct {
	BuildInvocationID string     `json:"buildInvocationID,omitempty"`
	BuildStartedOn    *time.Time `json:"buildStartedOn,omitempty"`
	BuildFinishedOn   *time.Time `json:"buildFinishedOn,omitempty"`
	Completeness      struct {
		Parameters  bool `json:"parameters"`
		Environment bool `json:"environment"`
		Materials   bool `json:"materials"`
	} `json:"completeness"`
	Reproducible bool          `json:"reproducible"`
	Hermetic     bool          `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
	BuildKit     *slsaMetadata `json:"https://mobyproject.org/buildkit@v1#metadata,omitempty"`
}

// facts are what both versions tell.
type facts struct {
	materials []slsaMaterial
	request   slsaRequest
	complete  bool // all arguments are told
	traceable bool // all materials have digests
	hermetic  bool
	config    *buildConfig
	metadata  *slsaMetadata
	started   *time.Time
	finished  *time.Time
}

func (p *Provenance) facts() facts {
	in := p.Result.Inputs()
	f := facts{complete: true, request: slsaRequest{Frontend: "dockerfile.v0", Args: map[string]string{}}}
	add := func(m *Material) {
		known := slices.ContainsFunc(f.materials, func(k slsaMaterial) bool { return k.URI == m.URI })
		if !known {
			f.materials = append(f.materials, slsaMaterial{m.URI, m.Digest})
		}
	}
	for _, img := range in.Images {
		d := img.Target().Digest
		add(&Material{p.imageURI(img), map[string]string{d.Algorithm().String(): d.Encoded()}})
	}
	for _, m := range in.Fetched {
		add(m)
	}
	for _, files := range in.Locals {
		f.request.Locals = append(f.request.Locals, slsaLocal{p.LocalName(files)})
	}
	if p.From == nil {
		f.request.Locals = append(f.request.Locals, slsaLocal{"dockerfile"})
	} else {
		add(p.From)
	}
	sort.Slice(f.request.Locals, func(i, j int) bool { return f.request.Locals[i].Name < f.request.Locals[j].Name })
	for key, value := range p.Args {
		if !p.Max && (strings.HasPrefix(key, "build-arg:") || strings.HasPrefix(key, "label:")) {
			f.complete = false
			continue
		}
		f.request.Args[key] = Redact(value)
	}
	f.traceable = len(in.Locals) == 0 && p.From != nil
	f.hermetic = f.traceable && !in.Network
	if p.Invocation != "" {
		f.started, f.finished = &p.Started, &p.Finished
	}
	if !p.Max {
		return f
	}
	for _, id := range in.Secrets {
		f.request.Secrets = append(f.request.Secrets, slsaID{id.ID, !id.Required})
	}
	for _, id := range in.Agents {
		f.request.SSH = append(f.request.SSH, slsaID{id.ID, !id.Required})
	}
	var at map[string]slsaLocations
	f.config, at = p.steps()
	f.metadata = &slsaMetadata{Source: &slsaSource{Locations: at, Infos: []slsaSourceInfo{{
		Filename: p.Filename, Language: "Dockerfile", Data: []byte(Redact(string(p.Source))),
	}}}}
	return f
}

// V1 is the predicate of type SLSA1.
func (p *Provenance) V1() (json.RawMessage, error) {
	f := p.facts()
	var s predicate1
	def, run := &s.BuildDefinition, &s.RunDetails
	def.BuildType = buildType1
	def.ExternalParameters.ConfigSource.Path = p.Filename
	if p.From != nil {
		def.ExternalParameters.ConfigSource.URI, def.ExternalParameters.ConfigSource.Digest = p.From.URI, p.From.Digest
	}
	def.ExternalParameters.Request = f.request
	def.InternalParameters.BuildConfig = f.config
	def.InternalParameters.BuilderPlatform = image.FormatPlatform(image.HostPlatform())
	def.ResolvedDependencies = f.materials
	run.Builder.ID = p.Builder
	run.Metadata.InvocationID = p.Invocation
	run.Metadata.StartedOn, run.Metadata.FinishedOn = f.started, f.finished
	run.Metadata.BuildKit = f.metadata
	run.Metadata.Hermetic = f.hermetic
	run.Metadata.Completeness.Request, run.Metadata.Completeness.ResolvedDependencies = f.complete, f.traceable
	run.Metadata.Reproducible = p.Reproducible
	return encodePredicate(s)
}

// V02 is the predicate of type SLSA02.
func (p *Provenance) V02() (json.RawMessage, error) { return encodePredicate(p.v02()) }

// Brief is what buildx writes into its metadata file unless it is asked for more: V02
// without steps, times and the builder's empty name.
func (p *Provenance) Brief() (json.RawMessage, error) {
	s := p.v02()
	s.BuildConfig, s.Metadata = nil, nil
	if s.Builder.ID == "" {
		s.Builder = nil
	}
	return encodePredicate(s)
}

func (p *Provenance) v02() predicate02 {
	f := p.facts()
	s := predicate02{Builder: &slsaBuilder{p.Builder}, BuildType: buildType02, Materials: f.materials, BuildConfig: f.config}
	s.Invocation.ConfigSource.EntryPoint = p.Filename
	if p.From != nil {
		s.Invocation.ConfigSource.URI, s.Invocation.ConfigSource.Digest = p.From.URI, p.From.Digest
	}
	s.Invocation.Parameters = f.request
	s.Invocation.Environment.Platform = image.FormatPlatform(image.HostPlatform())
	s.Metadata = &metadata02{
		BuildInvocationID: p.Invocation, BuildStartedOn: f.started, BuildFinishedOn: f.finished,
		Reproducible: p.Reproducible, Hermetic: f.hermetic, BuildKit: f.metadata,
	}
	s.Metadata.Completeness.Parameters, s.Metadata.Completeness.Environment, s.Metadata.Completeness.Materials = f.complete, true, f.traceable
	return s
}

func encodePredicate(v any) (json.RawMessage, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	return raw, nil
}

// buildConfig is the graph of steps, in the shape of BuildKit's LLB as JSON.
type buildConfig struct {
	Definition    []buildStep       `json:"llbDefinition,omitempty"`
	DigestMapping map[string]string `json:"digestMapping,omitempty"`
}

type buildStep struct {
	ID     string   `json:"id"`
	Op     buildOp  `json:"op"`
	Inputs []string `json:"inputs,omitempty"` // step:output
}

type buildOp struct {
	Op       map[string]any `json:"Op"`
	Platform *buildPlatform `json:"platform,omitempty"`
}

type buildPlatform struct {
	Architecture string `json:"Architecture"`
	OS           string `json:"OS"`
	Variant      string `json:"Variant,omitempty"`
}

// steps writes the plan down, and where in the recipe each step stands.
func (p *Provenance) steps() (*buildConfig, map[string]slsaLocations) {
	c := &buildConfig{DigestMapping: map[string]string{}}
	at := map[string]slsaLocations{}
	ids := map[string]string{} // of trees
	add := func(tree string, op buildOp, inputs []string) string {
		id := fmt.Sprintf("step%d", len(c.Definition))
		c.Definition = append(c.Definition, buildStep{id, op, inputs})
		ids[tree] = id
		return id
	}
	// input gives the step that made a tree, writing down where it comes from first.
	input := func(t Tree) string {
		tree := treeID(t)
		if id, ok := ids[tree]; ok {
			return id + ":0"
		}
		source := map[string]any{}
		switch {
		case t.Image != nil:
			source["identifier"] = p.imageSource(t.Image)
		case t.Files != nil && t.Files.From != nil:
			source["identifier"] = t.Files.From.URI
		case t.Files != nil:
			source["identifier"] = "local://" + p.LocalName(t.Files)
		default:
			return "" // scratch
		}
		return add(tree, buildOp{Op: map[string]any{"source": source}}, nil) + ":0"
	}
	for _, st := range p.Result.Plan.Stages {
		for _, n := range st.Nodes {
			var inputs []string
			take := func(t Tree) int { // the input's index, -1 for scratch
				in := input(t)
				if in == "" {
					return -1
				}
				inputs = append(inputs, in)
				return len(inputs) - 1
			}
			parent := take(n.Parent)
			op := buildOp{Platform: platformOf(st.Platform)}
			switch s := n.Step.(type) {
			case *recipe.Run:
				op.Op = map[string]any{"exec": p.exec(n, s, parent, take)}
			case *recipe.Copy:
				op.Op = map[string]any{"file": fileOp(n, s, parent, take)}
			case *recipe.Workdir:
				op.Op = map[string]any{"file": map[string]any{"actions": []any{
					map[string]any{"input": parent, "secondaryInput": -1, "output": 0,
						"Action": map[string]any{"mkdir": map[string]any{"path": s.Path, "mode": 0o755, "makeParents": true}}},
				}}}
			}
			id := add(treeID(Tree{Node: n}), op, inputs)
			c.DigestMapping[n.Vertex.Digest.String()] = id
			if pos := n.Step.At(); pos.Start > 0 {
				at[id] = slsaLocations{[]slsaLocation{{[]slsaRange{{slsaLine{pos.Start}, slsaLine{pos.End}}}}}}
			}
		}
	}
	return c, at
}

func platformOf(p ocispec.Platform) *buildPlatform {
	return &buildPlatform{p.Architecture, p.OS, p.Variant}
}

// exec is a RUN as LLB's ExecOp.
func (p *Provenance) exec(n *Node, s *recipe.Run, parent int, take func(Tree) int) map[string]any {
	meta := map[string]any{"args": redactAll(n.Args), "env": redactAll(n.Env), "cwd": n.Dir}
	if n.User != "" {
		meta["user"] = n.User
	}
	mounts := []any{map[string]any{"input": parent, "dest": "/", "output": 0}}
	var secretenv []any
	for i, m := range s.Mounts {
		target, err := m.TargetIn(n.Dir)
		if err != nil {
			continue // such a step was refused
		}
		mount := map[string]any{"input": -1, "dest": target, "output": -1}
		switch m.Type {
		case "bind":
			mount["input"], mount["selector"], mount["readonly"] = take(n.From[i]), m.Source, m.ReadOnly
		case "cache":
			mount["mountType"], mount["cacheOpt"] = 3, map[string]any{"ID": m.ID}
		case "tmpfs":
			mount["mountType"] = 4
		case "secret":
			if m.Env != "" {
				secretenv = append(secretenv, map[string]any{"ID": m.ID, "name": m.Env, "optional": !m.Required})
			}
			if target == "" {
				continue
			}
			mount["mountType"], mount["secretOpt"] = 1, slsaID{m.ID, !m.Required}
		case "ssh":
			mount["mountType"], mount["SSHOpt"] = 2, slsaID{m.ID, !m.Required}
		}
		mounts = append(mounts, mount)
	}
	op := map[string]any{"meta": meta, "mounts": mounts}
	if secretenv != nil {
		op["secretenv"] = secretenv
	}
	if s.Security == "insecure" {
		op["security"] = 1
	}
	switch p.Result.network(s) {
	case "host":
		op["network"] = 1
	case "none":
		op["network"] = 2
	}
	return op
}

func redactAll(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = Redact(w)
	}
	return out
}

// fileOp is a COPY or ADD as LLB's FileOp.
func fileOp(n *Node, s *recipe.Copy, parent int, take func(Tree) int) map[string]any {
	from, taken := -1, false
	var actions []any
	action := func(kind string, second int, what map[string]any) {
		what["dest"] = s.Dest
		if s.Chown != "" {
			what["owner"] = s.Chown
		}
		if s.Chmod != "" {
			what["mode"] = s.Chmod
		}
		actions = append(actions, map[string]any{"input": parent, "secondaryInput": second, "output": 0, "Action": map[string]any{kind: what}})
	}
	for _, src := range s.Sources {
		if s.Add && recipe.KindOf(src) != recipe.Local { // the address is all there is to tell
			action("copy", -1, map[string]any{"src": Redact(src)})
			continue
		}
		if !taken {
			from, taken = take(n.From[0]), true
		}
		action("copy", from, map[string]any{"src": src})
	}
	for _, doc := range s.Inline {
		action("mkfile", -1, map[string]any{"path": doc.Name, "data": []byte(Redact(doc.Data))})
	}
	return map[string]any{"actions": actions}
}

// imageURI names an image as a material.
func (p *Provenance) imageURI(img *image.Image) string {
	platform := img.Platform()
	name := p.ImageName(img)
	if ref, err := image.ParseReference(name); err == nil {
		return PackageURL(ref, &platform)
	}
	_, file, ok := strings.Cut(name, "://")
	if !ok { // it was asked for by its ID
		file = "image"
	}
	return "pkg:oci/" + url.PathEscape(file) + "?platform=" + url.QueryEscape(image.FormatPlatform(platform))
}

// imageSource names an image as the source of a step.
func (p *Provenance) imageSource(img *image.Image) string {
	name, digest := p.ImageName(img), img.Target().Digest.String()
	ref, err := image.ParseReference(name)
	if err != nil {
		_, file, _ := strings.Cut(name, "://")
		return "oci-layout://" + file + "@" + digest
	}
	if name = ref.String(); ref.Digest() == "" {
		name += "@" + digest
	}
	return "docker-image://" + name
}

// PackageURL names an image as BuildKit's attestations do:
// pkg:docker/NAME@TAG?digest=…&platform=…
func PackageURL(ref image.Reference, platform *ocispec.Platform) string {
	s := "pkg:docker/" + ref.FamiliarRepository()
	if ref.Tag() != "" {
		s += "@" + ref.Tag()
	}
	sep := "?"
	if ref.Digest() != "" {
		s += sep + "digest=" + ref.Digest().String()
		sep = "&"
	}
	if platform != nil {
		s += sep + "platform=" + url.QueryEscape(image.FormatPlatform(*platform))
	}
	return s
}
