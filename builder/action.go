package builder

import (
	"context"
	"fmt"

	"mk/recipe"
	"mk/snapshot"
)

// action is one step, ready: what it takes besides its parent's tree has been
// found and identified, so that it can be looked up, and it can be performed.
type action interface {
	// describe writes the facts that the step's result depends on.
	describe(*KeyText)
	// perform makes the step's changes to a draft of the parent's tree.
	perform(context.Context, *snapshot.Draft) error
	// Close lets go of the files that the action holds open.
	Close() error
}

// action prepares a step. It may wait for the steps that it takes files from.
func (e *engine) action(ctx context.Context, n *Node) (action, error) {
	switch st := n.Step.(type) {
	case *recipe.Run:
		return e.newRun(ctx, n, st)
	case *recipe.Copy:
		return e.newCopy(ctx, n, st)
	case *recipe.Workdir:
		return &makeDir{engine: e, node: n}, nil
	}
	return nil, fmt.Errorf("%s is not supported", n.Step.Keyword())
}
