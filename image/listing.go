package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Layers in the form that containers/storage calls zstd:chunked end with a table of what is in
// them, in a frame that decompressors skip; two annotations of the layer say where it is, and its
// digest. So what a layer does to the names of files is known for a small part of its bytes.
// The table is JSON, after CRFS's: an object whose "entries" are the tar's headers, in its order.
// eStargz has a like one, with times in whole seconds, as an entry of the tar itself: it is not read.

// The annotations, and those of the form's first years.
var (
	listingDigest = []string{"io.github.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-checksum"}
	listingPlace  = []string{"io.github.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-position"}
)

const (
	maxListing      = 64 << 20  // bytes, compressed: they are held in memory
	maxListingJSON  = 512 << 20 // they are not
	maxListingEntry = 1 << 20   // a path and attributes, of which Linux has 64 KiB
	listingType     = 1         // CRFS's
)

// listingAt is where a blob has its table.
type listingAt struct {
	digest               digest.Digest // of the compressed table
	offset, size, length int64         // length: decompressed
}

// listingAt reads the annotations; ok is false where there are none, or none that are understood.
func (l Layer) listingAt() (at listingAt, ok bool) {
	note := func(names []string) string {
		for _, n := range names {
			if v := l.Descriptor.Annotations[n]; v != "" {
				return v
			}
		}
		return ""
	}
	at.digest = digest.Digest(note(listingDigest))
	var numbers [4]int64
	fields := strings.Split(note(listingPlace), ":")
	if at.digest.Validate() != nil || len(fields) != len(numbers) {
		return at, false
	}
	for i, f := range fields {
		var err error
		if numbers[i], err = strconv.ParseInt(f, 10, 64); err != nil || numbers[i] < 0 {
			return at, false
		}
	}
	at.offset, at.size, at.length = numbers[0], numbers[1], numbers[2]
	how, _ := layerCompression(l.Descriptor.MediaType)
	ok = how == Zstd && numbers[3] == listingType && at.size <= maxListing && at.length <= maxListingJSON && at.offset <= l.Descriptor.Size-at.size
	return at, ok
}

// unlisted gives a layer's annotations without those that are true of one form of it only.
func unlisted(annotations map[string]string) map[string]string {
	kept := maps.Clone(annotations)
	maps.DeleteFunc(kept, func(name, _ string) bool { return strings.Contains(name, "containers.zstd-chunked.") })
	return kept
}

// Listed is how many bytes Listing reads; 0: the layer has no listing.
func (l Layer) Listed() int64 {
	at, ok := l.listingAt()
	if !ok {
		return 0
	}
	return at.size
}

