package recipe

import (
	"net/url"
	"regexp"
	"strings"
	"sync"
)

// Kind is where a source of COPY or ADD comes from.
type Kind int

const (
	Local Kind = iota // a path of the build context, a stage or an image
	HTTP              // a file behind an http or https address
	Git               // a git repository
)

// The user@host:path form of a git address.
var scpAddress = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9-_]+@[a-zA-Z0-9-.]+:`) })

// KindOf tells the kind of an expanded source. An http address is git when its
// path ends in ".git"; "github.com/x/y" without a scheme is a path.
func KindOf(source string) Kind {
	scheme, _, ok := strings.Cut(source, "://")
	if !ok {
		if scpAddress().MatchString(source) {
			return Git
		}
		return Local
	}
	switch strings.ToLower(scheme) {
	case "git", "ssh":
		return Git
	case "http", "https":
		if u, err := url.Parse(source); err == nil && strings.HasSuffix(u.Path, ".git") {
			return Git
		}
		// Only lower case is an address: BuildKit looks for these very prefixes.
		if strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://") {
			return HTTP
		}
	}
	return Local
}
