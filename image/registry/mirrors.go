package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// DefaultMirrors reads the mirrors of this user: $MK_REGISTRY_MIRRORS where that is set, else the first
// of these files that there is, in the same form:
//
//	$XDG_CONFIG_HOME/mk/mirrors, else ~/.config/mk/mirrors
//	/etc/mk/mirrors
func DefaultMirrors() (map[string][]string, error) {
	if s, ok := os.LookupEnv("MK_REGISTRY_MIRRORS"); ok {
		m, err := ParseMirrors(s)
		if err != nil {
			return nil, fmt.Errorf("MK_REGISTRY_MIRRORS: %w", err)
		}
		return m, nil
	}
	files := []string{"/etc/mk/mirrors"}
	if dir, err := os.UserConfigDir(); err == nil {
		files = []string{filepath.Join(dir, "mk", "mirrors"), files[0]}
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("registry mirrors: %w", err)
		}
		m, err := ParseMirrors(string(raw))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return m, nil
	}
	return nil, nil
}

// ParseMirrors reads "registry=URL" pairs, separated by commas, spaces or newlines; what
// follows a # in a line is a comment. A registry that occurs several times has several mirrors.
// A URL's path is put in front of the repository.
func ParseMirrors(s string) (map[string][]string, error) {
	out := map[string][]string{}
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		for _, pair := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
			domain, u, ok := strings.Cut(pair, "=")
			if !ok || domain == "" {
				return nil, fmt.Errorf("registry mirrors: %q: not of the form registry=URL", pair)
			}
			if _, err := parseMirror(u); err != nil {
				return nil, fmt.Errorf("registry mirrors: %w", err)
			}
			out[domain] = append(out[domain], u)
		}
	}
	return out, nil
}

func parseMirror(s string) (endpoint, error) {
	raw := s
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
		if host, _, _ := strings.Cut(s, "/"); isLoopback(host) {
			raw = "http://" + s
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
		return endpoint{}, fmt.Errorf("mirror %q: not a http or https URL of a registry", s)
	}
	prefix := strings.Trim(strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/v2"), "/")
	if prefix != "" {
		prefix += "/"
	}
	return endpoint{host: u.Host, plain: u.Scheme == "http", prefix: prefix, mirror: true}, nil
}
