package main

// Many mk at once on a few containers, and kill -9 of any process of theirs at any moment: after it
// ps reads the truth, everything can be removed, and nothing is left.

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// racesEnv holds the directory and the seed of a process that does the rounds. It is one of its own
// because orphans come back to it (PR_SET_CHILD_SUBREAPER): nothing that mk starts gets out of sight.
const racesEnv = "MK_TEST_RACES"

const (
	raceRounds   = 200
	raceCommands = 5                // of a round, at once
	raceLimit    = 30 * time.Second // of one mk: whoever takes longer hangs
)

// TestRaces does the rounds of one seed, which MK_TEST_SEED repeats.
func TestRaces(t *testing.T) {
	requireMode(t)
	t.Parallel()
	registry := sharedRegistry(t)
	if err := serveBase("busybox"); err != nil {
		t.Fatal(err)
	}
	seed := os.Getenv("MK_TEST_SEED")
	if seed == "" {
		seed = strconv.FormatUint(rand.Uint64(), 10)
	}
	t.Logf("MK_TEST_SEED=%s", seed)
	binary := mkBinary(t)
	dir, err := os.MkdirTemp("", "mk-races-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		killOf(dir)
		if t.Failed() && os.Getenv("MK_TEST_KEEP") != "" {
			t.Logf("kept %s", dir)
		} else if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	for _, sub := range []string{"home", "run"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{
		racesEnv + "=" + dir + " " + seed,
		"WORK=" + dir, // what killOf looks for
		"PATH=" + filepath.Dir(binary) + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"HOME=" + dir + "/home", "XDG_RUNTIME_DIR=" + dir + "/run", "MK_ROOT=" + dir + "/mk",
		"MK_REGISTRY_MIRRORS=docker.io=http://" + registry,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
}

// race is the process that does the rounds.
type race struct {
	dir    string
	dice   *rand.Rand // of the plan; the machine's own races are not in it
	failed atomic.Bool
	killed sync.Map // kind of process → *atomic.Int32

	mu   sync.Mutex
	mine map[int]bool // what exec.Cmd waits for
	said map[string]int
}

// runRaces is main of that process.
func runRaces(work string) {
	dir, text, _ := strings.Cut(work, " ")
	seed, err := strconv.ParseUint(text, 10, 64)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	r := &race{dir: dir, dice: rand.New(rand.NewPCG(seed, 0)), mine: map[int]bool{}, said: map[string]int{}}
	go func() {
		for ; ; time.Sleep(5 * time.Millisecond) {
			r.reap()
		}
	}()
	begin := time.Now()
	r.rounds()
	took := time.Since(begin)
	r.clean()
	fmt.Printf("%d rounds in %v\n", raceRounds, took.Round(time.Millisecond))
	r.killed.Range(func(kind, n any) bool {
		fmt.Printf("%4d × killed %s\n", n.(*atomic.Int32).Load(), kind)
		return true
	})
	for what, n := range r.said {
		fmt.Printf("%4d × %s\n", n, what)
	}
	if r.failed.Load() {
		os.Exit(1)
	}
}

func (r *race) errorf(format string, args ...any) {
	r.failed.Store(true)
	fmt.Printf("FAIL: "+format+"\n", args...)
}

// command is any verb on one of a few names. What makes and keeps containers comes more often than
// what ends them, so that there are some.
func (r *race) command() []string {
	name := "race" + strconv.Itoa(r.dice.IntN(5))
	other := "race" + strconv.Itoa(r.dice.IntN(5))
	run := func(flags ...string) []string {
		return append(append([]string{"run", "-d", "--name", name}, flags...), "busybox", "sleep", "7100")
	}
	all := [][]string{
		run(), run("--network", "none"), run("--network", "racenet"), run("--network", "racenet2", "--restart", "always"),
		run("-p", "127.0.0.1::80"),
		run("--init", "--restart", "always"),
		run("--rm"),
		{"run", "--rm", "--name", name, "busybox", "true"},
		{"run", "--name", name, "-v", "/anonymous", "busybox", "sh", "-c", "echo made >/made; sleep 0.02"},
		{"create", "--name", name, "busybox", "sleep", "7100"},
		{"start", name}, {"start", name}, {"start", name},
		{"restart", "-t", "0", name}, {"restart", "-t", "0", name},
		{"stop", "-t", "0", name},
		{"kill", name},
		{"rm", name},
		{"rm", "-f", name},
		{"rename", name, other},
		{"network", "connect", "racenet", name}, {"network", "connect", "racenet2", name}, {"network", "connect", "--alias", "other", "racenet2", name},
		{"network", "disconnect", "racenet", name}, {"network", "disconnect", "racenet2", name}, {"network", "disconnect", "-f", "racenet2", name},
		{"exec", name, "true"},
		{"exec", name, "sh", "-c", "sleep 0.05"},
		{"exec", "-d", name, "sleep", "7200"},
		{"cp", name + ":/etc/passwd", "-"},
		{"commit", name, "committed"},
		{"ps", "-a"},
		{"container", "prune", "-f"},
		{"prune"},
	}
	return all[r.dice.IntN(len(all))]
}

// rounds are some commands at once each, and in most of them a death.
func (r *race) rounds() {
	for _, args := range [][]string{{"pull", "-q", "busybox"}, {"network", "create", "racenet"}, {"network", "create", "racenet2"}} {
		if out, err := r.mk(args...); err != nil {
			r.errorf("mk %s: %v\n%s", args[0], err, out)
			return
		}
	}
	kinds := []string{"mk", "mk:inside", "mk:init", "exec", "sleep", "pasta", "sh"}
	for n := range raceRounds {
		var round sync.WaitGroup
		for range raceCommands {
			args := r.command()
			round.Go(func() {
				out, err := r.mk(args...)
				r.note(args, out, err)
			})
		}
		if r.dice.IntN(4) > 0 {
			kind, after := kinds[r.dice.IntN(len(kinds))], time.Duration(r.dice.IntN(100))*time.Millisecond
			round.Go(func() {
				time.Sleep(after)
				r.kill(kind)
			})
		}
		round.Wait()
		if n%25 == 24 {
			r.truth()
		}
		if r.failed.Load() {
			fmt.Printf("in round %d\n", n)
			return
		}
	}
}

// mk runs mk to its end and returns all that it wrote.
func (r *race) mk(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), raceLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mk", args...)
	cmd.Dir = r.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // a container in front whose mk was killed has the pipe still
	r.mu.Lock()
	err := cmd.Start()
	if err == nil {
		r.mine[cmd.Process.Pid] = true
	}
	r.mu.Unlock()
	if err != nil {
		return "", err
	}
	err = cmd.Wait()
	r.mu.Lock()
	delete(r.mine, cmd.Process.Pid)
	r.mu.Unlock()
	if ctx.Err() != nil {
		r.errorf("mk %s hangs\n%s\n%s", strings.Join(args, " "), out.String(), strings.Join(r.lines(), "\n"))
	}
	return out.String(), err
}

var raceName = regexp.MustCompile(`race[0-9]|container [0-9a-f]{12}`)

// note fails at what no race excuses, and counts the rest for who reads the log.
func (r *race) note(args []string, out string, err error) {
	for _, never := range []string{"panic", "goroutine ", "fatal error", "corrupt", "unexpected end of JSON", "invalid character"} {
		if strings.Contains(out, never) {
			r.errorf("mk %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err == nil {
		return
	}
	last := strings.ReplaceAll(strings.TrimSpace(out), "\n", " / ")
	if last == "" {
		last = err.Error()
	}
	r.mu.Lock()
	r.said[args[0]+": "+raceName.ReplaceAllString(last, "NAME")]++
	r.mu.Unlock()
}

// descendant is a process that comes from this one.
type descendant struct {
	pid, parent int
	zombie      bool
	kind        string // argv[0], without a container's name
	line        string
}

// descendants lists all processes that come from this one.
func (r *race) descendants() []descendant {
	all := map[int]descendant{}
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		_, rest, ok := bytes.Cut(stat, []byte(") "))
		if err != nil || !ok {
			continue
		}
		fields := strings.Fields(string(rest))
		p := descendant{pid: pid, zombie: fields[0] == "Z"}
		p.parent, _ = strconv.Atoi(fields[1])
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		p.line = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		p.kind, _, _ = strings.Cut(p.line, " ")
		p.kind, _, _ = strings.Cut(filepath.Base(p.kind), ".") // pasta.avx2
		all[pid] = p
		children[p.parent] = append(children[p.parent], pid)
	}
	var found []descendant
	for next := children[os.Getpid()]; len(next) > 0; next = next[1:] {
		p := all[next[0]]
		if parent := all[p.parent]; p.kind == "mk:init" && parent.kind == "mk:inside" && p.line == "mk:init" {
			p.kind = "exec"
		}
		found = append(found, p)
		next = append(next, children[p.pid]...)
	}
	return found
}

// kill kills one process of that kind, or of another kind where there is none.
func (r *race) kill(kind string) {
	var kinds map[string][]int
	for end := time.Now().Add(100 * time.Millisecond); len(kinds[kind]) == 0 && time.Now().Before(end); { // an exec is short
		kinds = map[string][]int{}
		for _, p := range r.descendants() {
			if !p.zombie {
				kinds[p.kind] = append(kinds[p.kind], p.pid)
			}
		}
	}
	if len(kinds[kind]) == 0 {
		for kind = range kinds {
			break // any
		}
	}
	if some := kinds[kind]; len(some) > 0 && unix.Kill(some[rand.IntN(len(some))], unix.SIGKILL) == nil {
		n, _ := r.killed.LoadOrStore(kind, new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
	}
}

// reap waits for orphans.
func (r *race) reap() {
	for _, p := range r.descendants() {
		r.mu.Lock()
		if p.zombie && p.parent == os.Getpid() && !r.mine[p.pid] {
			syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		}
		r.mu.Unlock()
	}
}

func (r *race) lines() (lines []string) {
	for _, p := range r.descendants() {
		if !p.zombie {
			lines = append(lines, fmt.Sprintf("%d (of %d) %s", p.pid, p.parent, p.line))
		}
	}
	return lines
}

// eventually waits a while for ok; what is being ended has a right to some time.
func eventually(ok func() bool) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}

// settle waits until nothing has come or gone for a while: a mk that was killed in front may have
// left work to the one inside.
func (r *race) settle() {
	for last, quiet := "", 0; quiet < 5; time.Sleep(50 * time.Millisecond) {
		now := strings.Join(r.lines(), "\n")
		if now == last {
			quiet++
		} else {
			last, quiet = now, 0
		}
	}
}

// truth holds what mk says of the containers against the processes that there are.
func (r *race) truth() {
	r.settle()
	inits := func() (n int) {
		for _, p := range r.descendants() {
			if p.line == "sleep 7100" && !p.zombie {
				n++
			}
		}
		return n
	}
	running := func() []string {
		out, err := r.mk("ps", "-q")
		if err != nil {
			r.errorf("ps: %v\n%s", err, out)
		}
		return strings.Fields(out)
	}
	// A restart policy may be between two runs.
	if !eventually(func() bool { return len(running()) == inits() }) {
		out, _ := r.mk("ps", "-a")
		r.errorf("mk ps lists %d as running, of %d\n%s\n%s", len(running()), inits(), out, strings.Join(r.lines(), "\n"))
	}
	for _, id := range running() {
		if out, err := r.mk("exec", id, "true"); err != nil {
			r.errorf("exec in a running container: %v\n%s", err, out)
		}
		out, err := r.mk("inspect", "-f", "{{.State.Pid}}", id)
		pid, _ := strconv.Atoi(strings.TrimSpace(out))
		if err != nil || !slices.ContainsFunc(r.descendants(), func(p descendant) bool { return p.pid == pid }) {
			r.errorf("inspect says pid %s: %v", out, err)
		}
		out, err = r.mk("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", id)
		have, eerr := r.mk("exec", id, "ip", "-o", "-4", "addr")
		for _, addr := range strings.Fields(out) {
			if !strings.Contains(have, " "+addr+"/") {
				r.errorf("inspect says address %s: %v\nip addr: %v\n%s", addr, err, eerr, have)
			}
		}
	}
	out, err := r.mk("ps", "-aq", "--filter", "status=exited")
	if err != nil {
		r.errorf("ps: %v\n%s", err, out)
	}
	for _, id := range strings.Fields(out) { // whatever was killed, it can be had again
		if out, err := r.mk("start", id); err != nil {
			r.errorf("start of what ended: %v\n%s", err, out)
		}
	}
}

// clean removes everything and looks at what is left.
func (r *race) clean() {
	out, _ := r.mk("ps", "-aq")
	if ids := strings.Fields(out); len(ids) > 0 {
		if out, err := r.mk(append([]string{"rm", "-f"}, ids...)...); err != nil {
			r.errorf("rm -f: %v\n%s", err, out)
		}
	}
	if !eventually(func() bool { return len(r.lines()) == 0 }) {
		r.errorf("processes are left:\n%s", strings.Join(r.lines(), "\n"))
	}
	for _, args := range [][]string{{"network", "rm", "racenet", "racenet2"}, {"prune"}, {"volume", "prune", "-af"}, {"check"}} {
		if out, err := r.mk(args...); err != nil {
			r.errorf("mk %s: %v\n%s", args[0], err, out)
		}
	}
	if out, _ := r.mk("ps", "-aq"); out != "" {
		r.errorf("containers are left:\n%s", out)
	}
	if mounts := mountsUnder(r.dir, "self"); len(mounts) > 0 {
		r.errorf("mounts are left:\n%s", strings.Join(mounts, "\n"))
	}
	for _, place := range []string{"mk/containers", "mk/volumes", "mk/networks", "run"} {
		filepath.WalkDir(filepath.Join(r.dir, place), func(path string, d os.DirEntry, err error) error {
			rest, _ := filepath.Rel(r.dir, path)
			if err == nil && !slices.Contains(allowedLeft, rest) {
				r.errorf("is left: %s", rest)
			}
			return nil
		})
	}
}

// allowedLeft are what stays of a store without containers.
var allowedLeft = []string{"mk/containers", "mk/containers/lock", "mk/containers/names", "mk/containers/events", "mk/volumes", "mk/volumes/lock", "mk/networks", "run", "run/mk"}
