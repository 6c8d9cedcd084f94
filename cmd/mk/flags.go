package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/docker/go-units"

	"mk/builder"
)

// list is a flag that may be repeated, each time with one more value. It is pflag's StringArray,
// which makes a CSV writer of 4 KB for each such flag, to print that it is empty by default.
type list []string

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func (l *list) String() string { return strings.Join(*l, ",") }
func (l *list) Type() string   { return "stringArray" }

// bytesFlag is an amount of bytes: 512m, 10GB, units of 1024 as docker's; 0 is as good as none.
type bytesFlag struct {
	n   int64
	set bool
}

func (b *bytesFlag) Set(value string) (err error) {
	if b.n, err = units.RAMInBytes(value); err == nil && b.n < 0 {
		err = errors.New("less than nothing")
	}
	b.set = b.n > 0
	return err
}

func (b *bytesFlag) String() string { return "" }
func (b *bytesFlag) Type() string   { return "bytes" }

// buildArgs reads --build-arg: NAME=value, or NAME for the caller's own value,
// which leaves the recipe's default where the caller has none.
func buildArgs(words []string) (map[string]string, error) {
	args := map[string]string{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if name == "" {
			return nil, fmt.Errorf("--build-arg %s: want NAME or NAME=value", w)
		}
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		args[name] = value
	}
	if epoch, ok := os.LookupEnv("SOURCE_DATE_EPOCH"); ok && epoch != "" {
		if _, given := args["SOURCE_DATE_EPOCH"]; !given {
			args["SOURCE_DATE_EPOCH"] = epoch
		}
	}
	return args, nil
}

// keyValues reads flags of the form key=value.
func keyValues(flag string, words []string) (map[string]string, error) {
	m := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		if k == "" {
			return nil, fmt.Errorf("%s %s: want key=value", flag, w)
		}
		m[k] = v
	}
	return m, nil
}

// proxyNames are passed to RUN steps without an ARG, and never enter a key.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// sandbox is what this build's flags give to RUN steps.
func (b *building) sandbox() (builder.Sandbox, error) {
	f := b.flags
	s := builder.Sandbox{Network: f.network, Dir: b.store.path("tmp"), Caches: b.store.caches()}
	switch f.network {
	case "default", "none", "host":
	default:
		return s, fmt.Errorf("--network %s: want default, none or host", f.network)
	}
	var err error
	if s.Hosts, err = hostLines(f.hosts, "127.0.0.1"); err != nil {
		return s, err
	}
	args := b.args
	s.Hostname = args["BUILDKIT_SANDBOX_HOSTNAME"]
	s.CacheNS = args["BUILDKIT_CACHE_MOUNT_NS"]
	for _, name := range proxyNames {
		for _, n := range []string{name, strings.ToLower(name)} {
			if v, ok := args[n]; ok {
				s.Proxies = append(s.Proxies, name+"="+v, strings.ToLower(name)+"="+v)
				break
			}
		}
	}
	return s, f.steps.apply(&s)
}

// hostLines makes lines of /etc/hosts of --add-host name:address or name=address. gateway is the
// address host-gateway; the machine's loopback where its network is shared.
func hostLines(words []string, gateway string) ([]string, error) {
	var lines []string
	for _, w := range words {
		i := strings.IndexAny(w, "=:")
		if i <= 0 {
			return nil, fmt.Errorf("--add-host %s: want name:address", w)
		}
		name, addr := w[:i], strings.Trim(w[i+1:], "[]")
		if addr == "host-gateway" {
			addr = gateway
		}
		if _, err := netip.ParseAddr(addr); err != nil {
			return nil, fmt.Errorf("--add-host %s: %q is no address", w, addr)
		}
		lines = append(lines, addr+"\t"+strings.ToLower(name))
	}
	return lines, nil
}

// jsonWords reads a JSON array of strings.
func jsonWords(s string) ([]string, bool) {
	var words []string
	if !strings.HasPrefix(strings.TrimSpace(s), "[") || json.Unmarshal([]byte(s), &words) != nil {
		return nil, false
	}
	return words, true
}
