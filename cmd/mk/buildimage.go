package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"mk/builder"
)

// podmanFlags are the words of mk build that podman and buildah have and buildx has not:
// what the image gets and loses beside what its recipe says, and where values are read.
type podmanFlags struct {
	env         []string
	unsetEnv    []string
	unsetLabels []string
	omitHistory bool
	squashAll   bool
	format      string // oci or docker

	from       string // the base of the first stage
	ignoreFile string
	argFiles   []string
	httpProxy  bool
	epoch      string // --source-date-epoch
	cacheTTL   time.Duration
	pullAlways bool
	pullNever  bool
}

func (f *podmanFlags) register(fl *pflag.FlagSet) {
	fl.Var((*list)(&f.env), "env", "variable of the image that every stage starts with, as NAME=value, or NAME to pass it on")
	fl.Var((*list)(&f.unsetEnv), "unsetenv", "variable that the image is not to have")
	fl.Var((*list)(&f.unsetLabels), "unsetlabel", "label that the image is not to have")
	fl.BoolVar(&f.omitHistory, "omit-history", false, "leave the history out of the image")
	fl.BoolVar(&f.squashAll, "squash-all", false, "make all layers one, those of the base too")
	fl.StringVar(&f.format, "format", "oci", "media types of the image: oci or docker")
	fl.StringVar(&f.from, "from", "", "the base of the first stage, in place of the recipe's")
	fl.StringVar(&f.ignoreFile, "ignorefile", "", "the ignore file, in place of the context's")
	fl.Var((*list)(&f.argFiles), "build-arg-file", "file of build arguments, NAME=value a line; --build-arg goes before it")
	fl.BoolVar(&f.httpProxy, "http-proxy", false, "give RUN steps the proxy variables of the environment")
	fl.StringVar(&f.epoch, "source-date-epoch", "", "short for --build-arg SOURCE_DATE_EPOCH=")
	fl.DurationVar(&f.cacheTTL, "cache-ttl", 0, "execute steps again whose result is older, like 24h")
	fl.BoolVar(&f.pullAlways, "pull-always", false, "short for --pull=always")
	fl.BoolVar(&f.pullNever, "pull-never", false, "short for --pull=never")
}

// spell out what is short for other flags.
func (f *buildFlags) spellOut(changed func(string) bool) error {
	p := &f.podman
	switch {
	case p.pullAlways && p.pullNever:
		return fmt.Errorf("--pull-always and --pull-never: want one of them")
	case p.pullAlways:
		f.pull = "always"
	case p.pullNever:
		f.pull = "never"
	}
	if changed("no-cache-filter") && len(f.noCacheOf) == 0 {
		f.noCache = true // of no stage in particular
	}
	switch {
	case changed("cache-ttl") && p.cacheTTL < 0:
		return fmt.Errorf("--cache-ttl %s: want a time like 24h", p.cacheTTL)
	case changed("cache-ttl") && p.cacheTTL == 0:
		f.noCache = true
	}
	if p.format != "oci" && p.format != "docker" {
		return fmt.Errorf("--format %s: want oci or docker", p.format)
	}
	var words []string
	for _, path := range p.argFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("--build-arg-file: %w", err)
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimSpace(lines.Text())
			if line == "" || line[0] == '#' {
				continue
			}
			if strings.HasPrefix(line, "=") {
				return fmt.Errorf("--build-arg-file %s:%d: want NAME=value", path, n)
			}
			words = append(words, line)
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("--build-arg-file %s: %w", path, err)
		}
	}
	if p.httpProxy {
		for _, name := range proxyNames {
			for _, n := range []string{strings.ToLower(name), name} {
				if _, ok := os.LookupEnv(n); ok {
					words = append(words, n)
				}
			}
		}
	}
	if p.epoch != "" {
		words = append(words, "SOURCE_DATE_EPOCH="+p.epoch)
	}
	f.args = slices.Concat(words, f.args)
	return nil
}

// apply adds what the flags say of the image to the options of a plan.
func (f *podmanFlags) apply(opt *builder.PlanOptions) error {
	for _, kv := range f.env {
		name, value, ok := strings.Cut(kv, "=")
		if name == "" {
			return fmt.Errorf("--env %s: want NAME=value", kv)
		}
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		opt.Env = append(opt.Env, name+"="+value)
	}
	opt.UnsetEnv, opt.UnsetLabels, opt.OmitHistory = f.unsetEnv, f.unsetLabels, f.omitHistory
	return nil
}
