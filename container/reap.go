package container

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// reap starts the command as a child of an exec'd init, and is then what a pid 1 must be: it passes
// signals on to the command, buries every orphan, and ends as the command ended; with it end all
// that are left. It returns only when the command could not be started.
//
// One thread alone becomes what the command is to be, and forks; the others keep all
// capabilities, so that signals reach a command that changed its user, and nothing in the
// container may trace pid 1. cgroups is a descriptor of the cgroup namespace, which only the first
// thread has; or -1.
func reap(spec *Spec, path string, setgroupsDenied bool, cgroups int) error {
	// Not even its environment and descriptors can be read (/proc/1).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	end := func(status int) { os.Exit(status) }
	if !spec.Namespaces.ownPID() {
		var err error
		if end, err = endOthers(); err != nil {
			return err
		}
	}
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs)

	// Where no namespace ends the command with its init, this does.
	deathsig := syscall.Signal(0)
	if !spec.Namespaces.ownPID() {
		deathsig = unix.SIGKILL
	}
	var child int
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is good for nothing else
		var err error
		if cgroups >= 0 {
			err = unix.Setns(cgroups, unix.CLONE_NEWCGROUP)
		}
		if err == nil {
			err = become(spec, setgroupsDenied)
		}
		if err == nil {
			child, err = syscall.ForkExec(path, spec.Args, &syscall.ProcAttr{
				Env:   spec.Env,
				Files: []uintptr{0, 1, 2},
				Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: spec.Terminal != nil, Ctty: 0, Pdeathsig: deathsig},
			})
			if err != nil {
				err = execError(spec, path, err)
			}
		}
		started <- err
		select {} // the command's parent is this thread
	}()
	if err := <-started; err != nil {
		return err
	}
	unix.Close(controlFD)

	for sig := range sigs {
		switch sig := sig.(syscall.Signal); sig {
		case unix.SIGCHLD:
			if status, ended := bury(child); ended {
				if status.Signaled() {
					end(128 + int(status.Signal()))
				}
				end(status.ExitStatus())
			}
		case unix.SIGURG: // the Go scheduler's
		case holderGone:
			if !spec.Namespaces.ownPID() {
				end(128 + int(unix.SIGKILL))
			}
			unix.Kill(child, sig)
		default:
			unix.Kill(child, sig)
		}
	}
	return nil
}

// endOthers is the end of an init that has no pid namespace to itself: with that of all others.
func endOthers() (end func(status int), err error) {
	proc, err := os.Open("/proc") // now, while no process of the container can have touched it
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(proc, "self")
	if err != nil {
		return nil, fmt.Errorf("look at the container's own /proc: %w", err)
	}
	return func(status int) {
		theirs := inMounts(proc, mounts)
		sweep(proc, func(pid string) bool { return theirs(pid) || parentOf(proc, pid) == os.Getpid() }, func() { bury(0) })
		os.Exit(status)
	}, nil
}

// bury waits for all that have ended, and reports how child did when it is among them.
func bury(child int) (status syscall.WaitStatus, ended bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return status, ended
		}
		if pid == child && (ws.Exited() || ws.Signaled()) {
			status, ended = ws, true
		}
	}
}
