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

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/container"
	"mk/image"
	"mk/image/registry"
	"mk/snapshot"
	"mk/userns"
)

// app is what every command may need to know of its process.
type app struct {
	stage  userns.Stage
	userns string          // --userns: the mode asked for, "" to choose
	in     *userns.Inside  // in the stage inside
	life   context.Context // ends with the process outside, not by a signal
}

// inside makes a command's body run in the namespaces: in the stage host, mk
// enters them with the same command line and passes the exit status on.
func (a *app) inside(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		if a.stage == userns.StageInside {
			return run(c, args)
		}
		return a.enter()
	}
}

// withStore makes a command's body run with the store open.
func (a *app) withStore(run func(*cobra.Command, *store, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		s, err := a.open()
		if err != nil {
			return err
		}
		defer s.Close()
		return run(c, s, args)
	}
}

// enter runs this command line again inside and ends with its status.
func (a *app) enter() error {
	choice, err := a.choose()
	if err != nil {
		return err
	}
	status, err := userns.Enter(a.life, choice)
	if err != nil {
		return err
	}
	if status != 0 {
		return &exitError{status: status}
	}
	return nil
}

// choose picks the mode: --userns, MK_USERNS, or what the machine allows.
func (a *app) choose() (userns.Choice, error) {
	force := a.userns
	if force == "" {
		force = os.Getenv("MK_USERNS")
	}
	return userns.Choose(force)
}

// mode is the mode of this process or, outside, the one that it would enter in.
func (a *app) mode() (userns.Mode, error) {
	if a.in != nil {
		return a.in.Choice.Mode, nil
	}
	choice, err := a.choose()
	return choice.Mode, err
}

// usernsFlag adds --userns to a command that enters.
func (a *app) usernsFlag(c *cobra.Command) {
	c.Flags().StringVar(&a.userns, "userns", "", "how to become root: subid, single or root (default: what the machine allows)")
}

// storeFormat is the first line of the store's format file. A store with a
// newer number is refused rather than misread.
const storeFormat = "mk store 1\n"

// store is the state directory, opened: the shared lock is held until Close.
type store struct {
	root    string
	lock    *os.File
	mode    userns.Mode
	images  *image.Store
	trees   *snapshot.Store
	records *builder.Records
	client  *registry.Client

	containers *container.Store
}

// open opens $MK_ROOT, making it if it is not there.
func (a *app) open() (*store, error) {
	root, err := storeDir()
	if err != nil {
		return nil, err
	}
	mode, err := a.mode()
	if err != nil {
		return nil, err
	}
	s := &store{root: root, mode: mode}
	if s.lock, err = lockFile(filepath.Join(root, "lock"), unix.LOCK_SH); err != nil {
		return nil, fmt.Errorf("lock store: %w", err)
	}
	ok := false
	defer func() {
		if !ok {
			s.Close()
		}
	}()
	if s.images, err = image.Open(filepath.Join(root, "images")); err != nil {
		return nil, err
	}
	if s.trees, err = snapshot.Open(filepath.Join(root, "trees", string(mode)), mode == userns.Single); err != nil {
		return nil, err
	}
	if s.containers, err = container.OpenStore(filepath.Join(root, "containers")); err != nil {
		return nil, err
	}
	s.records = builder.OpenRecords(filepath.Join(root, "keys", string(mode)))
	s.images.SetLayers(treeLayers{s})
	if s.client, err = newClient(); err != nil {
		return nil, err
	}
	s.images.SetFetcher(s.client)
	ok = true
	return s, nil
}

func (s *store) Close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// storeDir is rootDir, made if it is not there, and one that this mk can use.
func storeDir() (string, error) {
	root, err := rootDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", fmt.Errorf("open store: %w", err)
	}
	return root, checkStoreDir(root)
}

// rootDir is where mk keeps everything it keeps.
func rootDir() (string, error) {
	if dir := os.Getenv("MK_ROOT"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "mk"), nil
	}
	home := os.Getenv("HOME")
	if home == "" || home == "/" {
		return "", errors.New("find the store: HOME is not set; set MK_ROOT to a directory of yours")
	}
	return filepath.Join(home, ".local", "share", "mk"), nil
}

// checkStoreDir refuses a store of a newer mk, of another user, or on a file
// system that cannot hold one, and marks a new one.
func checkStoreDir(root string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return fmt.Errorf("open store: %s: %w", root, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("open store: %s belongs to user %d, not to you", root, st.Uid)
	}
	path := filepath.Join(root, "format")
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		var fsinfo unix.Statfs_t
		if err := unix.Statfs(root, &fsinfo); err == nil && fsinfo.Type == unix.NFS_SUPER_MAGIC {
			return fmt.Errorf("open store: %s is on NFS, which can neither lock nor overlay as mk needs; set MK_ROOT to a local directory", root)
		}
		if err := os.WriteFile(path, []byte(storeFormat), 0o600); err != nil {
			return fmt.Errorf("open store: %w", err)
		}
	case err != nil:
		return fmt.Errorf("open store: %w", err)
	case string(have) != storeFormat:
		return fmt.Errorf("open store: %s has format %q, this mk reads %q: use the mk that made it, or another MK_ROOT",
			root, strings.TrimSpace(string(have)), strings.TrimSpace(storeFormat))
	}
	return nil
}

// lockFile opens and locks a file; closing it unlocks.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// caches are the directories of RUN --mount=type=cache.
func (s *store) caches() *builder.CacheMounts {
	return builder.OpenCacheMounts(filepath.Join(s.root, "cache", string(s.mode)))
}

// treeLayers makes layers again from the trees they were built as: the store
// keeps no tar of what was built here.
type treeLayers struct{ *store }

func (t treeLayers) OpenLayer(ctx context.Context, diffID digest.Digest) (io.ReadCloser, int64, error) {
	snap, err := t.trees.ByDiffID(diffID)
	if err != nil {
		if mode := t.builtIn(diffID); mode != "" {
			return nil, 0, fmt.Errorf("layer %s was built in mode %s and its files have the owners of that mode; this is mode %s: build it again, or use --userns %s", diffID, mode, t.mode, mode)
		}
		return nil, 0, fmt.Errorf("layer %s: %w", diffID, err)
	}
	d, ok := snap.Recorded()
	if !ok {
		return nil, 0, fmt.Errorf("layer %s: %w", diffID, fs.ErrNotExist)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(snap.WriteLayer(ctx, w)) }()
	return r, d.Size, nil
}

// builtIn finds the other mode whose trees have a layer, or "".
func (t treeLayers) builtIn(diffID digest.Digest) userns.Mode {
	for _, mode := range []userns.Mode{userns.Root, userns.Subid, userns.Single} {
		dir := filepath.Join(t.root, "trees", string(mode))
		if mode == t.mode || !exists(dir) {
			continue
		}
		trees, err := snapshot.Open(dir, mode == userns.Single)
		if err != nil {
			continue
		}
		if _, err := trees.ByDiffID(diffID); err == nil {
			return mode
		}
	}
	return ""
}
