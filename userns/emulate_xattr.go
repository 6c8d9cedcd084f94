package userns

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// KeeperAttrs is the beginning of the names of attributes in which a Keeper may keep owners. To a
// container they do not exist.
const KeeperAttrs = "user.mk."

// changeAttr answers the calls that set and remove attributes: the kernel does it, but for ours.
func (t *tracer) changeAttr(nameAddr uint64) reply {
	name, e := t.readString(nameAddr, 256)
	if e == 0 && bytes.HasPrefix(name, []byte(KeeperAttrs)) {
		return failed(unix.EPERM)
	}
	return native
}

// listAttrs answers the calls that list attributes, where ours would be among them.
func (t *tracer) listAttrs(dirfd int32, addr, buf, size uint64, flags int) reply {
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 || t.unknown(path, link) {
		return native
	}
	fd, e := openPath(path, link)
	if e != 0 {
		return native
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Dev != t.dev {
		return native
	}
	all := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(byFD(fd), all)
	if err != nil {
		return native
	}
	var list []byte
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFREG || kind == unix.S_IFDIR {
		for name := range bytes.SplitAfterSeq(all[:n], []byte{0}) {
			if !bytes.HasPrefix(name, []byte(KeeperAttrs)) {
				list = append(list, name...)
			}
		}
	}
	switch {
	case size == 0 || len(list) == 0:
	case size < uint64(len(list)):
		return failed(unix.ERANGE)
	default:
		if e := t.write(buf, list); e != 0 {
			return failed(e)
		}
	}
	return value(int64(len(list)))
}
