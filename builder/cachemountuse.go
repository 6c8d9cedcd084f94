package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// lockCaches takes the caches of a step, each once however many mounts show it,
// as strictly as the strictest of them says. All steps of all processes take
// theirs in the order of their names, so that none waits for one that waits for it.
func (r *runStep) lockCaches(ctx context.Context, held *runHeld) (map[*runMount]*os.File, error) {
	byName := map[string][]*runMount{}
	for _, m := range r.mounts {
		if m.Type == "cache" {
			name := r.cacheMount(m).Name()
			byName[name] = append(byName[name], m)
		}
	}
	dirs := map[*runMount]*os.File{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		mounts := byName[name]
		strict := slices.MaxFunc(mounts, func(a, b *runMount) int {
			order := []string{"shared", "private", "locked"}
			return cmp.Compare(slices.Index(order, a.Sharing), slices.Index(order, b.Sharing))
		})
		dir, release, err := r.Sandbox.Caches.take(ctx, r.cacheMount(strict), cacheUse{
			sharing: strict.Sharing,
			renew:   r.renews(strict, name),
			fill:    func(dir *os.File) error { return r.fillCache(ctx, strict, dir) },
		})
		if err != nil {
			return nil, fmt.Errorf("cache %s: %w", strict.ID, err)
		}
		held.add(release)
		for _, m := range mounts {
			dirs[m] = dir
		}
	}
	return dirs, nil
}

func (r *runStep) cacheMount(m *runMount) CacheMount {
	id := m.ID
	if ns := r.Sandbox.CacheNS; ns != "" {
		id = ns + "/" + id
	}
	return CacheMount{ID: id, From: m.sum, Mode: m.Mode, UID: m.UID, GID: m.GID}
}

// renews says whether a cache begins anew: without the step cache those do, once
// a build, whose directory the recipe gives an owner or a mode (as in BuildKit, where
// making it is a step).
func (r *runStep) renews(m *runMount, name string) bool {
	if !r.node.NoCache || m.Mode == nil && m.UID == nil && m.GID == nil {
		return false
	}
	_, done := r.renewed.LoadOrStore(name, true)
	return !done
}

// fillCache makes a new directory what a cache begins as.
func (r *runStep) fillCache(ctx context.Context, m *runMount, dir *os.File) error {
	mode, uid, gid := uint32(0o755), uint32(0), uint32(0)
	if m.From != "" || m.source() != "/" {
		if err := r.pick(ctx, m); err != nil {
			return err
		}
		if m.sel.roots[0].entry.dir == nil {
			return fmt.Errorf("%s is not a directory", m.source())
		}
		mode, uid, gid = m.top()
		into := CopyInto{Root: dir, Dest: "/"}
		owners := snapshot.NewOwners()
		if r.Trees.Remembers() {
			into.Owners, into.Remember = owners, true
		}
		if err := m.sel.CopyTo(ctx, into); err != nil {
			return err
		}
		if err := snapshot.MarkOwners(fmt.Sprintf("/proc/self/fd/%d/.", dir.Fd()), owners); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		to   *uint32
		from *uint64
	}{{&mode, m.Mode}, {&uid, m.UID}, {&gid, m.GID}} {
		if f.from != nil {
			*f.to = uint32(*f.from)
		}
	}
	if err := r.giveAway(int(dir.Fd()), ".", uid, gid); err != nil {
		return err
	}
	return unix.Fchmodat(int(dir.Fd()), ".", mode&0o7777, 0) // whatever the umask
}

// giveAway changes the owner of something that a step is shown. Where only one ID is
// mapped the file is marked; one that cannot be stays root's, with a notice.
func (e *engine) giveAway(dir int, name string, uid, gid uint32) error {
	if uid == 0 && gid == 0 {
		return nil
	}
	if e.Trees.Remembers() {
		if dir != unix.AT_FDCWD {
			name = fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
		}
		err := snapshot.WriteMark(name, true, snapshot.Owner{UID: uid, GID: gid})
		if errors.Is(err, unix.EOPNOTSUPP) { // a tmpfs before Linux 6.6
			e.notice("only one ID is mapped, and the kernel keeps no attributes here: what --mount gives to another user stays root's")
			return nil
		}
		return err
	}
	if err := unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown to %d:%d: %w", uid, gid, err)
	}
	return nil
}
