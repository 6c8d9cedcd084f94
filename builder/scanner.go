package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"mk/builder/sbom"
	"mk/image"
	"mk/recipe"
)

// Inventory reads what packages the tree of a result holds.
func (b *Builder) Inventory(ctx context.Context, r *Result) (found sbom.Inventory, err error) {
	err = b.withTree(ctx, r, func(files *Files) error {
		found, err = sbom.Scan(ctx, files.Root)
		return err
	})
	return found, err
}

// BuildKit's protocol of scanners (its docs/attestations/sbom-protocol.md): an image
// whose command finds a tree where BUILDKIT_SCAN_SOURCE says, and leaves in-toto
// statements, a file each, where BUILDKIT_SCAN_DESTINATION says.
const (
	scanSource      = "/run/src/core/sbom"
	scanDestination = "/run/out"
	maxScanned      = 80 << 20 // bytes of one file, as in BuildKit
)

// NewScan makes a plan of its own for scanning what another plan makes. Both are given
// to one Build: the tree is made once, and a scan of the same tree by the same
// scanner is not run again. params are given as BUILDKIT_SCAN_<key>.
//
// The scanner writes into a tree of its own, on its image, which is then read by
// Scanned; the plan makes no image.
func NewScan(of *Plan, scanner *image.Image, name string, params map[string]string) (*Plan, error) {
	config := scanner.Config().Config
	args := slices.Concat(config.Entrypoint, config.Cmd)
	if len(args) == 0 {
		return nil, fmt.Errorf("scanner %s does not have cmd", name)
	}
	env := slices.Clone(config.Env)
	env = setEnv(env, "BUILDKIT_SCAN_DESTINATION", scanDestination+"/")
	env = setEnv(env, "BUILDKIT_SCAN_SOURCE", scanSource)
	for _, key := range slices.Sorted(maps.Keys(params)) {
		env = setEnv(env, "BUILDKIT_SCAN_"+key, params[key])
	}
	dir := path.Join("/", config.WorkingDir)
	st := &Stage{Name: "sbom", From: &recipe.Stage{Base: name}, Platform: scanner.Platform(), Start: Tree{Image: scanner}, Image: scanner.Config()}
	title := fmt.Sprintf("[%s] generating sbom using %s", image.FormatPlatform(of.Platform), name)

	out := &Node{Step: &recipe.Workdir{Path: scanDestination}, Stage: st, Parent: st.Start, Dir: scanDestination, Place: "sbom/out " + image.FormatPlatform(of.Platform)}
	out.Vertex = NewVertex(strings.Replace(title, "generating", "preparing", 1))
	run := &recipe.Run{Mounts: []recipe.Mount{
		{Type: "bind", Target: scanSource, From: "target", ReadOnly: true},
		{Type: "tmpfs", Target: "/tmp"},
	}}
	run.Args = args
	scan := &Node{
		Step: run, Stage: st, Parent: Tree{Node: out}, From: []Tree{of.Target.Tree, {}}, Args: args, Env: env, Dir: dir,
		Place: "sbom/scan " + image.FormatPlatform(of.Platform), Vertex: NewVertex(title),
	}
	st.Nodes, st.Tree = []*Node{out, scan}, Tree{Node: scan}
	return &Plan{Recipe: of.Recipe, Platform: of.Platform, Stages: []*Stage{st}, Target: st, Epoch: of.Epoch}, nil
}

// Scan is a statement that a scanner wrote, and the name of its file.
type Scan struct {
	File      string
	Statement image.Statement
}

// Scanned reads what the scanner of a plan by NewScan wrote.
func (b *Builder) Scanned(ctx context.Context, r *Result) (list []Scan, err error) {
	err = b.withTree(ctx, r, func(files *Files) error {
		dir, err := openInTree(files.Root, scanDestination)
		if err != nil {
			return err
		}
		defer dir.Close()
		fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		top := os.NewFile(uintptr(fd), scanDestination)
		defer top.Close()
		names, err := top.Readdirnames(-1)
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, name := range names {
			text, err := files.ReadFile(path.Join(scanDestination, name), maxScanned)
			if err != nil {
				return err
			}
			s := Scan{File: name}
			if err := json.Unmarshal(text, &s.Statement); err != nil {
				return fmt.Errorf("%s is no in-toto statement: %w", name, err)
			}
			if s.Statement.PredicateType == "" {
				return fmt.Errorf("%s is no in-toto statement: it has no predicateType", name)
			}
			list = append(list, s)
		}
		if len(list) == 0 {
			return errors.New("the scanner wrote nothing")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the SBOM: %w", err)
	}
	return list, nil
}
