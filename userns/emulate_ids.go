package userns

import (
	"encoding/binary"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ids is who a process takes itself for: real, effective, saved and file system IDs, as in
// credentials(7), and the supplementary groups.
type ids struct {
	uid, gid [4]uint32
	groups   string // four bytes each: a string, so that two can be compared
	caps     capState
}

// capState is what of root's power is left to who is not root any more, or given by the file that he
// executes: capabilities(7), the effect of user ID changes, and transformation during execve. The
// kernel, to which nobody changed his ID, takes none away: of what it says this is the mask.
type capState struct {
	keep      bool // PR_SET_KEEPCAPS: the change leaves the permitted set
	permitted uint64
	effective uint64 // what capset took up, until exec
}

// capable tells whether the identity has a capability in effect.
func (c *ids) capable(capability uint) bool {
	return c.uid[effective] == 0 || c.caps.effective>>capability&1 != 0
}

// permitted is what the identity may take up.
func (c *ids) permitted() uint64 {
	if slices.Contains(c.uid[:fsID], 0) {
		return ^uint64(0)
	}
	return c.caps.permitted
}

const (
	real = iota
	effective
	saved
	fsID
)

// identities gives numbers to identities. A number never changes its meaning: a process may carry
// it for as long as it likes.
type identities struct {
	mu     sync.RWMutex
	list   []ids
	number map[ids]uint64
}

const (
	// identityMark in the upper half of the limit tells our numbers from a program's own limit:
	// "mk", and a number that nobody would choose.
	identityMark = 0x6d6b_0001 << 32
	// maxIdentities bounds what one build can make us keep. The greediest thing known, a
	// distribution's installation, takes some dozens.
	maxIdentities = 1 << 16
	rlimitLocks   = 10 // RLIMIT_LOCKS
)

// who is the identity of the caller.
func (t *tracer) who() (c ids, ok bool) {
	if !t.changed.Load() {
		return t.numbered(0), true
	}
	limit, e := t.locks()
	return t.numbered(limit.Cur), e == 0
}

// numbered is the identity of a process with that limit. Who has no number never changed the identity with
// which the command began.
func (s *served) numbered(limit uint64) ids {
	if c, ok := s.ids.of(limit); ok {
		return c
	}
	if first := s.first.Load(); first != nil {
		return *first
	}
	return ids{}
}

// locks is the limit of the caller in which its identity is kept.
func (t *tracer) locks() (limit unix.Rlimit, e unix.Errno) {
	_, _, e = unix.RawSyscall6(unix.SYS_PRLIMIT64, uintptr(t.n.pid), rlimitLocks, 0, uintptr(unsafe.Pointer(&limit)), 0, 0)
	return limit, e
}

func (l *identities) of(limit uint64) (c ids, ok bool) {
	if limit&^0xffffffff != identityMark {
		return c, false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if n := limit & 0xffffffff; n < uint64(len(l.list)) {
		return l.list[n], true
	}
	return c, false
}

// give finds the number of an identity.
func (l *identities) give(c ids) (uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, ok := l.number[c]
	if !ok {
		if n = uint64(len(l.list)); n == maxIdentities {
			return 0, false
		}
		if l.number == nil {
			l.number = map[ids]uint64{}
		}
		l.list, l.number[c] = append(l.list, c), n
	}
	return identityMark | n, true
}

// become makes c the identity of the caller.
func (t *tracer) become(c ids) reply {
	if !t.changed.Load() {
		// From the first change on each call has to ask who its caller is. That root begins with some
		// groups, or says again that it is root, is none.
		if c == t.numbered(0) {
			return value(0)
		}
		if (c == ids{groups: c.groups}) && !t.began.Load() && t.first.CompareAndSwap(nil, &c) {
			return value(0)
		}
	}
	n, ok := t.ids.give(c)
	if !ok {
		return failed(unix.EAGAIN)
	}
	t.changed.Store(true)
	limit, e := t.locks()
	if e != 0 {
		return failed(e)
	}
	if limit.Cur == n {
		return value(0)
	}
	limit.Cur = n
	if !t.alive() {
		return failed(unix.ESRCH)
	}
	_, _, e = unix.RawSyscall6(unix.SYS_PRLIMIT64, uintptr(t.n.pid), rlimitLocks, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	return failed(e)
}

const keep = ^uint32(0) // -1: leave it as it is

// identity answers the calls that ask for IDs and that set them, by the rules of the kernel's
// sys.c. Who is root may take any ID.
func (t *tracer) identity() reply {
	c, ok := t.who()
	if !ok {
		return failed(unix.ESRCH)
	}
	was := c
	a := &t.n.args
	x, y, z := uint32(a[0]), uint32(a[1]), uint32(a[2])
	user, group := c.capable(unix.CAP_SETUID), c.capable(unix.CAP_SETGID)
	switch int(t.n.nr) {
	case unix.SYS_GETUID:
		return t.valueID(c.uid[real])
	case unix.SYS_GETEUID:
		return t.valueID(c.uid[effective])
	case unix.SYS_GETGID:
		return t.valueID(c.gid[real])
	case unix.SYS_GETEGID:
		return t.valueID(c.gid[effective])
	case unix.SYS_GETRESUID:
		return t.writeIDs(c.uid)
	case unix.SYS_GETRESGID:
		return t.writeIDs(c.gid)
	case unix.SYS_GETGROUPS:
		n := len(c.groups) / 4
		switch size := int(int32(a[0])); {
		case size < 0 || size > 0 && size < n:
			return failed(unix.EINVAL)
		case size > 0 && n > 0:
			var list []byte
			for i := range n {
				list = t.appendID(list, word32([]byte(c.groups), 4*i))
			}
			if e := t.write(a[1], list); e != 0 {
				return failed(e)
			}
		}
		return value(int64(n))
	case unix.SYS_SETGROUPS:
		if !group {
			return failed(unix.EPERM)
		}
		if int32(x) < 0 || x > 65536 {
			return failed(unix.EINVAL)
		}
		b := make([]byte, 4*int(x))
		if !t.read(a[1], b[:t.idSize*int(x)]) {
			return failed(unix.EFAULT)
		}
		if t.idSize == 2 {
			for i := int(x) - 1; i >= 0; i-- {
				putWord32(b, 4*i, widened(binary.NativeEndian.Uint16(b[2*i:])))
			}
		}
		sortWords(b)
		c.groups = string(b)
		return t.become(c)

	case unix.SYS_SETUID:
		return t.change(was, set1(&c.uid, x, user), &c)
	case unix.SYS_SETGID:
		return t.change(was, set1(&c.gid, x, group), &c)
	case unix.SYS_SETREUID:
		return t.change(was, set2(&c.uid, x, y, user), &c)
	case unix.SYS_SETREGID:
		return t.change(was, set2(&c.gid, x, y, group), &c)
	case unix.SYS_SETRESUID:
		return t.change(was, set3(&c.uid, x, y, z, user), &c)
	case unix.SYS_SETRESGID:
		return t.change(was, set3(&c.gid, x, y, z, group), &c)
	case unix.SYS_SETFSUID:
		return t.changeFS(&c.uid, x, user, &c)
	case unix.SYS_SETFSGID:
		return t.changeFS(&c.gid, x, group, &c)
	}
	return native
}

// change finishes a call whose outcome is e and, if that is 0, now.
func (t *tracer) change(was ids, e unix.Errno, now *ids) reply {
	if e != 0 {
		return failed(e)
	}
	if slices.Contains(was.uid[:fsID], 0) && !slices.Contains(now.uid[:fsID], 0) {
		now.caps.permitted, now.caps.effective = 0, 0
		if now.caps.keep {
			now.caps.permitted = ^uint64(0)
		}
	}
	return t.become(*now)
}

// changeFS is setfsuid and setfsgid: they give the ID there was, and no error.
func (t *tracer) changeFS(id *[4]uint32, x uint32, root bool, now *ids) reply {
	was := id[fsID]
	if x != keep && (root || slices.Contains(id[:], x)) {
		id[fsID] = x
		t.become(*now)
	}
	return t.valueID(was)
}

func set1(id *[4]uint32, x uint32, root bool) unix.Errno {
	switch {
	case x == keep:
		return unix.EINVAL
	case root:
		*id = [4]uint32{x, x, x, x}
	case x == id[real] || x == id[saved]:
		id[effective], id[fsID] = x, x
	default:
		return unix.EPERM
	}
	return 0
}

func set2(id *[4]uint32, r, e uint32, root bool) unix.Errno {
	was := *id
	if r != keep {
		if !root && r != was[real] && r != was[effective] {
			return unix.EPERM
		}
		id[real] = r
	}
	if e != keep {
		if !root && !slices.Contains(was[:fsID], e) {
			return unix.EPERM
		}
		id[effective] = e
	}
	if r != keep || e != keep && e != was[real] {
		id[saved] = id[effective]
	}
	id[fsID] = id[effective]
	return 0
}

func set3(id *[4]uint32, r, e, s uint32, root bool) unix.Errno {
	was := *id
	for i, x := range [3]uint32{r, e, s} {
		if x == keep {
			continue
		}
		if !root && !slices.Contains(was[:fsID], x) {
			return unix.EPERM
		}
		id[i] = x
	}
	id[fsID] = id[effective]
	return 0
}

// writeIDs gives the three IDs to getresuid and getresgid.
func (t *tracer) writeIDs(id [4]uint32) reply {
	for i, x := range id[:fsID] {
		if e := t.write(t.n.args[i], t.appendID(nil, x)); e != 0 {
			return failed(e)
		}
	}
	return value(0)
}

// shorten makes of a call with IDs of 16 bits the one that it is here.
func (t *tracer) shorten(call int) {
	t.idSize = 2
	first, last := 0, 2
	switch call {
	case sysChown, sysLchown, unix.SYS_FCHOWN:
		first = 1
	case unix.SYS_GETGROUPS, unix.SYS_SETGROUPS, unix.SYS_GETRESUID, unix.SYS_GETRESGID:
		return
	}
	for i := first; i <= last; i++ {
		t.n.args[i] = uint64(widened(uint16(t.n.args[i])))
	}
}

// widened is an ID of 16 bits; -1 is one, too.
func widened(id uint16) uint32 {
	if id == 1<<16-1 {
		return keep
	}
	return uint32(id)
}

// shown is an ID as the caller takes it: what does not fit is nobody's, overflowuid of proc(5).
func (t *tracer) shown(id uint32) uint32 {
	if t.idSize == 2 && id >= 1<<16 {
		return 65534
	}
	return id
}

func (t *tracer) valueID(id uint32) reply { return value(int64(t.shown(id))) }

func (t *tracer) appendID(b []byte, id uint32) []byte {
	if t.idSize == 2 {
		return binary.NativeEndian.AppendUint16(b, uint16(t.shown(id)))
	}
	return binary.NativeEndian.AppendUint32(b, id)
}

// inGroup tells whether the caller may give files to the group.
func (c *ids) inGroup(gid uint32) bool {
	if gid == c.gid[fsID] {
		return true
	}
	for b := []byte(c.groups); len(b) >= 4; b = b[4:] {
		if word32(b, 0) == gid {
			return true
		}
	}
	return false
}

// sortWords sorts groups as the kernel does.
func sortWords(b []byte) {
	list := make([]uint32, len(b)/4)
	for i := range list {
		list[i] = word32(b, 4*i)
	}
	slices.Sort(list)
	for i, x := range list {
		binary.NativeEndian.PutUint32(b[4*i:], x)
	}
}

// limit answers calls that ask for RLIMIT_LOCKS, or set it: there is none.
func (t *tracer) limit(addr uint64) reply {
	if addr == 0 {
		return value(0)
	}
	none := [16]byte{}
	for i := range none {
		none[i] = 0xff // RLIM_INFINITY, twice
	}
	size := 16
	if t.n.arch == compatArch && int(t.n.nr) == unix.SYS_GETRLIMIT {
		size = 8
	}
	return failed(t.write(addr, none[:size]))
}

// exec gives the caller the identity that it will have after an execve, if the file changes it:
// one that is setuid or setgid, or has capabilities for who is not root. The kernel executes. Whether
// it will is looked at as far as a file can tell; a program that would be refused anyway has a wrong
// identity afterwards.
func (t *tracer) exec(dirfd int32, addr uint64, flags int) reply {
	c, ok := t.who()
	if !ok {
		return native
	}
	if !c.isRoot() {
		if r := t.ask(dirfd, addr, flags, 0, mayExec); r != native {
			return r
		}
	}
	t.began.Store(true)
	was := c
	c.caps = capState{}
	t.executed(&c, dirfd, addr, flags)
	if c != was {
		t.become(c)
	}
	if t.changed.Load() {
		if limit, e := t.locks(); e == 0 {
			t.last.note(int32(t.n.pid), limit.Cur)
		}
	}
	return native
}

// executed changes the identity as the file does.
func (t *tracer) executed(c *ids, dirfd int32, addr uint64, flags int) {
	path, link, e := t.locate(dirfd, addr, flags)
	if e != 0 || link {
		return
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	caps := c.uid[effective] != 0 && hasFileCaps(path)
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 && !caps {
		return
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	magic := make([]byte, 4)
	if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil || fs.Flags&unix.ST_NOSUID != 0 || st.Mode&0o111 == 0 {
		return
	}
	if n, _ := unix.Pread(fd, magic, 0); string(magic[:n]) != "\x7fELF" || t.status("NoNewPrivs") == "1" {
		return
	}
	o, _ := t.ownerOf(fd, &st)
	if st.Mode&unix.S_ISUID != 0 {
		c.uid[effective] = o.UID
	}
	if st.Mode&unix.S_ISGID != 0 && st.Mode&unix.S_IXGRP != 0 { // without x it is for mandatory locks
		c.gid[effective] = o.GID
	}
	c.uid[saved], c.uid[fsID] = c.uid[effective], c.uid[effective]
	c.gid[saved], c.gid[fsID] = c.gid[effective], c.gid[effective]
	if caps && c.uid[effective] != 0 {
		c.caps = fileCaps(fd)
	}
}

const capAttr = "security.capability"

func hasFileCaps(path string) bool {
	n, err := unix.Getxattr(path, capAttr, nil)
	return err == nil && n > 0
}

// fileCaps is what an executable gives: struct vfs_cap_data, its permitted set, at once in effect if
// the lowest bit says so. Of the inheritable sets nothing comes, as nobody has any.
func fileCaps(fd int) (c capState) {
	var b [24]byte
	if n, err := unix.Fgetxattr(fd, capAttr, b[:]); err != nil || n < 20 {
		return c
	}
	word := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(b[4*i:])) }
	c.permitted = word(1) | word(3)<<32
	if word(0)&1 != 0 {
		c.effective = c.permitted
	}
	return c
}

// capabilities follows prctl(PR_SET_KEEPCAPS) and capset, which the kernel executes too.
func (t *tracer) capabilities() reply {
	c, ok := t.who()
	if !ok {
		return native
	}
	was := c
	if int(t.n.nr) == unix.SYS_PRCTL {
		c.caps.keep = t.n.args[1] == 1
	} else {
		if c.uid[effective] == 0 {
			return native
		}
		words, ok := t.capWords()
		var data [2]unix.CapUserData
		if !ok || !t.read(t.n.args[1], asBytes(&data)[:words*12]) {
			return native
		}
		e := uint64(data[0].Effective) | uint64(data[1].Effective)<<32
		p := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
		if e&^p != 0 || p&^c.permitted() != 0 {
			return failed(unix.EPERM)
		}
		c.caps.effective, c.caps.permitted = e, p
	}
	if c != was {
		t.become(c)
	}
	return native
}

// capWords reads the header of capget and capset, and tells how many elements the data have. It is
// not ok for another process than the caller, which the kernel may answer.
func (t *tracer) capWords() (words int, ok bool) {
	var head [8]byte // struct __user_cap_header_struct: version, pid
	if !t.read(t.n.args[0], head[:]) {
		return 0, false
	}
	if pid := word32(head[:], 4); pid != 0 && pid != t.pidInside(int32(t.n.pid)) {
		return 0, false
	}
	switch word32(head[:], 0) {
	case unix.LINUX_CAPABILITY_VERSION_1:
		return 1, true
	case unix.LINUX_CAPABILITY_VERSION_2, unix.LINUX_CAPABILITY_VERSION_3:
		return 2, true
	}
	return 0, false
}

func asBytes(data *[2]unix.CapUserData) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(data)), unsafe.Sizeof(*data))
}

