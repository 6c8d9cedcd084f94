package snapshot

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxLayers is OVL_MAX_STACK of the kernel: the mount of a longer stack is
// refused with a bare EINVAL.
const maxLayers = 500

// stack is what an overlay is made of: a snapshot with its ancestors, and above
// them, to be written to, a directory. Either may be missing.
type stack struct {
	store *Store
	lower *Snapshot
	upper string // "" for a read-only mount
	work  string // an empty directory beside upper, used by one mount only

	bottom string // below everything; "" for none
}

// dirs lists the lower directories, topmost first. The kernel wants one, and
// two without an upper: the store's empty directory fills the places.
func (k stack) dirs() []string {
	var dirs []string
	for s := k.lower; s != nil; s = s.parent {
		dirs = append(dirs, s.tree())
	}
	if k.bottom != "" {
		dirs = append(dirs, k.bottom)
	}
	if len(dirs) == 0 || (k.upper == "" && len(dirs) == 1) {
		dirs = append(dirs, k.store.path("empty"))
	}
	return dirs
}

// overlayFlags are what every mount of ours has. userxattr: overlay's own marks
// are user.overlay.*, the only ones a user namespace may write. An index or a
// redirect would put meaning into the upper directory that a layer cannot hold.
var overlayOptions = [][2]string{{"index", "off"}, {"xino", "off"}}

// mountStack returns a detached overlay mount of k. The new mount API is tried
// first, since it has no limit on the length of the options and leaves nothing
// to unmount; "lowerdir+" came with Linux 6.8.
func mountStack(k stack) (*os.File, error) {
	if n := len(k.dirs()); n > maxLayers {
		return nil, fmt.Errorf("mount overlay: %d layers, and the kernel takes %d", n, maxLayers)
	}
	err := errNoLayerOption
	var f *os.File
	if !noLayerOption.Load() {
		f, err = mountByContext(k)
	}
	if errors.Is(err, errNoLayerOption) {
		noLayerOption.Store(true)
		f, err = mountByOptions(k)
	}
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	return f, nil
}

// errNoLayerOption: this kernel's overlay has no "lowerdir+", or no fsopen.
var errNoLayerOption = errors.New("no lowerdir+")

// noLayerOption remembers that: an old kernel puts every attempt into its log.
var noLayerOption atomic.Bool

// mountByContext builds the mount with fsopen, fsconfig and fsmount.
//
// Strings of fsconfig end at 256 bytes and a store may be deeper than that, so
// layers are named by descriptors, /proc/self/fd/N.
func mountByContext(k stack) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == unix.ENOSYS {
		return nil, errNoLayerOption
	} else if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	ctx := os.NewFile(uintptr(fd), "fsopen:overlay")
	defer ctx.Close()

	var open []*os.File
	defer func() { closeAll(open) }()
	set := func(key, dir string) error {
		f, err := openDir(dir)
		if err != nil {
			return err
		}
		open = append(open, f)
		if err := unix.FsconfigSetString(fd, key, procPath(f)); err != nil {
			return fmt.Errorf("%s=%s: %w", key, dir, contextError(ctx, err))
		}
		return nil
	}
	for i, dir := range k.dirs() {
		if err := set("lowerdir+", dir); i == 0 && errors.Is(err, unix.EINVAL) {
			return nil, errNoLayerOption
		} else if err != nil {
			return nil, err
		}
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if k.upper != "" {
		attr = 0
		if err := set("upperdir", k.upper); err != nil {
			return nil, err
		}
		if err := set("workdir", k.work); err != nil {
			return nil, err
		}
		if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
			return nil, fmt.Errorf("volatile: %w", contextError(ctx, err))
		}
	}
	if err := unix.FsconfigSetFlag(fd, "userxattr"); err != nil {
		return nil, fmt.Errorf("userxattr: %w", contextError(ctx, err))
	}
	for _, o := range overlayOptions {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("%s=%s: %w", o[0], o[1], contextError(ctx, err))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		said := contextError(ctx, err)
		if said == error(unix.EINVAL) {
			// Before Linux 6.5 overlay had no such context of its own: the kernel takes all options
			// from us, whatever they are, and refuses them here, without a word.
			return nil, errNoLayerOption
		}
		return nil, said
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", contextError(ctx, err))
	}
	return os.NewFile(uintptr(mfd), "overlay"), nil
}

// contextError adds to err what the kernel wrote into the context's log: lines
// like "e overlay: workdir and upperdir must be separate subtrees".
func contextError(ctx *os.File, err error) error {
	var said []string
	b := make([]byte, 1024)
	for range 16 {
		n, rerr := unix.Read(int(ctx.Fd()), b)
		if rerr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(strings.TrimPrefix(string(b[:n]), "e ")))
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
}

// mountByOptions does the same with mount(2), whose options must fit in a page.
//
// It runs on a thread of its own that is never given back: the thread takes a
// private mount namespace, where nobody can see the scratch mount, and which
// ends with it, and a working directory of its own, /proc/self/fd, where each
// layer is a number of a few digits.
func mountByOptions(k stack) (f *os.File, err error) {
	onOwnThread(func() { f, err = mountInOwnNamespace(k) })
	return f, err
}

// onOwnThread calls f on a thread that ends afterwards, whatever f did to it.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// All but the first one, which Go keeps for ever. It is ours until
			// another has done the work.
			onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

func mountInOwnNamespace(k stack) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // implies CLONE_FS
		return nil, fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	// Opened only now: overlay refuses directories of another mount namespace.
	var open []*os.File
	defer func() { closeAll(open) }()
	number := func(dir string) (string, error) {
		f, err := openDir(dir)
		if err != nil {
			return "", err
		}
		open = append(open, f)
		return strconv.Itoa(int(f.Fd())), nil
	}
	var lower []string
	for _, dir := range k.dirs() {
		n, err := number(dir)
		if err != nil {
			return nil, err
		}
		lower = append(lower, n)
	}
	options := "userxattr,lowerdir=" + strings.Join(lower, ":")
	for _, o := range overlayOptions {
		options += "," + o[0] + "=" + o[1]
	}
	var flags uintptr = unix.MS_RDONLY
	if k.upper != "" {
		flags = 0
		upper, err := number(k.upper)
		if err != nil {
			return nil, err
		}
		work, err := number(k.work)
		if err != nil {
			return nil, err
		}
		options += ",volatile,upperdir=" + upper + ",workdir=" + work
	}
	if len(options) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d layers: %w", len(lower), unix.E2BIG)
	}
	scratch := k.store.path("empty")
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return nil, fmt.Errorf("chdir to /proc/self/fd: %w", err)
	}
	if err := unix.Mount("overlay", scratch, "overlay", flags, options); err != nil {
		return nil, fmt.Errorf("%s: %w", options, err)
	}
	defer unix.Unmount(scratch, unix.MNT_DETACH)
	fd, err := unix.OpenTree(unix.AT_FDCWD, scratch, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// openDir opens a directory of the store to name it by its descriptor.
func openDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// procPath is a path to what f has open.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
