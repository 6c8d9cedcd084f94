package container

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mk/userns"
)

// Furnish mounts into a container's root, detached as Start takes it, what a run of it would have
// there of the outside: of mounts those of type Bind and Attach. It is for who looks at the files of a
// container that is not running. All of it is in the mount namespace of this process, over the
// directory at, and gone with it; strip takes it away before, with the mount points that were missing.
// root stays the caller's.
func Furnish(root *os.File, mounts []Mount, at string) (strip func() error, err error) {
	var outer []Mount
	for _, m := range mounts {
		if m.Type == Bind || m.Type == Attach {
			outer = append(outer, m)
		}
	}
	sources, err := openSources(outer)
	if err != nil {
		return nil, err
	}
	defer closeAll(sources)
	stubs, err := makeStubs(root, outer, func(i int) bool { return mountsDirectory(&outer[i], sources[i]) })
	if err != nil {
		return nil, err
	}
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, errors.Join(userns.Explain(userns.OpMount, "the root", err), stubs.remove())
	}
	strip = func() error {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the container's root: %w", err)
		}
		return stubs.remove()
	}
	for i := range outer {
		source := int(sources[i].Fd())
		err := restrict(source, &outer[i])
		if err == nil {
			err = place(int(root.Fd()), outer[i].Dest, source)
		}
		if err != nil {
			return nil, errors.Join(userns.Explain(userns.OpMount, outer[i].Dest, err), strip())
		}
	}
	return strip, nil
}