// capget answers what is left of root's power to the caller.
func (t *tracer) capget() reply {
	c, ok := t.who()
	if !ok || c.uid[effective] == 0 || t.n.args[1] == 0 {
		return native
	}
	words, ok := t.capWords()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(t.n.pid)}
	var data [2]unix.CapUserData
	if !ok || !t.alive() || unix.Capget(&h, &data[0]) != nil {
		return native
	}
	for i := range data {
		data[i].Effective &= uint32(c.caps.effective >> (32 * i))
		data[i].Permitted &= uint32(c.permitted() >> (32 * i))
	}
	return failed(t.write(t.n.args[1], asBytes(&data)[:words*12]))
}

// lastKnown are the identities with which processes began to execute: who is asked for may be gone.
type lastKnown struct {
	mu     sync.Mutex
	number map[int32]uint64
}

// maxKnown bounds them. Then all are forgotten, and processes that are gone are root's.
const maxKnown = 1 << 12

func (l *lastKnown) note(pid int32, number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.number == nil || len(l.number) == maxKnown {
		l.number = map[int32]uint64{}
	}
	l.number[pid] = number
}

func (l *lastKnown) of(pid int32) (number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.number[pid]
}

// peerOf is the identity of the process at the other end of a socket, if anybody here is not root.
func (t *tracer) peerOf(fd int32) (c ids, pid int32, ok bool) {
	if !t.changed.Load() {
		return c, 0, false
	}
	sock := t.borrow(fd)
	if sock < 0 {
		return c, 0, false
	}
	defer unix.Close(sock)
	u, err := unix.GetsockoptUcred(sock, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || u.Pid == 0 || !t.alive() {
		return c, 0, false
	}
	var limit unix.Rlimit
	if unix.Prlimit(int(u.Pid), rlimitLocks, nil, &limit) != nil {
		limit.Cur = t.last.of(u.Pid)
	}
	return t.numbered(limit.Cur), u.Pid, true
}

// peer answers SO_PEERCRED and SO_PEERGROUPS. The kernel has them of the time when the sockets were connected;
// here they are those that the process has now, or had last.
func (t *tracer) peer(fd int32, option, addr, sizeAddr uint64) reply {
	c, pid, ok := t.peerOf(fd)
	var b [4]byte
	if !ok || !t.read(sizeAddr, b[:]) {
		return native
	}
	size := int(int32(word32(b[:], 0)))
	var all []byte
	if option == unix.SO_PEERGROUPS {
		if all = []byte(c.groups); size < len(all) {
			putWord32(b[:], 0, uint32(len(all)))
			if e := t.write(sizeAddr, b[:]); e != 0 {
				return failed(e)
			}
			return failed(unix.ERANGE)
		}
	} else {
		if c.uid[effective] == 0 && c.gid[effective] == 0 || size < 0 {
			return native
		}
		all = make([]byte, unix.SizeofUcred)
		putWord32(all, 0, t.pidInside(pid))
		putWord32(all, 4, c.uid[effective])
		putWord32(all, 8, c.gid[effective])
		all = all[:min(size, len(all))]
	}
	putWord32(b[:], 0, uint32(len(all)))
	if len(all) > 0 {
		if e := t.write(addr, all); e != 0 {
			return failed(e)
		}
	}
	return failed(t.write(sizeAddr, b[:]))
}
