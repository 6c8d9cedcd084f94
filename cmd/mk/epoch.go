package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"mk/builder"
	"mk/recipe"
)

// epoch tells what a SOURCE_DATE_EPOCH that is no number stands for: "context", the
// name of a --build-context, or that of a stage which is nothing but what one ADD
// fetches. A directory of the caller's has no time: there is no epoch then.
func (b *building) epoch(ctx context.Context, opt builder.PlanOptions, word string) (*time.Time, error) {
	wrong := fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s", word)
	files := opt.Contexts[strings.ToLower(word)].Files
	if word == "context" {
		files = opt.Context
	}
	if files != nil && !files.Time.IsZero() {
		t := files.Time.UTC()
		return &t, nil
	}
	if files != nil {
		if !files.Local {
			return nil, fmt.Errorf("%w: the times of fetched contexts are not known", wrong)
		}
		return nil, nil
	}
	st, ok := b.recipe.Named(word)
	if !ok || st.Base != "scratch" || len(st.Steps) != 1 {
		return nil, wrong
	}
	add, ok := st.Steps[0].(*recipe.Copy)
	if !ok || !add.Add || len(add.Sources) != 1 || recipe.KindOf(add.Sources[0]) != recipe.HTTP {
		return nil, fmt.Errorf("%w: the stage is not just one ADD of a URL", wrong)
	}
	file, err := b.store.fetched().URL(ctx, add.Sources[0], "", true, nil)
	if err != nil {
		return nil, &recipe.Error{Pos: add.At(), Err: err}
	}
	if file.Modified.IsZero() {
		return nil, &recipe.Error{Pos: add.At(), Err: fmt.Errorf("%w: the server does not say when %s was modified", wrong, builder.Redact(add.Sources[0]))}
	}
	t := file.Modified.UTC()
	return &t, nil
}
