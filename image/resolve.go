package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrNotFound: no image of that name or ID is in the store. The error is a *NotFoundError.
	ErrNotFound = errors.New("no such image")
	// ErrAmbiguous: an ID prefix fits several images. The error is an *AmbiguousError.
	ErrAmbiguous = errors.New("more than one image has this ID prefix")
	// ErrPlatform: the image exists, for other platforms. The error is a *PlatformError.
	ErrPlatform = errors.New("image is not for this platform")
)

// NotFoundError is ErrNotFound with the names that were perhaps meant, the closest first.
type NotFoundError struct {
	Name    string
	Similar []string // familiar names, at most 3
}

func (e *NotFoundError) Error() string        { return e.Name + ": no such image" }
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// AmbiguousError is ErrAmbiguous with the images that fit.
type AmbiguousError struct {
	Prefix string
	IDs    []digest.Digest
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%s: fits %d images", e.Prefix, len(e.IDs))
}
func (e *AmbiguousError) Is(target error) bool { return target == ErrAmbiguous }

// PlatformError is ErrPlatform with what was wanted and what there is.
type PlatformError struct {
	Digest digest.Digest
	Want   *v1.Platform // nil: this machine
	Have   []v1.Platform
}

func (e *PlatformError) Error() string {
	want := HostPlatform()
	if e.Want != nil {
		want = *e.Want
	}
	var have []string
	for _, p := range e.Have {
		have = append(have, FormatPlatform(p))
	}
	return fmt.Sprintf("image is not for %s, but for %s", FormatPlatform(want), strings.Join(have, ", "))
}
func (e *PlatformError) Is(target error) bool { return target == ErrPlatform }

// NoPlatform is the error for an index that has nothing for p.
func NoPlatform(d digest.Digest, ix v1.Index, p *v1.Platform) error {
	return &PlatformError{Digest: d, Want: p, Have: platforms(ix)}
}

func platforms(ix v1.Index) []v1.Platform {
	var out []v1.Platform
	for _, d := range ix.Manifests {
		if d.Platform != nil && !isAttestation(d) {
			out = append(out, normalize(*d.Platform))
		}
	}
	return out
}

// Resolve finds the image that a person means, as docker does: a whole ID or
// digest (sha256:…), a name, a name with a digest, and last the beginning of an ID.
// p picks from a multi-platform image; nil is this machine.
// Errors: ErrNotFound, ErrAmbiguous, ErrPlatform, ErrInvalid for a name that is none.
func (s *Store) Resolve(nameOrID string, p *v1.Platform) (*Image, error) {
	ctx := context.Background() // small local files only
	d, err := s.Lookup(nameOrID)
	if err != nil {
		return nil, err
	}
	im, err := s.Image(ctx, d, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOrID, err)
	}
	return im, nil
}

// Lookup is Resolve up to the point where a platform matters: it returns what a name
// stands for, an index or a manifest.
func (s *Store) Lookup(nameOrID string) (v1.Descriptor, error) {
	ix, err := s.readIndex()
	if err != nil {
		return v1.Descriptor{}, err
	}
	prefix, isDigest := strings.CutPrefix(nameOrID, "sha256:")
	if !isDigest && !isHex64(nameOrID) {
		ref, refErr := ParseReference(nameOrID)
		if refErr == nil {
			if d, ok, err := s.byReference(ix, ref); ok || err != nil {
				return d, err
			}
		} else if !looksLikeID(nameOrID) {
			return v1.Descriptor{}, fmt.Errorf("%w: %w", refErr, ErrInvalid)
		}
	}
	if !looksLikeID(prefix) {
		return v1.Descriptor{}, notFound(ix, nameOrID)
	}
	return s.byPrefix(ix, nameOrID, prefix)
}

// byReference looks a name up. With a digest, the repository must have it under some
// tag (or by that digest): the digest of another repository's image is not this one's.
func (s *Store) byReference(ix *v1.Index, ref Reference) (v1.Descriptor, bool, error) {
	for _, m := range ix.Manifests {
		name := m.Annotations[annotationName]
		if name == "" {
			continue
		}
		if name == ref.String() {
			return plain(m), true, nil
		}
		if ref.Digest() == "" {
			continue
		}
		has, err := ParseReference(name)
		if err != nil || has.Repository() != ref.Repository() {
			continue
		}
		if m.Digest == ref.Digest() {
			return plain(m), true, nil
		}
		if IsIndex(m.MediaType) { // name@digest of one platform's manifest
			children, err := s.loadIndex(context.Background(), m)
			if err != nil {
				return v1.Descriptor{}, false, err
			}
			for _, c := range children.Manifests {
				if ok, err := s.Has(c); c.Digest == ref.Digest() && ok && err == nil {
					return plain(c), true, nil
				}
			}
		}
	}
	return v1.Descriptor{}, false, nil
}

