package main

// A terminal for scripts: tmux, which keeps a screen, and passes keys on as a person's are.

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// tmux runs one command of the script's own tmux, and returns what it printed.
func tmux(ts *testscript.TestScript, args ...string) string {
	socket := filepath.Join(theScript(ts).work, "tmux")
	out, err := exec.Command("tmux", append([]string{"-S", socket, "-f", "/dev/null"}, args...)...).CombinedOutput()
	if err != nil {
		ts.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// terminal
// opens a terminal of 80 columns and 24 lines with a shell in it, whose prompt is "host$ "; "terminal
// COLUMNS LINES" gives it another size, "terminal clear" wipes what the screen shows.
func cmdTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 2 {
		tmux(ts, "resize-window", "-t", "t", "-x", args[0], "-y", args[1])
		return
	}
	if len(args) == 1 && args[0] == "clear" {
		tmux(ts, "send-keys", "-R", "-t", "t")
		return
	}
	if _, err := exec.LookPath("tmux"); err != nil {
		theScript(ts).t.Skip(err)
	}
	socket := filepath.Join(theScript(ts).work, "tmux")
	// By the script's own means, which know its environment.
	ts.Check(ts.Exec("tmux", "-S", socket, "-f", "/dev/null", "new-session", "-d", "-s", "t", "-x", "80", "-y", "24", "PS1='host$ ' exec sh"))
	ts.Defer(func() { exec.Command("tmux", "-S", socket, "kill-server").Run() })
	awaitScreen(ts, `host\$$`, false)
}

// keys KEY...
// types: words as they are, and keys by tmux's names (Enter, C-c, Escape). As with a person, there is a
// pause before: busybox's shell asks the terminal where the cursor is (ESC [ 6 n) at every prompt, and
// takes a key that comes within 50 ms of the answer for a part of it, and drops it.
func cmdKeys(ts *testscript.TestScript, neg bool, args []string) {
	time.Sleep(80 * time.Millisecond)
	tmux(ts, append([]string{"send-keys", "-t", "t"}, args...)...)
}

// screen PATTERN
// waits until the screen, without the blanks at its end, matches; "! screen" until it does not.
func cmdScreen(ts *testscript.TestScript, neg bool, args []string) {
	awaitScreen(ts, strings.Join(args, " "), neg)
}

func awaitScreen(ts *testscript.TestScript, pattern string, neg bool) {
	re, err := regexp.Compile(`(?m)` + pattern)
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		screen := strings.TrimRight(tmux(ts, "capture-pane", "-p", "-t", "t"), "\n")
		if re.MatchString(screen) != neg {
			ts.Logf("%s", fmt.Sprintf("screen:\n%s", screen))
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the screen does not come to %q:\n%s", pattern, screen)
		}
	}
}
