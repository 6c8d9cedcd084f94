package main

// What the OCI image specification wants of a layout, checked from the specification's text
// (image-spec v1.1: image-layout.md, image-index.md, manifest.md, config.md, layer.md,
// descriptor.md) and with none of mk's code.

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
)

// validate PATH...
// holds OCI layouts, directories or tars, against the specification: every descriptor, document,
// digest, size, media type, layer and name in them; and that no blob lies there for nothing.
func cmdValidate(ts *testscript.TestScript, neg bool, args []string) {
	for _, arg := range args {
		dir := ts.MkAbs(arg)
		if info, err := os.Stat(dir); err == nil && !info.IsDir() {
			unpacked := theScript(ts).t.TempDir()
			ts.Check(unpackPlain(dir, unpacked))
			dir = unpacked
		}
		v := &validator{root: os.DirFS(dir), seen: map[string]bool{}}
		v.layout()
		for _, wrong := range v.wrong {
			ts.Logf("%s: %s", arg, wrong)
		}
		if (len(v.wrong) > 0) != neg {
			ts.Fatalf("%s: %d things are not as the specification wants", arg, len(v.wrong))
		}
	}
}

type validator struct {
	root  fs.FS
	seen  map[string]bool // digests
	wrong []string
}

func (v *validator) say(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}

type descriptorJSON struct {
	MediaType, Digest string
	Size              *int64
	URLs              []string
	Annotations       map[string]*string
	Platform          *struct{ Architecture, OS string }
	ArtifactType      string
}

const (
	typeIndex, typeManifest = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
	typeConfig              = "application/vnd.oci.image.config.v1+json"
	typeList, typeSchema2   = "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerConfig        = "application/vnd.docker.container.image.v1+json"
)

var (
	mediaTypeForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9!#$&-^_.+]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&-^_.+]{0,126}$`)
	sha256Form    = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	refNameForm   = regexp.MustCompile(`^[A-Za-z0-9]+([-._:@/+]+[A-Za-z0-9]+|--[A-Za-z0-9]+)*$`)
	layerForm     = regexp.MustCompile(`^application/vnd\.(oci\.image\.layer\.v1\.tar|docker\.image\.rootfs\.diff\.tar)([.+](gzip|zstd))?$`)
)

func (v *validator) layout() {
	var marker struct{ ImageLayoutVersion string }
	if raw, err := fs.ReadFile(v.root, "oci-layout"); err != nil || json.Unmarshal(raw, &marker) != nil || marker.ImageLayoutVersion != "1.0.0" {
		v.say("oci-layout: %q, %v", marker.ImageLayoutVersion, err)
	}
	raw, err := fs.ReadFile(v.root, "index.json")
	if err != nil {
		v.say("%v", err)
		return
	}
	v.index("index.json", raw, "")
	err = fs.WalkDir(v.root, "blobs", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if digest := path.Base(path.Dir(name)) + ":" + path.Base(name); !v.seen[digest] {
			v.say("%s: nothing names it", name)
		}
		return nil
	})
	if err != nil {
		v.say("%v", err)
	}
}

// document unmarshals what every document has, and holds it against what it came as.
func (v *validator) document(at string, raw []byte, mediaType string, into any) {
	var head struct {
		SchemaVersion int
		MediaType     string
		Annotations   map[string]*string
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		v.say("%s: %v", at, err)
		return
	}
	if head.SchemaVersion != 2 || mediaType != "" && head.MediaType != "" && head.MediaType != mediaType {
		v.say("%s: schema version %d, media type %q, and it came as %q", at, head.SchemaVersion, head.MediaType, mediaType)
	}
	v.annotations(at, head.Annotations)
	if err := json.Unmarshal(raw, into); err != nil {
		v.say("%s: %v", at, err)
	}
}

func (v *validator) annotations(at string, all map[string]*string) {
	for key, value := range all {
		if key == "" || value == nil {
			v.say("%s: annotation %q", at, key)
		}
	}
}

func (v *validator) index(at string, raw []byte, mediaType string) {
	var ix struct{ Manifests *[]descriptorJSON }
	v.document(at, raw, mediaType, &ix)
	if ix.Manifests == nil {
		v.say("%s: no manifests, not even []", at)
		return
	}
	for _, d := range *ix.Manifests {
		if ref := d.Annotations["org.opencontainers.image.ref.name"]; ref != nil && !refNameForm.MatchString(*ref) {
			v.say("%s: ref.name %q", at, *ref)
		}
		if d.Platform != nil && (d.Platform.Architecture == "" || d.Platform.OS == "") {
			v.say("%s: platform %+v", at, *d.Platform)
		}
		raw := v.blob(at, d)
		switch d.MediaType {
		case typeIndex, typeList:
			v.index(d.Digest, raw, d.MediaType)
		case typeManifest, typeSchema2:
			v.manifest(d.Digest, raw, d.MediaType)
		default:
			v.say("%s: media type %q in an index", at, d.MediaType)
		}
	}
}

