package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"mk/container"
	"mk/image"
	"mk/recipe"
	"mk/snapshot"
)

// Builder turns plans into images. Its fields are set once, before Build.
type Builder struct {
	Images   *image.Store
	Trees    *snapshot.Store
	Records  *Records
	Fetched  *Fetched // what ADD gets from URLs and git repositories
	Progress Reporter
	Sandbox  Sandbox       // what RUN steps get besides their tree
	CacheTTL time.Duration // records of older steps are not used; 0: of any age
	Jobs     int           // RUN and COPY steps at work at once; 0: one a processor, at least four

	// Inside says that this process may mount, chown and run: it is in the
	// namespaces. Outside, a build that needs more than records ends with
	// ErrNeedsInside, having changed nothing but the stat caches.
	Inside bool

	// From are caches that steps are looked up in which the records do not know. See remote.go.
	From []*ImportedCache
	// Need is how much of the result Build brings of what a cache has.
	Need Need
	// Inline makes every image that Store writes its own cache.
	Inline bool

	// Explain is told why each step is executed; nil: nobody wants to know.
	Explain func(Reason)

	// Emulate, if set, prepares a container that will run on root, the tree of a
	// step, for having its calls about owners answered.
	Emulate func(spec *container.Spec, root *os.File)

	// Foreign makes sure, before a RUN step of an image for this architecture, that its
	// programs can be executed here. Nil: all are tried.
	Foreign func(arch string) error

	// Notice tells the user, once, what the machine makes the build go without.
	Notice func(text string)
}

// ErrNeedsInside says that a step has to be executed, or a tree read, and that
// this process is not in the namespaces where that can be done.
var ErrNeedsInside = errors.New("the build needs its namespaces")

// Result is a finished build of one platform.
type Result struct {
	Plan   *Plan
	Config Image
	Layers []Layer // base first
	Ran    int     // steps that were executed, for all platforms of the build

	engine  *engine
	fetched map[*Node][]*Material
	network func(*recipe.Run) string
}

// Layer is one layer of a result: of the base image, or made by a step.
type Layer struct {
	Base    *image.Layer
	Made    time.Time
	Digests snapshot.Digests
	Step    *Node
}

// Build executes what the records do not already hold of the targets of plans, one
// a platform, and waits until the digests of their layers are known. Plans made by
// NewPlans share the steps that they have in common.
//
// Steps run as soon as what they need is there, at most Jobs at once. A step
// whose key was seen takes the snapshot that it made then. The first error
// cancels the rest; steps that had committed stay committed.
func (b *Builder) Build(ctx context.Context, plans ...*Plan) ([]*Result, error) {
	for _, p := range plans {
		if err := b.permit(p); err != nil {
			return nil, err
		}
	}
	var from *importing
	if len(b.From) > 0 {
		from = &importing{caches: b.From, progress: b.Progress, fetching: make(chan struct{}, maxFetching)}
	}
	for {
		// Every attempt that ends so leaves out a cache or a record of one, and
		// finds what was executed before in the records.
		results, err := b.attempt(ctx, from, plans)
		if !errors.Is(err, errForsaken) {
			return results, err
		}
	}
}

