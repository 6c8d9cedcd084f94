package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/container"
	"mk/snapshot"
)

// A volume is a directory that outlives containers:
//
//	volumes/<name>/data          what containers see
//	volumes/<name>/volume.json   volume; its rename is the commit point: without it there is none,
//	                             and prune removes the directory
type volume struct {
	Name      string
	Created   time.Time
	Labels    map[string]string
	Anonymous bool
}

func (s *store) volumePath(name string) string { return filepath.Join(s.root, "volumes", name) }

// volumeDir is the directory of a volume.
func (s *store) volumeDir(name string) (string, error) {
	if _, err := s.volume(name); err != nil {
		return "", err
	}
	return filepath.Join(s.volumePath(name), "data"), nil
}

// provideVolumes makes the volumes of a container that are not there yet, with what the image has
// in their places.
func (s *store) provideVolumes(ctx context.Context, places []place, tree *snapshot.Snapshot, root func() (*os.File, error)) error {
	for _, p := range places {
		if p.Type != "volume" {
			continue
		}
		if _, err := s.volume(p.Source); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		r, err := root()
		if err != nil {
			return err
		}
		if err := s.makeVolume(volume{Name: p.Source, Created: time.Now(), Anonymous: p.Own}, func(data *os.File) error {
			return s.seed(ctx, r, tree, p.Dest, data)
		}); err != nil {
			return err
		}
	}
	return nil
}

// seed copies what is at a path of an image, whose tree is mounted at root, into a new volume.
func (s *store) seed(ctx context.Context, root *os.File, tree *snapshot.Snapshot, dest string, data *os.File) error {
	if dir, found := kind(root, dest); !found || !dir {
		return nil
	}
	owner := func(p string) (snapshot.Owner, bool) {
		o, ok, err := tree.Owner(p)
		return o, ok && err == nil
	}
	sel, err := (&builder.Files{Root: root, Owners: owner}).Select(ctx, builder.CopySources{Words: []string{dest}, Literal: true})
	if err != nil {
		return err
	}
	into, owners := builder.CopyInto{Root: data, Dest: "/"}, snapshot.NewOwners()
	if s.trees.Remembers() {
		into.Owners, into.Remember = owners, true
	}
	if err := sel.CopyTo(ctx, into); err != nil {
		return err
	}
	from, err := pathrs.OpenatInRoot(root, dest)
	if err != nil {
		return err
	}
	defer from.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if !s.trees.Remembers() {
		err = unix.Fchownat(int(data.Fd()), ".", int(st.Uid), int(st.Gid), 0)
	} else if o, ok := snapshot.ReadMark(fdPath(from), false); ok {
		owners.Set(".", o)
	}
	if err == nil {
		err = snapshot.MarkOwners(fdPath(data), owners)
	}
	if err != nil {
		return err
	}
	return unix.Fchmodat(int(data.Fd()), ".", st.Mode&0o7777, 0)
}

