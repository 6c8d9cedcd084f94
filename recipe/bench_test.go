package recipe

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkPlan is the share of this package in a plan of 5,000 steps.
func BenchmarkPlan(b *testing.B) {
	var src strings.Builder
	src.WriteString("FROM scratch\n")
	for i := range 2500 {
		fmt.Fprintf(&src, "ENV A%d=${A%d:+x}\nCOPY a%d $A%d/b\n", i, i-1, i, i)
	}
	for b.Loop() {
		r, err := Parse("Recipe", []byte(src.String()), ParseOptions{})
		if err != nil {
			b.Fatal(err)
		}
		g, err := r.Globals(Inputs{})
		if err != nil {
			b.Fatal(err)
		}
		s := g.Scope(nil)
		for _, step := range r.Stages[0].Steps {
			if _, _, err := s.Expand(step); err != nil {
				b.Fatal(err)
			}
		}
	}
}
