package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"mk/builder"
	"mk/container"
)

// stepFlags are the words of mk build that say what RUN steps are given.
type stepFlags struct {
	secrets  []string
	ssh      []string
	allow    []string
	devices  []string
	ulimits  []string
	shmSize  string
	limits   limits
	security []string
	capAdd   []string
	capDrop  []string
	volumes  []string
}

func (f *stepFlags) register(fl *pflag.FlagSet) {
	fl.Var((*list)(&f.secrets), "secret", "secret for RUN --mount=type=secret, as id=NAME[,src=FILE|,env=VARIABLE]")
	fl.Var((*list)(&f.ssh), "ssh", "ssh agent for RUN --mount=type=ssh, as default or ID[=SOCKET|KEY[,KEY]]")
	fl.StringSliceVar(&f.allow, "allow", nil, "let RUN steps ask for more: security.insecure, network.host")
	fl.Var((*list)(&f.ulimits), "ulimit", "limit of RUN steps, as NAME=soft[:hard]")
	fl.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm in RUN steps (default: 64m)")
	fl.Var((*list)(&f.security), "security-opt", "no-new-privileges[=true|false] (default: true in steps of root)")
	f.limits.defineBuild(fl)
	fl.StringSliceVar(&f.capAdd, "cap-add", nil, "capability that RUN steps have beside docker's fourteen")
	fl.StringSliceVar(&f.capDrop, "cap-drop", nil, "capability that RUN steps do not have")
	fl.VarP((*list)(&f.volumes), "volume", "v", "bind mount in RUN steps, as HOST:CONTAINER[:ro]; no part of their keys")
	fl.Var((*list)(&f.devices), "device", "not to be had: an ordinary user can give steps no device")
}

// apply adds what the flags say to the sandbox of RUN steps.
func (f *stepFlags) apply(s *builder.Sandbox) (err error) {
	if s.Limits, err = f.limits.parse(container.Limits{}); err != nil {
		return err
	}
	s.Parent = f.limits.parent
	if len(f.devices) > 0 {
		return fmt.Errorf("--device %s: an ordinary user can give RUN steps no device, and mk reads no CDI specifications", f.devices[0])
	}
	for _, name := range f.allow {
		switch name {
		case "security.insecure":
			s.Insecure = true
		case "network.host":
			s.HostNet = true
		case "device":
			return errors.New("--allow device: an ordinary user can give RUN steps no device")
		default:
			return fmt.Errorf("--allow %s: want security.insecure or network.host", name)
		}
	}
	if f.shmSize != "" {
		if s.ShmSize, err = units.RAMInBytes(f.shmSize); err != nil || s.ShmSize <= 0 {
			return fmt.Errorf("--shm-size %s: want a size, like 128m", f.shmSize)
		}
	}
	for _, word := range f.ulimits {
		limit, err := parseUlimit(word)
		if err != nil {
			return fmt.Errorf("--ulimit %s: %w", word, err)
		}
		s.Rlimits = append(s.Rlimits, limit)
	}
	for _, word := range f.security {
		name, value, given := strings.Cut(word, "=")
		if !given {
			value = "true"
		}
		deny, err := strconv.ParseBool(value)
		if name != "no-new-privileges" || err != nil {
			return fmt.Errorf("--security-opt %s: want no-new-privileges=true or =false", word)
		}
		allow := !deny
		s.NewPrivs = &allow
	}
	if s.Caps, err = container.ParseCaps(f.capAdd, f.capDrop); err != nil {
		return err
	}
	for _, word := range f.volumes {
		p, err := parseVolume(word)
		if err != nil {
			return err
		}
		if p.Type != container.Bind {
			return fmt.Errorf("--volume %s: want HOST:CONTAINER[:ro]: a step has no volumes, but RUN --mount=type=cache", word)
		}
		s.Volumes = append(s.Volumes, container.Mount{Type: container.Bind, Source: p.Source, Dest: p.Dest, ReadOnly: p.ReadOnly})
	}
	if s.Secrets, err = parseSecrets(f.secrets); err != nil {
		return err
	}
	s.Agents, err = parseAgents(f.ssh)
	return err
}

func parseUlimit(word string) (container.Rlimit, error) {
	u, err := units.ParseUlimit(word)
	if err != nil {
		return container.Rlimit{}, err
	}
	r, err := u.GetRlimit()
	if err != nil {
		return container.Rlimit{}, err
	}
	return container.Rlimit{Resource: r.Type, Soft: r.Soft, Hard: r.Hard}, nil
}

// parseSecrets reads the values of --secret. A later one of an ID replaces an
// earlier one.
func parseSecrets(words []string) (map[string]builder.Secret, error) {
	secrets := map[string]builder.Secret{}
	for _, word := range words {
		id, secret, err := parseSecret(word)
		if err == nil {
			err = secret.Check()
		}
		if err != nil {
			return nil, fmt.Errorf("--secret %s: %w", word, err)
		}
		secrets[id] = secret
	}
	return secrets, nil
}

// parseSecret reads one value, by buildx's rules: without a source, the secret is
// the variable named as the ID if there is one, else the file.
func parseSecret(word string) (id string, s builder.Secret, err error) {
	fields, err := csv.NewReader(strings.NewReader(word)).Read()
	if err != nil {
		return "", s, fmt.Errorf("failed to parse csv secret: %w", err)
	}
	kind := ""
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return "", s, fmt.Errorf("invalid field '%s' must be a key=value pair", field)
		}
		switch strings.ToLower(key) {
		case "id":
			id = value
		case "type":
			if kind = value; kind != "file" && kind != "env" {
				return "", s, fmt.Errorf("unsupported secret type %q", value)
			}
		case "source", "src":
			s.File = value
		case "env":
			s.Env = value
		default:
			return "", s, fmt.Errorf("unexpected key '%s' in '%s'", key, field)
		}
	}
	if id == "" {
		return "", s, errors.New("secret missing ID")
	}
	if kind == "env" && s.Env == "" {
		s.File, s.Env = "", s.File
	}
	if s.Env == "" && s.File == "" {
		_, set := os.LookupEnv(id)
		if kind == "env" || kind == "" && set {
			s.Env = id
		} else {
			s.File = id
		}
	}
	if s.Env != "" {
		s.File = "" // a variable goes before a file
	}
	return id, s, nil
}

// parseAgents reads the values of --ssh.
func parseAgents(words []string) (map[string]*builder.Agent, error) {
	agents := map[string]*builder.Agent{}
	for _, word := range words {
		id, paths, _ := strings.Cut(word, "=")
		if id == "" {
			id = "default"
		}
		if agents[id] != nil {
			return nil, fmt.Errorf("--ssh %s: duplicate agent ID %q", word, id)
		}
		var list []string
		if paths != "" {
			list = strings.Split(paths, ",")
		}
		a, err := builder.OpenAgent(list)
		if err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", word, err)
		}
		agents[id] = a
	}
	return agents, nil
}
