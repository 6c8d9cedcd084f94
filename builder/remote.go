package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/image"
)

// Build caches elsewhere (--cache-from, --cache-to): what a step made on one
// machine, for others that would make the same.
//
// A cache is an image whose config has one field more, cacheField. It holds a record
// for each step: its key, the content that the step left, the DiffID of its layer and
// when it was executed. The layers are the image's own, compressed; a record whose
// layer is not among them says what the step left and cannot give it (mode=min, of
// the stages that the result is not made of). So an image that was built can be its
// own cache (type=inline), and everything that moves images moves caches.
//
//	record found  → its content is the next step's parent, and nothing is fetched
//	tree needed   → the layer is fetched, verified and applied, and its content compared
//	                with the record's: only then is it as good as a step of our own (remotetree.go)
//	no such layer → the record is forsaken and the build begins again without it
//
// A cache never fails a build. It can be missing, late, torn or full of lies that are
// found out: then it is named once, and the build goes on as if it were not there.
// Whoever may write to it can lie consistently, though: a record is the word of
// whoever wrote it, that this key made that layer. No local record is ever
// derived from such a word unproven.

// CachePlace is where a cache lies: a repository, a directory.
type CachePlace interface {
	// String names the place as the user did.
	String() string
	// Images brings manifests and configs of the images under a tag into the store, and
	// no layers. "" is the place's own tag. fs.ErrNotExist: there are none.
	Images(ctx context.Context, tag string) ([]*image.Image, error)
	// Fetch brings the blob of a layer of such an image into the store.
	Fetch(ctx context.Context, layer ocispec.Descriptor) error
	// Holds says whether the place has the image d, as Send would write it, under a tag;
	// with a zero d, whether it has any.
	Holds(ctx context.Context, tag string, d ocispec.Descriptor) (bool, error)
	// Send puts an image of the store there.
	Send(ctx context.Context, tag string, d ocispec.Descriptor) error
}

// cacheField is the field of an image's config that makes it a cache.
const cacheField = "mk.cache.v1"

// cacheDocument is the value of that field.
type cacheDocument struct {
	Steps []cachedStep `json:"steps"`
	// Memos are the answers to questions about trees (Records.Memo), by the question's
	// hash: without them the key of a COPY --from would need the stage's files.
	Memos map[Key]string `json:"memos,omitempty"`
	// Outlines are tars of what is in bases, for COPY and WORKDIR, by the ChainID of each of their layers.
	Outlines map[digest.Digest]cachedLayer `json:"outlines,omitempty"`
}

// cachedStep is one record of a cache.
type cachedStep struct {
	Key     Key           `json:"key"`
	Step    Key           `json:"step"` // see KeyText.Step
	Content digest.Digest `json:"content"`
	cachedLayer
	Made int64 `json:"made"` // seconds since 1970
}

// cachedLayer is a layer that a cache names.
type cachedLayer struct {
	Layer digest.Digest `json:"layer"` // DiffID
	Size  int64         `json:"size"`  // of the layer's tar, bytes

	from *ImportedCache
	blob ocispec.Descriptor // no Digest: the cache does not hold it
}

func (l *cachedLayer) sound() bool {
	return l.Layer.Validate() == nil && l.Layer.Algorithm() == digest.SHA256 && l.Size >= 0
}

// Limits on what a stranger's cache may say.
const (
	maxCachedSteps = 100_000
	maxMemo        = 512 // bytes of an answer
)

// check refuses a record that cannot be.
func (s *cachedStep) check() error {
	ok := isKey(s.Key) && isKey(s.Step) && s.Content.Validate() == nil && s.sound() && s.Made >= 0 && s.Made < 1<<36
	if !ok {
		return fmt.Errorf("record of step %.100q is malformed", s.Key)
	}
	return nil
}

// made is when the step was executed.
func (s *cachedStep) made() time.Time { return time.Unix(s.Made, 0).UTC() }

func isKey(k Key) bool {
	return len(k) == 32 && strings.Trim(string(k), "0123456789abcdef") == ""
}

// ImportedCache is one --cache-from. It is read when the first step is looked up that
// the store does not know: a build of nothing new asks nobody.
type ImportedCache struct {
	Place   CachePlace
	PerStep bool // every step has an image of its own, tagged with its key
	Quiet   bool // it is a guess that there is one: nobody is told that there is none

	once sync.Once
	mu   sync.Mutex // guards what follows
	lost bool       // it was announced, and is asked no more
	doc  cachePart
	part map[Key]*cachePart // PerStep: by tag; nil for none
}

