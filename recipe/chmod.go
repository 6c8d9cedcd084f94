package recipe

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Chmod is the value of --chmod: an octal mode, or changes to the mode that a
// file has, in the words of chmod(1). The zero Chmod makes every mode 0.
type Chmod struct {
	octal   uint32
	clauses []chmodClause // none: octal
}

// chmodClause is one "u=rwX": who, what to do, and with which bits.
type chmodClause struct {
	who   uint32 // bits that may change
	op    byte   // '+', '-', '='
	perm  uint32
	runX  bool   // X: x for a directory, and for a file that anyone may execute
	copy  string // of "ugo": the bits that these have
	whole bool   // '=' of plain bits clears setuid and setgid as well
}

const (
	setID  = 0o6000
	sticky = 0o1000
	execX  = 0o111
)

// ParseChmod reads an expanded --chmod. The umask has no part in it.
func ParseChmod(s string) (Chmod, error) {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil && n <= 0o7777 {
		return Chmod{octal: uint32(n)}, nil
	}
	if s == "" || s[0] >= '0' && s[0] <= '9' {
		return Chmod{}, fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", s)
	}
	var c Chmod
	for _, clause := range strings.Split(s, ",") {
		if err := c.parse(clause); err != nil {
			return Chmod{}, fmt.Errorf("invalid chmod parameter: '%v': %w", s, err)
		}
	}
	return c, nil
}

// parse reads one clause: who, then one or more operators with their bits.
func (c *Chmod) parse(s string) error {
	rest := strings.TrimLeft(s, "augo")
	var who uint32
	for _, w := range s[:len(s)-len(rest)] {
		who |= map[rune]uint32{'a': 0o777 | setID, 'u': 0o4700, 'g': 0o2070, 'o': 0o7}[w]
	}
	onlyOther := who != 0 && who&^0o7 == 0
	if who == 0 {
		who = 0o777 | setID
	}
	if rest == "" || !strings.ContainsRune("+-=", rune(rest[0])) {
		return errors.New("invalid syntax")
	}
	for _, b := range []byte(rest) {
		switch b {
		case '+', '-', '=':
			c.clauses = append(c.clauses, chmodClause{who: who, op: b, whole: true})
			continue
		}
		k := &c.clauses[len(c.clauses)-1]
		switch b {
		case 'r':
			k.perm |= 0o444
		case 'w':
			k.perm |= 0o222
		case 'x':
			k.perm |= execX
		case 'X':
			if k.op == '-' {
				k.perm |= execX
			} else {
				k.runX = true
			}
		case 's':
			if !onlyOther {
				k.perm |= setID
			}
		case 't':
			if !onlyOther {
				k.who |= sticky
				k.perm |= sticky
			}
		case 'u', 'g', 'o':
			k.copy += string(b)
			k.whole = false
		default:
			return errors.New("invalid syntax")
		}
	}
	return nil
}

// Apply gives the permission bits (07777) of a file that had these.
func (c Chmod) Apply(mode uint32, dir bool) uint32 {
	if len(c.clauses) == 0 {
		return c.octal
	}
	executable := dir || mode&execX != 0
	for _, k := range c.clauses {
		bits := k.perm
		if k.runX && executable {
			bits |= execX
		}
		for _, class := range k.copy {
			three := mode >> map[rune]uint{'u': 6, 'g': 3, 'o': 0}[class] & 0o7
			bits |= three<<6 | three<<3 | three
		}
		clear := uint32(0)
		switch {
		case k.op == '=' && k.whole:
			clear = k.who
		case k.op == '=':
			clear = k.who & 0o777
		case k.op == '-':
			clear = k.who & bits
		}
		mode &^= clear
		if k.op != '-' {
			mode |= k.who & bits
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
