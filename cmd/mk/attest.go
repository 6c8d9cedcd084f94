package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"mk/builder"
	"mk/builder/sbom"
	"mk/image"
)

// attestFlags are the words of mk build that ask for statements about the image.
type attestFlags struct {
	attest     []string
	provenance string
	sbom       string
}

func (f *attestFlags) register(fl *pflag.FlagSet) {
	fl.Var((*list)(&f.attest), "attest", "statement to attach, as type=provenance[,mode=min|max,version=v1|v0.2,…] or type=sbom[,generator=IMAGE]")
	fl.StringVar(&f.provenance, "provenance", "", "attach how the image was made: true, false or mode=max,…: short for --attest type=provenance")
	fl.Lookup("provenance").NoOptDefVal = "true"
	fl.StringVar(&f.sbom, "sbom", "", "attach what packages are in the image: true, false or generator=IMAGE: short for --attest type=sbom")
	fl.Lookup("sbom").NoOptDefVal = "true"
}

// attests are the statements that a build attaches; nil for those that it does not.
type attests struct {
	provenance *provenanceWish
	sbom       *sbomWish
}

func (a attests) any() bool { return a.provenance != nil || a.sbom != nil }

// sbomWish is type=sbom.
type sbomWish struct {
	generator string            // an image; "": mk's own look at package databases
	params    map[string]string // for the generator
}

// provenanceWish is type=provenance.
type provenanceWish struct {
	max, reproducible bool
	version           string // v1 or v0.2
	builder           string // builder-id: a URI
	inlineOnly        bool   // not beside files
}

// parseAttests reads --attest and its short forms. Nothing is attached unless it is
// asked for: a build's digest is to be the same on every machine.
func parseAttests(f *attestFlags, outputs []output) (attests, error) {
	var a attests
	given := slices.Clone(f.attest)
	if f.provenance != "" {
		given = append(given, shortAttest("provenance", f.provenance))
	}
	if f.sbom != "" {
		given = append(given, shortAttest("sbom", f.sbom))
	}
	seen := map[string]bool{}
	for _, word := range given {
		kind, err := a.parse(word)
		if err == nil && seen[kind] {
			err = fmt.Errorf("duplicate attestation field %s", kind)
		}
		if err != nil {
			return a, fmt.Errorf("--attest %s: %w", word, err)
		}
		seen[kind] = true
	}
	for _, o := range outputs {
		switch {
		case !a.any():
		case o.kind == "docker":
			return a, errors.New("--output type=docker: a docker archive has no place for attestations: use type=oci, or leave --provenance and --sbom out")
		case o.opts.Docker:
			return a, errors.New("--output: attestations want OCI's media types: leave oci-mediatypes=false out")
		}
	}
	return a, nil
}

// shortAttest is what --provenance=WORD stands for: a bool, or parameters.
func shortAttest(kind, word string) string {
	if on, err := strconv.ParseBool(word); err == nil {
		return fmt.Sprintf("type=%s,disabled=%t", kind, !on)
	}
	return fmt.Sprintf("type=%s,%s", kind, word)
}

func (a *attests) parse(word string) (kind string, err error) {
	fields, err := csv.NewReader(strings.NewReader(word)).Read()
	if err != nil {
		return "", err
	}
	params := map[string]string{}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return "", fmt.Errorf("%s: want key=value", field)
		}
		params[strings.ToLower(key)] = value
	}
	kind = params["type"]
	delete(params, "type")
	off, err := boolParam(params, "disabled")
	if err != nil || off {
		return kind, err
	}
	switch kind {
	case "":
		return kind, errors.New("attestation type not specified")
	case "provenance":
		a.provenance, err = parseProvenance(params)
	case "sbom":
		a.sbom = &sbomWish{generator: params["generator"], params: params}
		delete(params, "generator")
		if a.sbom.generator == "" && len(params) > 0 {
			err = fmt.Errorf("sbom has no parameter %q without a generator", slices.Sorted(maps.Keys(params))[0])
		}
	default:
		err = fmt.Errorf("type=%s is not supported: want provenance or sbom", kind)
	}
	return kind, err
}

// boolParam takes a bool out of params; one that is not there is false.
func boolParam(params map[string]string, key string) (bool, error) {
	word, ok := params[key]
	delete(params, key)
	if !ok {
		return false, nil
	}
	on, err := strconv.ParseBool(word)
	if err != nil {
		return false, fmt.Errorf("%s=%s: want true or false", key, word)
	}
	return on, nil
}

