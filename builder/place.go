package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"mk/container"
	"mk/recipe"
	"mk/snapshot"
)

// copyStep is one COPY or ADD. What it takes comes from one or more places, in the
// order in which the instruction names them; here-documents are last.
type copyStep struct {
	*engine
	node  *Node
	step  *recipe.Copy
	parts []copyPart
}

// copyPart is one place that a step takes files from, identified but perhaps not
// read: paths of one tree (fromTree), the file of a URL or a git repository
// (fetchparts.go).
type copyPart interface {
	// describe writes the facts that the files depend on.
	describe(*KeyText)
	// selection gives the files. They are to be had until Close.
	selection(context.Context) (*Selection, error)
	// archive says whether a file is unpacked if it is an archive: when nothing else is said.
	archive() bool
	// material is what was fetched, nil where that is nothing.
	material() *Material
	io.Closer
}

func (e *engine) newCopy(ctx context.Context, n *Node, st *recipe.Copy) (_ action, err error) {
	c := &copyStep{engine: e, node: n, step: st}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	add := func(part copyPart, err error) error {
		if err != nil {
			return err
		}
		c.parts = append(c.parts, part)
		if m := part.material(); m != nil {
			e.mu.Lock()
			e.took[n] = append(e.took[n], m)
			e.mu.Unlock()
		}
		return nil
	}
	for i := 0; i < len(st.Sources) && err == nil; i++ {
		switch kind := recipe.KindOf(st.Sources[i]); {
		case kind == recipe.Git && st.Add:
			err = add(e.newGitPart(ctx, st, st.Sources[i]))
		case kind == recipe.HTTP && st.Add:
			err = add(e.newURLPart(ctx, n, st, st.Sources[i]))
		default: // all that follow each other are one look at the tree
			end := i + 1
			for end < len(st.Sources) && (!st.Add || recipe.KindOf(st.Sources[end]) == recipe.Local) {
				end++
			}
			err = add(e.newTreePart(ctx, n, st, st.Sources[i:end]))
			i = end - 1
		}
	}
	return c, err
}

func (c *copyStep) Close() error {
	var err error
	for _, p := range c.parts {
		err = errors.Join(err, p.Close())
	}
	return err
}

// treePart is what a step takes from the context, a stage or an image.
type treePart struct {
	*engine
	from    Tree
	add     bool
	sources CopySources
	sum     digest.Digest // of what is taken
	sel     *Selection    // nil until somebody needs the files themselves
	root    io.Closer     // the tree's mount, if it has one
}

func (e *engine) newTreePart(ctx context.Context, n *Node, st *recipe.Copy, words []string) (_ copyPart, err error) {
	p := &treePart{engine: e, from: n.From[0], add: st.Add}
	p.sources = CopySources{Words: words, Parents: st.Parents, Exclude: st.Exclude}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.from.Files == nil {
		// What is picked from an immutable tree is the same every time.
		in, err := e.contentOf(ctx, p.from)
		if err != nil {
			return nil, err
		}
		question := fmt.Sprintf("pick %s %q parents %t exclude %q", in, words, st.Parents, st.Exclude)
		if answer, ok := e.memo(ctx, n, question); ok {
			p.sum = digest.Digest(answer)
			return p, nil
		}
		if err := p.find(ctx); err != nil {
			return nil, err
		}
		return p, e.setMemo(question, p.sum.String())
	}
	if err := p.find(ctx); err != nil {
		return nil, err
	}
	return p, e.Records.SetListing(p.sel)
}

// find selects the files and hashes them.
func (p *treePart) find(ctx context.Context) error {
	files, err := p.files(ctx)
	if err != nil {
		return err
	}
	if p.sel, err = p.selectFiles(ctx, files, p.sources); err != nil {
		return fmt.Errorf("failed to compute cache key: %w", err)
	}
	p.sum = p.sel.Digest()
	p.group.Go(files.Cache.Save) // beside the step
	return nil
}

// files opens the tree.
func (p *treePart) files(ctx context.Context) (*Files, error) {
	if p.from.Files != nil {
		return p.from.Files, nil
	}
	if !p.Inside {
		return nil, ErrNeedsInside
	}
	files, err := p.openTree(ctx, p.from)
	if err != nil {
		return nil, err
	}
	p.root = files.Root
	return files, nil
}

func (p *treePart) describe(t *KeyText) { t.Add("files", p.sum.String()) }

func (p *treePart) selection(ctx context.Context) (*Selection, error) {
	if p.sel == nil { // the digest came from a memo
		if err := p.find(ctx); err != nil {
			return nil, err
		}
	}
	return p.sel, nil
}

func (p *treePart) archive() bool { return p.add }

func (p *treePart) material() *Material { return nil } // the plan knows the tree

