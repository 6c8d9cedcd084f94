package main

// The house itself: who may import whom, one doc a package, and a binary that starts
// fast because nothing heavy is linked into it.

import (
	"debug/buildinfo"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// mayImport is the import direction of the design: each package of mk and those of mk
// that it may import. A package that is not here fails the test.
//
// Do not change this to mend a build: the change is of the design, and says why.
var mayImport = map[string][]string{
	"mk/recipe":           {},
	"mk/snapshot":         {},
	"mk/userns":           {},
	"mk/image":            {},
	"mk/image/registry":   {"mk/image"},
	"mk/container":        {"mk/userns", "mk/container/nofile"},
	"mk/container/nofile": {}, // nothing at all: see there
	"mk/builder":          {"mk/recipe", "mk/image", "mk/snapshot", "mk/container", "mk/builder/sbom"},
	"mk/builder/sbom":     {}, // knows trees and package managers, nothing of mk
	"mk/cmd/mk/template":  {}, // of --format: knows the language, nothing of what it prints
	"mk/cmd/mk":           {"mk/cmd/mk/template", "mk/recipe", "mk/snapshot", "mk/userns", "mk/image", "mk/image/registry", "mk/container", "mk/builder", "mk/builder/sbom"},
	"mk/bench":            {},
}

// onlyFrom names modules that one package alone may see, and what of them.
var onlyFrom = []struct{ prefix, pkg, allowed string }{
	{"github.com/moby/buildkit/", "mk/recipe", `^github.com/moby/buildkit/frontend/dockerfile/(parser|instructions|shell|command|linter)$`},
}

// testOnly are modules for tests; linked into the binary, go-cmp alone costs 0.66 ms of
// every start.
var testOnly = []string{"github.com/google/go-cmp", "github.com/rogpeppe/go-internal"}

// forbidden are modules that must never be linked, for their weight in size or start.
var forbidden = []string{
	"google.golang.org/grpc", "go.opentelemetry.io/otel", "github.com/containers/image", "github.com/containerd/cgroups",
	"github.com/opencontainers/runc", "go.etcd.io/bbolt", "modernc.org/sqlite", "github.com/minio/sha256-simd",
}

// sourcePackage is what the test knows of a package, from its files.
type sourcePackage struct {
	path        string
	docs        []string // files with a package comment
	doc         string
	imports     map[string]string // import path → a file that has it
	testImports map[string]string
}

func readPackages(t *testing.T) []*sourcePackage {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*sourcePackage{}
	fset := token.NewFileSet()
	err = filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "examples" || d.Name() == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(top, filepath.Dir(name))
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		p := found[rel]
		if p == nil {
			p = &sourcePackage{path: path.Join("mk", filepath.ToSlash(rel)), imports: map[string]string{}, testImports: map[string]string{}}
			found[rel] = p
		}
		p.add(filepath.Join(rel, filepath.Base(name)), file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*sourcePackage
	for _, p := range found {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *sourcePackage) int { return strings.Compare(a.path, b.path) })
	return all
}

func (p *sourcePackage) add(name string, file *ast.File) {
	imports := p.imports
	if strings.HasSuffix(name, "_test.go") {
		imports = p.testImports
	} else if file.Doc != nil {
		p.docs = append(p.docs, name)
		p.doc = file.Doc.Text()
	}
	for _, spec := range file.Imports {
		if imported, err := strconv.Unquote(spec.Path.Value); err == nil {
			imports[imported] = name
		}
	}
}

func TestImportDirection(t *testing.T) {
	for _, p := range readPackages(t) {
		allowed, known := mayImport[p.path]
		if !known {
			t.Errorf("%s: the design has no such package", p.path)
			continue
		}
		for imported, file := range p.imports {
			if strings.HasPrefix(imported, "mk/") && !slices.Contains(allowed, imported) {
				t.Errorf("%s imports %s: %s may import %v", file, imported, p.path, allowed)
			}
			if slices.ContainsFunc(testOnly, func(m string) bool { return strings.HasPrefix(imported, m) }) {
				t.Errorf("%s imports %s, which is for tests", file, imported)
			}
			for _, rule := range onlyFrom {
				if !strings.HasPrefix(imported, rule.prefix) {
					continue
				}
				if p.path != rule.pkg || !regexp.MustCompile(rule.allowed).MatchString(imported) {
					t.Errorf("%s imports %s: only %s may, and only %s", file, imported, rule.pkg, rule.allowed)
				}
			}
		}
	}
}

func TestEveryPackageTellsItsStory(t *testing.T) {
	for _, p := range readPackages(t) {
		switch {
		case len(p.imports) == 0 && len(p.docs) == 0:
			// Only tests, so far.
		case len(p.docs) != 1:
			t.Errorf("%s: %d files have a package comment, not one: %v", p.path, len(p.docs), p.docs)
		case len(p.doc) < 200:
			t.Errorf("%s: its package comment is too short for a story: %q", p.docs[0], p.doc)
		}
	}
}

// TestBinaryModules looks at what is linked, not at what is imported.
func TestBinaryModules(t *testing.T) {
	info, err := buildinfo.ReadFile(mkBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range info.Deps {
		for _, banned := range slices.Concat(forbidden, testOnly) {
			if dep.Path == banned || strings.HasPrefix(dep.Path, banned+"/") {
				t.Errorf("%s is linked into mk", dep.Path)
			}
		}
	}
}

// initLimit is what one package's init may cost. A start is a budget: mk version in 4 ms.
const initLimit = 300 * time.Microsecond

var initLine = regexp.MustCompile(`(?m)^init (\S+) @\S+ ms, (\S+) ms clock`)

// TestInitCost takes the least of many starts, so that a busy machine does not fail it.
func TestInitCost(t *testing.T) {
	binary := mkBinary(t)
	least := map[string]time.Duration{}
	for range 15 {
		cmd := exec.Command(binary, "version")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1", "MK_ROOT="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("mk version: %v\n%s", err, out)
		}
		for _, m := range initLine.FindAllStringSubmatch(string(out), -1) {
			ms, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			cost := time.Duration(ms * float64(time.Millisecond))
			if known, ok := least[m[1]]; !ok || cost < known {
				least[m[1]] = cost
			}
		}
	}
	if len(least) == 0 {
		t.Fatal("GODEBUG=inittrace=1 printed nothing")
	}
	for pkg, cost := range least {
		if cost > initLimit {
			t.Errorf("init of %s costs %v, more than %v", pkg, cost, initLimit)
		}
	}
}

// TestOutputIsChecked: commands print to stdout, which says what it cannot write.
func TestOutputIsChecked(t *testing.T) {
	direct := regexp.MustCompile(`\bfmt\.Print|\bos\.Stdout\b`)
	allowed := regexp.MustCompile(`os\.Stdout\.Fd\(\)|\[\]\*os\.File\{os\.|h\.direct\.Stdout = os\.Stdout`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if name == "stdout.go" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if direct.MatchString(line) && !allowed.MatchString(line) {
				t.Errorf("%s:%d: print to &stdout: %s", name, i+1, strings.TrimSpace(line))
			}
		}
	}
}

// TestVerbsAreNamedAsTheyAreMade: a verb is made only when the line begins with its name.
func TestVerbsAreNamedAsTheyAreMade(t *testing.T) {
	for _, v := range verbs {
		if made := v.make(&app{}).Name(); made != v.name {
			t.Errorf("%q makes mk %s", v.name, made)
		}
		if n := len(newRoot(&app{}, v.name).Commands()); n != 1 {
			t.Errorf("mk %s makes %d verbs", v.name, n)
		}
	}
	if n := len(newRoot(&app{}, "help").Commands()); n < len(verbs) {
		t.Errorf("mk help knows %d verbs of %d", n, len(verbs))
	}
}