func parseProvenance(params map[string]string) (*provenanceWish, error) {
	w := &provenanceWish{version: "v1"}
	for key, value := range params {
		var err error
		switch key {
		case "mode":
			switch value {
			case "min":
			case "max", "full":
				w.max = true
			default:
				err = fmt.Errorf("invalid mode %q: want min or max", value)
			}
		case "version":
			if w.version = value; value != "v1" && value != "v0.2" {
				err = fmt.Errorf("invalid version %q: want v1 or v0.2", value)
			}
		case "builder-id":
			w.builder = value
		case "reproducible":
			w.reproducible, err = boolParam(params, key)
		case "inline-only":
			w.inlineOnly, err = boolParam(params, key)
		default:
			err = fmt.Errorf("provenance has no parameter %q: want mode, version, builder-id, reproducible, inline-only or disabled", key)
		}
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// provenance is how a result came to be, as far as this build's wishes let it be told.
func (b *built) provenance(r *builder.Result) *builder.Provenance {
	wish := b.attest.provenance
	if wish == nil { // for the metadata file
		wish = &provenanceWish{version: "v0.2"}
	}
	p := &builder.Provenance{
		Result: r, Max: wish.max, Builder: wish.builder, Reproducible: wish.reproducible,
		Filename: b.src.name, Source: b.src.text, From: b.src.from, Args: b.request(),
		ImageName: b.names.of, LocalName: b.localName,
	}
	if r.Plan.Epoch == nil { // with one, the same build says the same
		p.Invocation, p.Started, p.Finished = b.id, b.started, time.Now().UTC()
	}
	return p
}

// request is what the command line asks for, by BuildKit's names.
func (b *built) request() map[string]string {
	m := map[string]string{}
	for k, v := range b.args {
		m["build-arg:"+k] = v
	}
	f := b.flags
	labels, _ := keyValues("--label", f.labels) // options has refused those that are wrong
	for k, v := range labels {
		m["label:"+k] = v
	}
	for _, kv := range f.contexts {
		name, value, _ := strings.Cut(kv, "=")
		if exists(value) { // where that is on this machine is nobody's concern
			value = "local:" + name
		}
		m["context:"+name] = value
	}
	for k, v := range map[string]string{"target": f.target, "add-hosts": strings.Join(f.hosts, ",")} {
		if v != "" {
			m[k] = v
		}
	}
	if f.network != "default" {
		m["force-network-mode"] = f.network
	}
	return m
}

// localName is how BuildKit calls a directory of the caller's.
func (b *built) localName(files *builder.Files) string {
	for name, t := range b.contexts {
		if t.Files == files {
			return name
		}
	}
	return "context"
}

// statement is a statement, and the file that it is in beside files.
type statement struct {
	predicate string
	text      json.RawMessage
	file      string
	subject   []image.Subject // a scanner's own; nil: what the statement is attached to
}

// statements are all that this build says of one result, to every output the same.
func (b *built) statements(ctx context.Context, i int) ([]statement, error) {
	if b.said[i] != nil {
		return b.said[i], nil
	}
	r := b.results[i]
	list, err := b.bill(ctx, i)
	if err != nil {
		return nil, err
	}
	if w := b.attest.provenance; w != nil {
		s := statement{predicate: builder.SLSA1, file: "provenance.json"}
		if p := b.provenance(r); w.version == "v0.2" {
			s.predicate = builder.SLSA02
			s.text, err = p.V02()
		} else {
			s.text, err = p.V1()
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if b.said == nil {
		b.said = map[int][]statement{}
	}
	b.said[i] = list
	return list, nil
}

// of gives the subjects of a statement that is attached to these.
func (s statement) of(attached []image.Subject) []image.Subject {
	if len(s.subject) > 0 {
		return s.subject
	}
	return attached
}

// scans are the plans of an external scanner, one for each of plans.
func (b *building) scans(ctx context.Context, plans []*builder.Plan, progress builder.Reporter) ([]*builder.Plan, error) {
	w := b.attest.sbom
	if w == nil || w.generator == "" {
		return nil, nil
	}
	find := &finder{store: b.store, policy: b.policy, progress: progress, fetch: b.fetch}
	platform := image.HostPlatform()
	img, err := find.find(ctx, w.generator, &platform)
	if err != nil {
		return nil, fmt.Errorf("SBOM generator %s: %w", w.generator, err)
	}
	var list []*builder.Plan
	for _, p := range plans {
		scan, err := builder.NewScan(p, img, w.generator, w.params)
		if err != nil {
			return nil, err
		}
		list = append(list, scan)
	}
	return list, nil
}

// bill is the SBOM of one result: mk's own, or what the generator wrote.
func (b *built) bill(ctx context.Context, i int) ([]statement, error) {
	if b.attest.sbom == nil {
		return nil, nil
	}
	var list []statement
	if len(b.scanned) > 0 {
		found, err := b.work.Scanned(ctx, b.scanned[i])
		for _, s := range found {
			list = append(list, statement{s.Statement.PredicateType, s.Statement.Predicate, s.File, s.Statement.Subject})
		}
		return list, err
	}
	r := b.results[i]
	found, err := b.work.Inventory(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	for _, n := range found.Notices {
		b.work.Notice("SBOM: " + n)
	}
	name, made := "image", b.started
	if tags := b.flags.tags; len(tags) > 0 {
		name = tags[0]
	}
	if r.Plan.Epoch != nil {
		made = *r.Plan.Epoch
	}
	text, err := found.SPDX(name, made, "mk-"+version)
	return []statement{{predicate: sbom.PredicateType, text: text, file: "sbom.spdx.json"}}, err
}

// attestations puts the statements into the store, a manifest for each image's.
func (b *built) attestations(ctx context.Context, names []string, manifests []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	var out []ocispec.Descriptor
	if !b.attest.any() {
		return nil, nil
	}
	for i, r := range b.results {
		made, err := b.statements(ctx, i)
		if err != nil {
			return nil, err
		}
		subjects := subjectsOf(names, manifests[i].Digest, r.Plan.Platform)
		var list []image.Statement
		for _, s := range made {
			list = append(list, image.Statement{Type: image.StatementType, PredicateType: s.predicate, Subject: s.of(subjects), Predicate: s.text})
		}
		d, err := b.store.images.PutAttestations(ctx, manifests[i].Digest, list)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// subjectsOf names an image in statements: once under each of its names.
func subjectsOf(names []string, d digest.Digest, platform ocispec.Platform) []image.Subject {
	var list []image.Subject
	for _, name := range names {
		if ref, err := image.ParseReference(name); err == nil {
			list = append(list, image.NewSubject(builder.PackageURL(ref, &platform), d))
		}
	}
	if list == nil {
		list = append(list, image.NewSubject("_", d))
	}
	return list
}

// writeStatements writes the statements about an output of files beside them, their
// subjects being the files.
func (b *built) writeStatements(ctx context.Context, i int, o output, write func(name string, text []byte) error) error {
	r := b.results[i]
	made, err := b.statements(ctx, i)
	if err != nil {
		return err
	}
	if w := b.attest.provenance; w != nil && w.inlineOnly {
		made = slices.DeleteFunc(slices.Clone(made), func(s statement) bool { return s.file == "provenance.json" })
	}
	if len(made) == 0 {
		return nil
	}
	subjects, err := b.files(ctx, r)
	if err != nil {
		return err
	}
	for _, s := range made {
		text, err := json.MarshalIndent(image.Statement{Type: image.StatementType, PredicateType: s.predicate, Subject: s.of(subjects), Predicate: s.text}, "", "  ")
		if err != nil {
			return err
		}
		name := s.file
		if len(b.results) > 1 && !b.splits(o) {
			ext := filepath.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + platformDir(r) + ext
		}
		if slices.ContainsFunc(subjects, func(f image.Subject) bool { return f.Name == name }) {
			return fmt.Errorf("%s is a file of the result: there is no place for the attestation of that name", name)
		}
		if err := write(name, append(text, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// files are the regular files of a result with their digests.
func (b *built) files(ctx context.Context, r *builder.Result) ([]image.Subject, error) {
	from, to := io.Pipe()
	defer from.Close()
	go func() { to.CloseWithError(b.work.WriteTar(ctx, r, to)) }()
	list := []image.Subject{}
	sums := map[string]string{}
	for t := tar.NewReader(from); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			hash := sha256.New()
			if _, err := io.Copy(hash, t); err != nil {
				return nil, err
			}
			sums[name] = hex.EncodeToString(hash.Sum(nil))
		case tar.TypeLink:
			sums[name] = sums[path.Clean(h.Linkname)]
		default:
			continue
		}
		list = append(list, image.Subject{Name: name, Digest: map[string]string{"sha256": sums[name]}})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}
