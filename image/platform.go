package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// HostPlatform is what this machine runs natively.
func HostPlatform() v1.Platform {
	p := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if p.Architecture == "arm" {
		p.Variant = "v7"
	}
	return p
}

// architectures are those of Linux that may be written alone, so that a misspelt
// one is not taken for a machine that nobody has.
const architectures = "386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 s390x wasm"

// ParsePlatform reads os/arch[/variant], arch alone, or os alone, with the
// aliases that docker knows (x86_64, aarch64, armhf, …).
func ParsePlatform(s string) (v1.Platform, error) {
	parts := strings.Split(s, "/")
	if s == "" || len(parts) > 3 {
		return v1.Platform{}, fmt.Errorf("platform %q: not of the form os/arch[/variant]", s)
	}
	for _, part := range parts {
		if !only(part, letters+digits+"._-") || !only(part[:1], letters+digits) {
			return v1.Platform{}, fmt.Errorf("platform %q: not of the form os/arch[/variant]", s)
		}
	}
	var p v1.Platform
	if len(parts) == 1 {
		switch strings.ToLower(s) {
		case "linux", "windows", "darwin", "freebsd", "macos":
			p.OS, p.Architecture = strings.ToLower(s), runtime.GOARCH
		default:
			p.OS, p.Architecture = "linux", s
		}
		if p = normalize(p); !slices.Contains(strings.Fields(architectures), p.Architecture) {
			return v1.Platform{}, fmt.Errorf("platform %q: unknown operating system or architecture", s)
		}
		return p, nil
	}
	p.OS, p.Architecture = parts[0], parts[1]
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normalize(p), nil
}

// FormatPlatform is the inverse of ParsePlatform.
func FormatPlatform(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// normalize gives every platform one spelling.
func normalize(p v1.Platform) v1.Platform {
	p.OS = strings.ToLower(p.OS)
	p.Architecture = strings.ToLower(p.Architecture)
	p.Variant = strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "8" || p.Variant == "v8"):
		p.Variant = ""
	case p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "arm" && len(p.Variant) == 1:
		p.Variant = "v" + p.Variant
	}
	return p
}

// platformRank says how well have serves want: 0 not at all, more is better.
// An arm v7 machine runs v6 and v5 programs; an amd64 v3 machine runs v1 and v2.
func platformRank(have, want v1.Platform) int {
	have, want = normalize(have), normalize(want)
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return 0
	}
	if have.Variant == want.Variant {
		return 100
	}
	level := func(v string, lowest int) int {
		if len(v) == 2 && v[0] == 'v' && v[1] >= '0' && v[1] <= '9' {
			return int(v[1] - '0')
		}
		return lowest
	}
	lowest := map[string]int{"amd64": 1, "arm64": 8, "arm": 5}[want.Architecture]
	h, w := level(have.Variant, lowest), level(want.Variant, lowest)
	if h > w {
		return 0
	}
	return 50 + h
}

// SelectPlatform picks the manifest of an index that serves p best; nil stands for
// this machine, and for the only image there is when there is one. Attestations are never picked.
func SelectPlatform(ix v1.Index, p *v1.Platform) (v1.Descriptor, bool) {
	want := HostPlatform()
	if p != nil {
		want = *p
	}
	var best v1.Descriptor
	rank, images := 0, 0
	var only v1.Descriptor
	for _, d := range ix.Manifests {
		if isAttestation(d) {
			continue
		}
		images++
		only = d
		if d.Platform == nil {
			continue
		}
		if r := platformRank(*d.Platform, want); r > rank {
			best, rank = d, r
		}
	}
	if rank == 0 && images == 1 && (p == nil || only.Platform == nil) {
		return only, true
	}
	return best, rank > 0
}
