package recipe

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Chmod is the value of --chmod: an octal mode, or changes as chmod(1) of the GNU
// coreutils makes them with umask 0, which a test holds it against.
type Chmod struct {
	octal   uint32
	changes []modeChange // none: octal
}

// modeChange is one operator with what it works on.
type modeChange struct {
	op        byte   // '+', '-', '='
	who       uint32 // bits that may change; 0: all, as a missing "a" has it
	bits      uint32
	mentioned uint32 // bits named: a directory keeps setuid and setgid otherwise
	copies    bool   // bits are a class ("u") whose bits are given to the others
	runX      bool   // X
}

const (
	modeSetID = 0o6000
	modeExec  = 0o111
)

// ParseChmod reads an expanded --chmod. The errors for numbers are BuildKit's.
func ParseChmod(s string) (*Chmod, error) {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil && n <= 0o7777 {
		return &Chmod{octal: uint32(n)}, nil
	}
	if s == "" || s[0] >= '0' && s[0] <= '9' {
		return nil, fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", s)
	}
	m := &Chmod{}
	for _, clause := range strings.Split(s, ",") {
		if !m.clause(clause) {
			return nil, fmt.Errorf("invalid chmod parameter: '%v': invalid syntax", s)
		}
	}
	return m, nil
}

// clause reads one "ug+rw-x".
func (m *Chmod) clause(s string) bool {
	class := map[byte]uint32{'u': 0o4700, 'g': 0o2070, 'o': 0o1007, 'a': 0o7777}
	rest := strings.TrimLeft(s, "ugoa")
	var who uint32
	for _, c := range []byte(s[:len(s)-len(rest)]) {
		who |= class[c]
	}
	if rest == "" {
		return false
	}
	for rest != "" {
		c := modeChange{op: rest[0], who: who}
		if !strings.ContainsRune("+-=", rune(c.op)) {
			return false
		}
		rest = rest[1:]
		end := strings.IndexAny(rest, "+-=")
		if end < 0 {
			end = len(rest)
		}
		perm := rest[:end]
		rest = rest[end:]
		switch {
		case perm == "u", perm == "g", perm == "o":
			c.copies, c.bits = true, class[perm[0]]&0o777
		case perm != "" && perm[0] >= '0' && perm[0] <= '7':
			n, err := strconv.ParseUint(perm, 8, 32)
			if err != nil || n > 0o7777 || who != 0 {
				return false
			}
			c.bits, c.mentioned, c.who = uint32(n), 0o7777, 0o7777
		default:
			for _, p := range []byte(perm) {
				switch p {
				case 'r':
					c.bits |= 0o444
				case 'w':
					c.bits |= 0o222
				case 'x':
					c.bits |= modeExec
				case 'X':
					c.runX = true
				case 's':
					c.bits |= modeSetID
				case 't':
					c.bits |= 0o1000
				default:
					return false
				}
			}
		}
		if c.mentioned == 0 {
			c.mentioned = c.bits
			if who != 0 {
				c.mentioned &= who
			}
		}
		m.changes = append(m.changes, c)
	}
	return true
}

// Apply gives the permission bits (07777) of a file that had these.
func (m *Chmod) Apply(mode uint32, dir bool) uint32 {
	if len(m.changes) == 0 {
		return m.octal
	}
	for _, c := range m.changes {
		bits, who := c.bits, c.who
		if who == 0 {
			who = 0o7777
		}
		if c.copies {
			bits &= mode
			for _, rwx := range []uint32{0o444, 0o222, 0o111} {
				if bits&rwx != 0 {
					bits |= rwx
				}
			}
		}
		if c.runX && (dir || mode&modeExec != 0) {
			bits |= modeExec
		}
		var kept uint32
		if dir {
			kept = modeSetID &^ c.mentioned
		}
		bits &= who &^ kept
		switch c.op {
		case '=':
			mode = mode&(^who|kept) | bits
		case '+':
			mode |= bits
		case '-':
			mode &^= bits
		}
	}
	return mode
}

// check refuses an expanded COPY or ADD whose flags and sources do not go together.
func (c *Copy) check() error {
	if c.Link && byName(c.Chown) {
		return fmt.Errorf("--chown=%s: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead", c.Chown)
	}
	if c.Chmod != "" {
		if _, err := ParseChmod(c.Chmod); err != nil {
			return err
		}
	}
	if c.Checksum != "" {
		if len(c.Sources) != 1 {
			return errors.New("checksum can't be specified for multiple sources")
		}
		if KindOf(c.Sources[0]) == Local {
			return errors.New("checksum requires HTTP(S) or Git sources")
		}
	}
	if c.Add {
		return nil
	}
	for _, s := range c.Sources {
		switch KindOf(s) {
		case HTTP:
			return errors.New("source can't be a URL for COPY")
		case Git:
			return errors.New("source can't be a git ref for COPY")
		}
	}
	return nil
}

// byName tells whether a --chown has a name that only a passwd file explains.
func byName(chown string) bool {
	for _, id := range strings.Split(chown, ":") {
		if _, err := strconv.Atoi(id); err != nil && id != "" && id != "root" {
			return true
		}
	}
	return false
}
