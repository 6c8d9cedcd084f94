package main

import (
	"fmt"
	"io"

	"mk/builder"
	"mk/image"
)

// printPlan prints the steps that a build would look up, and execute if they
// are not known: what --plan shows.
func printPlan(w io.Writer, p *builder.Plan) error {
	fmt.Fprintf(w, "platform %s\n", image.FormatPlatform(p.Platform))
	for _, s := range p.Stages {
		name := s.Name
		if name == "" {
			name = "the only stage"
		}
		if s == p.Target {
			name += " (target)"
		}
		fmt.Fprintf(w, "\n%s:%d: %s: %s\n", s.From.Pos.File, s.From.Pos.Start, name, s.From.Source)
		for _, n := range s.Nodes {
			pos := n.Step.At()
			fmt.Fprintf(w, "%s:%d: %s\n", pos.File, pos.Start, n.Vertex.Name)
			for _, from := range n.From {
				if from.Node != nil {
					fmt.Fprintf(w, "\tneeds %s\n", from.Node.Vertex.Name)
				}
			}
		}
	}
	return nil
}