// attempt is Build with the caches that are left.
func (b *Builder) attempt(ctx context.Context, from *importing, plans []*Plan) ([]*Result, error) {
	g, ctx := errgroup.WithContext(ctx)
	e := &engine{
		Builder: b,
		ctx:     ctx,
		group:   g,
		plan:    plans[0],
		work:    make(chan struct{}, b.jobs()),
		hash:    make(chan struct{}, 2), // digests beside the steps: each has two hashes at work
		nodes:   map[*Node]*made{},
		bases:   map[*image.Image]*lazyBase{},
		names:   map[*image.Image]*Vertex{},
		took:    map[*Node][]*Material{},
		from:    from,
		read:    b.readTrees(plans),

		believed: map[*Node]bool{},
		doubted:  map[*Node]bool{},
		memos:    map[Key]string{},
	}
	e.nameBases(plans)
	results := make([]*Result, len(plans))
	for i, p := range plans {
		g.Go(func() (err error) {
			results[i], err = e.target(ctx, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, r := range results {
		r.Ran, r.engine, r.fetched, r.network = e.ran, e, e.took, b.Sandbox.network
	}
	return results, nil
}

// engine is one build at work.
type engine struct {
	*Builder
	ctx   context.Context // of the whole build, for work that outlives the step that began it
	group *errgroup.Group
	plan  *Plan
	work  chan struct{}            // a token a step at work
	hash  chan struct{}            // a token a layer being digested
	names map[*image.Image]*Vertex // of bases
	from  *importing               // nil without caches
	read  map[Tree]bool            // what the plans need for its files

	mu    sync.Mutex // guards what follows
	nodes map[*Node]*made
	bases map[*image.Image]*lazyBase
	ran   int
	said  map[string]bool // notices
	took  map[*Node][]*Material

	believed, doubted map[*Node]bool // see memo and doubt
	memos             map[Key]string // questions that were asked, hashed, and the answers

	copying sync.Map // digest → *sync.Mutex: files being copied for mounts
	renewed sync.Map // names of caches that this build began anew

	etcOnce sync.Once
	etc     *Etc
	etcErr  error
}

// made is what a node left: at first a promise, then a snapshot, last its digests.
type made struct {
	ready     chan struct{} // closed when id, lazy or err is set
	id        snapshot.ID
	lazy      *lazyTree // in place of id: a cache has it
	laid      *laidTree // of a linked step, and of one on an outline: id is the layer alone
	text      *KeyText  // of its key; set before digested is closed
	alone     *KeyText  // of a linked step: the key of its layer alone
	at        time.Time // when the step ended, now or in the build that executed it
	err       error
	digested  chan struct{} // closed when digests or digestErr is set
	digests   snapshot.Digests
	digestErr error
}

// target builds a plan's target and lists its layers.
func (e *engine) target(ctx context.Context, plan *Plan) (*Result, error) {
	target := plan.Target
	r := &Result{Plan: plan, Config: target.Image}
	var chain []*Node
	t := target.Tree
	for ; t.Node != nil; t = t.Node.Parent {
		chain = append(chain, t.Node)
	}
	slices.Reverse(chain)
	if t.Image != nil {
		e.showBase(t.Image)
		for _, l := range t.Image.Layers() {
			r.Layers = append(r.Layers, Layer{Base: &l})
		}
	}
	if n := len(chain); n > 0 {
		if _, err := e.node(ctx, chain[n-1]); err != nil {
			return nil, err
		}
	}
	for _, n := range chain {
		m, err := e.node(ctx, n)
		if err != nil {
			return nil, err
		}
		d, err := m.wait(ctx)
		if err != nil {
			return nil, fmt.Errorf("digest layer of %s: %w", n.Vertex.Name, err)
		}
		r.Layers = append(r.Layers, Layer{Digests: d, Made: m.at, Step: n})
	}
	return r, e.need(ctx, target.Tree, r)
}

// wait gives the digests of what a node made, when they are known.
func (m *made) wait(ctx context.Context) (snapshot.Digests, error) {
	select {
	case <-m.digested:
		return m.digests, m.digestErr
	case <-ctx.Done():
		return snapshot.Digests{}, context.Cause(ctx)
	}
}

// node makes a node once, however many ask, and waits for its snapshot.
func (e *engine) node(ctx context.Context, n *Node) (*made, error) {
	e.mu.Lock()
	m := e.nodes[n]
	if m == nil {
		m = &made{ready: make(chan struct{}), digested: make(chan struct{})}
		e.nodes[n] = m
		e.group.Go(func() error {
			m.err = e.make(e.ctx, n, m)
			close(m.ready)
			return m.err
		})
	}
	e.mu.Unlock()
	select {
	case <-m.ready:
		return m, m.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// make finds or makes the snapshot of one node.
func (e *engine) make(ctx context.Context, n *Node, m *made) error {
	if n.NoCache && !e.Inside {
		return ErrNeedsInside // whatever its key is
	}
	// What a step takes files from is needed for its key; its parent's tree is
	// only needed if it must run. Both are started now, the parent waited for first,
	// unless the step does not look at it.
	for _, t := range n.From {
		if t.Node != nil {
			e.begin(t.Node)
		}
	}
	if n.linked() {
		if n.Parent.Node != nil {
			e.begin(n.Parent.Node)
		}
	} else if _, err := e.content(ctx, n.Parent); err != nil {
		return err
	}
	act, err := e.action(ctx, n)
	if err != nil {
		return at(n.Step.At(), err)
	}
	defer func() { act.Close() }()

	facts := func(parent string) *KeyText {
		t := newKeyText(image.FormatPlatform(n.Stage.Platform), parent)
		act.describe(t)
		t.addEpoch(e.plan.Epoch)
		return t
	}
	// The parent's digest may still be on its way. It is worth waiting for only
	// if this step has run before: the first time, nothing can hit.
	for {
		if n.linked() {
			m.alone = facts(alone)
		}
		if !n.NoCache && e.known(ctx, facts("").Step()) {
			content, err := e.contentOf(ctx, n.Parent)
			if err != nil {
				return err
			}
			if e.before(ctx, m, facts(content)) {
				e.setLast(n, m.text)
				e.Progress.Cached(n.Vertex)
				return nil
			}
		}
		if !e.doubt(n) {
			break
		}
		again, err := e.action(ctx, n)
		if err != nil {
			return at(n.Step.At(), err)
		}
		act.Close()
		act = again
	}
	if n.linked() {
		return e.makeLinked(ctx, n, m, act, facts)
	}
	if !e.Inside {
		return ErrNeedsInside
	}
	if e.Explain != nil {
		content, err := e.contentOf(ctx, n.Parent)
		if err != nil {
			return err
		}
		e.Explain(Reason{n.Vertex, e.explain(n, facts(content))})
	}
	snap, err := e.execute(ctx, n, act)
	if err != nil {
		return at(n.Step.At(), err)
	}
	m.found(snap)
	m.at = now()
	e.group.Go(func() error {
		defer close(m.digested)
		m.digests, m.digestErr = e.digest(snap)
		if m.digestErr != nil {
			return m.digestErr
		}
		content, err := e.contentOf(e.ctx, n.Parent)
		if err != nil {
			return err
		}
		text := facts(content)
		m.text = text
		if err := e.setLast(n, text); err != nil {
			return err
		}
		return e.Records.Put(text, snap.ID(), m.digests, m.at)
	})
	return nil
}

// known says whether a step was executed before, on whatever tree, here or where a
// cache comes from.
func (e *engine) known(ctx context.Context, step Key) bool {
	return len(e.Records.StepKeys(step)) > 0 || e.from != nil && e.from.knows(ctx, step)
}

// before looks for what the step with this key made, in the records and then in the caches.
func (e *engine) before(ctx context.Context, m *made, text *KeyText) bool {
	rec, err := e.Records.Get(text.Key())
	var snap *snapshot.Snapshot
	if err == nil {
		snap = e.usable(rec)
	}
	if snap != nil {
		m.found(snap)
		m.digests, m.at = rec.Digests, rec.Made
	} else if s := e.cached(ctx, text.Key()); s != nil {
		m.lazy, m.at = newLazyTree(s, text), s.made()
		m.digests = snapshot.Digests{Content: s.Content, DiffID: s.Layer, Size: s.Size}
	} else {
		return false
	}
	m.text = text
	close(m.digested)
	return true
}

// cached looks a key up in the caches.
func (e *engine) cached(ctx context.Context, k Key) *cachedStep {
	if e.from == nil {
		return nil
	}
	return e.from.step(ctx, k)
}

// now is the time as records and history have it.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// onDraft runs a step on a draft of a tree, nil for none, and commits it.
func (e *engine) onDraft(ctx context.Context, n *Node, act action, parent *snapshot.Snapshot) (snap *snapshot.Snapshot, err error) {
	select {
	case e.work <- struct{}{}:
		defer func() { <-e.work }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	e.mu.Lock()
	e.ran++
	e.mu.Unlock()
	e.Progress.Start(n.Vertex)
	defer func() {
		shown := err
		if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
			shown = context.Canceled // another step's error ended this one
		}
		e.Progress.End(n.Vertex, shown)
	}()

	draft, err := e.Trees.NewDraft(parent)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // no-op after Commit
	if e.plan.Epoch != nil {
		draft.SetEpoch(e.plan.Epoch)
	}
	if err := act.perform(ctx, draft); err != nil {
		return nil, err
	}
	return draft.Commit()
}

// digest computes a new snapshot's digests, a few snapshots at a time.
func (e *engine) digest(s *snapshot.Snapshot) (snapshot.Digests, error) {
	select {
	case e.hash <- struct{}{}:
		defer func() { <-e.hash }()
	case <-e.ctx.Done():
		return snapshot.Digests{}, context.Cause(e.ctx)
	}
	return s.Digests(e.ctx)
}

// begin starts making a node without waiting for it.
func (e *engine) begin(n *Node) {
	e.group.Go(func() error {
		_, err := e.node(e.ctx, n)
		return err
	})
}

// content is the identity of a tree, perhaps still being computed.
type content struct {
	known string
	made  *made
}

func (c content) wait(ctx context.Context) (string, error) {
	if c.made == nil {
		return c.known, nil
	}
	d, err := c.made.wait(ctx)
	return d.Content.String(), err
}

// contentOf waits until it is known what is in a tree.
func (e *engine) contentOf(ctx context.Context, t Tree) (string, error) {
	c, err := e.content(ctx, t)
	if err != nil {
		return "", err
	}
	return c.wait(ctx)
}

// content makes sure that a tree exists, or can be had, and tells what is in it.
// An image's tree is known by its layers and is not unpacked for that.
func (e *engine) content(ctx context.Context, t Tree) (content, error) {
	switch {
	case t.Node != nil:
		m, err := e.node(ctx, t.Node)
		return content{made: m}, err
	case t.Image != nil:
		e.showBase(t.Image)
		if chains := chainIDs(t.Image); len(chains) > 0 {
			return content{known: snapshot.ContentOfChain(chains[len(chains)-1]).String()}, nil
		}
	}
	return content{known: "scratch"}, nil
}

// tree gives a tree's snapshot, nil for scratch. Bases are unpacked here, the
// first time that a step must run on them.
func (e *engine) tree(ctx context.Context, t Tree) (*snapshot.Snapshot, error) {
	switch {
	case t.Node != nil:
		m, err := e.node(ctx, t.Node)
		if err != nil {
			return nil, err
		}
		switch {
		case m.lazy != nil:
			return e.bring(ctx, t.Node, m.lazy)
		case m.laid != nil:
			return e.lay(ctx, t.Node, m)
		}
		return e.Trees.Get(m.id)
	case t.Image != nil:
		return e.base(ctx, t.Image)
	}
	return nil, nil
}

// usable gives a record's snapshot, nil if it is not there any more.
func (e *engine) usable(rec *Record) *snapshot.Snapshot {
	if e.CacheTTL > 0 && time.Since(rec.Made) > e.CacheTTL {
		return nil
	}
	snap, err := e.Trees.Get(rec.Snapshot)
	if err != nil {
		return nil
	}
	return snap
}

// place names a step for its next build: the same recipe, stage and position.
func (e *engine) place(n *Node) string {
	return e.plan.Recipe.Name + "\x00" + n.Place
}

func (b *Builder) jobs() int {
	if b.Jobs > 0 {
		return b.Jobs
	}
	return defaultJobs()
}
