package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// GitCommit is what an address means at the moment: found without fetching.
type GitCommit struct {
	Address *GitAddress
	Commit  string // the object to fetch: a commit, or the tag that names it when .git is kept
	ref     string // the full name of the ref; "" when Commit was asked for by itself
}

// Git finds the commit that an address means, by asking its server; one that names
// a whole commit needs no answer. The errors' sentences are BuildKit's.
func (f *Fetched) Git(ctx context.Context, a *GitAddress) (*GitCommit, error) {
	c, err := f.resolveGit(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", a.Remote, err)
	}
	return c, nil
}

func (f *Fetched) resolveGit(ctx context.Context, a *GitAddress) (*GitCommit, error) {
	if commitSHA().MatchString(a.Ref) {
		if !strings.HasPrefix(a.Ref, a.Checksum) {
			return nil, fmt.Errorf("expected checksum to match %s, got %s", a.Checksum, a.Ref)
		}
		return &GitCommit{Address: a, Commit: a.Ref}, nil
	}
	if a.FetchByCommit {
		return &GitCommit{Address: a, Commit: a.Checksum}, nil
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	g, err := newGit(f.dir, a, f.Auth)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	ref := a.Ref
	if ref == "" {
		if ref, err = g.defaultBranch(ctx, a); err != nil {
			return nil, err
		}
	}
	out, err := g.run(ctx, g.home, "ls-remote", "--", a.Remote, ref, ref+"^{}")
	if err != nil {
		return nil, err
	}
	at := map[string]string{}
	for line := range strings.Lines(out) {
		sha, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		at[name] = sha
	}
	c := &GitCommit{Address: a}
	// As in git checkout, a branch is meant before a tag of the same name.
	for _, name := range []string{"refs/" + strings.TrimPrefix(ref, "refs/"), "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")} {
		if c.Commit = at[name]; c.Commit != "" {
			c.ref = name
			break
		}
	}
	if c.Commit == "" {
		return nil, fmt.Errorf("repository does not contain ref %s", ref)
	}
	tagged := at[c.ref+"^{}"] // what an annotated tag names
	for _, sha := range []string{c.Commit, tagged} {
		if sha != "" && !commitSHA().MatchString(sha) {
			return nil, fmt.Errorf("invalid commit sha %q", sha)
		}
	}
	if !strings.HasPrefix(c.Commit, a.Checksum) && (tagged == "" || !strings.HasPrefix(tagged, a.Checksum)) {
		got := c.Commit
		if tagged != "" {
			got += " or " + tagged
		}
		return nil, fmt.Errorf("expected checksum to match %s, got %s", a.Checksum, got)
	}
	if tagged != "" && !a.keepDir() {
		c.Commit = tagged
	}
	return c, nil
}

// defaultBranch asks where HEAD points.
func (g *git) defaultBranch(ctx context.Context, a *GitAddress) (string, error) {
	out, err := g.run(ctx, g.home, "ls-remote", "--symref", "--", a.Remote, "HEAD")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "ref: "); ok {
			ref, _, _ := strings.Cut(rest, "\t")
			return ref, nil
		}
	}
	return "", errors.New("could not find default branch")
}

// describe writes the facts that a checkout depends on. Where it came from is none
// of them, nor is a checksum that was right.
func (c *GitCommit) describe(t *KeyText) {
	facts := []string{c.Commit}
	if c.Address.keepDir() {
		facts = append(facts, "keep-git-dir", c.ref)
	}
	if !c.Address.submodules() {
		facts = append(facts, "no submodules")
	}
	if c.Address.CommitTimes {
		facts = append(facts, "mtime commit")
	}
	t.Add("git", append(facts, "subdir", c.Address.Subdir)...)
}

// Checkout gives the files of a commit, fetching them if they are not in the store
// and download is set; else errFetch. The caller closes Root.
func (f *Fetched) Checkout(ctx context.Context, c *GitCommit, download bool) (*Files, error) {
	files, err := f.checkout(ctx, c, download)
	if err != nil && !errors.Is(err, errFetch) {
		return nil, fmt.Errorf("fetch %s: %w", c.Address.Remote, err)
	}
	return files, err
}

func (f *Fetched) checkout(ctx context.Context, c *GitCommit, download bool) (*Files, error) {
	text := &KeyText{lines: []string{c.Address.Remote, strconv.FormatBool(c.Address.submodules())}}
	whole := *c.Address
	whole.Subdir = "" // one checkout for all subdirectories
	(&GitCommit{&whole, c.Commit, c.ref}).describe(text)
	dir := f.path("git", hashName(text.String()))
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		if !download {
			return nil, errFetch
		}
		if err := f.fetchGit(ctx, c, dir); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	touchCheckout(dir)
	st, err := root.Stat()
	if err != nil || c.Address.Subdir == "" {
		return &Files{Root: root, Local: true, Time: st.ModTime(), From: c.material()}, err
	}
	defer root.Close()
	sub, err := openDirIn(root, c.Address.Subdir)
	if err != nil {
		return nil, fmt.Errorf("subdirectory %q: %w", c.Address.Subdir, err)
	}
	return &Files{Root: sub, Local: true, Time: st.ModTime(), From: c.material()}, nil
}

