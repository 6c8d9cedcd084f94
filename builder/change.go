package builder

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"mk/image"
	"mk/recipe"
)

// Change applies instructions, a text each, to an image's config, as if a recipe FROM that
// image ended with them: the --change of commands that make an image without a recipe.
// Instructions that make a layer, and those that are for stages only, are refused.
func Change(ctx context.Context, config Image, instructions []string) (Image, error) {
	s := &Stage{Image: config.Clone(), Platform: config.Platform}
	for _, text := range instructions {
		if err := change(ctx, s, text); err != nil {
			why := err.Error()
			if _, rest, ok := strings.Cut(why, "on line 2: "); ok {
				why = rest // the line is one of ours
			}
			return config, fmt.Errorf("--change %q: %s", text, why)
		}
	}
	s.Image.History = config.History
	return s.Image, nil
}

// change applies one instruction to the config of s.
func change(ctx context.Context, s *Stage, text string) error {
	r, err := recipe.Parse("--change", []byte("FROM scratch\n"+strings.TrimSpace(text)+"\n"), recipe.ParseOptions{})
	if err != nil {
		return err
	}
	if len(r.Stages) != 1 || len(r.Stages[0].Steps) != 1 {
		return errors.New("want one instruction")
	}
	step := r.Stages[0].Steps[0]
	switch step.(type) {
	case *recipe.Run, *recipe.Copy, *recipe.Arg, *recipe.Maintainer:
		return fmt.Errorf("%s is for recipes: want CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR", step.Keyword())
	}
	p := &planner{ctx: ctx, plan: &Plan{Recipe: r, Platform: s.Platform}, build: image.HostPlatform()}
	if err := p.globals(); err != nil {
		return err
	}
	s.From = r.Stages[0]
	s.scope = p.global.Scope(s.Image.Config.Env)
	return p.step(s, step, "", nil)
}
