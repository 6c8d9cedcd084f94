package main

// The end-to-end tests: testdata/script/*.txtar, each a shell-like session with the
// real binary, on bases that this machine's own packages gave, over a registry inside
// this test process. Nothing here needs a public registry.
//
// A script runs in a directory of its own, $WORK, with its own store and home:
//
//	$MK_ROOT         $WORK/mk
//	$HOME            $WORK/home
//	$XDG_RUNTIME_DIR $WORK/run
//	$REGISTRY        host:port of the registry; docker.io is mirrored to it
//	$MODE            subid, single or root
//	$EXAMPLES        the directory examples
//	$NAME            the script's name, for repositories of its own
//	$UNIQUE          a number, for processes of its own
//
// After a script passed, the harness asks what every script would have to ask: is
// the store whole (mk check), is a mount left, does a process still live in $WORK?
//
// MK_TEST_BINARY  tests that binary instead of building one
// MK_TEST_REQUIRE fails the whole run unless its mode is the given one (CI's guard)
// MK_TEST_CACHE   where bases are kept between runs (default: .cache of the checkout)

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptLimit is how long one script may take. The slowest, which installs Debian
// packages, needs about a minute on two cores; the others a second or two.
const scriptLimit = 6 * time.Minute

var update = flag.Bool("update", false, "rewrite what scripts and goldens expect")

func TestMain(m *testing.M) {
	if user, ok := strings.CutPrefix(os.Getenv(chanceEnv), "user "); ok {
		makeUserCalls(user)
		return
	} else if seed := os.Getenv(chanceEnv); seed != "" {
		makeCalls(seed)
		return
	} else if work := os.Getenv(racesEnv); work != "" {
		runRaces(work)
		return
	} else if outside := os.Getenv(attackEnv); outside != "" {
		runAttacks(outside)
		return
	}
	flag.Parse()
	code := m.Run()
	closeShared()
	os.Exit(code)
}

func TestScripts(t *testing.T) {
	requireMode(t)
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata/script: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runScript(t, file)
		})
	}
}

// runScript runs one script with its own deadline, and then removes its directory,
// which may hold files of other IDs.
func runScript(t *testing.T, file string) {
	binary := mkBinary(t)
	dir, err := os.MkdirTemp("", "mk-script-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("MK_TEST_KEEP") != "" {
			t.Logf("kept %s", dir)
			return
		}
		if err := removeTree(dir); err != nil {
			t.Errorf("remove the script's directory: %v", err)
		}
	})
	testscript.RunT(inPlace{t}, testscript.Params{
		Files:              []string{file},
		WorkdirRoot:        dir,
		Deadline:           time.Now().Add(scriptLimit),
		UpdateScripts:      *update,
		RequireUniqueNames: true,
		Cmds:               scriptCommands,
		Condition:          scriptCondition,
		Setup: func(env *testscript.Env) error {
			return setupScript(t, env, binary)
		},
	})
}

// inPlace makes testscript run a script in the test that already exists for it,
// instead of in a subtest of the same name.
type inPlace struct{ *testing.T }

func (t inPlace) Parallel()                            {}
func (t inPlace) Run(_ string, f func(t testscript.T)) { f(t) }
func (t inPlace) Verbose() bool                        { return testing.Verbose() }

var _ testscript.T = inPlace{}

// script is what the custom commands know about the script they run in.
type script struct {
	t       *testing.T
	work    string
	binary  string
	status  int  // exit status of the last mk
	damaged bool // the script broke its store on purpose
}

type scriptKey struct{}

