package snapshot

import (
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The writing half of tar. archive/tar could do it, but a layer that exists only
// as a tree is written again by some later mk, compiled by some later Go, and
// must have the same bytes then: so the bytes are decided here. The form is
// POSIX pax: a ustar header for each item, and before it an extended header of
// records for whatever ustar cannot hold.

const (
	blockSize = 512
	// paxName is the name of every extended header; readers ignore it, and
	// Python's tarfile writes the same.
	paxName = "././@PaxHeader"

	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// Type flags of ustar.
const (
	tarFile    = '0'
	tarLink    = '1'
	tarSymlink = '2'
	tarChar    = '3'
	tarBlock   = '4'
	tarDir     = '5'
	tarFifo    = '6'
	tarPax     = 'x'
)

// header is what goes into a tar header.
type header struct {
	name     string
	mode     uint32
	uid, gid uint32
	size     int64
	mtime    unix.Timespec
	flag     byte
	link     string
	major    uint32
	minor    uint32
	attrs    []attr
}

// clamped is a time, or epoch if it is newer than that; nil: it is not.
func clamped(t unix.Timespec, epoch *time.Time) unix.Timespec {
	if epoch != nil && time.Unix(t.Unix()).After(*epoch) {
		return unix.NsecToTimespec(epoch.UnixNano())
	}
	return t
}

// tarHeader says item in tar's terms. Times newer than epoch become epoch.
func tarHeader(it *item, epoch *time.Time) header {
	h := header{name: it.path, mode: it.mode & 0o7777, uid: it.uid, gid: it.gid, mtime: clamped(it.mtime, epoch), attrs: it.attrs}
	switch it.kind {
	case gone:
		dir, name := splitPath(it.path)
		// A whiteout has no owner and no time: those of the overlay's device
		// are accidents of the machine.
		return header{name: joinPath(dir, whiteoutPrefix+name), flag: tarFile}
	case emptied:
		return header{name: it.path + "/" + opaqueName, flag: tarFile}
	}
	switch {
	case it.linkTo != "":
		h.flag, h.link, h.attrs = tarLink, it.linkTo, nil
	case it.fileType() == unix.S_IFREG:
		h.flag, h.size = tarFile, it.size
	case it.fileType() == unix.S_IFDIR:
		h.flag, h.name = tarDir, it.path+"/"
	case it.fileType() == unix.S_IFLNK:
		h.flag, h.link = tarSymlink, it.target
	case it.fileType() == unix.S_IFIFO:
		h.flag = tarFifo
	case it.fileType() == unix.S_IFCHR:
		h.flag, h.major, h.minor = tarChar, unix.Major(it.rdev), unix.Minor(it.rdev)
	case it.fileType() == unix.S_IFBLK:
		h.flag, h.major, h.minor = tarBlock, unix.Major(it.rdev), unix.Minor(it.rdev)
	}
	return h
}

// append adds the blocks of h to b.
func (h *header) append(b []byte) []byte {
	var room [2]attr // most have no more
	pax := room[:0]
	record := func(key, value string) { pax = append(pax, attr{key, value}) }
	name, link := h.name, h.link
	if len(name) > 100 || !isASCII(name) {
		record("path", name)
		name = shorten(name)
	}
	if len(link) > 100 || !isASCII(link) {
		record("linkpath", link)
		link = shorten(link)
	}
	uid, gid, size, sec := int64(h.uid), int64(h.gid), h.size, int64(h.mtime.Sec)
	if uid > 0o7777777 {
		record("uid", strconv.FormatInt(uid, 10))
		uid = 0
	}
	if gid > 0o7777777 {
		record("gid", strconv.FormatInt(gid, 10))
		gid = 0
	}
	if size > 0o77777777777 {
		record("size", strconv.FormatInt(size, 10))
		size = 0
	}
	if h.mtime.Nsec != 0 || sec < 0 || sec > 0o77777777777 {
		record("mtime", paxTime(h.mtime))
		if sec < 0 || sec > 0o77777777777 {
			sec = 0
		}
	}
	for _, a := range h.attrs {
		record("SCHILY.xattr."+a.name, a.value)
	}
	if len(pax) > 0 {
		sortAttrs(pax)
		var space [blockSize]byte
		records := space[:0]
		for _, r := range pax {
			records = appendRecord(records, r.name, r.value)
		}
		x := ustar{name: paxName, mode: 0o644, size: int64(len(records)), flag: tarPax}
		b = x.append(b)
		b = append(b, records...)
		b = append(b, padding(int64(len(records)))...)
	}
	u := ustar{name: name, mode: int64(h.mode), uid: uid, gid: gid, size: size, mtime: sec,
		flag: h.flag, link: link, major: int64(h.major), minor: int64(h.minor)}
	return u.append(b)
}

// ustar is one header block; every value fits its field.
type ustar struct {
	name                        string
	mode, uid, gid, size, mtime int64
	flag                        byte
	link                        string
	major, minor                int64
}

func (u *ustar) append(b []byte) []byte {
	b = append(b, zeros[:blockSize]...)
	h := b[len(b)-blockSize:]
	copy(h[0:100], u.name)
	octal(h[100:108], u.mode)
	octal(h[108:116], u.uid)
	octal(h[116:124], u.gid)
	octal(h[124:136], u.size)
	octal(h[136:148], u.mtime)
	copy(h[148:156], "        ") // the checksum is computed with blanks in its place
	h[156] = u.flag
	copy(h[157:257], u.link)
	copy(h[257:265], "ustar\x0000") // and no names of owners: they are of this host
	octal(h[329:337], u.major)
	octal(h[337:345], u.minor)
	octal(h[148:155], byteSum(h)) // six digits and NUL; the blank stays
	return b
}

// byteSum adds up the bytes of a block, eight at a time: four sums side by side, of 128 bytes each, fit 16
// bits each. Byte by byte it was most of making a header.
func byteSum(block []byte) int64 {
	const even = 0x00ff00ff00ff00ff
	var sums uint64
	for ; len(block) >= 8; block = block[8:] {
		w := binary.LittleEndian.Uint64(block)
		sums += w&even + w>>8&even
	}
	return int64(sums&0xffff + sums>>16&0xffff + sums>>32&0xffff + sums>>48)
}

// octal fills a field with digits and a NUL.
func octal(field []byte, n int64) {
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
	field[len(field)-1] = 0
}

// appendRecord adds "length key=value\n", where length counts itself.
func appendRecord(b []byte, key, value string) []byte {
	rest := len(key) + len(value) + 3 // blank, equals, newline
	n := rest + len(strconv.Itoa(rest))
	if len(strconv.Itoa(n)) > len(strconv.Itoa(rest)) {
		n++
	}
	b = strconv.AppendInt(b, int64(n), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

// paxTime is seconds with as many decimals as are needed.
func paxTime(t unix.Timespec) string {
	sec, nsec := int64(t.Sec), int64(t.Nsec)
	sign := ""
	if sec < 0 { // -1.5 is kept as -2 s + 0.5e9 ns
		sign = "-"
		if sec = -sec; nsec > 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	s := sign + strconv.FormatInt(sec, 10)
	if nsec == 0 {
		return s
	}
	frac := strconv.FormatInt(1e9+nsec, 10)[1:]
	return s + "." + strings.TrimRight(frac, "0")
}

var zeros [64 << 10]byte

// padding fills the last block of n bytes.
func padding(n int64) []byte { return zeros[:-n&(blockSize-1)] }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// shorten makes of a name too rich for ustar what a reader without pax sees.
func shorten(s string) string {
	b := make([]byte, 0, 100)
	for i := 0; i < len(s) && len(b) < 100; i++ {
		if s[i] < 0x80 {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// splitPath cuts a clean relative path before its last name; the directory of a
// name at the top is ".".
func splitPath(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return ".", p
}

// joinPath is the reverse of splitPath.
func joinPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
