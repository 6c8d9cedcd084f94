package builder

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/recipe"
)

// NewPlans makes a plan for each platform. Steps that are the same for several
// (those of stages with --platform=$BUILDPLATFORM that know nothing of their
// target) are one node, and are executed once.
func NewPlans(ctx context.Context, r *recipe.Recipe, opt PlanOptions, platforms []ocispec.Platform) ([]*Plan, error) {
	opt.ShowPlatform = len(platforms) > 1
	var plans []*Plan
	for _, p := range platforms {
		opt.Platform = &p
		plan, err := NewPlan(ctx, r, opt)
		if err != nil {
			return nil, err
		}
		plans = append(plans, plan)
	}
	if len(plans) > 1 {
		s := sharing{nodes: map[string]*Node{}, became: map[*Node]*Node{}}
		for _, p := range plans {
			s.plan(p)
		}
	}
	return plans, nil
}

// sharing finds nodes that are the same in several plans.
type sharing struct {
	nodes  map[string]*Node // by identity
	became map[*Node]*Node
}

// plan replaces what an earlier plan has already. Stages come after what they
// need, so a node's sources are settled before the node is looked at.
func (s *sharing) plan(p *Plan) {
	for _, st := range p.Stages {
		st.Start = s.tree(st.Start)
		for i, n := range st.Nodes {
			st.Nodes[i] = s.node(n)
		}
		st.Tree = s.tree(st.Tree)
	}
}

func (s *sharing) tree(t Tree) Tree {
	if n := s.became[t.Node]; n != nil {
		t.Node = n
	}
	return t
}

func (s *sharing) node(n *Node) *Node {
	n.Parent = s.tree(n.Parent)
	n.Vertex.Inputs = nil
	sources := []string{treeID(n.Parent)}
	if n.Parent.Node != nil {
		n.Vertex.Inputs = append(n.Vertex.Inputs, n.Parent.Node.Vertex)
	}
	for i, t := range n.From {
		n.From[i] = s.tree(t)
		sources = append(sources, treeID(n.From[i]))
		if n.From[i].Node != nil {
			n.Vertex.Inputs = append(n.Vertex.Inputs, n.From[i].Node.Vertex)
		}
	}
	step, err := json.Marshal(n.Step) // all that an instruction says is in exported fields
	if err != nil {
		return n
	}
	id := fmt.Sprintf("%s\n%s\n%s\n%q\n%q\n%q %q %v\n%s\n%s", image.FormatPlatform(n.Stage.Platform), n.Vertex.Name, n.Place,
		n.Args, n.Env, n.Dir, n.User, n.NoCache, step, strings.Join(sources, "\n"))
	first := s.nodes[id]
	if first == nil {
		// The record of the last key is one a platform: a build for two would find the other's.
		n.Place = image.FormatPlatform(n.Stage.Platform) + " " + n.Place
		s.nodes[id], first = n, n
	}
	s.became[n] = first
	return first
}

// treeID names a tree within one process.
func treeID(t Tree) string {
	switch {
	case t.Node != nil:
		return fmt.Sprintf("node %p", t.Node)
	case t.Image != nil:
		return "image " + t.Image.Descriptor().Digest.String()
	case t.Files != nil:
		return fmt.Sprintf("files %p", t.Files)
	}
	return "nothing"
}