// openDirIn opens a directory below root. Symlinks on the way are followed inside
// root and never out of it.
func openDirIn(root *os.File, p string) (*os.File, error) {
	place, err := walkPath(root, p, walkRules{follow: true})
	if err != nil {
		return nil, err
	}
	defer place.dir.release()
	if !place.st.isDir() {
		return nil, unix.ENOTDIR
	}
	name := place.name
	if name == "" {
		name = "."
	}
	fd, err := openAt(place.dir.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

// fetchGit makes a checkout at dir: in a fresh directory, which is then renamed
// into place. Two processes may do so at once; the second finds the first's.
func (f *Fetched) fetchGit(ctx context.Context, c *GitCommit, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	g, err := newGit(f.dir, c.Address, f.Auth)
	if err != nil {
		return err
	}
	defer g.Close()
	tree := filepath.Join(g.home, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	made, err := g.fetch(ctx, c, tree)
	if err != nil {
		return err
	}
	if c.Address.submodules() {
		if _, err := os.Lstat(filepath.Join(tree, ".gitmodules")); err == nil {
			err := g.submodules(ctx, tree, "--depth=1")
			if err != nil && ctx.Err() == nil {
				err = g.submodules(ctx, tree) // as in fetch: not every server knows depth
			}
			if err != nil {
				return err
			}
		}
	}
	mtime := made
	if !c.Address.CommitTimes {
		mtime = time.Time{}
	}
	if err := g.settle(tree, c.Address.keepDir(), mtime); err != nil {
		return err
	}
	if err := setMtime(tree, made); err != nil { // where Files.Time is kept
		return err
	}
	err = os.Rename(tree, dir)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}

// fetch brings the commit into a new repository in tree, checks it out, and tells
// its time. The commit alone is asked for first; servers that do not give one by
// its name, or know no depth, are asked for the ref, and at last for everything.
func (g *git) fetch(ctx context.Context, c *GitCommit, tree string) (time.Time, error) {
	none := time.Time{}
	format := "--object-format=sha1"
	if len(c.Commit) == 64 {
		format = "--object-format=sha256"
	}
	if _, err := g.run(ctx, tree, "init", "--quiet", format); err != nil {
		return none, err
	}
	if _, err := g.run(ctx, tree, "remote", "add", "--", "origin", c.Address.Remote); err != nil {
		return none, err
	}
	tries := [][]string{{"--depth=1", "--no-tags", "origin", c.Commit}}
	if c.ref != "" {
		to := c.ref
		if name, ok := strings.CutPrefix(to, "refs/heads/"); ok {
			to = "refs/remotes/origin/" + name
		}
		spec := "+" + c.ref + ":" + to
		named := [][]string{{"--depth=1", "--no-tags", "origin", spec}, {"--no-tags", "origin", spec}}
		if c.Address.keepDir() { // the ref belongs to what is kept
			tries = append(named, tries...)
		} else {
			tries = append(tries, named...)
		}
	}
	tries = append(tries, []string{"--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"})
	var err error
	for _, try := range tries {
		if _, err = g.run(ctx, tree, append([]string{"fetch", "--quiet"}, try...)...); err != nil {
			if ctx.Err() != nil {
				return none, err
			}
			continue
		}
		// A ref may have moved since it was resolved.
		if _, err = g.run(ctx, tree, "cat-file", "-e", c.Commit+"^{commit}"); err == nil {
			break
		}
		err = fmt.Errorf("commit %s is not in the repository", c.Commit)
	}
	if err != nil {
		return none, err
	}
	if _, err := g.run(ctx, tree, "checkout", "--quiet", "--detach", c.Commit); err != nil {
		return none, err
	}
	out, err := g.run(ctx, tree, "log", "-1", "--format=%ct")
	if err != nil {
		return none, err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	return time.Unix(sec, 0), err
}

func (g *git) submodules(ctx context.Context, tree string, flags ...string) error {
	_, err := g.run(ctx, tree, append([]string{"submodule", "update", "--init", "--recursive"}, flags...)...)
	return err
}

// settle makes a checkout what it is, whoever fetched it: modes as git knows them,
// whatever the umask, and the repositories gone unless they are kept. The tree lies
// in a directory that only we can enter, so its names do not change meanwhile.
func (g *git) settle(tree string, keep bool, mtime time.Time) error {
	var dirs []string
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".git" && p != tree && !keep {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		switch d.Type() {
		case fs.ModeDir:
			dirs = append(dirs, p)
			err = os.Chmod(p, 0o755)
		case 0:
			var st fs.FileInfo
			if st, err = d.Info(); err == nil {
				err = os.Chmod(p, 0o644|st.Mode()&0o100|st.Mode()&0o100>>3|st.Mode()&0o100>>6)
			}
		}
		if err == nil && !d.IsDir() {
			err = setMtime(p, mtime)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = setMtime(dirs[i], mtime)
	}
	return err
}

func setMtime(p string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
