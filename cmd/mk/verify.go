package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"mk/builder"
	"mk/recipe"
)

// maxDifferences is how many files a difference lists: one is enough to begin with.
const maxDifferences = 20

// verify builds the same once more, every step executed, and fails with the first
// layer that is another. opt had NoCache for the first build too.
func (b *building) verify(ctx context.Context, opt builder.PlanOptions, work *builder.Builder, first []*builder.Result) error {
	plans, err := b.plans(ctx, opt)
	if err != nil {
		return err
	}
	builder.Rename("again ", plans)
	second, err := work.Build(ctx, plans...)
	if err != nil {
		return fmt.Errorf("--verify: the second build: %w", err)
	}
	steps := 0
	for i, r := range first {
		d, err := work.Compare(ctx, r, second[i])
		if err != nil {
			return fmt.Errorf("--verify: %w", err)
		}
		switch {
		case d == nil:
		case d.Image:
			return &recipe.Error{Pos: d.Step.Step.At(), Err: differenceError{d}}
		default:
			fmt.Fprintf(os.Stderr, "mk: notice: %s, but the image is the same\n", differenceText(d))
		}
		for _, st := range r.Plan.Stages {
			steps += len(st.Nodes)
		}
	}
	fmt.Fprintf(os.Stderr, "mk: verified: two builds of %d steps made the same image\n", steps)
	if first[0].Plan.Epoch == nil {
		fmt.Fprintln(os.Stderr, "mk: notice: times of files were not compared, since without SOURCE_DATE_EPOCH they tell when a step ran")
	}
	return nil
}

// differenceError says what is not reproducible.
type differenceError struct{ *builder.Difference }

func (e differenceError) Error() string {
	text := "--verify: " + differenceText(e.Difference)
	if e.Cause != nil {
		text += "\nthe first step that did so: " + differenceText(e.Cause)
	}
	return text
}

func differenceText(d *builder.Difference) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s makes something else each time:", d.Step.Vertex.Name)
	for i, f := range d.Files {
		if i == maxDifferences {
			fmt.Fprintf(&b, "\n  and %d more", len(d.Files)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %s: %s", f.Path, strings.Join(f.What, "; "))
	}
	return b.String()
}
