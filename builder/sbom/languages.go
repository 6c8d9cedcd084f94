package sbom

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// goProgram reads what Go's linker wrote into a program about its modules. Files
// that are no ELF, or of no Go, tell nothing.
func (s *scan) goProgram(f *os.File, name string) {
	info, err := goBuildInfo(f)
	if err != nil {
		return
	}
	// The sums ("h1:…") are hashes of a module's files' hashes, for which SPDX has no name.
	add := func(module, version string) {
		if module == "" {
			return
		}
		if version == "(devel)" {
			version = ""
		}
		p := Package{Type: "golang", Namespace: path.Dir(module), Name: path.Base(module), Version: version, From: name}
		if p.Namespace == "." {
			p.Namespace = ""
		}
		s.add(p)
	}
	add("stdlib", strings.TrimPrefix(info.GoVersion, "go"))
	add(info.Main.Path, info.Main.Version)
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		add(m.Path, m.Version)
	}
}

// npm reads a package-lock.json, of any of its three versions.
func (s *scan) npm(f *os.File, name string) error {
	text, err := readAll(f, name, maxLock)
	if err != nil {
		return err
	}
	var lock struct {
		Packages     map[string]npmPackage `json:"packages"`
		Dependencies map[string]npmPackage `json:"dependencies"`
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		s.notice("/%s is no package-lock.json: %v", name, err)
		return nil
	}
	for _, at := range slices.Sorted(maps.Keys(lock.Packages)) {
		p := lock.Packages[at]
		i := strings.LastIndex(at, "node_modules/")
		if i < 0 || p.Link {
			continue // the project itself, or a directory of it
		}
		if p.Name == "" {
			p.Name = at[i+len("node_modules/"):]
		}
		s.npmPackage(p, name)
	}
	if lock.Packages == nil { // version 1
		s.npmTree(lock.Dependencies, name, 0)
	}
	return nil
}

type npmPackage struct {
	Name         string                `json:"name"`
	Version      string                `json:"version"`
	Integrity    string                `json:"integrity"`
	License      any                   `json:"license"`
	Link         bool                  `json:"link"`
	Dependencies map[string]npmVersion `json:"dependencies"`
}

// npmVersion is a version asked for, or in version 1 a package inside another.
type npmVersion struct{ *npmPackage }

func (v *npmVersion) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] == '{' {
		return json.Unmarshal(raw, &v.npmPackage)
	}
	return nil
}

func (s *scan) npmTree(list map[string]npmPackage, file string, depth int) {
	if depth > maxDepth {
		s.notice("/%s: more than %d packages in each other", file, maxDepth)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(list)) {
		p := list[name]
		if p.Name == "" {
			p.Name = name
		}
		s.npmPackage(p, file)
		inner := map[string]npmPackage{}
		for name, v := range p.Dependencies {
			if v.npmPackage != nil {
				inner[name] = *v.npmPackage
			}
		}
		s.npmTree(inner, file, depth+1)
	}
}

func (s *scan) npmPackage(p npmPackage, file string) {
	out := Package{Type: "npm", Name: p.Name, Version: p.Version, From: file}
	if scope, name, ok := strings.Cut(p.Name, "/"); ok {
		out.Namespace, out.Name = scope, name
	}
	if p.License != nil {
		out.License = fmt.Sprint(p.License)
	}
	// Subresource integrity: "sha512-<base64>", several with spaces between them.
	for _, word := range strings.Fields(p.Integrity) {
		algorithm, value, _ := strings.Cut(word, "-")
		sum, err := base64.StdEncoding.DecodeString(value)
		if kind := map[string]string{"sha1": "SHA1", "sha256": "SHA256", "sha384": "SHA384", "sha512": "SHA512"}[algorithm]; err == nil && kind != "" {
			if out.Checksums == nil {
				out.Checksums = map[string]string{}
			}
			out.Checksums[kind] = hex.EncodeToString(sum)
		}
	}
	s.add(out)
}
