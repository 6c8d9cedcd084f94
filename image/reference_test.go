package image

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	for _, c := range []struct{ in, full, familiar string }{
		{"busybox", "docker.io/library/busybox:latest", "busybox:latest"},
		{"busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"},
		{"library/busybox", "docker.io/library/busybox:latest", "busybox:latest"},
		{"me/app", "docker.io/me/app:latest", "me/app:latest"},
		{"docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"},
		{"index.docker.io/me/app", "docker.io/me/app:latest", "me/app:latest"},
		{"localhost/app", "localhost/app:latest", "localhost/app:latest"},
		{"localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"},
		{"[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"},
		{"ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"},
		{"Host/app", "Host/app:latest", "Host/app:latest"},
		{"busybox@" + someDigest, "docker.io/library/busybox@" + someDigest, "busybox@" + someDigest},
		{"busybox:1@" + someDigest, "docker.io/library/busybox:1@" + someDigest, "busybox:1@" + someDigest},
		{"a_b/c__d-e.f---g", "docker.io/a_b/c__d-e.f---g:latest", "a_b/c__d-e.f---g:latest"},
		{"deadbeef", "docker.io/library/deadbeef:latest", "deadbeef:latest"},
	} {
		r, err := ParseReference(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if r.String() != c.full || r.Familiar() != c.familiar {
			t.Errorf("%q: got %q, %q; want %q, %q", c.in, r, r.Familiar(), c.full, c.familiar)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, in := range []string{
		"", ":", "/", "a//b", "a/", "/a", "A", "busybox:", "busybox:-x", "busybox@", "busybox@sha256:../../x",
		"busybox@sha256:abc", "busybox@md5:d41d8cd98f00b204e9800998ecf8427e", "../x", "a/../b", "a b", "a\nb", "a\x00b",
		"http://x/y", "-x", "x:" + strings.Repeat("t", 129), strings.Repeat("a", 256), strings.Repeat("a/", 600),
		strings.Repeat("0", 64), "host:port/x", "busybox@SHA256:" + someDigest[7:], "busybox@sha256:" + strings.ToUpper(someDigest[7:]),
	} {
		if r, err := ParseReference(in); err == nil {
			t.Errorf("%q was read as %s", in, r)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"busybox", "localhost:5000/a:b", "x@" + someDigest, "[::1]:1/a", "a/../b", "A.b/c:D"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		for _, form := range []string{r.String(), r.Familiar()} {
			again, err := ParseReference(form)
			if err != nil || again != r {
				t.Fatalf("%q → %q → %v, %v", s, form, again, err)
			}
		}
		for _, part := range strings.Split(r.Repository(), "/") {
			if part == "" || part == "." || part == ".." {
				t.Fatalf("%q: part %q", s, part)
			}
		}
	})
}

// What passes becomes a path: it must stay in blobs.
func FuzzDigest(f *testing.F) {
	for _, s := range []string{someDigest, "sha256:../../x", "sha512:ab", "x", "sha256:" + strings.Repeat("/", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := v1.Descriptor{Digest: digest.Digest(s)}
		if CheckDescriptor(d) != nil {
			return
		}
		if p := blobPath(d.Digest); strings.Count(p, "/") != 2 || strings.Contains(p, "..") {
			t.Fatalf("%q → %q", s, p)
		}
	})
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "aarch64": "linux/arm64",
		"linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "armhf": "linux/arm/v7", "Linux/ARM/7": "linux/arm/v7",
	} {
		p, err := ParsePlatform(in)
		if err != nil || FormatPlatform(p) != want {
			t.Errorf("%q: %s, %v; want %s", in, FormatPlatform(p), err, want)
		}
	}
	for _, in := range []string{"", "/", "linux/", "a/b/c/d", "linux/am d64", "linux/../x"} {
		if p, err := ParsePlatform(in); err == nil {
			t.Errorf("%q was read as %v", in, p)
		}
	}
	rank := func(have, want string) int {
		h, _ := ParsePlatform(have)
		w, _ := ParsePlatform(want)
		return platformRank(h, w)
	}
	if rank("linux/arm/v6", "linux/arm/v7") == 0 || rank("linux/arm/v7", "linux/arm/v6") != 0 ||
		rank("linux/amd64/v3", "linux/amd64") != 0 || rank("linux/amd64", "linux/amd64/v3") == 0 || rank("linux/386", "linux/amd64") != 0 {
		t.Error("a machine runs its own and older variants, and no others")
	}
}

// The hand-written grammar accepts what docker's regular expressions accept.
func TestGrammarIsDockers(t *testing.T) {
	for name, c := range map[string]struct {
		ours    func(string) bool
		dockers string
	}{
		"domain": {validDomain, `^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`},
		"path":   {validPath, `^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`},
		"tag":    {validTag, `^[\w][\w.-]{0,127}$`},
	} {
		pattern := regexp.MustCompile(c.dockers)
		r := rand.New(rand.NewPCG(1, 2))
		for range 200_000 {
			b := make([]byte, r.IntN(9))
			for i := range b {
				b[i] = "aZ0.-_/:[]\né"[r.IntN(12)]
			}
			if s := string(b); c.ours(s) != pattern.MatchString(s) {
				t.Fatalf("%s %q: ours %v", name, s, c.ours(s))
			}
		}
	}
}
