package sbom

import (
	"errors"
	"io/fs"
	"path"
	"strings"
)

// dpkg reads Debian's database: paragraphs of "Field: value", in one file or, in
// distroless images, a file a package (dpkg(1), deb-control(5)).
func (s *scan) dpkg(d distribution) error {
	files := []string{"var/lib/dpkg/status"}
	names, err := s.names("var/lib/dpkg/status.d")
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".md5sums") {
			files = append(files, path.Join("var/lib/dpkg/status.d", name))
		}
	}
	for _, file := range files {
		text, err := s.read(file, maxDatabase)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, p := range paragraphs(string(text), ": ") {
			// What was removed and left its configuration is not installed.
			if status := p["Status"]; p["Package"] == "" || status != "" && !strings.HasSuffix(status, " installed") {
				continue
			}
			source, _, _ := strings.Cut(p["Source"], " ") // "glibc (2.41-1)"
			s.add(Package{
				Type: "deb", Namespace: or(d.id, "debian"), Name: p["Package"], Version: p["Version"], Arch: p["Architecture"],
				Distro: d.String(), Upstream: source, Supplier: person(p["Maintainer"]), Homepage: p["Homepage"], From: file,
			})
		}
	}
	return nil
}

// apk reads Alpine's database: paragraphs of "F:value" (apk-package(5)).
func (s *scan) apk(d distribution) error {
	for _, file := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		text, err := s.read(file, maxDatabase)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, p := range paragraphs(string(text), ":") {
			if p["P"] == "" {
				continue
			}
			upstream := p["o"]
			if upstream == p["P"] {
				upstream = ""
			}
			s.add(Package{
				Type: "apk", Namespace: or(d.id, "alpine"), Name: p["P"], Version: p["V"], Arch: p["A"], Distro: d.String(),
				Upstream: upstream, Supplier: person(p["m"]), License: p["L"], Homepage: p["U"], From: file,
			})
		}
		return nil // with /lib a link to /usr/lib, it is the same file
	}
	return nil
}

// paragraphs reads blocks of lines "field<sep>value" with empty lines between them. Of a
// value that goes on in indented lines the first line is taken; of a field that
// occurs again, its first.
func paragraphs(text, sep string) []map[string]string {
	var list []map[string]string
	var p map[string]string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			p = nil
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			continue
		}
		if p == nil {
			p = map[string]string{}
			list = append(list, p)
		}
		key, value, ok := strings.Cut(line, sep)
		if _, twice := p[key]; ok && !twice {
			p[key] = strings.TrimSpace(value)
		}
	}
	return list
}

// person makes "Name <address>" SPDX's supplier, "" of nothing.
func person(maintainer string) string {
	name, address, ok := strings.Cut(maintainer, "<")
	name = strings.TrimSpace(name)
	if name == "" {
		return ""
	}
	if ok {
		name += " (" + strings.TrimSuffix(strings.TrimSpace(address), ">") + ")"
	}
	return "Person: " + name
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
