package builder

import (
	"bytes"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// wantXattr tells which extended attributes are part of a file: those of users
// and file capabilities, and access control lists except of the caller's own
// files, whose names mean nothing elsewhere. What overlayfs, SELinux, IMA or
// snapshot keep there belongs to the machine.
func wantXattr(name string, local bool) bool {
	switch {
	case name == "security.capability":
		return true
	case name == "system.posix_acl_access", name == "system.posix_acl_default":
		return !local
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && !strings.HasPrefix(name, "user.mk.")
}

// readXattrs reads the attributes of an open file, sorted by name.
func readXattrs(fd int, local bool) ([]fileXattr, error) {
	var small [512]byte
	list := small[:]
	n, err := unix.Flistxattr(fd, list)
	for err == unix.ERANGE {
		list = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, list)
	}
	if err == unix.EOPNOTSUPP || err == unix.EBADF || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []fileXattr
	for _, raw := range bytes.Split(list[:n], []byte{0}) {
		name := string(raw)
		if name == "" || !wantXattr(name, local) {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(fd, name, value)
		switch err {
		case nil:
		case unix.ENODATA: // removed since it was listed
			continue
		case unix.EOVERFLOW:
			// A file capability that another user namespace gave: it is
			// nothing in this one, and nothing that this one could give.
			continue
		default:
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, fileXattr{name, string(value[:n])})
	}
	sortXattrs(out)
	return out, nil
}

// sortXattrs sorts by name what is mostly nothing or one. slices.SortFunc, in three places, was 10 KB of mk.
func sortXattrs(list []fileXattr) {
	if len(list) > 1 {
		sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	}
}

func xattrMap(list []fileXattr) map[string]string {
	if len(list) == 0 {
		return nil
	}
	m := make(map[string]string, len(list))
	for _, x := range list {
		m[x.name] = x.value
	}
	return m
}

// mergeXattrs adds attributes to a list; they win over those that it has.
func mergeXattrs(list []fileXattr, more map[string]string) []fileXattr {
	if len(more) == 0 {
		return list
	}
	m := xattrMap(list)
	if m == nil {
		m = make(map[string]string)
	}
	for name, value := range more {
		m[name] = value
	}
	out := make([]fileXattr, 0, len(m))
	for name, value := range m {
		out = append(out, fileXattr{name, value})
	}
	sortXattrs(out)
	return out
}