// byPrefix finds the images whose ID (config digest) or manifest or index digest begins with prefix.
func (s *Store) byPrefix(ix *v1.Index, typed, prefix string) (v1.Descriptor, error) {
	var found []v1.Descriptor
	var ids []digest.Digest
	add := func(d v1.Descriptor, id digest.Digest) {
		if !slices.Contains(ids, id) {
			found, ids = append(found, plain(d)), append(ids, id)
		}
	}
	seen := map[digest.Digest]bool{}
	for _, m := range ix.Manifests {
		if seen[m.Digest] {
			continue
		}
		seen[m.Digest] = true
		images := []v1.Descriptor{m}
		if IsIndex(m.MediaType) {
			children, err := s.loadIndex(context.Background(), m)
			if err != nil {
				return v1.Descriptor{}, err
			}
			if strings.HasPrefix(m.Digest.Encoded(), prefix) {
				add(m, m.Digest)
				continue
			}
			if images, err = s.presentImages(children); err != nil {
				return v1.Descriptor{}, err
			}
		}
		for _, d := range images {
			im, err := s.loadImage(context.Background(), d)
			if err != nil {
				continue // an artifact, or a damaged image: not one to be found by ID
			}
			if strings.HasPrefix(im.ID().Encoded(), prefix) || strings.HasPrefix(d.Digest.Encoded(), prefix) {
				add(d, im.ID())
			}
		}
	}
	switch len(found) {
	case 0:
		return v1.Descriptor{}, notFound(ix, typed)
	case 1:
		return found[0], nil
	}
	return v1.Descriptor{}, &AmbiguousError{Prefix: typed, IDs: ids}
}

// looksLikeID reports whether s may be the beginning of an image ID.
func looksLikeID(s string) bool {
	return len(s) <= 64 && only(s, hex)
}

// notFound is the error for name, with the names in ix that are like it.
func notFound(ix *v1.Index, name string) error {
	type near struct {
		name     string
		distance int
	}
	var all []near
	meant, _ := ParseReference(name)
	for _, m := range ix.Manifests {
		ref, err := ParseReference(m.Annotations[annotationName])
		if err != nil {
			continue
		}
		full := ref.Familiar()
		d := editDistance(name, full)
		if !strings.Contains(name, ":") { // compare like with like
			d = min(d, editDistance(name, ref.FamiliarRepository()))
		}
		if meant.Repository() == ref.Repository() {
			d = 0 // another tag of it
		}
		last := full[strings.LastIndexByte(full, '/')+1:]
		if d <= max(2, len(name)/4) || last == name || strings.TrimSuffix(last, ":"+ref.Tag()) == name {
			all = append(all, near{full, d})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if a, b := all[i].distance, all[j].distance; a != b {
			return a < b
		}
		return all[i].name < all[j].name
	})
	e := &NotFoundError{Name: name}
	for _, n := range all[:min(3, len(all))] {
		e.Similar = append(e.Similar, n.name)
	}
	return e
}

// editDistance counts the letters to insert, delete or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Summary is a line of `mk images`.
type Summary struct {
	Reference Reference     // zero: the image has no name
	ID        digest.Digest // of a list that has no image for this machine: the list's
	Target    v1.Descriptor // what the name stands for; its digest is the line's DIGEST
	Created   time.Time     // zero: the config does not say
	Size      int64         // bytes, as Image.Size; of all platforms that are present
	Platforms []v1.Platform // that are present
	Labels    map[string]string
	Err       error // the image cannot be read; the other fields but Reference and Target are zero
}

// Summaries lists the images, the newest first, by name where equally old.
func (s *Store) Summaries(ctx context.Context) ([]Summary, error) {
	tagged, err := s.List()
	if err != nil {
		return nil, err
	}
	known := map[digest.Digest]Summary{}
	out := make([]Summary, 0, len(tagged))
	for _, t := range tagged {
		sum, ok := known[t.Descriptor.Digest]
		if !ok {
			sum = s.summarize(ctx, t.Descriptor)
			known[t.Descriptor.Digest] = sum
		}
		sum.Reference, _ = ParseReference(t.Name) // zero for ""
		out = append(out, sum)
	}
	sort.SliceStable(out, func(i, j int) bool {
		if c := out[i].Created.Compare(out[j].Created); c != 0 {
			return c > 0
		}
		return out[i].Reference.String() < out[j].Reference.String()
	})
	return out, nil
}

func (s *Store) summarize(ctx context.Context, d v1.Descriptor) Summary {
	sum := Summary{Target: d, ID: d.Digest}
	im, err := s.Image(ctx, d, nil)
	list := IsIndex(d.MediaType)
	if err != nil && !(list && (errors.Is(err, ErrPlatform) || errors.Is(err, ErrAbsent))) { // a list need have none of this machine's
		return Summary{Target: d, Err: err}
	}
	if err == nil {
		sum.add(im)
		sum.ID, sum.Labels = im.ID(), im.config.Config.Labels
	}
	if !list {
		return sum
	}
	ix, err := s.loadIndex(ctx, d)
	if err != nil {
		return Summary{Target: d, Err: err}
	}
	present, err := s.presentImages(ix)
	if err != nil {
		return Summary{Target: d, Err: err}
	}
	for _, c := range present {
		if other, err := s.loadImage(ctx, c); err == nil && (im == nil || c.Digest != im.desc.Digest) {
			sum.add(other)
		}
	}
	return sum
}

// add counts an image in.
func (sum *Summary) add(im *Image) {
	sum.Size += im.Size()
	sum.Platforms = append(sum.Platforms, im.Platform())
	if created := im.config.Created; created != nil && sum.Created.IsZero() {
		sum.Created = *created
	}
}
