package container

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// maxAccounts limits /etc/passwd and /etc/group, in bytes; those of a large directory service
// have a few MB.
const maxAccounts = 16 << 20

// LookupUser resolves what USER and --user say, "user", "uid", "user:group" and every mix, or ""
// for root, by the root's own /etc/passwd and /etc/group and by docker's rules: a group given is
// the only one; without, there are the user's own and all that /etc/group lists it in; a number
// that passwd does not know has group 0; a name that it does not know is an error. home is "/"
// where passwd does not say.
func LookupUser(root *os.File, spec string) (_ User, home string, err error) {
	passwd, err := readAccounts(root, "etc/passwd")
	if err != nil {
		return User{}, "", err
	}
	group, err := readAccounts(root, "etc/group")
	if err != nil {
		return User{}, "", err
	}
	got, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return User{}, "", fmt.Errorf("look up user %q: %w", spec, err)
	}
	u := User{UID: uint32(got.Uid), GID: uint32(got.Gid), Groups: []uint32{uint32(got.Gid)}}
	if _, group, _ := strings.Cut(spec, ":"); group == "" {
		for _, g := range got.Sgids {
			if uint32(g) != u.GID {
				u.Groups = append(u.Groups, uint32(g))
			}
		}
	}
	if got.Home == "" {
		got.Home = "/"
	}
	return u, got.Home, nil
}

// LookupIDs resolves the value of --chown, "user[:group]", where a missing group is the user's
// own only by name: for a number it is the same number.
func LookupIDs(root *os.File, spec string) (uid, gid uint32, err error) {
	if n, err := strconv.ParseUint(spec, 10, 32); err == nil { // nothing of the image's to ask
		return uint32(n), uint32(n), nil
	}
	u, _, err := LookupUser(root, spec)
	return u.UID, u.GID, err
}

// readAccounts reads a file of accounts that the image's author wrote. It may be a symlink out of
// the root, a FIFO, a device or endless (CVE-2024-9676). None is nil.
func readAccounts(root *os.File, path string) ([]byte, error) {
	fd, err := openIn(int(root.Fd()), path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the image's /%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("the image's /%s: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("the image's /%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return nil, fmt.Errorf("read the image's /%s: %w", path, err)
	}
	if len(data) > maxAccounts {
		return nil, fmt.Errorf("the image's /%s is larger than %d MiB", path, maxAccounts>>20)
	}
	return data, nil
}

// openIn opens path as a process with this root would, magic links excepted.
func openIn(root int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(root, path, &how)
		if err == unix.EAGAIN || err == unix.EINTR { // something was renamed on the way
			continue
		}
		return fd, err
	}
}