func (p *treePart) Close() error {
	if p.root == nil {
		return nil
	}
	return p.root.Close()
}

// selectFiles is Select for a step. Outside, a file of the context that is new or changed ends it: most
// likely a step has to be executed, and whoever does that looks at all files himself. So does one that
// the caller owns and may not read: inside, where he is root, he may.
func (e *engine) selectFiles(ctx context.Context, f *Files, c CopySources) (*Selection, error) {
	if f.Cache != nil && !e.Inside {
		known := *f
		known.knownOnly = true
		f = &known
	}
	sel, err := f.Select(ctx, c)
	if !e.Inside && errors.Is(err, fs.ErrPermission) {
		return nil, ErrNeedsInside
	}
	return sel, err
}

// openTree mounts a tree to take files from it. The caller closes Root.
func (e *engine) openTree(ctx context.Context, t Tree) (*Files, error) {
	snap, err := e.tree(ctx, t)
	if err != nil {
		return nil, err
	}
	if snap == nil {
		draft, err := e.Trees.NewDraft(nil) // scratch: an empty directory
		if err != nil {
			return nil, err
		}
		defer draft.Discard()
		root, err := draft.Mount()
		return &Files{Root: root}, err
	}
	root, err := snap.Mount()
	if err != nil {
		return nil, err
	}
	return &Files{Root: root, Owners: func(p string) (snapshot.Owner, bool) {
		o, ok, err := snap.Owner(p)
		return o, ok && err == nil
	}}, nil
}

func (c *copyStep) describe(t *KeyText) {
	st := c.step
	t.Add(strings.ToLower(st.Keyword()), c.dest())
	if st.Chown != "" {
		t.Add("chown", st.Chown)
	}
	if st.Chmod != "" {
		t.Add("chmod", st.Chmod)
	}
	if st.Parents {
		t.Add("parents")
	}
	if c.node.linked() {
		t.Add("link")
	}
	if st.Unpack != nil {
		t.Add("unpack", strconv.FormatBool(*st.Unpack))
	}
	for _, p := range c.parts {
		p.describe(t)
	}
	for _, doc := range st.Inline {
		t.Add("inline", doc.Name, doc.Data)
	}
}

// dest is the destination as an absolute path; a trailing slash says that it is
// a directory and is kept.
func (c *copyStep) dest() string {
	dest := c.step.Dest
	dir := strings.HasSuffix(dest, "/") || dest == "." || strings.HasSuffix(dest, "/.") || dest == "" || dest == ".." || strings.HasSuffix(dest, "/..")
	if !path.IsAbs(dest) {
		dest = path.Join(c.node.Dir, dest)
	}
	dest = path.Clean(dest)
	if dir && dest != "/" {
		dest += "/"
	}
	return dest
}

func (c *copyStep) perform(ctx context.Context, draft *snapshot.Draft) error {
	kept, gone, err := c.keepUnchanged(draft)
	if err != nil {
		return err
	}
	root, err := draft.Open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := removeGone(root, gone); err != nil {
		return err
	}
	into := CopyInto{
		Root: root, Dest: c.dest(), Chmod: c.step.Chmod, Unpack: c.step.Unpack,
		Owners: draft.Owners(), Remember: c.Trees.Remembers(), Kept: kept,
	}
	if into.Owner, err = c.owner(root); err != nil {
		return err
	}
	for _, p := range c.parts {
		sel, err := p.selection(ctx)
		if err != nil {
			return err
		}
		into.Add = p.archive()
		if err := sel.CopyTo(ctx, into); err != nil {
			return err
		}
		if len(c.parts) == 1 && len(c.step.Inline) == 0 && len(sel.roots) == 1 && sel.roots[0].entry.dir != nil {
			at, err := walkPath(root, c.dest(), walkRules{follow: true})
			if err != nil {
				return err
			}
			at.dir.release()
			draft.Hashed(sel.sums(at.path))
		}
	}
	into.Add, into.Unpack = false, nil
	for _, doc := range c.step.Inline {
		sel, err := SelectData(doc.Name, 0o644, time.Now(), []byte(doc.Data))
		if err != nil {
			return err
		}
		if err := sel.CopyTo(ctx, into); err != nil {
			return err
		}
	}
	return nil
}

// owner resolves --chown by the destination's passwd and group. A number alone
// is the user's and the group's.
func (c *copyStep) owner(root *os.File) (*CopyOwner, error) {
	chown := c.step.Chown
	if chown == "" {
		return nil, nil
	}
	uid, gid, err := container.LookupIDs(root, chown)
	if err != nil {
		return nil, fmt.Errorf("--chown=%s: %w", chown, err)
	}
	return &CopyOwner{UID: uid, GID: gid}, nil
}
