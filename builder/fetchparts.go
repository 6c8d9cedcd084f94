package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/opencontainers/go-digest"

	"mk/recipe"
)

// fetched turns "it has to be fetched" into what a build outside does then. Outside,
// servers are asked whether what is here is still right, and nothing is downloaded:
// a build that runs again inside would download it again.
func (e *engine) fetched(err error) error {
	if errors.Is(err, errFetch) {
		return ErrNeedsInside
	}
	return err
}

// urlPart is the file of one http address that ADD names.
type urlPart struct {
	*engine
	step     *recipe.Copy
	address  string
	checksum digest.Digest // --checksum
	file     *File         // nil while only the checksum is known
	open     *os.File
}

func (e *engine) newURLPart(ctx context.Context, n *Node, st *recipe.Copy, address string) (copyPart, error) {
	p := &urlPart{engine: e, step: st, address: address}
	if st.Checksum != "" {
		sum, err := digest.Parse(st.Checksum)
		if err == nil && sum.Algorithm() != digest.SHA256 {
			err = errors.New("only sha256 is supported")
		}
		if err != nil {
			return nil, fmt.Errorf("--checksum=%s: %w", st.Checksum, err)
		}
		p.checksum = sum
		return p, nil // what the server says now does not matter
	}
	return p, p.fetch(ctx)
}

func (p *urlPart) fetch(ctx context.Context) error {
	get := func(download bool, progress func(done, total int64)) (err error) {
		p.file, err = p.Fetched.URL(ctx, p.address, p.checksum, download, progress)
		return err
	}
	if !p.Inside {
		return p.fetched(get(false, nil))
	}
	return p.Progress.Task("[internal] fetch "+Redact(p.address), func(v *Vertex) error {
		return get(true, func(done, total int64) { p.Progress.Status(v, "bytes", done, total) })
	})
}

func (p *urlPart) describe(t *KeyText) {
	facts := []string{urlName(p.address), p.checksum.String()}
	if p.checksum == "" {
		facts[1] = p.file.Digest.String()
		if !p.file.Modified.IsZero() {
			facts = append(facts, p.file.Modified.UTC().Format(http.TimeFormat))
		}
	}
	t.Add("url", facts...)
}

func (p *urlPart) selection(ctx context.Context) (*Selection, error) {
	if p.file == nil {
		if err := p.fetch(ctx); err != nil {
			return nil, err
		}
	}
	f, err := p.file.Open()
	if err != nil {
		return nil, err
	}
	p.open = f
	return SelectFile(urlName(p.address), 0o600, p.file.Modified, f)
}

func (p *urlPart) archive() bool { return false }

func (p *urlPart) material() *Material {
	if p.checksum != "" {
		return fileMaterial(p.address, p.checksum)
	}
	return fileMaterial(p.address, p.file.Digest)
}

func (p *urlPart) Close() error {
	if p.open == nil {
		return nil
	}
	return p.open.Close()
}

// gitPart is a repository that ADD names.
type gitPart struct {
	*engine
	step   *recipe.Copy
	commit *GitCommit
	root   io.Closer
}

func (e *engine) newGitPart(ctx context.Context, st *recipe.Copy, source string) (copyPart, error) {
	a, ok, err := ParseGitAddress(source)
	if err == nil && !ok {
		err = errors.New("invalid git address")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Redact(source), err)
	}
	if st.KeepGit != nil {
		if a.KeepDir != nil && *a.KeepDir != *st.KeepGit {
			return nil, errors.New("inconsistent keep-git-dir configuration")
		}
		a.KeepDir = st.KeepGit
	}
	if st.Checksum != "" {
		if a.Checksum != "" && a.Checksum != st.Checksum {
			return nil, fmt.Errorf("checksum mismatch %q != %q", st.Checksum, a.Checksum)
		}
		a.Checksum = st.Checksum
	}
	if err := a.checkSum(); err != nil {
		return nil, err
	}
	commit, err := e.Fetched.Git(ctx, a)
	if err != nil {
		return nil, err
	}
	return &gitPart{engine: e, step: st, commit: commit}, nil
}

func (p *gitPart) describe(t *KeyText) {
	p.commit.describe(t)
	if len(p.step.Exclude) > 0 {
		t.Add("exclude", p.step.Exclude...)
	}
}

func (p *gitPart) selection(ctx context.Context) (*Selection, error) {
	files, err := p.Fetched.Checkout(ctx, p.commit, true)
	if err != nil {
		return nil, err
	}
	p.root = files.Root
	return files.Select(ctx, CopySources{Words: []string{"/"}, Exclude: p.step.Exclude})
}

func (p *gitPart) archive() bool { return false }

func (p *gitPart) material() *Material { return p.commit.material() }

func (p *gitPart) Close() error {
	if p.root == nil {
		return nil
	}
	return p.root.Close()
}
