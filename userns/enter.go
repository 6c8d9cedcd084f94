package userns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lifelineFD is where stage inside finds the pipe that carries the Choice, and then nothing until
// the host is gone. The files of Enter follow it.
const lifelineFD = 3

// hello is the one message on the lifeline. It is sent when the maps are in force.
type hello struct {
	Choice Choice
	Files  int // how many descriptors behind lifelineFD are Enter's
}

// send writes it, as numbers and words: JSON takes each of two programs that have just begun half a
// millisecond to prepare for.
func (h *hello) send(w io.Writer) error {
	text := fmt.Sprintf("%q %q %t %d", h.Choice.Mode, h.Choice.Reason, h.Choice.Userns, h.Files)
	for _, ranges := range [][]Range{h.Choice.UIDs, h.Choice.GIDs} {
		text += fmt.Sprintf(" %d", len(ranges))
		for _, r := range ranges {
			text += fmt.Sprintf(" %d %d %d", r.Inside, r.Outside, r.Length)
		}
	}
	_, err := io.WriteString(w, text+"\n")
	return err
}

func receiveHello(r io.Reader) (*hello, error) {
	h, in := new(hello), bufio.NewReader(r)
	if _, err := fmt.Fscanf(in, "%q %q %t %d", &h.Choice.Mode, &h.Choice.Reason, &h.Choice.Userns, &h.Files); err != nil {
		return nil, err
	}
	for _, ranges := range []*[]Range{&h.Choice.UIDs, &h.Choice.GIDs} {
		var n int
		if _, err := fmt.Fscan(in, &n); err != nil {
			return nil, err
		}
		for range n {
			var r Range
			if _, err := fmt.Fscan(in, &r.Inside, &r.Outside, &r.Length); err != nil {
				return nil, err
			}
			*ranges = append(*ranges, r)
		}
	}
	return h, nil
}

// leaveGrace is how long stage inside may clean up after its lifeline was cut.
const leaveGrace = 10 * time.Second

// Enter clones this binary, with the same arguments, as stage inside, and waits for it. It
// shares stdin, stdout and stderr with this process; files, which stay the caller's, appear there as
// Inside.Files. Signals that reach this process are passed on. The end of ctx, or of this
// process in any way, cuts the lifeline: the context of Inside.Context ends.
//
// The result is the exit code of the command, 128+n when signal n ended it. The error is about
// the entry only, and then the code is 125. Refusals of the kernel carry Advice.
func Enter(ctx context.Context, choice Choice, files ...*os.File) (exitCode int, err error) {
	// What a killed inside leaves behind comes to us and not to the init of the machine.
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

	sigs, stop := catch()
	defer stop()

	child, lifeline, err := admitAny(choice, os.Args[1:], files)
	if err != nil {
		return 125, err
	}
	defer lifeline.Close()

	type ended struct {
		state *os.ProcessState
		err   error
	}
	wait := make(chan ended, 1)
	go func() {
		state, err := child.Wait()
		wait <- ended{state, err}
	}()
	for done := ctx.Done(); ; {
		select {
		case sig := <-sigs:
			if !fromTerminal(sig) {
				child.Signal(sig)
			}
		case <-done:
			done = nil
			lifeline.Close()
			defer time.AfterFunc(leaveGrace, func() { child.Kill() }).Stop()
		case e := <-wait:
			if e.err != nil {
				return 125, fmt.Errorf("wait for stage inside: %w", e.err)
			}
			status := e.state.Sys().(syscall.WaitStatus)
			if status.Signaled() {
				killOrphans()
				return 128 + int(status.Signal()), nil
			}
			return status.ExitStatus(), nil
		}
	}
}

// admitAny is admit by the first of a choice's modes that the machine allows.
func admitAny(choice Choice, args []string, files []*os.File) (child *os.Process, lifeline *os.File, err error) {
	child, lifeline, err = admit(choice, args, files)
	for _, c := range choice.next {
		if err == nil {
			break
		}
		c.Reason = err.Error()
		child, lifeline, err = admit(c, args, files)
	}
	return child, lifeline, err
}

// admit starts one child in new namespaces and gives it its maps. On error there is no child: it
// has not run a line of the command.
//
// The child is exec'd at once, while no ID is mapped yet. An execve by an unmapped uid drops all
// capabilities but the ambient ones, so all of them are made ambient; the Go runtime of the child
// starts up while newuidmap works, and one clone and one exec are enough.
func admit(choice Choice, args []string, files []*os.File) (_ *os.Process, lifeline *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	sys := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if choice.Userns {
		sys.Cloneflags |= unix.CLONE_NEWUSER
		sys.AmbientCaps = everyCapability()
	}
	child, err := os.StartProcess("/proc/self/exe", append([]string{InsideName}, args...), &os.ProcAttr{
		Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr, r}, files...),
		Sys:   sys,
	})
	if err != nil {
		w.Close()
		return nil, nil, Explain(OpClone, "", err)
	}
	if choice.Userns {
		err = writeMaps(child.Pid, choice)
	}
	if err == nil {
		err = (&hello{choice, len(files)}).send(w)
	}
	if err != nil {
		w.Close()
		child.Kill()
		child.Wait()
		return nil, nil, err
	}
	return child, w, nil
}

// writeMaps fills the maps of pid's user namespace.
func writeMaps(pid int, choice Choice) error {
	if choice.Mode == Subid {
		gids := make(chan error, 1)
		go func() { gids <- runHelper("newgidmap", pid, choice.GIDs) }()
		return errors.Join(runHelper("newuidmap", pid, choice.UIDs), <-gids)
	}
	proc := "/proc/" + strconv.Itoa(pid)
	if choice.Mode == Single {
		// Who may not change IDs may not drop groups either: a group can also take rights away.
		if err := writeFile(proc+"/setgroups", "deny"); err != nil {
			return Explain(OpMap, "setgroups", err)
		}
	}
	if err := writeFile(proc+"/gid_map", formatMap(choice.GIDs)); err != nil {
		return Explain(OpMap, "gid_map", err)
	}
	if err := writeFile(proc+"/uid_map", formatMap(choice.UIDs)); err != nil {
		return Explain(OpMap, "uid_map", err)
	}
	return nil
}

// writeFile writes text in one write(2), as the files of /proc want it, and creates nothing.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// runHelper runs newuidmap or newgidmap.
func runHelper(name string, pid int, ranges []Range) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		for _, n := range []uint32{r.Inside, r.Outside, r.Length} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(said.String()); text != "" {
			err = errors.New(strings.TrimPrefix(text, name+": "))
		}
		return Explain(OpHelper, name, err)
	}
	return nil
}

// everyCapability lists the capabilities that this kernel knows; raising one more is an EINVAL.
func everyCapability() []uintptr {
	var caps []uintptr
	for c := uintptr(0); c < 64; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break
		}
		caps = append(caps, c)
	}
	return caps
}

// killOrphans ends what a killed inside left running. Containers end with their parent by
// themselves (PR_SET_PDEATHSIG) unless they went out of their way to forget it; this is for those.
// Children in our own mount namespace are none of inside's.
func killOrphans() {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return
	}
	for again := true; again; {
		again = false
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, t := range tasks {
			text, _ := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
			for _, f := range strings.Fields(string(text)) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					continue
				}
				if ns, err := os.Readlink("/proc/" + f + "/ns/mnt"); err != nil || ns == ours {
					continue
				}
				unix.Kill(pid, unix.SIGKILL)
				if _, err := unix.Wait4(pid, nil, 0, nil); err == nil {
					again = true // it may have had children of its own, which are ours now
				}
			}
		}
	}
}
