package recipe

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The grammar of a platform is containerd's: os[(version[+feature…])][/arch[/variant]],
// or an architecture alone. Compiled on first use: start-up is a budget.
var (
	platformOS   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(osPattern) })
	platformPart = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(partPattern) })
)

const (
	osPattern   = `^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\))?$`
	partPattern = `^[A-Za-z0-9_.-]+$`
)

var errPlatform = errors.New("invalid argument")

const (
	knownOS   = "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows zos"
	knownArch = "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le mips64p32 mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm"
)

// ParsePlatform reads "linux/arm64", "arm64", "linux/arm/v7" and the like into
// canonical names: aarch64 is arm64, x86_64 is amd64. What is not written is this
// machine's.
func ParsePlatform(s string) (v1.Platform, error) {
	var p v1.Platform
	if strings.Contains(s, "*") {
		return p, fmt.Errorf("%q: wildcards not yet supported: %w", s, errPlatform)
	}
	parts := strings.SplitN(s, "/", 4)
	os := platformOS().FindStringSubmatch(parts[0])
	if os == nil {
		return p, fmt.Errorf("%q is an invalid OS component of %q: OSAndVersion specifier component must match %q: %w", parts[0], s, osPattern, errPlatform)
	}
	for _, part := range parts[1:] {
		if !platformPart().MatchString(part) {
			return p, fmt.Errorf("%q is an invalid component of %q: platform specifier component must match %q: %w", part, s, partPattern, errPlatform)
		}
	}
	p.OS, p.OSVersion = canonicalOS(os[1]), os[2]
	if os[3] != "" {
		p.OSFeatures = strings.Split(os[3][1:], "+")
	}
	switch len(parts) {
	case 1:
		if slices.Contains(strings.Fields(knownOS), p.OS) {
			p.Architecture = runtime.GOARCH
			return p, nil
		}
		p.Architecture, p.Variant = canonicalArch(parts[0], "")
		if !slices.Contains(strings.Fields(knownArch), p.Architecture) {
			return v1.Platform{}, fmt.Errorf("%q: unknown operating system or architecture: %w", s, errPlatform)
		}
		p.OS = runtime.GOOS
	case 2:
		p.Architecture, p.Variant = canonicalArch(parts[1], "")
	case 3:
		p.Architecture, p.Variant = canonicalArch(parts[1], parts[2])
		if p.Architecture == "arm64" && p.Variant == "" {
			p.Variant = "v8"
		}
		return p, nil
	default:
		return v1.Platform{}, fmt.Errorf("%q: cannot parse platform specifier: %w", s, errPlatform)
	}
	if p.Architecture == "arm" && p.Variant == "v7" {
		p.Variant = ""
	}
	return p, nil
}

// FormatPlatform writes a platform as ParsePlatform reads it.
func FormatPlatform(p v1.Platform) string {
	if p.OS == "" {
		return "unknown"
	}
	os := p.OS
	features := slices.Sorted(slices.Values(p.OSFeatures))
	if p.OSVersion != "" || len(features) > 0 {
		os += "(" + strings.Join(append([]string{p.OSVersion}, features...), "+") + ")"
	}
	return path.Join(os, p.Architecture, p.Variant)
}

// NormalizePlatform gives the canonical names of a platform's parts.
func NormalizePlatform(p v1.Platform) v1.Platform {
	p.OS = canonicalOS(p.OS)
	p.Architecture, p.Variant = canonicalArch(p.Architecture, p.Variant)
	return p
}

func canonicalOS(os string) string {
	switch os = strings.ToLower(os); os {
	case "":
		return runtime.GOOS
	case "macos":
		return "darwin"
	}
	return os
}

func canonicalArch(arch, variant string) (string, string) {
	arch, variant = strings.ToLower(arch), strings.ToLower(variant)
	switch arch {
	case "i386":
		return "386", ""
	case "x86_64", "x86-64", "amd64":
		if variant == "v1" {
			variant = ""
		}
		return "amd64", variant
	case "aarch64", "arm64":
		if variant == "8" || variant == "v8" {
			variant = ""
		}
		return "arm64", variant
	case "armhf":
		return "arm", "v7"
	case "armel":
		return "arm", "v6"
	case "arm":
		switch variant {
		case "", "7":
			variant = "v7"
		case "5", "6", "8":
			variant = "v" + variant
		}
	}
	return arch, variant
}
