package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// copyStep is one COPY or ADD.
type copyStep struct {
	*engine
	node *Node
	step *recipe.Copy

	sources CopySources
	sum     digest.Digest // of what is taken from the tree; "" if nothing is
	sel     *Selection    // nil until somebody needs the files themselves
	open    []io.Closer
}

func (e *engine) newCopy(ctx context.Context, n *Node, st *recipe.Copy) (_ action, err error) {
	c := &copyStep{engine: e, node: n, step: st}
	for _, src := range st.Sources {
		if isRemote(src) {
			if !st.Add {
				return nil, errors.New("source can't be a URL for COPY")
			}
			return nil, fmt.Errorf("ADD %s: URLs and git repositories are not supported yet", src)
		}
	}
	if len(st.Sources) == 0 {
		return c, nil
	}
	c.sources = CopySources{Words: st.Sources, Parents: st.Parents, Exclude: st.Exclude}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if from := n.From[0]; from.Files == nil {
		// What is picked from an immutable tree is the same every time.
		source, err := e.content(ctx, from)
		if err != nil {
			return nil, err
		}
		in, err := source.wait(ctx)
		if err != nil {
			return nil, err
		}
		question := fmt.Sprintf("pick %s %q parents %t exclude %q", in, st.Sources, st.Parents, st.Exclude)
		if answer, ok := e.Records.Memo(question); ok {
			c.sum = digest.Digest(answer)
			return c, nil
		}
		if err := c.find(ctx); err != nil {
			return nil, err
		}
		return c, e.Records.SetMemo(question, c.sum.String())
	}
	if err := c.find(ctx); err != nil {
		return nil, err
	}
	return c, e.Records.SetListing(c.sum, c.sel.Listing())
}

// find selects the files and hashes them.
func (c *copyStep) find(ctx context.Context) error {
	files, err := c.files(ctx)
	if err != nil {
		return err
	}
	if c.sel, err = files.Select(ctx, c.sources); err != nil {
		return fmt.Errorf("failed to compute cache key: %w", err)
	}
	c.sum = c.sel.Digest()
	if files.Cache != nil {
		return files.Cache.Save()
	}
	return nil
}

// files opens the tree that the step takes from.
func (c *copyStep) files(ctx context.Context) (*Files, error) {
	from := c.node.From[0]
	if from.Files != nil {
		return from.Files, nil
	}
	if !c.Inside {
		return nil, ErrNeedsInside
	}
	files, err := c.openTree(ctx, from)
	if err != nil {
		return nil, err
	}
	c.open = append(c.open, files.Root)
	return files, nil
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

func (c *copyStep) Close() error {
	var err error
	for _, f := range c.open {
		err = errors.Join(err, f.Close())
	}
	return err
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
	if c.sum != "" {
		t.Add("files", c.sum.String())
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
	root, err := draft.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	into := CopyInto{
		Root: root, Dest: c.dest(), Chmod: c.step.Chmod, Add: c.step.Add, Unpack: c.step.Unpack,
		Owners: draft.Owners(), Remember: c.Trees.Remembers(),
	}
	if into.Owner, err = c.owner(root); err != nil {
		return err
	}
	if len(c.step.Sources) > 0 {
		if c.sel == nil { // the key came from a memo
			if err := c.find(ctx); err != nil {
				return err
			}
		}
		if err := c.sel.CopyTo(ctx, into); err != nil {
			return err
		}
	}
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
	name, group, hasGroup := strings.Cut(chown, ":")
	if n, err := strconv.ParseUint(name, 10, 32); err == nil && !hasGroup {
		return &CopyOwner{UID: uint32(n), GID: uint32(n)}, nil
	}
	if hasGroup && group == "" {
		chown = name
	}
	u, _, err := container.LookupUser(root, chown)
	if err != nil {
		return nil, fmt.Errorf("--chown=%s: %w", c.step.Chown, err)
	}
	return &CopyOwner{UID: u.UID, GID: u.GID}, nil
}

// isRemote says whether an ADD source is fetched and not taken from the context.
func isRemote(src string) bool {
	for _, p := range []string{"http://", "https://", "git://", "ssh://", "git@"} {
		if strings.HasPrefix(src, p) {
			return true
		}
	}
	return false
}
