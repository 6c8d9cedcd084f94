package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestExamples builds every directory of examples/ as its README says, runs it, and
// wants what its file expected has, unless a script does that. With MK_TEST_VERIFY it is built
// twice, and has to be the same to the byte (make verify).
func TestExamples(t *testing.T) {
	requireMode(t)
	t.Parallel()
	verify := os.Getenv("MK_TEST_VERIFY") != ""
	registry := sharedRegistry(t)
	home, err := os.MkdirTemp("", "mk-examples-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeTree(home); err != nil {
			t.Error(err)
		}
	})
	mk := func(t *testing.T, args ...string) string {
		t.Helper()
		cmd := exec.Command(mkBinary(t), args...)
		cmd.Env = append(os.Environ(), "HOME="+home, "MK_ROOT="+filepath.Join(home, "mk"), "XDG_RUNTIME_DIR="+home,
			"MK_REGISTRY_MIRRORS=docker.io=http://"+registry)
		if verify {
			cmd.Env = append(cmd.Env, "SOURCE_DATE_EPOCH=1700000000")
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("mk %q: %v\n%s%s", args, err, out, stderr.Bytes())
		}
		return string(out)
	}
	try := func(name, context string) {
		t.Run(name, func(t *testing.T) {
			if base := map[string]string{"go": "golang", "debian": "debian"}[name]; base != "" {
				if err := serveBase(base); err != nil {
					t.Skipf("base %s: %v", base, err)
				}
			}
			dir := filepath.Join("../../examples", name)
			if context == "" {
				context = dir
			}
			want, err := os.ReadFile(filepath.Join(dir, "expected"))
			if err != nil {
				t.Fatal(err)
			}
			mk(t, "build", fmt.Sprintf("--verify=%t", verify), "-t", name, "-f", filepath.Join(dir, "Recipe"), context)
			if got := mk(t, "run", "--rm", name); got != string(want) {
				t.Errorf("it printed\n%swant\n%s", got, want)
			}
		})
	}

	// busybox first: the others start from it.
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip(err)
	}
	if err := checkStatic(path); err != nil {
		t.Skip(err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	context := t.TempDir()
	if err := os.WriteFile(filepath.Join(context, "busybox"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	try("busybox", context)
	recipes, err := filepath.Glob("../../examples/*/Recipe")
	if err != nil {
		t.Fatal(err)
	}
	for _, recipe := range recipes {
		name := filepath.Base(filepath.Dir(recipe))
		scripted := inScripts(t, "$EXAMPLES/"+name+"\n")
		_, err := os.Stat(filepath.Join(filepath.Dir(recipe), "expected"))
		switch {
		case err != nil && !scripted:
			t.Errorf("examples/%s says not what must come out (expected), and no script builds it", name)
		case err == nil && name != "busybox" && (verify || !scripted):
			try(name, "")
		}
	}
}

// inScripts tells whether a script has a text.
func inScripts(t *testing.T, text string) bool {
	t.Helper()
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(scripts, func(script string) bool {
		content, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(content), text)
	})
}
