package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// buildFirst is mk run --build: an image is built, and run without having a name.
type buildFirst struct {
	context, file, target string
	args                  []string
	id                    string // of what was built; from the process outside to the one inside
}

func (b *buildFirst) define(fl *pflag.FlagSet) {
	fl.StringVar(&b.context, "build", "", "context of an image to build first, in place of IMAGE")
	fl.StringVarP(&b.file, "file", "f", "", "recipe of --build")
	fl.StringVar(&b.target, "target", "", "stage of --build")
	fl.Var((*list)(&b.args), "build-arg", "value of an ARG of --build")
	fl.StringVar(&b.id, "built", "", "")
	fl.MarkHidden("built")
}

// build builds the image with mk build, and puts its ID into the command line, behind the verb.
func (b *buildFirst) build(ctx context.Context, verb string, line []string) ([]string, error) {
	dir, err := os.MkdirTemp("", "mk-run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	iid := filepath.Join(dir, "iid")
	args := []string{"build", "--iidfile", iid}
	for flag, value := range map[string]string{"--file": b.file, "--target": b.target} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	for _, a := range b.args {
		args = append(args, "--build-arg", a)
	}
	cmd := anotherMk(ctx, append(args, "--", b.context)...)
	cmd.Stdout = os.Stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil, &exitError{status: exitSelf} // it has said why
		}
		return nil, fmt.Errorf("--build %s: %w", b.context, err)
	}
	id, err := os.ReadFile(iid)
	if err != nil {
		return nil, fmt.Errorf("--build %s: %w", b.context, err)
	}
	at := slices.Index(line, verb) + 1
	return slices.Insert(slices.Clone(line), at, "--built", strings.TrimSpace(string(id))), nil
}