// makeVolume makes a volume, filled, unless another mk makes it at the same time and is the first.
func (s *store) makeVolume(v volume, fill func(data *os.File) error) error {
	if err := checkVolumeName(v.Name); err != nil {
		return err
	}
	if err := os.MkdirAll(s.volumePath(v.Name), 0o755); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	turn, err := lockFile(filepath.Join(s.volumePath(v.Name), "lock"), unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	defer turn.Close()
	if _, err := s.volume(v.Name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Join(s.volumePath(v.Name), "data")
	if err := os.RemoveAll(dir); err != nil { // half of one, of a mk that was killed
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if fill != nil {
		data, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err == nil {
			err = fill(data)
			data.Close()
		}
		if err != nil {
			return fmt.Errorf("make volume %s: %w", v.Name, err)
		}
	}
	if err := container.WriteJSON(filepath.Join(s.volumePath(v.Name), "volume.json"), v); err != nil {
		return err
	}
	s.sayVolume("create", v.Name, nil)
	return nil
}

// sayVolume tells mk events what happened to a volume; more are attributes besides the driver.
func (s *store) sayVolume(action, name string, more map[string]string) {
	attributes := map[string]string{"driver": "local"}
	maps.Copy(attributes, more)
	s.containers.Tell(container.Event{Type: "volume", Action: action, Actor: container.Actor{ID: name, Attributes: attributes}})
}

// sayMounted tells that a container has its volumes, and ended that it has them no more.
func (s *store) sayMounted(c *container.Container, w *words) (ended func()) {
	for _, p := range w.Places {
		if p.Type == "volume" {
			s.sayVolume("mount", p.Source, map[string]string{
				"container": c.ID, "destination": p.Dest, "read/write": strconv.FormatBool(!p.ReadOnly), "propagation": ""})
		}
	}
	return func() {
		for _, p := range w.Places {
			if p.Type == "volume" {
				s.sayVolume("unmount", p.Source, map[string]string{"container": c.ID})
			}
		}
	}
}

// pruneVolumes removes what a killed mk left of volumes. Nobody else has the store open.
func (s *store) pruneVolumes() (freed int64, err error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "volumes"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(s.volumePath(e.Name()), "volume.json")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		freed += diskUse(s.volumePath(e.Name()))
		if err := os.RemoveAll(s.volumePath(e.Name())); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

func checkVolumeName(name string) error {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return fmt.Errorf("volume name %q: want letters, digits, _, . and -, a letter or digit first", name)
		}
	}
	if name == "" {
		return errors.New("a volume wants a name")
	}
	return nil
}

// volumes lists all volumes by name.
func (s *store) volumes() ([]volume, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "volumes"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []volume
	for _, e := range entries {
		v, err := s.volume(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

func (s *store) volume(name string) (volume, error) {
	var v volume
	if err := checkVolumeName(name); err != nil {
		return v, err
	}
	text, err := os.ReadFile(filepath.Join(s.volumePath(name), "volume.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return v, fmt.Errorf("volume %s: %w", name, fs.ErrNotExist)
	} else if err != nil {
		return v, err
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, fmt.Errorf("volume %s: %w", name, err)
	}
	return v, nil
}

// removeVolume removes a volume and all in it. It is in the stage inside: the files are of many IDs.
func (s *store) removeVolume(name string) error {
	if _, err := s.volume(name); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.volumePath(name), "volume.json")); err != nil {
		return err
	}
	s.sayVolume("destroy", name, nil)
	return os.RemoveAll(s.volumePath(name))
}

// volumeUsers are the names of the containers that have a volume.
func (s *store) volumeUsers(name string) ([]string, error) {
	all, err := s.containers.List()
	if err != nil {
		return nil, err
	}
	var users []string
	for _, c := range all {
		v, err := look(c)
		if err != nil {
			return nil, err
		}
		if v.hasVolume(name) {
			users = append(users, c.Name)
		}
	}
	return users, nil
}

// hasVolume tells that a container has a volume.
func (v seen) hasVolume(name string) bool {
	return slices.ContainsFunc(v.words.Places, func(p place) bool { return p.Type == "volume" && p.Source == name })
}

// volumeDocument is a volume as docker's inspect prints it.
type volumeDocument struct {
	CreatedAt, Driver string
	Labels            map[string]string
	Mountpoint, Name  string
	Options           map[string]string
	Scope             string
}

func (s *store) describeVolume(v volume) volumeDocument {
	return volumeDocument{
		CreatedAt: v.Created.Format(time.RFC3339), Driver: "local", Labels: v.Labels,
		Mountpoint: filepath.Join(s.volumePath(v.Name), "data"), Name: v.Name, Scope: "local",
	}
}

func newVolume(a *app) *cobra.Command {
	c := &cobra.Command{Use: "volume", Short: "Manage volumes: directories that outlive containers"}
	c.AddCommand(newVolumeCreate(a), newVolumeLs(a), newVolumeRm(a), newVolumeInspect(a), newVolumePrune(a))
	return c
}

func newVolumeCreate(a *app) *cobra.Command {
	var labels []string
	var driver string
	c := &cobra.Command{Use: "create [flags] [NAME]", Short: "Make a volume", Args: cobra.MaximumNArgs(1)}
	c.RunE = a.inside(a.withStore(func(_ *cobra.Command, s *store, args []string) error {
		if driver != "local" {
			return fmt.Errorf("--driver %s: there is only local", driver)
		}
		v := volume{Name: container.NewID(), Created: time.Now(), Anonymous: len(args) == 0}
		if len(args) > 0 {
			v.Name = args[0]
		}
		var err error
		if v.Labels, err = keyValues("--label", labels); err != nil {
			return err
		}
		if _, err := s.volume(v.Name); errors.Is(err, fs.ErrNotExist) {
			if err := s.makeVolume(v, nil); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		fmt.Fprintln(&stdout, v.Name)
		return nil
	}))
	c.Flags().VarP((*list)(&labels), "label", "l", "label, as KEY=value")
	c.Flags().StringVarP(&driver, "driver", "d", "local", "as in docker; there is only local")
	a.usernsFlag(c)
	return c
}

func newVolumeLs(a *app) *cobra.Command {
	var quiet bool
	var format string
	var filters []string
	c := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List volumes", Args: cobra.NoArgs, RunE: a.withStore(func(_ *cobra.Command, s *store, _ []string) error {
		all, err := s.volumes()
		if err != nil {
			return err
		}
		keep, err := filterOf(filters, map[string]func(volume, string) bool{
			"name":   func(v volume, value string) bool { return strings.Contains(v.Name, value) },
			"label":  func(v volume, value string) bool { return labelled(v.Labels, value) },
			"driver": func(_ volume, value string) bool { return value == "local" },
			"dangling": func(v volume, value string) bool {
				users, err := s.volumeUsers(v.Name)
				return err == nil && (len(users) == 0) == (value == "true" || value == "1")
			},
		})
		if err != nil {
			return err
		}
		var rows []volumeDocument
		for _, v := range all {
			if !keep.keeps(v) {
				continue
			}
			rows = append(rows, s.describeVolume(v))
		}
		switch {
		case quiet:
			format = "{{.Name}}"
		case format == "" || format == "table":
			format = "table {{.Driver}}\t{{.Name}}"
		}
		return printRows(&stdout, format, rows, map[string]string{"Name": "VOLUME NAME"})
	})}
	c.Flags().VarP((*list)(&filters), "filter", "f", "list only these: name=, label=KEY[=value], dangling=true or driver=")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	c.Flags().StringVar(&format, "format", "", "Go template, \"table\" with one, or json")
	return c
}

func newVolumeRm(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove volumes that no container has", Args: cobra.MinimumNArgs(1)}
	c.RunE = a.inside(a.withStore(func(_ *cobra.Command, s *store, args []string) error {
		return each(args, func(name string) error {
			users, err := s.volumeUsers(name)
			if err == nil && len(users) > 0 {
				err = fmt.Errorf("container %s has it", strings.Join(users, ", "))
			}
			if err == nil {
				err = s.removeVolume(name)
			}
			if err != nil && !(force && errors.Is(err, fs.ErrNotExist)) {
				return fmt.Errorf("remove volume %s: %w", name, err)
			}
			return nil
		})
	}))
	c.Flags().BoolVarP(&force, "force", "f", false, "say nothing of missing ones")
	a.usernsFlag(c)
	return c
}

func newVolumeInspect(a *app) *cobra.Command {
	c := newInspect(a)
	c.Use, c.Short = "inspect NAME...", "Print all that is known of volumes, as JSON"
	c.Flags().Set("type", "volume")
	return c
}

// pruneUnusedVolumes removes the anonymous volumes that no container has, or all, and prints their names. It gives
// the bytes that they had.
func (s *store) pruneUnusedVolumes(all bool, filters []string) (freed int64, err error) {
	list, err := s.volumes()
	if err != nil {
		return freed, err
	}
	keep, err := pruneFilter(filters, func(v volume) map[string]string { return v.Labels }, nil)
	if err != nil {
		return freed, err
	}
	for _, v := range list {
		if !keep.keeps(v) {
			continue
		}
		users, err := s.volumeUsers(v.Name)
		if err != nil {
			return freed, err
		}
		if len(users) > 0 || !v.Anonymous && !all {
			continue
		}
		freed += diskUse(s.volumePath(v.Name))
		if err := s.removeVolume(v.Name); err != nil {
			return freed, fmt.Errorf("remove volume %s: %w", v.Name, err)
		}
		fmt.Fprintln(&stdout, v.Name)
	}
	return freed, nil
}

func newVolumePrune(a *app) *cobra.Command {
	var all, force bool
	var filters []string
	c := &cobra.Command{Use: "prune", Short: "Remove the anonymous volumes that no container has", Args: cobra.NoArgs}
	c.RunE = a.inside(a.withStore(func(_ *cobra.Command, s *store, _ []string) error {
		return reclaimed(s.pruneUnusedVolumes(all, filters))
	}))
	c.Flags().BoolVarP(&all, "all", "a", false, "those with a name, too")
	c.Flags().Var((*list)(&filters), "filter", "remove only these: label[!]=KEY[=value]")
	c.Flags().BoolVarP(&force, "force", "f", false, "as in docker; mk prune never asks")
	a.usernsFlag(c)
	return c
}
