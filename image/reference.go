package image

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Reference is the full name of an image: a repository in a registry, and a tag
// or a digest in it, or both. It is made by ParseReference; the zero value names
// nothing. Two references are equal by == when they name the same thing.
type Reference struct {
	domain string // "docker.io", "localhost:5000"
	path   string // "library/busybox"
	tag    string
	digest digest.Digest
}

const (
	defaultDomain = "docker.io"
	defaultTag    = "latest"
	maxNameLength = 255 // of the path; docker's limit
)

// ParseReference reads a name as docker does: "x" is
// docker.io/library/x:latest, "a/b" is docker.io/a/b:latest, a first part with a
// dot, a colon or an upper case letter, or "localhost", is a registry. A name with a digest
// gets no default tag.
func ParseReference(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("image name %q: %s", s, why)
	}
	if s == "" {
		return bad("empty")
	}
	if len(s) > 1024 {
		return Reference{}, fmt.Errorf("image name %q…: longer than 1024 bytes", s[:64])
	}
	if isHex64(s) {
		return bad("64 hex digits are an image ID, not a name")
	}
	rest, dgst, hasDigest := strings.Cut(s, "@")
	r := Reference{}
	if hasDigest {
		r.digest = digest.Digest(dgst)
		if err := checkDigest(r.digest); err != nil {
			return bad(err.Error())
		}
	}
	// A colon after the last slash starts the tag; before it, a port.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		r.tag = rest[i+1:]
		rest = rest[:i]
		if !validTag(r.tag) {
			return bad(fmt.Sprintf("bad tag %q", r.tag))
		}
	}
	first, remainder, slash := strings.Cut(rest, "/")
	if slash && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first) {
		r.domain, r.path = first, remainder
	} else {
		r.domain, r.path = defaultDomain, rest
	}
	if r.domain == "index.docker.io" {
		r.domain = defaultDomain
	}
	if !validDomain(r.domain) {
		return bad(fmt.Sprintf("bad registry %q", r.domain))
	}
	if r.domain == defaultDomain && !strings.Contains(r.path, "/") {
		r.path = "library/" + r.path
	}
	if len(r.path) > maxNameLength {
		return bad("repository is longer than 255 bytes")
	}
	if !validPath(r.path) {
		if validPath(strings.ToLower(r.path)) {
			return bad("repository name must be lower case")
		}
		return bad("bad repository")
	}
	if r.tag == "" && r.digest == "" {
		r.tag = defaultTag
	}
	return r, nil
}

// Domain returns the registry: "docker.io", "localhost:5000".
func (r Reference) Domain() string { return r.domain }

// Path returns the repository inside its registry: "library/busybox".
func (r Reference) Path() string { return r.path }

// Repository returns domain and path: "docker.io/library/busybox".
func (r Reference) Repository() string { return r.domain + "/" + r.path }

// Tag returns the tag, or "" for a name by digest alone.
func (r Reference) Tag() string { return r.tag }

// Digest returns the digest, or "".
func (r Reference) Digest() digest.Digest { return r.digest }

// IsZero reports whether r names nothing.
func (r Reference) IsZero() bool { return r == Reference{} }

// WithTag returns r with another tag and without its digest.
func (r Reference) WithTag(tag string) (Reference, error) {
	if !validTag(tag) {
		return Reference{}, fmt.Errorf("image name %s: bad tag %q", r.Familiar(), tag)
	}
	r.tag, r.digest = tag, ""
	return r, nil
}

// WithDigest returns r by digest, without its tag.
func (r Reference) WithDigest(d digest.Digest) Reference {
	r.tag, r.digest = "", d
	return r
}

// String returns the full name, as index.json has it.
func (r Reference) String() string {
	if r.IsZero() {
		return ""
	}
	return r.Repository() + r.suffix()
}

// Familiar returns the name as people write it: without docker.io and library.
// The tag stays, "latest" too: docker prints it.
func (r Reference) Familiar() string {
	if r.IsZero() {
		return ""
	}
	return r.FamiliarRepository() + r.suffix()
}

// FamiliarRepository returns the repository as people write it, which is
// what `mk images` prints in its first column.
func (r Reference) FamiliarRepository() string {
	if r.domain != defaultDomain {
		return r.Repository()
	}
	if short, ok := strings.CutPrefix(r.path, "library/"); ok && !strings.Contains(short, "/") {
		return short
	}
	return r.path
}

func (r Reference) suffix() string {
	s := ""
	if r.tag != "" {
		s = ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest.String()
	}
	return s
}
