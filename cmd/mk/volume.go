package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A volume is a directory that outlives containers:
//
//	volumes/<name>/data          what containers see
//	volumes/<name>/volume.json   volume, written last: without it there is none
type volume struct {
	Name      string
	Created   time.Time
	Labels    map[string]string
	Anonymous bool
}

func (s *store) volumePath(name string) string { return filepath.Join(s.root, "volumes", name) }

// volumeDir is the directory of a volume, which is made if it is not there.
func (s *store) volumeDir(name string) (string, error) {
	dir := filepath.Join(s.volumePath(name), "data")
	if exists(filepath.Join(s.volumePath(name), "volume.json")) {
		return dir, nil
	}
	return dir, s.makeVolume(volume{Name: name, Created: time.Now(), Anonymous: len(name) == 64})
}

func (s *store) makeVolume(v volume) error {
	if err := checkVolumeName(v.Name); err != nil {
		return err
	}
	dir := filepath.Join(s.volumePath(v.Name), "data")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.volumePath(v.Name), "volume.json"), text, 0o600)
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
	slices.SortFunc(all, func(a, b volume) int { return strings.Compare(a.Name, b.Name) })
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
	return os.RemoveAll(s.volumePath(name))
}
