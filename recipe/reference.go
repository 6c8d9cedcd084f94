package recipe

import (
	"regexp"
	"strings"
	"sync"
)

// reference is the grammar of an image name as docker normalizes it: a host
// (which may have capitals), a path, a tag, a digest.
var reference = sync.OnceValue(func() *regexp.Regexp {
	const (
		label  = `(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])`
		host   = `(?:` + label + `(?:\.` + label + `)*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?`
		part   = `[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*`
		tag    = `[\w][\w.-]{0,127}`
		digest = `[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[[:xdigit:]]{32,}`
	)
	return regexp.MustCompile(`^(?:` + host + `/)?` + part + `(?:/` + part + `)*(?::` + tag + `)?(?:@` + digest + `)?$`)
})

var hexID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-f0-9]{64}$`) })

// validReference tells whether a word can be an image name. 64 hex digits cannot:
// they are an image's ID.
func validReference(s string) bool {
	name, _, _ := strings.Cut(s, "@")
	return len(name) <= 255 && reference().MatchString(s) && !hexID().MatchString(s)
}
