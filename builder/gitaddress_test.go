package builder

import (
	"strings"
	"testing"
)

func TestParseGitAddress(t *testing.T) {
	for _, c := range []struct{ in, remote, ref, subdir string }{
		{"https://h/o/r.git", "https://h/o/r.git", "", ""},
		{"https://h:8443/o/r.git#v1:a/b/", "https://h:8443/o/r.git", "v1", "a/b"},
		{"http://h/r.git#:../../x", "http://h/r.git", "", "x"},
		{"https://u:p@h/r.git", "https://h/r.git", "", ""},
		{"git://h/o/r", "git://h/o/r", "", ""},
		{"ssh://git@h:2222/o/r.git#main", "ssh://git@h:2222/o/r.git", "main", ""},
		{"git@h:o/r.git", "git@h:o/r.git", "", ""},
		{"git@h:o/r#main:d", "git@h:o/r", "main", "d"},
		{"git@h:o/r.git?ref=x&subdir=d", "git@h:o/r.git", "x", "d"},
		{"https://h/r.git?tag=v1", "https://h/r.git", "refs/tags/v1", ""},
		{"https://h/r.git?tag=refs/tags/v1", "https://h/r.git", "refs/tags/v1", ""},
		{"https://h/r.git?branch=b#refs/heads/b", "https://h/r.git", "refs/heads/b", ""},
		{"HTTPS://h/r.git", "https://h/r.git", "", ""},
	} {
		a, ok, err := ParseGitAddress(c.in)
		if err != nil || !ok || a.Remote != c.remote || a.Ref != c.ref || a.Subdir != c.subdir {
			t.Errorf("%s: %+v %v %v", c.in, a, ok, err)
		}
	}
	for _, in := range []string{"", ".", "dir", "./a.git", "https://h/r", "https://h/r.tar", "file:///r.git", "ext::sh -c x", "ftp://h/r.git", "C:x", "/abs:x"} {
		if a, ok, _ := ParseGitAddress(in); ok {
			t.Errorf("%q is a repository: %+v", in, a)
		}
	}
	for _, in := range []string{
		"https:///r.git", "ssh://-oProxyCommand=x/r.git", "git@h:-x", "git@-h:r.git",
		"https://h/r.git#-x", "https://h/r.git#a b", "https://h/r.git#a%0Ab", "https://h/r.git?ref=a..b", "https://h/r.git#a^b",
		"https://h/r.git?subdir=%00", "https://h/r.git?commit=xyz", "https://h/r.git?submodules=7x",
	} {
		if a, ok, err := ParseGitAddress(in); err == nil {
			t.Errorf("%q: %+v %v, want an error", in, a, ok)
		}
	}
}

// Whatever is parsed has nothing in it that git takes for an option, and no password.
func FuzzGitAddress(f *testing.F) {
	for _, s := range []string{"https://u:secret@h/r.git#r:d", "git@h:r?ref=x", "ssh://h/-x", "http://h/.git?tag=%2d", "git@h:a\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok, err := ParseGitAddress(s)
		if err != nil || !ok {
			return
		}
		if strings.HasPrefix(a.Remote, "-") || strings.HasPrefix(a.Ref, "-") || strings.ContainsAny(a.Remote+a.Ref, "\x00\n") {
			t.Errorf("%q: %+v", s, a)
		}
		if strings.HasPrefix(a.Subdir, "/") || a.Subdir == ".." || strings.HasPrefix(a.Subdir, "../") {
			t.Errorf("%q leads out: %q", s, a.Subdir)
		}
		if strings.HasPrefix(a.Remote, "http") && strings.Contains(a.Remote, "@") && a.user == nil && strings.Contains(s, "://u:") {
			t.Errorf("%q: %q", s, a.Remote)
		}
	})
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"ADD https://u:p@h/x /y":       "ADD https://xxxxx@h/x /y",
		"ADD http://token@h/a@b http:": "ADD http://xxxxx@h/a@b http:",
		"git@h:x ssh://git@h/x":        "git@h:x ssh://git@h/x",
		"http://h/u@v":                 "http://h/u@v",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
