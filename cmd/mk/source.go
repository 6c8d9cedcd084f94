package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/recipe"
)

// recipeNames are looked for in the context, in this order, when there is no -f.
var recipeNames = []string{"Recipe", "recipe", "Dockerfile", "dockerfile", "Containerfile", "containerfile"}

// maxRecipe bounds what is read as a recipe: nobody's is this long.
const maxRecipe = 16 << 20

// recipeFile is a recipe's text and the name that messages call it by.
type recipeFile struct {
	name string
	path string // "" for standard input
	text []byte
	from *builder.Material // nil: it is the caller's, or of the context
}

func (r *recipeFile) lines() []string {
	if r == nil { // it could not be had
		return nil
	}
	return strings.Split(string(r.text), "\n")
}

// readRecipe finds and reads the recipe of a build.
func readRecipe(file, dir string) (*recipeFile, error) {
	if file == "-" {
		return recipeFromStdin()
	}
	path := file
	if path == "" {
		if st, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("open context: %w", err)
		} else if !st.IsDir() {
			return nil, fmt.Errorf("open context: %s is not a directory", dir)
		}
		for _, name := range recipeNames {
			st, err := os.Stat(filepath.Join(dir, name))
			if err == nil && st.Mode().IsRegular() {
				path = filepath.Join(dir, name)
				break
			}
			if errors.Is(err, fs.ErrPermission) {
				return nil, fmt.Errorf("read recipe: %w", err)
			}
		}
		if path == "" {
			return nil, fmt.Errorf("read recipe: no %s in %s: give one with -f", strings.Join([]string{"Recipe", "Dockerfile", "Containerfile"}, ", "), dir)
		}
	} else if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !filepath.IsAbs(path) && dir != "" {
		if in := filepath.Join(dir, path); exists(in) {
			path = in
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	defer f.Close()
	text, err := readAll(f)
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	return &recipeFile{name: filepath.Base(path), path: path, text: text}, nil
}

// recipeFromStdin reads standard input and puts a copy in its place, so that
// the stage inside finds it there again.
func recipeFromStdin() (*recipeFile, error) {
	text, err := readAll(&stdin)
	if err != nil {
		return nil, fmt.Errorf("read recipe: standard input: %w", err)
	}
	if err := refillStdin(text); err != nil {
		return nil, fmt.Errorf("read recipe: standard input: %w", err)
	}
	return &recipeFile{name: "Recipe", text: text}, nil
}

// refillStdin makes descriptor 0 a memory file with this content, at its start.
func refillStdin(content []byte) error {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "stdin")
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return unix.Dup3(fd, 0, 0)
}

func readAll(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxRecipe+1))
	if err == nil && len(text) > maxRecipe {
		err = fmt.Errorf("longer than %d bytes", maxRecipe)
	}
	return text, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// openContext opens a directory that COPY takes from, with the ignore file that
// goes with the recipe: <recipe>.dockerignore beside it, else .dockerignore in
// the directory. mk's own store is never part of a context: a build changes it
// while it reads. ignoreFile, if it is not "", takes the place of both. The caller
// closes Root.
func openContext(dir, recipePath, ignoreFile string) (*builder.Files, error) {
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) {
			return nil, fmt.Errorf("open context: %s is not a directory", dir)
		}
		return nil, fmt.Errorf("open context: %w", err)
	}
	files := &builder.Files{Root: root, Local: true}
	candidates := []string{filepath.Join(dir, ".dockerignore")}
	if recipePath != "" {
		candidates = append([]string{recipePath + ".dockerignore"}, candidates...)
	}
	if ignoreFile != "" {
		candidates = []string{ignoreFile}
	}
	for _, path := range candidates {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && ignoreFile == "" {
			continue
		}
		if err == nil {
			var ignore *recipe.Ignore
			if ignore, err = recipe.ParseIgnore(bytes.NewReader(text)); err == nil {
				files.Ignore = ignore.Patterns()
			}
		}
		if err != nil {
			root.Close()
			return nil, fmt.Errorf("read ignore file %s: %w", path, err)
		}
		break
	}
	if store, ok := storeBelow(dir); ok {
		files.Ignore = append(files.Ignore, store) // the last match wins
	}
	return files, nil
}

// storeBelow gives the pattern of an ignore file that matches mk's store, if
// that is in the directory: in $HOME it is, by default.
func storeBelow(dir string) (pattern string, ok bool) {
	root, err := rootDir()
	if err != nil {
		return "", false // opening the store says so
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", false
	}
	rel, err := filepath.Rel(realPath(dir), realPath(root))
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", false
	}
	return patternQuoter.Replace(rel), true
}

// realPath is a path without symlinks. What does not exist yet, as the store
// before the first build, has none.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil || path == "/" {
		return real
	}
	return filepath.Join(realPath(filepath.Dir(path)), filepath.Base(path))
}

// patternQuoter makes a pattern that matches a path and nothing else.
var patternQuoter = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `!`, `\!`)
