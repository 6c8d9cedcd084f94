package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// AddSource records that repository ("docker.io/library/busybox") has the blob:
// it may be fetched from there later, and mounted from there on a push.
func (s *Store) AddSource(d digest.Digest, repository string) error {
	ref, err := ParseReference(repository)
	if err != nil {
		return err
	}
	if slices.Contains(s.Sources(d), ref.Repository()) {
		return nil
	}
	return s.appendRecord("sources", d, ref.Repository())
}

// Sources returns the repositories that are known to have the blob, the first known first.
func (s *Store) Sources(d digest.Digest) []string {
	var out []string
	for _, line := range s.record("sources", d) {
		ref, err := ParseReference(line)
		if err == nil && ref.Repository() == line { // a line cut by a crash is skipped
			out = append(out, line)
		}
	}
	return out
}

// compressed is one line of a record of what a layer was compressed to.
type compressed struct {
	v1.Descriptor
	level string
}

// unknownLevel stands for the level at which somebody else compressed. It is as good as any
// where none is asked for.
const unknownLevel = "-"

// addCompressed records that compressing the layer diffID gave c. Only what this
// process compressed, or decompressed and verified, is recorded: a registry's
// word for it would let it choose the content of our next push.
func (s *Store) addCompressed(diffID digest.Digest, c compressed) error {
	for _, has := range s.compressedForms(diffID) {
		if has.Digest == c.Digest && has.level == c.level {
			return nil
		}
	}
	return s.appendRecord("compressed", diffID, fmt.Sprintf("%s %s %s %d", c.MediaType, c.level, c.Digest, c.Size))
}

// CompressedForms returns what a layer was compressed to or came as, the first known first.
func (s *Store) CompressedForms(diffID digest.Digest) []v1.Descriptor {
	var out []v1.Descriptor
	for _, c := range s.compressedForms(diffID) {
		out = append(out, c.Descriptor)
	}
	return out
}

// compressedForms returns the recorded forms of a layer, the first recorded first.
func (s *Store) compressedForms(diffID digest.Digest) []compressed {
	var out []compressed
	for _, line := range s.record("compressed", diffID) {
		f := strings.Fields(line)
		if len(f) != 4 {
			continue
		}
		size, err := strconv.ParseInt(f[3], 10, 64)
		d := v1.Descriptor{MediaType: f[0], Digest: digest.Digest(f[2]), Size: size}
		if err == nil && CheckDescriptor(d) == nil {
			out = append(out, compressed{Descriptor: d, level: f[1]})
		}
	}
	return out
}

// Claim notes that decompressing the blob d gives the layer diffID, on somebody's word, a
// build cache's. The layer can then be opened, by way of that blob, and is verified like
// every other; no push builds on the word alone, see Obtain.
func (s *Store) Claim(diffID digest.Digest, d v1.Descriptor) error {
	if err := CheckDescriptor(d); err != nil {
		return err
	}
	if d.Digest == diffID || slices.ContainsFunc(s.claims(diffID), func(has v1.Descriptor) bool { return has.Digest == d.Digest }) {
		return nil
	}
	return s.appendRecord("claims", diffID, fmt.Sprintf("%s %s %d", d.MediaType, d.Digest, d.Size))
}

// claims returns what was claimed to be a layer, compressed: the last claim first.
func (s *Store) claims(diffID digest.Digest) []v1.Descriptor {
	var out []v1.Descriptor
	for _, line := range slices.Backward(s.record("claims", diffID)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		size, err := strconv.ParseInt(f[2], 10, 64)
		d := v1.Descriptor{MediaType: f[0], Digest: digest.Digest(f[1]), Size: size}
		if how, ok := layerCompression(d.MediaType); err == nil && ok && how != Uncompressed && CheckDescriptor(d) == nil {
			out = append(out, d)
		}
	}
	return out
}

// forms returns the compressed blobs that are a layer, or said to be: those that are known first.
func (s *Store) forms(diffID digest.Digest) []v1.Descriptor {
	var out []v1.Descriptor
	for _, c := range s.compressedForms(diffID) {
		out = append(out, c.Descriptor)
	}
	return append(out, s.claims(diffID)...)
}

// record returns the complete lines of a record; none when there is no record or it cannot be read,
// because a record only saves work.
func (s *Store) record(kind string, d digest.Digest) []string {
	if checkDigest(d) != nil {
		return nil
	}
	raw, err := os.ReadFile(s.recordPath(kind, d))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(raw), "\n")
	return lines[:len(lines)-1] // what follows the last newline was cut
}

// appendRecord adds a line by one write to a file opened with O_APPEND, which
// local file systems do at once: two processes' lines do not mix.

func (s *Store) appendRecord(kind string, d digest.Digest, line string) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	name := s.recordPath(kind, d)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		f.Close()
		return fmt.Errorf("image store: %w", err)
	}
	return f.Close()
}

func (s *Store) recordPath(kind string, d digest.Digest) string {
	return s.path(kind + strings.TrimPrefix(blobPath(d), "blobs"))
}