func theScript(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func setupScript(t *testing.T, env *testscript.Env, binary string) error {
	s := &script{t: t, work: env.WorkDir, binary: binary}
	env.Values[scriptKey{}] = s
	registry := sharedRegistry(t)
	for _, dir := range []string{"home", "run"} {
		if err := os.Mkdir(filepath.Join(env.WorkDir, dir), 0o700); err != nil {
			return err
		}
	}
	env.Setenv("PATH", filepath.Dir(binary)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("XDG_RUNTIME_DIR", filepath.Join(env.WorkDir, "run"))
	env.Setenv("MK_ROOT", filepath.Join(env.WorkDir, "mk"))
	env.Setenv("REGISTRY", registry)
	env.Setenv("MK_REGISTRY_MIRRORS", "docker.io=http://"+registry)
	env.Setenv("MODE", testMode())
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		return err
	}
	env.Setenv("EXAMPLES", examples)
	env.Setenv("UNIQUE", fmt.Sprint(1_000_000+rand.IntN(1_000_000_000)))
	env.Setenv("NAME", strings.TrimPrefix(filepath.Base(env.WorkDir), "script-"))
	limit := time.AfterFunc(scriptLimit, func() { killOf(env.WorkDir) })
	env.Defer(func() {
		limit.Stop()
		switch {
		case t.Failed():
			killOf(env.WorkDir) // testscript waits for what runs in the background
		case !t.Skipped():
			s.checkNothingLeft(env)
		}
	})
	return nil
}

// checkNothingLeft asserts what must hold after every script.
func (s *script) checkNothingLeft(env *testscript.Env) {
	if mounts := mountsUnder(s.work, "self"); len(mounts) > 0 {
		s.t.Errorf("mounts left on the host:\n%s", strings.Join(mounts, "\n"))
	}
	left := processesIn(s.work)
	for deadline := time.Now().Add(3 * time.Second); len(left) > 0 && time.Now().Before(deadline); left = processesIn(s.work) {
		time.Sleep(50 * time.Millisecond)
	}
	if len(left) > 0 {
		s.t.Errorf("processes left in the script's store:\n%s", strings.Join(left, "\n"))
	}
	root := env.Getenv("MK_ROOT")
	if _, err := os.Stat(root); err != nil || s.damaged {
		return
	}
	check := exec.Command(s.binary, "check")
	check.Env = env.Vars
	if out, err := check.CombinedOutput(); err != nil {
		s.t.Errorf("mk check after the script: %v\n%s", err, out)
	}
}

// scriptCondition knows [subid], [single] and [root]: how mk gets its IDs here.
func scriptCondition(cond string) (bool, error) {
	switch cond {
	case "subid", "single", "root":
		return testMode() == cond, nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// testMode reckons which mode mk has to take here, from what design.md says and not
// from what mk says.
func testMode() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return "single"
	}
	me, err := user.Current()
	if err != nil {
		return "single"
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		text, _ := os.ReadFile(file)
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
			who, _, _ := strings.Cut(line, ":")
			return who == me.Username || who == me.Uid
		}) {
			return "single"
		}
	}
	return "subid"
}

// requireMode skips with the kernel's own reason where no user namespace can be had,
// and fails where CI said which mode this run is for and it is another.
func requireMode(t *testing.T) {
	t.Helper()
	want := os.Getenv("MK_TEST_REQUIRE")
	if want != "" && want != testMode() {
		t.Fatalf("MK_TEST_REQUIRE=%s, but this user would run in mode %s", want, testMode())
	}
	probe := exec.Command("/bin/true")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	if err := probe.Run(); err != nil {
		if want != "" {
			t.Fatalf("no user namespace: %v", err)
		}
		t.Skipf("clone(CLONE_NEWUSER|CLONE_NEWNS): %v", err)
	}
}

// mkBinary returns the binary under test, built once.
func mkBinary(t *testing.T) string {
	t.Helper()
	binary, err := builtBinary()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

var builtBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("MK_TEST_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	dir, err := sharedDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "bin", "mk")
	build := exec.Command("go", "build", "-trimpath", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build mk: %v\n%s", err, out)
	}
	return path, nil
})

// shared is what all tests of this process use together: a directory for the binary
// and the registry's blobs.
var shared struct {
	sync.Once
	dir      string
	err      error
	registry string // host:port, once startRegistry returned
}

func sharedDir() (string, error) {
	shared.Do(func() { shared.dir, shared.err = os.MkdirTemp("", "mk-test-") })
	return shared.dir, shared.err
}

func closeShared() {
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
}
