package builder

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"mk/container"
	"mk/recipe"
)

// RUN --mount, by type:
//
//	bind    a snapshot, read-only, or a draft of it that is discarded: writes go
//	        nowhere. Files of the caller's are copied into a snapshot first
//	cache   a directory of CacheMounts, locked while the step runs
//	tmpfs   made by the container's init
//	secret  a file in memory, a variable, or both
//	ssh     a socket in memory with an agent behind it
//
// Nothing of the caller's is ever mounted itself. So a step cannot change it, nor
// find a socket in it; what was hashed is what is shown; and a stage that swaps
// directories for symlinks swaps them in a tree of its own.
//
// Binds, caches and tmpfs are mounted in the order of their targets, so that what
// lies in another comes after it, whatever the order of writing; of two on one
// target the later is seen. Secrets and sockets come last.

// runMount is one --mount of a step.
type runMount struct {
	recipe.Mount
	target string // absolute and clean; "" for a secret that is only a variable
	from   Tree
	sum    string     // what a bind shows, or what a new cache holds; "" for nothing
	sel    *Selection // the same as files; nil until somebody needs them
}

// describe writes what a step's result depends on: what is shown, and where. Of
// caches and secrets that is everything but their content.
func (m *runMount) describe(t *KeyText, cacheNS string) {
	words := []string{m.Type, m.target}
	option := func(name, value string) {
		if value != "" {
			words = append(words, name+"="+value)
		}
	}
	number := func(name string, n *uint64, base int) {
		if n != nil {
			option(name, strconv.FormatUint(*n, base))
		}
	}
	switch m.Type {
	case "bind":
		option("shows", m.sum)
	case "cache":
		option("id", cacheNS+"/"+m.ID)
		option("sharing", m.Sharing)
		option("from", m.sum)
	case "secret", "ssh":
		option("id", m.ID)
		option("env", m.Env)
	}
	number("mode", m.Mode, 8)
	number("uid", m.UID, 10)
	number("gid", m.GID, 10)
	if m.ReadOnly {
		option("ro", "true")
	}
	if m.Size > 0 {
		option("size", strconv.FormatInt(m.Size, 10))
	}
	t.Add("mount", words...)
}

// identify finds out what a mount takes from a tree, for the step's key.
func (r *runStep) identify(ctx context.Context, m *runMount) error {
	switch {
	case m.Type == "bind":
	case m.Type == "cache" && (m.From != "" || m.source() != "/"):
	default:
		return nil
	}
	if m.from.Files != nil {
		if err := r.pick(ctx, m); err != nil {
			return err
		}
		return r.Records.SetListing(m.sel)
	}
	tree, err := r.content(ctx, m.from)
	if err != nil {
		return err
	}
	in, err := tree.wait(ctx)
	if err != nil {
		return err
	}
	if m.source() == "/" {
		m.sum = in
		return nil
	}
	// What is picked from an immutable tree is the same every time.
	question := fmt.Sprintf("mount %s %q", in, m.source())
	if answer, ok := r.memo(ctx, r.node, question); ok {
		m.sum = answer
		return nil
	}
	if err := r.pick(ctx, m); err != nil {
		return err
	}
	return r.setMemo(question, m.sum)
}

// source is where in its tree a mount begins, "/" for the whole of it.
func (m *runMount) source() string { return path.Join("/", m.Source) }

// pick selects and hashes the files that a mount shows or a cache begins with.
func (r *runStep) pick(ctx context.Context, m *runMount) error {
	if m.sel != nil {
		return nil
	}
	files := m.from.Files
	if files == nil {
		if !r.Inside {
			return ErrNeedsInside
		}
		tree, err := r.openTree(ctx, m.from)
		if err != nil {
			return err
		}
		r.open = append(r.open, tree.Root)
		files = tree
	}
	sel, err := r.selectFiles(ctx, files, CopySources{Words: []string{literalWord(m.source())}})
	if err == nil && len(sel.roots) == 0 {
		err = errNotFound(m.source())
	}
	if err != nil {
		return fmt.Errorf("failed to compute cache key: %w", err)
	}
	m.sel = sel
	if m.sum == "" {
		m.sum = sel.Digest().String()
		if sel.roots[0].entry.dir != nil { // its own metadata are seen, and no part of a Listing
			mode, uid, gid := m.top()
			m.sum += fmt.Sprintf(" %#o %d:%d", mode, uid, gid)
		}
	}
	if files.Cache != nil {
		return files.Cache.Save()
	}
	return nil
}

// top is the mode and owner of the selected directory. A local one has no owner,
// and the mode of a context's own top is the caller's accident.
func (m *runMount) top() (mode, uid, gid uint32) {
	root := &m.sel.roots[0]
	st := &root.entry.st
	switch files := m.from.Files; {
	case files == nil:
		return st.mode & 0o7777, st.uid, st.gid
	case root.path == "":
		return 0o755, 0, 0
	}
	return st.mode & 0o7777, 0, 0
}

// literalWord makes a path a word of CopySources that means this path alone.
func literalWord(p string) string {
	if !hasWildcard(p) {
		return p
	}
	parts := strings.Split(p, "/")
	pattern := false // names before the first wildcard are taken as they are
	for i, name := range parts {
		if pattern = pattern || hasWildcard(name); pattern {
			parts[i] = strings.NewReplacer(`\`, `\\`, "*", "[*]", "?", "[?]", "[", "[[]").Replace(name)
		}
	}
	return strings.Join(parts, "/")
}

// runHeld is what a running step holds for its mounts.
type runHeld struct {
	mask    secretMask
	closers []func() error
}

func (h *runHeld) add(close func() error) { h.closers = append(h.closers, close) }

// release lets go of everything, the last first.
func (h *runHeld) release() error {
	var errs []error
	for _, close := range slices.Backward(h.closers) {
		errs = append(errs, close())
	}
	h.closers = nil
	return errors.Join(errs...)
}

// addMounts adds the step's own mounts to its spec. What they need until the
// step has ended is held; an error leaves it to the caller to release.
func (r *runStep) addMounts(ctx context.Context, spec *container.Spec, held *runHeld) error {
	if len(r.mounts) == 0 {
		return nil
	}
	caches, err := r.lockCaches(ctx, held)
	if err != nil {
		return err
	}
	var trees, rest []container.Mount
	for _, m := range r.mounts {
		switch m.Type {
		case "bind":
			mount, err := r.bind(ctx, m, held)
			if err != nil {
				return fmt.Errorf("mount %s: %w", m.target, err)
			}
			trees = append(trees, mount)
		case "cache":
			trees = append(trees, container.Mount{Type: container.Bind, File: caches[m], Dest: m.target, ReadOnly: m.ReadOnly, Owned: true})
		case "tmpfs":
			mount := container.Mount{Type: container.Tmpfs, Dest: m.target, ReadOnly: m.ReadOnly, NoSuid: true}
			if m.Size > 0 {
				mount.Data = fmt.Sprintf("size=%d", m.Size)
			}
			trees = append(trees, mount)
		case "secret":
			mounts, err := r.secret(m, spec, held)
			if err != nil {
				return err
			}
			rest = append(rest, mounts...)
		case "ssh":
			mounts, err := r.ssh(m, spec, held)
			if err != nil {
				return err
			}
			rest = append(rest, mounts...)
		default:
			return fmt.Errorf("RUN --mount=type=%s is not supported", m.Type)
		}
	}
	sort.SliceStable(trees, func(i, j int) bool { return trees[i].Dest < trees[j].Dest })
	spec.Mounts = slices.Concat(spec.Mounts, trees, rest)
	return nil
}