// cachePart is what a document, or several, say.
type cachePart struct {
	steps map[Key]*cachedStep
	kinds map[Key]bool // Step of those
	memos map[Key]string

	outlines map[digest.Digest]*cachedLayer // by chain
}

// cacheTimeout is how long a cache may take to say what it holds.
const cacheTimeout = 10 * time.Second

// importing is all that --cache-from gave a build, and what became of it.
type importing struct {
	caches   []*ImportedCache
	progress Reporter
	fetching chan struct{} // a token a layer being fetched for its tree

	mu       sync.Mutex
	forsaken map[Key]bool // records whose layer was wanted and is nowhere
}

// maxFetching is how many layers of caches are fetched at once.
const maxFetching = 4

// step looks a key up in the caches, in order.
func (im *importing) step(ctx context.Context, k Key) *cachedStep {
	im.mu.Lock()
	forsaken := im.forsaken[k]
	im.mu.Unlock()
	if forsaken {
		return nil
	}
	for _, c := range im.caches {
		if p := c.look(ctx, string(k), im.progress); p != nil && p.steps[k] != nil {
			return p.steps[k]
		}
	}
	return nil
}

// knows says whether a step may be in a cache, on whatever tree.
func (im *importing) knows(ctx context.Context, step Key) bool {
	for _, c := range im.caches {
		if c.PerStep && !c.dropped() {
			return true
		}
		if p := c.look(ctx, "", im.progress); p != nil && p.kinds[step] {
			return true
		}
	}
	return false
}

// memo answers a question about a tree.
func (im *importing) memo(ctx context.Context, question string) (string, bool) {
	k := hashKey(question)
	for _, c := range im.caches {
		if p := c.look(ctx, memoTag(k), im.progress); p != nil && p.memos[k] != "" {
			return p.memos[k], true
		}
	}
	return "", false
}

// outline looks up what is in a layer on those below it.
func (im *importing) outline(ctx context.Context, chain digest.Digest) *cachedLayer {
	if im == nil {
		return nil
	}
	for _, c := range im.caches {
		if p := c.look(ctx, outlineTag(chain), im.progress); p != nil && p.outlines[chain] != nil {
			return p.outlines[chain]
		}
	}
	return nil
}

// outlineTag is the tag of an outline where every step has an image of its own.
func outlineTag(chain digest.Digest) string { return "outline-" + chain.Encoded() }

// memoTag is the tag of an answer where every step has an image of its own.
func memoTag(question Key) string { return "memo-" + string(question) }

// forsake drops records for the rest of the build.
func (im *importing) forsake(keys []Key) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.forsaken == nil {
		im.forsaken = map[Key]bool{}
	}
	for _, k := range keys {
		im.forsaken[k] = true
	}
}

// look gives what the cache says: all of it, or under a tag where steps have their own.
func (c *ImportedCache) look(ctx context.Context, tag string, progress Reporter) *cachePart {
	if c.PerStep {
		return c.lookUp(ctx, tag, progress)
	}
	c.once.Do(func() {
		load := func(*Vertex) error {
			doc, err := c.read(ctx, "")
			if err != nil {
				c.drop()
				return err
			}
			c.doc = *doc
			return nil
		}
		if c.Quiet {
			load(nil)
			return
		}
		progress.Task("importing cache manifest from "+c.Place.String(), load)
	})
	if c.dropped() {
		return nil
	}
	return &c.doc
}

// lookUp asks for one tag.
func (c *ImportedCache) lookUp(ctx context.Context, tag string, progress Reporter) *cachePart {
	if tag == "" || c.dropped() {
		return nil
	}
	c.mu.Lock()
	part, known := c.part[Key(tag)]
	c.mu.Unlock()
	if known {
		return part
	}
	part, err := c.read(ctx, tag)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.fail(err, progress)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.part == nil {
		c.part = map[Key]*cachePart{}
	}
	c.part[Key(tag)] = part
	return part
}

// fail drops the cache and says why, the first time.
func (c *ImportedCache) fail(err error, progress Reporter) {
	if c.drop() {
		progress.Task("using cache from "+c.Place.String(), func(*Vertex) error { return err })
	}
}

