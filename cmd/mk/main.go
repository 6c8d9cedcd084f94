// Command mk builds container images from a recipe and runs them, without root
// and without a daemon.
//
// One binary plays three parts, told apart by argv[0] and by nothing else:
//
//	mk           the user's process: flags, plan, look-ups, waiting
//	mk:inside    the same command in its own user and mount namespaces
//	mk:init      the beginning of a command in a container where others already are
//
// A command runs whole in one of the first two. Which one is said where the
// command is made: its RunE is either a plain function or wrapped by inside.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/container"
	"mk/userns"
)

func main() {
	stage := userns.StageOf(os.Args[0])
	if stage == userns.StageInit {
		container.Init(os.Args[1:]) // does not return
	}
	collectLater()
	switch stage {
	case userns.StageInside:
		os.Exit(inNamespaces())
	default:
		os.Exit(execute(&app{stage: userns.StageHost, life: context.Background()}))
	}
}

// collectLater keeps the garbage collector away from the first 32 MB: most commands end before
// they have used that, and planning 5,000 steps would else collect eight times, a quarter of
// its time. From the first collection on, half of what is in use may be garbage, unless somebody has
// decided otherwise: with as much as is in use, as usual, a context of 200,000 files takes 120 MB and
// not 95, and is no faster. Init has no part in it: it counts in the container's memory limit.
func collectLater() {
	const late = 800 // per cent of 4 MB, Go's smallest heap
	usual := debug.SetGCPercent(late)
	if os.Getenv("GOGC") == "" {
		usual = 50
	}
	runtime.SetFinalizer(new([16]byte), func(*[16]byte) {
		if now := debug.SetGCPercent(usual); now != late {
			debug.SetGCPercent(now)
		}
	})
}

// inNamespaces is main in the stage inside: the same command line again, now
// with root's powers over what is the user's.
func inNamespaces() int {
	in, err := userns.Arrive()
	if err != nil {
		return fail(err)
	}
	life, stop := in.Context(context.Background()) // ends with the process outside
	defer stop()
	return execute(&app{stage: userns.StageInside, life: life, in: in})
}

// execute runs the command line and gives mk's exit status.
func execute(a *app) int {
	ctx, stop := signal.NotifyContext(a.life, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	stdin.life = ctx
	word := ""
	if len(os.Args) > 1 {
		word = os.Args[1]
	}
	root := newRoot(a, word)
	root.SetOut(&stdout) // of --help and of completions
	status, err := 0, root.ExecuteContext(ctx)
	lost := stdout.lost()
	if err != nil && (lost == nil || !errors.Is(err, lost)) {
		status = fail(err)
	}
	if lost != nil {
		status = cmp.Or(status, fail(lost))
	}
	return status
}

// Exit statuses of mk itself; a container's own status is passed on.
const (
	exitFailed     = 1   // a build failed, a check found something
	exitSelf       = 125 // mk could not do what was asked
	exitNotInvoked = 126 // the command exists and cannot be executed
	exitNotFound   = 127 // there is no such command
)

// exitError ends mk with a status and, if Err is set, its message.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

// fail reports an error as every command but build does: "mk: what: to what:
// why", and where the reason is known, a hint on a line of its own.
func fail(err error) int {
	status := exitSelf
	var exit *exitError
	if errors.As(err, &exit) {
		status = exit.status
		if exit.err == nil {
			return status
		}
	}
	if canceled(err) {
		return 130
	}
	fmt.Fprintf(os.Stderr, "mk: %v\n", err)
	if h := hint(err); h != "" {
		fmt.Fprintf(os.Stderr, "mk: hint: %s\n", h)
	}
	return status
}

func canceled(err error) bool { return errors.Is(err, context.Canceled) }

// verbs are the words after mk, with what makes each: one constructor a verb, in a file of its own.
var verbs = []struct {
	name string
	make func(*app) *cobra.Command
}{
	{"build", newBuild}, {"run", newRun},
	{"pull", newPull}, {"push", newPush}, {"images", newImages}, {"tag", newTag}, {"rmi", newRmi},
	{"inspect", newInspect}, {"history", newHistory}, {"save", newSave}, {"load", newLoad}, {"import", newImport},
	{"image", newImage}, {"manifest", newManifest}, {"login", newLogin}, {"logout", newLogout},
	{"create", newCreate}, {"start", newStart}, {"stop", newStop}, {"kill", newKill}, {"restart", newRestart},
	{"rm", newRm}, {"wait", newWait}, {"ps", newPs}, {"logs", newLogs}, {"attach", newAttach}, {"exec", newExec},
	{"rename", newRename}, {"diff", newDiff}, {"commit", newCommit}, {"export", newExport}, {"cp", newCp},
	{"top", newTop}, {"port", newPort}, {"events", newEvents}, {"container", newContainer},
	{"volume", newVolume}, {"network", newNetwork},
	{"stats", newStats}, {"update", newUpdate}, {"pause", newPause}, {"unpause", newUnpause},
	{"system", newSystem}, {"builder", newBuilder}, {"cache", newCache}, {"info", newInfo}, {"check", newCheck}, {"prune", newPrune}, {"du", newDu}, {"version", newVersion},
}

// newRoot makes the command table for a line that begins with word: when that is a verb, it alone,
// since the flags of all others would be made for nothing, in each of mk's processes, and took a
// third of the time of mk version. Help, completion and suggestions see them all.
func newRoot(a *app, word string) *cobra.Command {
	root := &cobra.Command{
		Use:           "mk",
		Short:         "Build container images from a recipe, and run them: no root, no daemon",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no command given: mk --help lists them")
			}
			err := fmt.Errorf("unknown command %q", args[0])
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				err = fmt.Errorf("%w, did you mean %s?", err, near[0])
			}
			return err
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(refuseFlag)
	for _, v := range verbs {
		if v.name == word {
			root.CompletionOptions.DisableDefaultCmd = true
			root.AddCommand(v.make(a))
			return root
		}
	}
	for _, v := range verbs {
		root.AddCommand(v.make(a))
	}
	return root
}
