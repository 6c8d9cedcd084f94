package builder

import (
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"mk/image"
	"mk/recipe"
)

// Material is something that was fetched, known by its digest.
type Material struct {
	URI    string            // without credentials
	Digest map[string]string // algorithm: hex digits
}

func fileMaterial(address string, d digest.Digest) *Material {
	return &Material{URI: Redact(address), Digest: map[string]string{d.Algorithm().String(): d.Encoded()}}
}

// material is the commit as a material: the address as it was written, without
// credentials, and the commit that it meant.
func (c *GitCommit) material() *Material {
	uri := c.Address.Remote
	ref := c.ref
	if ref == "" {
		ref = c.Address.Ref
	}
	if c.Address.Subdir != "" {
		ref += ":" + c.Address.Subdir
	}
	if ref != "" {
		uri += "#" + ref
	}
	algorithm := "sha1"
	if len(c.Commit) == 64 {
		algorithm = "sha256"
	}
	return &Material{URI: uri, Digest: map[string]string{algorithm: c.Commit}}
}

// Inputs are what a result was made of besides its recipe: what its provenance tells.
type Inputs struct {
	Images  []*image.Image
	Fetched []*Material
	Locals  []*Files // directories of the caller's: nobody else can say what was in them
	Secrets []InputID
	Agents  []InputID // of --ssh
	Network bool      // some RUN step had one
}

// InputID names a secret or an agent that a step was given. Nothing of it is known.
type InputID struct {
	ID       string
	Required bool
}

// Inputs gathers them from the stages that the target needed, each once, in the
// order of the recipe.
func (r *Result) Inputs() Inputs {
	var in Inputs
	seen := map[any]bool{}
	first := func(id any) bool {
		was := seen[id]
		seen[id] = true
		return !was
	}
	fetched := func(m *Material) {
		if first(m.URI + " " + slices.Sorted(maps.Values(m.Digest))[0]) {
			in.Fetched = append(in.Fetched, m)
		}
	}
	tree := func(t Tree) {
		switch {
		case t.Image != nil && first(t.Image.Target().Digest.String()+" "+image.FormatPlatform(t.Image.Platform())):
			in.Images = append(in.Images, t.Image)
		case t.Files != nil && t.Files.From != nil:
			fetched(t.Files.From)
		case t.Files != nil && first(t.Files):
			in.Locals = append(in.Locals, t.Files)
		}
	}
	for _, st := range r.Plan.Stages {
		tree(st.Start)
		for _, n := range st.Nodes {
			for _, t := range n.From {
				if c, ok := n.Step.(*recipe.Copy); ok && c.From == "" && !slices.ContainsFunc(c.Sources, func(s string) bool { return !c.Add || recipe.KindOf(s) == recipe.Local }) {
					continue // an ADD of addresses only, or of here-documents
				}
				tree(t)
			}
			for _, m := range r.fetched[n] {
				fetched(m)
			}
			st, ok := n.Step.(*recipe.Run)
			if !ok {
				continue
			}
			in.Network = in.Network || r.network(st) != "none"
			for _, m := range st.Mounts {
				id := InputID{m.ID, m.Required}
				if m.Type == "secret" && first("secret "+m.ID) {
					in.Secrets = append(in.Secrets, id)
				}
				if m.Type == "ssh" && first("ssh "+m.ID) {
					in.Agents = append(in.Agents, id)
				}
			}
		}
	}
	return in
}