// blob checks a descriptor and returns the bytes that it is of.
func (v *validator) blob(at string, d descriptorJSON) []byte {
	v.annotations(at, d.Annotations)
	if !mediaTypeForm.MatchString(d.MediaType) || !sha256Form.MatchString(d.Digest) || d.Size == nil || len(d.URLs) > 0 {
		v.say("%s: descriptor %+v", at, d)
		return nil
	}
	v.seen[d.Digest] = true
	raw, err := fs.ReadFile(v.root, "blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"))
	if err != nil {
		v.say("%s: %v", at, err)
		return nil
	}
	if int64(len(raw)) != *d.Size || sum(raw) != d.Digest {
		v.say("%s: %s has %d bytes of %s", at, d.Digest, len(raw), sum(raw))
	}
	return raw
}

func sum(raw []byte) string {
	s := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(s[:])
}

func (v *validator) manifest(at string, raw []byte, mediaType string) {
	var m struct {
		Config       *descriptorJSON
		Layers       *[]descriptorJSON
		ArtifactType string
	}
	v.document(at, raw, mediaType, &m)
	if m.Config == nil || m.Layers == nil {
		v.say("%s: no config, or no layers", at)
		return
	}
	config := v.blob(at, *m.Config)
	var layers [][]byte
	for _, l := range *m.Layers {
		layers = append(layers, v.blob(at, l))
	}
	isImage := m.Config.MediaType == typeConfig || m.Config.MediaType == typeDockerConfig
	if strings.Contains(mediaType, "docker") != (m.Config.MediaType == typeDockerConfig) {
		v.say("%s: a %s with a config of %s", at, mediaType, m.Config.MediaType)
	}
	ofFiles := !slices.ContainsFunc(*m.Layers, func(d descriptorJSON) bool { return !layerForm.MatchString(d.MediaType) })
	if !isImage && m.ArtifactType == "" && m.Config.MediaType == "application/vnd.oci.empty.v1+json" {
		v.say("%s: an artifact without a type", at)
	}
	if isImage && ofFiles {
		v.config(m.Config.Digest, config, *m.Layers, layers)
	}
}

func (v *validator) config(at string, raw []byte, descriptors []descriptorJSON, layers [][]byte) {
	var c struct {
		Created          string
		Architecture, OS string
		Config           struct {
			Env                   []string
			ExposedPorts, Volumes map[string]struct{}
			Labels                map[string]string
		}
		RootFS struct {
			Type    string
			DiffIDs *[]string `json:"diff_ids"`
		}
		History []struct {
			Created    string
			EmptyLayer bool `json:"empty_layer"`
		}
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		v.say("%s: %v", at, err)
		return
	}
	if c.Architecture == "" || c.OS == "" || c.RootFS.Type != "layers" || c.RootFS.DiffIDs == nil || len(*c.RootFS.DiffIDs) != len(layers) {
		v.say("%s: %s/%s, rootfs %+v, %d layers", at, c.OS, c.Architecture, c.RootFS, len(layers))
		return
	}
	told := 0
	for _, h := range c.History {
		if !h.EmptyLayer {
			told++
		}
		v.date(at, h.Created)
	}
	v.date(at, c.Created)
	if len(c.History) > 0 && told != len(layers) {
		v.say("%s: history tells of %d layers of %d", at, told, len(layers))
	}
	for _, e := range c.Config.Env {
		if !strings.Contains(e, "=") {
			v.say("%s: Env %q", at, e)
		}
	}
	for port := range c.Config.ExposedPorts {
		if !regexp.MustCompile(`^\d+(/(tcp|udp|sctp))?$`).MatchString(port) {
			v.say("%s: port %q", at, port)
		}
	}
	for i, l := range layers {
		v.layer(descriptors[i], l, (*c.RootFS.DiffIDs)[i])
	}
}

func (v *validator) date(at, text string) {
	if _, err := time.Parse(time.RFC3339Nano, text); text != "" && err != nil {
		v.say("%s: %v", at, err)
	}
}

// layer reads a layer: compressed as its type says, its DiffID, and its entries.
func (v *validator) layer(d descriptorJSON, raw []byte, diffID string) {
	plain := raw
	var err error
	switch {
	case strings.HasSuffix(d.MediaType, "gzip"):
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(raw)); err == nil {
			plain, err = io.ReadAll(z)
		}
	case strings.HasSuffix(d.MediaType, "zstd"):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(raw)); err == nil {
			plain, err = io.ReadAll(z)
			z.Close()
		}
	}
	if err != nil || sum(plain) != diffID {
		v.say("%s: uncompressed it is %s, not %s: %v", d.Digest, sum(plain), diffID, err)
		return
	}
	names := map[string]bool{}
	for tr := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			v.say("%s: %v", d.Digest, err)
			return
		}
		name := strings.TrimSuffix(h.Name, "/")
		if name != "." && (!filepath.IsLocal(name) || names[path.Clean(name)]) {
			v.say("%s: entry %q leads out, or occurs twice", d.Digest, h.Name)
		}
		names[path.Clean(name)] = true
		if base := path.Base(name); strings.HasPrefix(base, ".wh.") && (h.Size != 0 || h.Typeflag != tar.TypeReg) {
			v.say("%s: whiteout %q is not an empty file", d.Digest, h.Name)
		}
	}
}
