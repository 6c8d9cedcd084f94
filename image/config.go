package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is an image's config: OCI's, with docker's extensions (Healthcheck,
// OnBuild, Shell), and with every field that mk does not know kept as it came,
// so that reading and writing a config loses nothing. Config.Created, Author,
// Platform, RootFS and History are promoted from the embedded type.
type Config struct {
	v1.Image
	Config RunConfig `json:"config"` // in the place of v1.Image's
	// Unknown holds the top-level fields that no type here names, and
	// UnknownRun those of the "config" object. docker's own leftovers are among them
	// (container_config, docker_version): a builder that starts a new image from
	// a base sets Unknown to nil, as BuildKit does.
	Unknown    map[string]json.RawMessage `json:"-"`
	UnknownRun map[string]json.RawMessage `json:"-"`
}

// RunConfig is how to run an image: Env, Cmd, User, Healthcheck, ….
type RunConfig = dockerspec.DockerOCIImageConfig

// Healthcheck is docker's health check. Durations are nanoseconds in JSON.
type Healthcheck = dockerspec.HealthcheckConfig

// configDocument is Config without its methods, for encoding/json.
type configDocument struct {
	v1.Image
	Config RunConfig `json:"config"`
}

// knownConfig and knownRun are the fields that the types name; what is not here is unknown.
var (
	knownConfig = []string{"created", "author", "architecture", "variant", "os", "os.version", "os.features", "config", "rootfs", "history"}
	knownRun    = []string{"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped", "Healthcheck", "OnBuild", "Shell"}
)

// ParseConfig reads a config blob. A config without the DiffID of a layer is no
// image that could be run, but artifacts have such: that is for the caller to refuse.
func ParseConfig(raw []byte) (Config, error) {
	var c Config
	if len(raw) > MaxConfigSize {
		return c, fmt.Errorf("config of %d bytes, more than %d: %w", len(raw), MaxConfigSize, ErrInvalid)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("config: %w: %w", err, ErrInvalid)
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return c, fmt.Errorf("config has %d layers, more than %d: %w", len(c.RootFS.DiffIDs), maxLayers, ErrInvalid)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return c, fmt.Errorf("config: %w", err)
		}
	}
	return c, nil
}

// UnmarshalJSON keeps unknown fields.
func (c *Config) UnmarshalJSON(raw []byte) error {
	var doc configDocument
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil {
		return err
	}
	run := map[string]json.RawMessage{}
	for key, value := range top {
		if strings.EqualFold(key, "config") {
			if err := json.Unmarshal(value, &run); err != nil {
				return err
			}
		}
	}
	*c = Config{Image: doc.Image, Config: doc.Config, Unknown: unknown(top, knownConfig), UnknownRun: unknown(run, knownRun)}
	return nil
}

// MarshalJSON writes the known fields in the order of the types and then the
// unknown ones, sorted: equal configs have equal bytes.
func (c Config) MarshalJSON() ([]byte, error) {
	run, err := json.Marshal(c.Config)
	if err != nil {
		return nil, err
	}
	run = appendFields(run, c.UnknownRun)
	raw, err := json.Marshal(struct {
		v1.Image
		Config json.RawMessage `json:"config"`
	}{c.Image, run})
	if err != nil {
		return nil, err
	}
	return appendFields(raw, c.Unknown), nil
}

// Clone returns a config that shares nothing with c, for a builder to change. The history, a line a
// step, is not sent through JSON: a chain of stages, each from the one before, would pay for its square.
func (c Config) Clone() Config {
	history := slices.Clone(c.History)
	for i, h := range history {
		if h.Created != nil {
			created := *h.Created
			history[i].Created = &created
		}
	}
	c.History = nil
	raw, err := json.Marshal(c)
	if err != nil { // only a hand-made Unknown can be unencodable
		panic(fmt.Sprintf("image: clone config: %v", err))
	}
	var out Config
	if err := json.Unmarshal(raw, &out); err != nil {
		panic(fmt.Sprintf("image: clone config: %v", err))
	}
	out.History = history
	return out
}

// unknown returns the fields of all that known does not list. encoding/json matches
// field names without regard to case, so this does too.
func unknown(all map[string]json.RawMessage, known []string) map[string]json.RawMessage {
	var rest map[string]json.RawMessage
	for key, value := range all {
		if slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			continue
		}
		if rest == nil {
			rest = map[string]json.RawMessage{}
		}
		rest[key] = value
	}
	return rest
}

// appendFields adds fields to the end of a JSON object.
func appendFields(object []byte, fields map[string]json.RawMessage) []byte {
	if len(fields) == 0 {
		return object
	}
	var b bytes.Buffer
	b.Write(object[:len(object)-1])
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		name, _ := json.Marshal(key) // a string always encodes
		b.Write(name)
		b.WriteByte(':')
		b.Write(fields[key])
	}
	b.WriteByte('}')
	return b.Bytes()
}