// Listing gives a tar of all names that the layer's tar has, in its order, with their types, owners,
// modes, times, attributes and targets, and regular files that are empty: nothing is told of
// their own. It reads the layer's table and not the rest of the blob.
func (l Layer) Listing(ctx context.Context) (io.ReadCloser, error) {
	at, ok := l.listingAt()
	if !ok {
		return nil, fmt.Errorf("layer %s has no listing: %w", l.Descriptor.Digest, ErrAbsent)
	}
	_, fetcher := l.store.hooks()
	if fetcher == nil {
		return nil, fmt.Errorf("listing of layer %s: %w", l.Descriptor.Digest, ErrAbsent)
	}
	raw, err := fetcher.ReadPart(ctx, l.store, l.Descriptor, at.offset, at.size)
	if err == nil {
		err = compare(at.digest, at.size, at.digest.Algorithm().FromBytes(raw), int64(len(raw)))
	}
	if err != nil {
		return nil, fmt.Errorf("listing of layer %s: %w", l.Descriptor.Digest, err)
	}
	r, w := io.Pipe()
	go func() {
		buffer := bufio.NewWriterSize(w, 256<<10) // a header at a time would change threads twice for each
		err := writeListing(buffer, raw, at.length)
		if err == nil {
			err = buffer.Flush()
		}
		if err != nil {
			err = fmt.Errorf("listing of layer %s: %w", l.Descriptor.Digest, err)
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

// writeListing makes the tar of a table.
func writeListing(w io.Writer, raw []byte, length int64) error {
	z, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	in := &entries{r: io.LimitReader(z, length)}
	out := tar.NewWriter(w)
	if err := eachEntry(in, func(e listingEntry) error { return e.write(out) }); err != nil {
		return err
	}
	return out.Close()
}

// entries lets a table through that has no entry of an unlikely size, which would be held in memory.
type entries struct {
	r    io.Reader
	more int64 // since the last entry
}

func (t *entries) Read(p []byte) (int, error) {
	if t.more > maxListingEntry {
		return 0, fmt.Errorf("more than %d bytes in one entry: %w", maxListingEntry, ErrInvalid)
	}
	n, err := t.r.Read(p[:min(len(p), 64<<10)])
	t.more += int64(n)
	return n, err
}

// eachEntry calls f with the table's entries, one after the other.
func eachEntry(table *entries, f func(listingEntry) error) error {
	in := json.NewDecoder(table)
	begin := func(what json.Delim) error {
		t, err := in.Token()
		if err == nil && t != what {
			err = fmt.Errorf("%v where %v should be: %w", t, what, ErrInvalid)
		}
		return err
	}
	if err := begin('{'); err != nil {
		return err
	}
	for in.More() {
		key, err := in.Token()
		if err != nil {
			return err
		}
		if key != "entries" {
			var other json.RawMessage
			if err := in.Decode(&other); err != nil {
				return err
			}
			if key == "version" && string(other) != "1" {
				return fmt.Errorf("version %.20s of the table is not known", other)
			}
			continue
		}
		if err := begin('['); err != nil {
			return err
		}
		for in.More() {
			var e listingEntry
			if err := in.Decode(&e); err != nil {
				return err
			}
			table.more = 0
			if err := f(e); err != nil {
				return fmt.Errorf("%.200q: %w", e.Name, err)
			}
		}
		if err := begin(']'); err != nil {
			return err
		}
	}
	return begin('}')
}

// listingEntry is one header in a table.
type listingEntry struct {
	Type     string            `json:"type"`
	Name     string            `json:"name"`
	LinkName string            `json:"linkName"`
	Mode     int64             `json:"mode"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	ModTime  *time.Time        `json:"modtime"`
	DevMajor int64             `json:"devMajor"`
	DevMinor int64             `json:"devMinor"`
	Xattrs   map[string][]byte `json:"xattrs"` // base64
}

var listingTypes = map[string]byte{
	"dir": tar.TypeDir, "symlink": tar.TypeSymlink, "hardlink": tar.TypeLink,
	"char": tar.TypeChar, "block": tar.TypeBlock, "fifo": tar.TypeFifo,
}

// write writes the entry as a tar's header.
func (e listingEntry) write(w *tar.Writer) error {
	if strings.ContainsRune(e.Name+e.LinkName, utf8.RuneError) {
		return fmt.Errorf("the name %q is not what it was: JSON holds UTF-8", e.Name)
	}
	h := &tar.Header{Format: tar.FormatPAX, Name: e.Name, Mode: e.Mode & 0o7777, Uid: e.UID, Gid: e.GID, Linkname: e.LinkName}
	if e.ModTime != nil {
		h.ModTime = *e.ModTime
	}
	switch kind, ok := listingTypes[e.Type]; {
	case e.Type == "chunk": // more of the file before
		return nil
	case ok:
		h.Typeflag, h.Devmajor, h.Devminor = kind, e.DevMajor, e.DevMinor
	case e.Type == "reg":
		return w.WriteHeader(&tar.Header{Format: tar.FormatUSTAR | tar.FormatPAX, Name: e.Name, Mode: 0o644, ModTime: h.ModTime, Typeflag: tar.TypeReg})
	default:
		return fmt.Errorf("type %.20q is not known", e.Type)
	}
	if h.Typeflag != tar.TypeLink {
		for name, value := range e.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = string(value)
		}
	}
	return w.WriteHeader(h)
}