// drop leaves the cache out from now on, and tells whether it was still in.
func (c *ImportedCache) drop() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.lost
	c.lost = true
	return !was
}

func (c *ImportedCache) dropped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// read reads the images under a tag.
func (c *ImportedCache) read(ctx context.Context, tag string) (*cachePart, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cacheTimeout, fmt.Errorf("no answer for %s", cacheTimeout))
	defer cancel()
	images, err := c.Place.Images(ctx, tag)
	if err != nil {
		if why := context.Cause(ctx); why != nil {
			err = why
		}
		return nil, err
	}
	part := &cachePart{steps: map[Key]*cachedStep{}, kinds: map[Key]bool{}, memos: map[Key]string{}, outlines: map[digest.Digest]*cachedLayer{}}
	found := false
	for _, img := range images {
		config := img.Config()
		raw, ok := config.Unknown[cacheField]
		if !ok {
			continue
		}
		found = true
		if err := c.add(part, raw, img.Layers()); err != nil {
			return nil, err
		}
	}
	if !found {
		return nil, errors.New("it is no build cache of mk's")
	}
	return part, nil
}

// add adds a document to what the cache says.
func (c *ImportedCache) add(part *cachePart, raw json.RawMessage, layers []image.Layer) error {
	var doc cacheDocument
	if err := json.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("read cache: %w", err)
	}
	if max(len(doc.Steps), len(doc.Memos), len(doc.Outlines)) > maxCachedSteps {
		return fmt.Errorf("read cache: more than %d records", maxCachedSteps)
	}
	blobs := map[digest.Digest]ocispec.Descriptor{}
	for _, l := range layers {
		blobs[l.DiffID] = l.Descriptor
	}
	for _, s := range doc.Steps {
		if err := s.check(); err != nil {
			return fmt.Errorf("read cache: %w", err)
		}
		s.from, s.blob = c, blobs[s.Layer]
		if had := part.steps[s.Key]; had == nil || had.blob.Digest == "" {
			part.steps[s.Key] = &s
		}
		part.kinds[s.Step] = true
	}
	for k, answer := range doc.Memos {
		if !isKey(k) || len(answer) > maxMemo || strings.ContainsFunc(answer, func(r rune) bool { return r < ' ' }) {
			return fmt.Errorf("read cache: memo %.100q is malformed", k)
		}
		part.memos[k] = answer
	}
	for chain, o := range doc.Outlines {
		if chain.Validate() != nil || !o.sound() {
			return fmt.Errorf("read cache: outline of %.100q is malformed", chain)
		}
		if o.from, o.blob = c, blobs[o.Layer]; o.blob.Digest != "" {
			part.outlines[chain] = &o
		}
	}
	return nil
}

// memo answers a question about an immutable tree from the records, else from a cache.
// An answer of a cache's is good for looking a step up, see doubt.
func (e *engine) memo(ctx context.Context, n *Node, question string) (string, bool) {
	answer, ok := e.Records.Memo(question)
	if !ok && e.from != nil {
		e.mu.Lock()
		doubted := e.doubted[n]
		e.mu.Unlock()
		if doubted {
			return "", false
		}
		if answer, ok = e.from.memo(ctx, question); ok {
			e.mu.Lock()
			e.believed[n] = true
			e.mu.Unlock()
		}
	}
	if ok {
		e.noteMemo(question, answer)
	}
	return answer, ok
}

// setMemo keeps an answer that was found by looking.
func (e *engine) setMemo(question, answer string) error {
	e.noteMemo(question, answer)
	return e.Records.SetMemo(question, answer)
}

// noteMemo remembers what was asked for the cache that the build may leave.
func (e *engine) noteMemo(question, answer string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.memos[hashKey(question)] = answer
}

// doubt says whether a step that is about to be executed was described with the word
// of a cache. If so it is to be described again, from files: its record would else
// stand on that word.
func (e *engine) doubt(n *Node) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	again := e.believed[n] && !e.doubted[n]
	e.doubted[n] = true
	if again {
		delete(e.took, n) // it will be taken again
	}
	return again
}

// sortedSteps orders records by their keys, each once: equal builds write equal documents.
func sortedSteps(steps []cachedStep) []cachedStep {
	sort.Slice(steps, func(i, j int) bool { return steps[i].Key < steps[j].Key })
	return slices.CompactFunc(steps, func(a, b cachedStep) bool { return a.Key == b.Key })
}
