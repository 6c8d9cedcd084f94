package image

import "strings"

// The grammar of names is docker's (distribution/reference), which registries
// enforce. It is written out because its regular expressions take 0.5 ms to compile, at
// the start of every mk.

const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
	hex     = digits + "abcdef"
)

// only reports whether s is one or more of the characters in set.
func only(s, set string) bool { return s != "" && strings.Trim(s, set) == "" }

// isHex64 reports whether s is a whole SHA-256, which is an image ID and never a name.
func isHex64(s string) bool { return len(s) == 64 && only(s, hex) }

// validTag: a letter, digit or underscore, then up to 127 of those, dots and dashes.
func validTag(s string) bool {
	return s != "" && len(s) <= 128 && only(s[:1], letters+digits+"_") && only(s, letters+digits+"_.-")
}

// validPath: components separated by slashes; a component is words of lower case
// letters and digits, separated by one dot, one or two underscores, or dashes.
func validPath(s string) bool {
	for component := range strings.SplitSeq(s, "/") {
		if !only(component, lower+digits+"._-") {
			return false
		}
		for rest := component; ; {
			word := len(rest) - len(strings.TrimLeft(rest, lower+digits))
			if word == 0 {
				return false // starts with a separator, or ended with one
			}
			if rest = rest[word:]; rest == "" {
				break
			}
			separator := len(rest) - len(strings.TrimLeft(rest, "._-"))
			if sep := rest[:separator]; sep != "." && sep != "_" && sep != "__" && !only(sep, "-") {
				return false
			}
			rest = rest[separator:]
		}
	}
	return true
}

// validDomain: a host name or an IPv6 address in brackets, and perhaps a port.
func validDomain(s string) bool {
	host, port, hasPort := s, "", false
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, port, hasPort = s[:i], s[i+1:], true
	}
	if hasPort && !only(port, digits) {
		return false
	}
	if address, ok := strings.CutPrefix(host, "["); ok {
		address, ok = strings.CutSuffix(address, "]")
		return ok && only(address, hex+"ABCDEF:")
	}
	for label := range strings.SplitSeq(host, ".") {
		if !only(label, letters+digits+"-") || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}
