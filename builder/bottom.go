package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Every RUN has a few things mounted over its tree, and a mount needs something to cover. Where
// the tree lacks that, it would have to be made and taken away again: /etc copied up, files made
// and removed, at every step, and each takes longer than a mount. So below the tree of a step lies
// one more directory that has the mount points and nothing else. They show where nothing above
// has their names, and are covered as soon as they show.

// mountPoints are what steps cover: a slash ends a directory. Whoever changes the list changes
// bottomName too.
var mountPoints = []string{"dev/", "etc/", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc/", "sys/"}

// bottomName is that directory's in the store of the trees.
const bottomName = "bottom"

// bottom is the directory's path. It is made once a store, whole, and never changes.
func (e *engine) bottom(ctx context.Context) (string, error) {
	dir := filepath.Join(e.Trees.Dir(), bottomName)
	if _, err := os.Lstat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, name := range mountPoints {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: time.Unix(0, 0)}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	err := e.Trees.ReadDir(ctx, &layer, dir)
	if errors.Is(err, fs.ErrExist) { // another step was first
		err = nil
	}
	return dir, err
}
