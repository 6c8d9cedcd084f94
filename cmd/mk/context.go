package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mk/builder"
)

// What a build takes from elsewhere than a directory: its context, as
//
//	-                    a recipe or a tar on standard input
//	http://… https://…   a recipe or a tar
//	https://….git git@…  a git repository, in all the forms that ADD knows
//
// its recipe, as -f URL, and the same as values of --build-context. All of it is
// fetched in the stage inside, where archives can be unpacked with their owners: so
// outside nothing is read of standard input that the stage inside would miss.

// The sentences are buildx's.
var (
	errStdinTwice = errors.New("invalid argument: can't use stdin for both build context and dockerfile")
	errTwoRecipes = errors.New("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
)

// maxStdin bounds a tar on standard input, in bytes.
const maxStdin = 64 << 30

func isHTTP(address string) bool {
	return strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://")
}

// isRemote says whether a context is fetched. A directory of that name is meant before
// an address.
func isRemote(arg string) bool {
	return arg == "-" || !exists(arg) && (isHTTP(arg) || gitAddress(arg) != "")
}

// gitAddress is the address of a git repository, "" if arg is none. Only contexts may be
// github.com/user/repo.
func gitAddress(arg string) string {
	if strings.HasPrefix(arg, "github.com/") {
		arg = "https://" + arg
		if repo, rest := cutAny(arg, "?#"); !strings.HasSuffix(repo, ".git") {
			arg = repo + ".git" + rest
		}
	}
	if _, ok, _ := builder.ParseGitAddress(arg); ok {
		return arg
	}
	return ""
}

// cutAny splits s before the first of chars.
func cutAny(s, chars string) (before, rest string) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// fetcher brings what is elsewhere. Close lets go of it.
type fetcher struct {
	store      *store
	inside     bool
	policy     *sourcePolicy
	ignoreFile string                   // --ignorefile, of the main context
	auth       func(host string) string // of git repositories
	progress   builder.Reporter
	got        map[string]content // by address: builds of several platforms ask again
	open       []io.Closer
}

func (f *fetcher) Close() error {
	var err error
	for _, c := range f.open {
		err = errors.Join(err, c.Close())
	}
	f.open = nil
	return err
}

// content is what an address gave: the files of a context, or a single file, which may
// be a recipe.
type content struct {
	files *builder.Files
	text  []byte            // nil: it is files
	from  *builder.Material // of text
}

// get fetches a context, once.
func (f *fetcher) get(ctx context.Context, arg string) (content, error) {
	if !f.inside {
		return content{}, builder.ErrNeedsInside
	}
	if c, ok := f.got[arg]; ok {
		return c, nil
	}
	c, err := f.fetch(ctx, arg)
	if err == nil {
		if f.got == nil {
			f.got = map[string]content{}
		}
		f.got[arg] = c
	}
	return c, err
}

func (f *fetcher) fetch(ctx context.Context, arg string) (content, error) {
	if arg != "-" {
		if err := f.policy.remote(arg); err != nil {
			return content{}, err
		}
	}
	if address := gitAddress(arg); address != "" {
		files, err := f.git(ctx, address)
		return content{files: files}, err
	}
	var file *os.File
	var made time.Time
	var from *builder.Material // nil for standard input, which nobody else has
	err := f.progress.Task("[internal] load remote build context", func(v *builder.Vertex) (err error) {
		if arg == "-" {
			file, err = f.spool(&stdin)
			return err
		}
		got, err := f.store.fetched().URL(ctx, arg, "", true, func(done, total int64) { f.progress.Status(v, "bytes", done, total) })
		if err == nil {
			made, from = got.Modified, got.Material(arg)
			file, err = got.Open()
		}
		return err
	})
	if err != nil {
		return content{}, err
	}
	f.open = append(f.open, file)
	st, err := file.Stat()
	if err != nil {
		return content{}, err
	}
	if builder.IsArchive(file, st.Size()) {
		tree, err := builder.UnpackArchive(ctx, f.store.trees, file)
		if err != nil {
			return content{}, fmt.Errorf("open context: %w", err)
		}
		f.open = append(f.open, tree)
		tree.Time, tree.From = made, from
		return content{files: tree.Files}, nil
	}
	text, err := readAll(file)
	return content{text: append([]byte{}, text...), from: from}, err
}

func (f *fetcher) git(ctx context.Context, address string) (*builder.Files, error) {
	a, _, err := builder.ParseGitAddress(address)
	if err != nil {
		return nil, err
	}
	var files *builder.Files
	err = f.progress.Task("[internal] load git source "+builder.Redact(address), func(*builder.Vertex) error {
		from := f.store.fetched()
		from.Auth = f.auth
		commit, err := from.Git(ctx, a)
		if err == nil {
			files, err = from.Checkout(ctx, commit, true)
		}
		return err
	})
	if err == nil {
		f.open = append(f.open, files.Root)
	}
	return files, err
}

// spool copies a stream to a file that has no name, so that it can be read more than
// once, however long it is. The caller closes.
func (f *fetcher) spool(from io.Reader) (*os.File, error) {
	file, err := os.CreateTemp(f.store.root, ".stdin-")
	if err != nil {
		return nil, err
	}
	os.Remove(file.Name())
	n, err := io.Copy(file, io.LimitReader(from, maxStdin+1))
	if err == nil && n > maxStdin {
		err = fmt.Errorf("longer than %d bytes", int64(maxStdin))
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return file, nil
}

// nothing is a context without files.
func (f *fetcher) nothing() (*builder.Files, error) {
	dir, err := os.MkdirTemp(f.store.root, ".empty-")
	if err != nil {
		return nil, err
	}
	f.open = append(f.open, removal(dir))
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f.open = append(f.open, root)
	return &builder.Files{Root: root, Local: true}, nil
}

// removal is an empty directory that goes when it is closed.
type removal string

func (dir removal) Close() error { return os.Remove(string(dir)) }

// source finds the recipe and the context of a build where one of them is fetched. file
// is -f: a path in the context, unless it is absolute, an address or -.
func (f *fetcher) source(ctx context.Context, file, arg string) (*recipeFile, *builder.Files, error) {
	var got content
	var err error
	if isRemote(arg) {
		if got, err = f.get(ctx, arg); err != nil {
			return nil, nil, err
		}
	}
	var src *recipeFile
	switch {
	case got.text != nil: // the recipe came where a context might have
		if file != "" {
			return nil, nil, errTwoRecipes
		}
		src = &recipeFile{name: "Recipe", text: got.text, from: got.from}
		got.files, err = f.nothing()
		return src, got.files, err
	case isHTTP(file) && !exists(file):
		src, err = f.recipe(ctx, file)
	case file == "-" || filepath.IsAbs(file) || got.files == nil:
		src, err = readRecipe(file, arg)
	default:
		src, err = recipeIn(got.files, file)
	}
	if err == nil && got.files == nil {
		if got.files, err = openContext(arg, src.path, f.ignoreFile); err == nil {
			got.files.Cache = f.store.statCache(arg)
			f.open = append(f.open, got.files.Root)
		}
	}
	return src, got.files, err
}

// recipe fetches the recipe of -f URL.
func (f *fetcher) recipe(ctx context.Context, address string) (*recipeFile, error) {
	if err := f.policy.remote(address); err != nil {
		return nil, err
	}
	got, err := f.store.fetched().URL(ctx, address, "", true, nil)
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	file, err := got.Open()
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	defer file.Close()
	text, err := readAll(file)
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	return &recipeFile{name: "Recipe", text: text, from: got.Material(address)}, nil
}

// recipeIn reads the recipe of a context that was fetched.
func recipeIn(files *builder.Files, file string) (*recipeFile, error) {
	names := recipeNames
	if file != "" {
		names = []string{file}
	}
	for _, name := range names {
		text, err := files.ReadFile(name, maxRecipe)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read recipe: %w", err)
		}
		return &recipeFile{name: filepath.Base(name), text: text, from: files.From}, nil
	}
	if file != "" {
		return nil, fmt.Errorf("read recipe: no %s in the context", file)
	}
	return nil, fmt.Errorf("read recipe: no %s in the context: give one with -f", strings.Join([]string{"Recipe", "Dockerfile", "Containerfile"}, ", "))
}
