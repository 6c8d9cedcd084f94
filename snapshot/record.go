package snapshot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// The first lines of the text files of a snapshot. A reader refuses others.
const (
	metaHeader    = "mk snapshot 1"
	digestsHeader = "mk digests 1"
	ownersHeader  = "mk owners 1"
)

// meta is the file of that name: what a snapshot knows from its commit on.
//
//	mk snapshot 1
//	parent 0123456789abcdef01234567      absent in a base
//	amends                               absent, or the layer is the parent's with these changes
//	on sha256:…                          the parent's Content, if it is not its own: see Snapshot.AsImage
//	epoch 1700000000                     newer mtimes are written as this one
//	layer sha256:… 1234                  DiffID and bytes of the tar it was applied from
//	outline                              which was a listing of that layer's: see Draft.SetOutline
//	content sha256:…                     of an outline, if the tree's is not ContentOfChain: of one that a step made
type meta struct {
	parent  ID
	amends  bool
	on      digest.Digest
	epoch   *time.Time
	layer   digest.Digest
	size    int64
	outline bool
	content digest.Digest
}

func (m meta) text() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, metaHeader)
	if m.parent != "" {
		fmt.Fprintln(&b, "parent", m.parent)
	}
	if m.amends {
		fmt.Fprintln(&b, "amends")
	}
	if m.on != "" {
		fmt.Fprintln(&b, "on", m.on)
	}
	if m.epoch != nil {
		fmt.Fprintln(&b, "epoch", m.epoch.Unix())
	}
	if m.layer != "" {
		fmt.Fprintln(&b, "layer", m.layer, m.size)
	}
	if m.outline {
		fmt.Fprintln(&b, "outline")
	}
	if m.content != "" {
		fmt.Fprintln(&b, "content", m.content)
	}
	return b.Bytes()
}

func readMeta(path string) (meta, error) {
	var m meta
	err := readFields(path, metaHeader, func(f []string) (err error) {
		switch {
		case f[0] == "parent" && len(f) == 2 && ID(f[1]).valid():
			m.parent = ID(f[1])
		case f[0] == "amends" && len(f) == 1 && m.parent != "":
			m.amends = true
		case f[0] == "on" && len(f) == 2 && m.parent != "":
			m.on = digest.Digest(f[1])
			err = m.on.Validate()
		case f[0] == "epoch" && len(f) == 2:
			var sec int64
			sec, err = strconv.ParseInt(f[1], 10, 64)
			t := time.Unix(sec, 0)
			m.epoch = &t
		case f[0] == "layer" && len(f) == 3:
			m.layer = digest.Digest(f[1])
			if err = m.layer.Validate(); err == nil {
				m.size, err = strconv.ParseInt(f[2], 10, 64)
			}
		case f[0] == "outline" && len(f) == 1:
			m.outline = true
		case f[0] == "content" && len(f) == 2:
			m.content = digest.Digest(f[1])
			err = m.content.Validate()
		default:
			err = fmt.Errorf("line %q is not understood", strings.Join(f, " "))
		}
		return err
	})
	return m, err
}

// Digests are what is known about the content of a snapshot once somebody has
// read all of it.
type Digests struct {
	// Content identifies the tree: a hash of the parent's Content and the
	// listing of this layer (path, type, mode, owner, xattrs, link target or
	// hardlink, size, bytes, device), without times. Snapshots of equal Content
	// may stand for each other. One applied from an image has ContentOfChain.
	Content digest.Digest
	// DiffID is of the layer's uncompressed tar, and Size its bytes.
	DiffID digest.Digest
	Size   int64
	// Chain is OCI's ChainID of all layers up to this one.
	Chain digest.Digest
	// Alone is, of a layer that Rebase gave its parent, the Content that it has
	// without one; else "".
	Alone digest.Digest
}

func (d Digests) text() []byte {
	text := fmt.Appendf(nil, "%s\ncontent %s\ndiffid %s\nchain %s\nsize %d\n",
		digestsHeader, d.Content, d.DiffID, d.Chain, d.Size)
	if d.Alone != "" {
		text = fmt.Appendf(text, "alone %s\n", d.Alone)
	}
	return text
}

func readDigests(path string) (Digests, error) {
	var d Digests
	err := readFields(path, digestsHeader, func(f []string) (err error) {
		if len(f) != 2 {
			return fmt.Errorf("line %q is not understood", strings.Join(f, " "))
		}
		switch f[0] {
		case "content":
			d.Content = digest.Digest(f[1])
			err = d.Content.Validate()
		case "diffid":
			d.DiffID = digest.Digest(f[1])
			err = d.DiffID.Validate()
		case "chain":
			d.Chain = digest.Digest(f[1])
			err = d.Chain.Validate()
		case "size":
			d.Size, err = strconv.ParseInt(f[1], 10, 64)
		case "alone":
			d.Alone = digest.Digest(f[1])
			err = d.Alone.Validate()
		default:
			err = fmt.Errorf("line %q is not understood", strings.Join(f, " "))
		}
		return err
	})
	if err == nil && (d.Content == "" || d.DiffID == "" || d.Chain == "") {
		err = fmt.Errorf("read %s: a line is missing", path)
	}
	return d, err
}

// readFields calls line with the words of every line after the header.
func readFields(path, header string, line func([]string) error) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if lines[0] != header {
		return fmt.Errorf("read %s: begins with %q, not %q", path, lines[0], header)
	}
	for _, l := range lines[1:] {
		f := strings.Fields(l)
		if len(f) == 0 {
			continue
		}
		if err := line(f); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	return nil
}

// tempPrefix begins the names of files being written. Of a process that died one
// may stay: Remove takes it, in a look-up directory or with its snapshot.
const tempPrefix = ".new-"

// writeAtomic makes text the content of path. The rename is the commit point;
// two writers may race, and one of the two texts stays.
func writeAtomic(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// recordPath is where the snapshot of a digest is looked up: kind is chains, outlines
// or diffids. Only sha256 gets that far, so that a digest cannot name a path.
func (s *Store) recordPath(kind string, d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("look up %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("look up %s: only sha256 is kept", d)
	}
	return s.path(kind, "sha256", d.Encoded()), nil
}

// readRecord reads the ID in a lookup record.
func readRecord(path string) (ID, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	id := ID(strings.TrimSuffix(string(text), "\n"))
	if !id.valid() {
		return "", fmt.Errorf("read %s: not an ID: %q", path, id)
	}
	return id, nil
}

// writeRecord makes id the snapshot of a digest.
func (s *Store) writeRecord(kind string, d digest.Digest, id ID) error {
	p, err := s.recordPath(kind, d)
	if err != nil {
		return err
	}
	if old, err := readRecord(p); err == nil && old == id {
		return nil
	}
	return writeAtomic(p, []byte(string(id)+"\n"))
}
