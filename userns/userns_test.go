package userns

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays all parts. With scenarioEnv set it is a host that calls Enter, and as
// mk:inside it runs the scenario of that name.
const (
	scenarioEnv = "MK_USERNS_TEST"
	modeEnv     = "MK_USERNS_TEST_MODE"
	nnpEnv      = "MK_USERNS_TEST_NNP"
)

var scenarios = map[string]func(in *Inside) int{
	"enter": func(*Inside) int { return 0 },
	"facts": func(in *Inside) int {
		status, _ := os.ReadFile("/proc/self/status")
		uidMap, _ := os.ReadFile("/proc/self/uid_map")
		comm, _ := os.ReadFile("/proc/self/comm")
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		json.NewEncoder(os.Stdout).Encode(map[string]string{
			"mode": string(in.Choice.Mode), "uid": strconv.Itoa(os.Getuid()),
			"status": string(status), "uid_map": string(uidMap), "comm": string(comm),
			"shared": strconv.FormatBool(strings.Contains(string(mounts), "shared:")),
		})
		return 0
	},
	"files": func(in *Inside) int {
		fmt.Fprint(in.Files[0], "hello from inside")
		return 0
	},
	"exit7": func(*Inside) int { return 7 },
	"kill9": func(*Inside) int { unix.Kill(os.Getpid(), unix.SIGKILL); select {} },
	"term": func(*Inside) int { // dies by the signal that the host passes on
		fmt.Println("ready")
		time.Sleep(20 * time.Second)
		return 1
	},
	"lifeline": func(in *Inside) int {
		ctx, stop := in.Context(context.Background())
		defer stop()
		fmt.Println(os.Getpid())
		<-ctx.Done()
		fmt.Println(context.Cause(ctx))
		return 0
	},
	"orphan": func(*Inside) int { // leaves a child in a mount namespace of its own, and is killed
		cmd := exec.Command("/bin/sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(cmd.Process.Pid)
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	},
	"nested": func(in *Inside) int { // user namespaces are used up, for those inside
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			fmt.Println("skip:", err)
			return 0
		}
		choice, err := Choose("single")
		if err == nil {
			_, err = Enter(context.Background(), choice)
		}
		fmt.Println(err, "advice:", Advice(err))
		return 0
	},
	"survey": func(in *Inside) int {
		dir, err := os.MkdirTemp("", "survey")
		if err != nil {
			return 1
		}
		defer os.RemoveAll(dir)
		r := Survey(in, dir)
		fmt.Printf("%+v\n", r)
		return 0
	},
}

func TestMain(m *testing.M) {
	name := os.Getenv(scenarioEnv)
	for subject := range subjects {
		scenarios["emulate "+subject] = func(*Inside) int { return emulate(subject) }
	}
	switch {
	case os.Getenv(subjectEnv) != "":
		beSubject(os.Getenv(subjectEnv))
	case StageOf(os.Args[0]) == StageInside:
		in, err := Arrive()
		if err != nil {
			fmt.Fprintln(os.Stderr, "arrive:", err)
			os.Exit(125)
		}
		os.Exit(scenarios[name](in))
	case name != "":
		if os.Getenv(nnpEnv) != "" {
			if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
				panic(err)
			}
		}
		choice, err := Choose(os.Getenv(modeEnv))
		if err == nil {
			var code int
			var files []*os.File
			if name == "files" {
				files = []*os.File{os.Stdout}
			}
			if code, err = Enter(context.Background(), choice, files...); err == nil {
				os.Exit(code)
			}
		}
		fmt.Fprintln(os.Stderr, "enter:", err)
		os.Exit(125)
	}
	os.Exit(m.Run())
}

// host is a process that enters with a scenario.
func host(t testing.TB, scenario string, mode Mode) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), scenarioEnv+"="+scenario, modeEnv+"="+string(mode))
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// modes are those that this machine and this user allow; the others are skipped with the reason.
func modes(t *testing.T, f func(t *testing.T, mode Mode)) {
	for _, mode := range []Mode{Root, Subid, Single} {
		t.Run(string(mode), func(t *testing.T) {
			need(t, mode)
			f(t, mode)
		})
	}
}

func need(t testing.TB, mode Mode) {
	t.Helper()
	if _, err := Choose(string(mode)); err != nil {
		t.Skip(err)
	}
	cmd := host(t, "enter", mode)
	if err := cmd.Run(); err != nil {
		t.Skipf("%v: %v", err, cmd.Stderr)
	}
}

