package builder

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
	"mk/recipe"
)

// step evaluates one instruction of a stage: it changes the stage's config and
// variables, writes its line of history, and where the instruction makes a
// layer, adds a node to the graph.
func (p *planner) step(s *Stage, raw recipe.Step, place string, open []*recipe.Stage) error {
	title := ""
	if _, run := raw.(*recipe.Run); !run {
		title = Redact(recipe.Title(raw, s.scope.Vars())) // with the variables from before the step
	}
	step, _, err := s.scope.Expand(raw)
	if err != nil {
		return err
	}
	c := &s.Image.Config
	switch st := step.(type) {
	case *recipe.Run:
		title = recipe.Title(st, s.scope.Vars()) // only now it is known which variables are secrets
		n := &Node{Step: st}
		n.Args, n.Script = st.CommandLine(c.Shell)
		if n.From, err = p.mountSources(s, st, open); err != nil {
			return err
		}
		p.node(s, n, title, place)
	case *recipe.Copy:
		from, err := p.copyFrom(s, st, open)
		if err != nil {
			return err
		}
		p.node(s, &Node{Step: st, From: []Tree{from}}, title, place)
	case *recipe.Workdir:
		dir := st.Path
		if !path.IsAbs(dir) {
			dir = path.Join("/", c.WorkingDir, dir)
		}
		c.WorkingDir = path.Clean(dir)
		at := *st
		at.Path = c.WorkingDir
		if c.WorkingDir == "/" {
			s.history(&at, true)
			return nil
		}
		p.node(s, &Node{Step: &at}, title, place)

	case *recipe.Env:
		c.Env = s.scope.Env()
	case *recipe.Arg: // the scope has it
	case *recipe.Label:
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		for _, kv := range st.Labels {
			c.Labels[kv.Key] = kv.Value
		}
	case *recipe.Maintainer:
		s.Image.Author = st.Name
	case *recipe.User:
		c.User = st.User
	case *recipe.Shell:
		c.Shell = st.Shell
	case *recipe.StopSignal:
		c.StopSignal = st.Signal
	case *recipe.Onbuild:
		c.OnBuild = append(c.OnBuild, st.Expression)
		return nil // it leaves no history
	case *recipe.Cmd:
		c.Cmd = st.Argv(c.Shell)
		c.ArgsEscaped = true //nolint:staticcheck // docker still reads it, and BuildKit writes it
		s.cmd = true
	case *recipe.Entrypoint:
		c.Entrypoint = st.Argv(c.Shell)
		if !s.cmd {
			c.Cmd = nil
		}
	case *recipe.Healthcheck:
		c.Healthcheck = &image.Healthcheck{
			Test: st.Test, Interval: time.Duration(st.Interval), Timeout: time.Duration(st.Timeout),
			StartPeriod: time.Duration(st.StartPeriod), StartInterval: time.Duration(st.StartInterval), Retries: st.Retries,
		}
	case *recipe.Expose:
		ports, err := recipe.ParsePorts(st.Ports)
		if err != nil {
			return err
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for _, port := range ports {
			c.ExposedPorts[port] = struct{}{}
		}
	case *recipe.Volume:
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range st.Paths {
			c.Volumes[v] = struct{}{}
		}
	default:
		return fmt.Errorf("%s is not supported", step.Keyword())
	}
	if !makesLayer(step) {
		s.history(step, true)
	}
	return nil
}

// mountSources finds where each mount of a RUN takes its files from.
func (p *planner) mountSources(s *Stage, st *recipe.Run, open []*recipe.Stage) ([]Tree, error) {
	var from []Tree
	for _, m := range st.Mounts {
		var t Tree
		switch {
		case m.From != "":
			var err error
			if t, err = p.mountSource(s, m, open); err != nil {
				return nil, err
			}
		case m.Type == "bind":
			if p.opt.Context == nil {
				return nil, fmt.Errorf("RUN --mount=type=bind: there is no build context to take %s from", m.Source)
			}
			t = Tree{Files: p.opt.Context}
		}
		from = append(from, t)
	}
	return from, nil
}

// copyFrom finds where a COPY or ADD takes its files from.
func (p *planner) copyFrom(s *Stage, st *recipe.Copy, open []*recipe.Stage) (Tree, error) {
	if st.From != "" {
		return p.copySource(s, st.From, open)
	}
	if p.opt.Context == nil && len(st.Sources) > 0 {
		return Tree{}, fmt.Errorf("%s %s: there is no build context to take it from", st.Keyword(), strings.Join(st.Sources, " "))
	}
	return Tree{Files: p.opt.Context}, nil
}

// node ends the evaluation of a step that makes a layer.
func (p *planner) node(s *Stage, n *Node, title, place string) {
	c := &s.Image.Config
	n.Stage = s
	n.Parent = s.Tree
	n.Place = place
	n.Env = s.scope.Vars().List()
	n.Dir = c.WorkingDir
	if n.Dir == "" {
		n.Dir = "/"
	}
	n.User = c.User
	n.NoCache = p.opt.NoCache || slices.ContainsFunc(p.opt.NoCacheStages, func(name string) bool {
		return name == "" || strings.EqualFold(name, s.From.Name)
	})
	n.Vertex = NewVertex(s.title(title))
	n.Vertex.Pos = n.Step.At()
	for _, t := range append([]Tree{n.Parent}, n.From...) {
		if t.Node != nil {
			n.Vertex.Inputs = append(n.Vertex.Inputs, t.Node.Vertex)
		}
	}
	s.Nodes = append(s.Nodes, n)
	s.Tree = Tree{Node: n}
	s.history(n.Step, false)
}

// title names a step for the display as buildx does: "[build 2/4] RUN make".
func (s *Stage) title(text string) string {
	index := len(s.Nodes) + 1
	if s.Start.Image != nil || s.Start.Files != nil {
		index++
	}
	name := ""
	if s.Name != "" {
		name = s.Name + " "
	}
	trigger := ""
	if s.trigger {
		trigger = "ONBUILD "
	}
	width := int(1 + math.Log10(float64(max(s.total, 1))))
	return fmt.Sprintf("[%s%s%*d/%d] %s%s", s.platformTitle(), name, width, index, s.total, trigger, text)
}

// platformTitle is what tells the steps of several platforms apart: "linux/amd64 ",
// or "linux/amd64->arm64 " in a stage of one platform that knows what it builds for.
func (s *Stage) platformTitle() string {
	if s.prefix == "" {
		return ""
	}
	target, ok := s.scope.Vars().Get("TARGETARCH")
	if !ok {
		if t, found := s.scope.Vars().Get("TARGETPLATFORM"); found {
			if p, err := image.ParsePlatform(t); err == nil {
				target, ok = p.Architecture, true
			}
		}
	}
	if ok && target != s.Platform.Architecture {
		return strings.TrimSpace(s.prefix) + "->" + target + " "
	}
	return s.prefix
}

// fromTitle names the FROM of an image: "[build 1/4] FROM docker.io/library/debian:13@sha256:…".
func (s *Stage) fromTitle() string {
	name := s.origin
	if ref, err := image.ParseReference(name); err == nil {
		name = ref.String()
	}
	if target := s.Start.Image.Target().Digest.String(); !strings.Contains(name, target) {
		name += "@" + target
	}
	stage := ""
	if s.Name != "" {
		stage = s.Name + " "
	}
	width := int(1 + math.Log10(float64(max(s.total, 1))))
	return fmt.Sprintf("[%s%s%*d/%d] FROM %s", s.prefix, stage, width, 1, s.total, name)
}

// history notes how the image came to be, in BuildKit's words.
func (s *Stage) history(step recipe.Step, empty bool) {
	s.Image.History = append(s.Image.History, ocispec.History{
		CreatedBy:  s.createdBy(step),
		Comment:    historyComment,
		EmptyLayer: empty,
	})
}

// createdBy is a step in history. Passwords in what ADD fetched are not: history is
// pushed with the image.
func (s *Stage) createdBy(step recipe.Step) string {
	line := recipe.HistoryLine(step, s.Image.Config.Shell, s.scope.RunArgs())
	if _, ok := step.(*recipe.Copy); ok {
		return Redact(line)
	}
	return line
}

// ParseEpoch reads SOURCE_DATE_EPOCH: seconds since 1970.
func ParseEpoch(s string) (time.Time, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s", s)
	}
	return time.Unix(n, 0).UTC(), nil
}
