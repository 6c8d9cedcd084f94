package builder

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// IsArchive says whether a file is a tar, compressed or not, as ADD would see it.
func IsArchive(file io.ReaderAt, size int64) bool {
	plain, err := decompress(io.NewSectionReader(file, 0, size))
	if err != nil {
		return false
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil
}

// Unpacked is an archive as a tree: a context that came over the net or on
// standard input. Its owners are the archive's.
type Unpacked struct {
	*Files
	draft *snapshot.Draft
}

// UnpackArchive extracts an archive into a draft of the trees, which Close discards. It
// is the extraction of ADD, with its care for hostile archives, and runs inside.
func UnpackArchive(ctx context.Context, trees *snapshot.Store, file *os.File) (u *Unpacked, err error) {
	draft, err := trees.NewDraft(nil)
	if err != nil {
		return nil, err
	}
	u = &Unpacked{draft: draft}
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	root, err := draft.Mount()
	if err != nil {
		return nil, err
	}
	u.Files = &Files{Root: root, Owners: draft.Owners().Get}
	sel, err := SelectFile("context", 0o600, time.Time{}, file)
	if err != nil {
		return nil, err
	}
	return u, sel.CopyTo(ctx, CopyInto{Root: root, Dest: "/", Add: true, Owners: draft.Owners(), Remember: trees.Remembers()})
}

// Close removes the tree.
func (u *Unpacked) Close() error {
	var err error
	if u.Files != nil {
		err = u.Root.Close()
	}
	return errors.Join(err, u.draft.Discard())
}

// ReadFile reads a regular file of the tree, at most max bytes of it. Symlinks are
// followed inside the tree and never out of it; what .dockerignore says does not
// matter here.
func (f *Files) ReadFile(p string, max int64) ([]byte, error) {
	place, err := walkPath(f.Root, p, walkRules{follow: true})
	if err != nil {
		return nil, err
	}
	defer place.dir.release()
	if !place.st.isRegular() {
		return nil, &os.PathError{Op: "read", Path: p, Err: errors.New("not a regular file")}
	}
	fd, err := openAt(place.dir.fd, place.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p, Err: err}
	}
	file := os.NewFile(uintptr(fd), p)
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("read %s: longer than %d bytes", p, max)
	}
	return text, err
}