func TestInsideIsRootWithoutAmbientCapabilities(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		out, err := host(t, "facts", mode).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		for k, want := range map[string]string{"mode": string(mode), "uid": "0", "comm": "mk:inside\n", "shared": "false"} {
			if got[k] != want {
				t.Errorf("%s = %q, want %q", k, got[k], want)
			}
		}
		for _, want := range []string{"CapAmb:\t0000000000000000\n", "CapInh:\t0000000000000000\n"} {
			if !strings.Contains(got["status"], want) {
				t.Errorf("status lacks %q:\n%s", want, got["status"])
			}
		}
		if strings.Contains(got["status"], "CapEff:\t0000000000000000") {
			t.Errorf("no capabilities left:\n%s", got["status"])
		}
		if lines := strings.Count(got["uid_map"], "\n"); (mode == Single) != (lines == 1) && mode != Root {
			t.Errorf("uid_map in mode %s:\n%s", mode, got["uid_map"])
		}
	})
}

func TestFilesAndExitCodesComeThrough(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		if out, err := host(t, "files", mode).Output(); err != nil || string(out) != "hello from inside" {
			t.Errorf("files: %q, %v", out, err)
		}
		for scenario, want := range map[string]int{"exit7": 7, "kill9": 137} {
			var ee *exec.ExitError
			if err := host(t, scenario, mode).Run(); !errors.As(err, &ee) || ee.ExitCode() != want {
				t.Errorf("%s: %v, want exit status %d", scenario, err, want)
			}
		}
	})
}

// started runs a scenario until its first line of output.
func started(t *testing.T, scenario string, mode Mode) (*exec.Cmd, string, *bufio.Reader) {
	t.Helper()
	cmd := host(t, scenario, mode)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(pipe)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %v", err, cmd.Stderr)
	}
	return cmd, strings.TrimSpace(line), r
}

func TestSignalsArePassedOn(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		cmd, _, _ := started(t, "term", mode)
		cmd.Process.Signal(unix.SIGTERM)
		var ee *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &ee) || ee.ExitCode() != 128+int(unix.SIGTERM) {
			t.Errorf("after SIGTERM: %v", err)
		}
	})
}

func TestHostKilledEndsTheContextInside(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		cmd, _, out := started(t, "lifeline", mode)
		cmd.Process.Kill()
		line, err := out.ReadString('\n')
		if err != nil || strings.TrimSpace(line) != ErrHostGone.Error() {
			t.Errorf("inside said %q, %v", line, err)
		}
		cmd.Wait()
	})
}

func TestInsideKilledLeavesNothing(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		cmd, line, _ := started(t, "orphan", mode)
		cmd.Wait()
		pid, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(line)
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("child %d is still there: %v", pid, err)
		}
	})
}

func TestNamespacesUsedUp(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		out, err := host(t, "nested", mode).Output()
		if strings.HasPrefix(string(out), "skip:") {
			t.Skipf("%s", out)
		}
		if err != nil || !strings.Contains(string(out), "no space left on device advice: user namespaces are switched off") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// As in a Kubernetes pod with allowPrivilegeEscalation: false.
func TestNoNewPrivsMeansSingle(t *testing.T) {
	need(t, Single)
	if os.Getuid() == 0 {
		t.Skip("root needs no newuidmap")
	}
	cmd := host(t, "facts", "")
	cmd.Env = append(cmd.Env, nnpEnv+"=1")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), `"mode":"single"`) {
		t.Errorf("%v: %s", err, out)
	}
	cmd = host(t, "facts", Subid)
	cmd.Env = append(cmd.Env, nnpEnv+"=1")
	if err := cmd.Run(); err == nil {
		t.Errorf("mode subid under no_new_privs")
	}
}

func TestSurvey(t *testing.T) {
	modes(t, func(t *testing.T, mode Mode) {
		out, err := host(t, "survey", mode).Output()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", out)
	})
}

func TestRefusedModeFallsToTheNext(t *testing.T) {
	need(t, Single)
	bad := Choice{Mode: Subid, Userns: true, UIDs: []Range{{0, 4000000, 1}}, GIDs: []Range{{0, 4000000, 1}}}
	single, err := Choose("single")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(scenarioEnv, "enter")
	if code, err := Enter(t.Context(), bad); err == nil {
		t.Fatalf("a map of somebody else's ID was let through: %d", code)
	} else if Advice(err) == "" {
		t.Errorf("no advice for: %v", err)
	}
	bad.next = []Choice{single}
	if code, err := Enter(t.Context(), bad); code != 0 || err != nil {
		t.Errorf("fall to single: %d, %v", code, err)
	}
}

func BenchmarkEnter(b *testing.B) {
	for _, mode := range []Mode{Root, Subid, Single} {
		b.Run(string(mode), func(b *testing.B) {
			need(b, mode)
			choice, err := Choose(string(mode))
			if err != nil {
				b.Skip(err)
			}
			b.Setenv(scenarioEnv, "enter")
			for b.Loop() {
				if code, err := Enter(b.Context(), choice); code != 0 || err != nil {
					b.Fatal(code, err)
				}
			}
		})
	}
}

func BenchmarkChoose(b *testing.B) {
	for b.Loop() {
		Choose("")
	}
}
