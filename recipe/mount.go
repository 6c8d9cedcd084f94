package recipe

import (
	"errors"
	"fmt"
	"path"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// newMount fills in the defaults that depend on nothing but the mount itself.
func newMount(b *instructions.Mount) (Mount, error) {
	m := Mount{
		Type: string(b.Type), Target: b.Target, Source: b.Source, From: b.From, ReadOnly: b.ReadOnly,
		ID: b.CacheID, Sharing: string(b.CacheSharing), Required: b.Required, Size: b.SizeLimit,
		Mode: b.Mode, UID: b.UID, GID: b.GID,
	}
	if b.Env != nil {
		m.Env = *b.Env
	}
	switch b.Type {
	case instructions.MountTypeCache:
		if m.ID == "" {
			m.ID = path.Clean(m.Target)
		}
		if m.Sharing == "" {
			m.Sharing = string(instructions.MountSharingShared)
		}
	case instructions.MountTypeSecret:
		if m.Source != "" {
			m.ID, m.Source = m.Source, ""
		}
		if m.ID == "" {
			m.ID = path.Base(m.Target)
		}
		if m.Env == "" && m.Target == "" {
			m.Target = "/run/secrets/" + path.Base(m.ID)
		}
		m.owner(0o400)
	case instructions.MountTypeSSH:
		if m.Source != "" {
			return m, errors.New("ssh does not support source")
		}
		if m.ID == "" {
			m.ID = "default"
		}
		m.owner(0o600)
	}
	return m, nil
}

// owner sets what was not written: root and mode.
func (m *Mount) owner(mode uint64) {
	for _, f := range []struct {
		field **uint64
		value uint64
	}{{&m.Mode, mode}, {&m.UID, 0}, {&m.GID, 0}} {
		if *f.field == nil {
			*f.field = &f.value
		}
	}
}

// TargetIn gives the absolute path of the mount for a step whose WORKDIR is dir,
// "" for a secret that is only a variable or an ssh socket without a target.
func (m Mount) TargetIn(dir string) (string, error) {
	if m.Target == "" && (m.Type == "secret" || m.Type == "ssh") {
		return "", nil
	}
	target := m.Target
	if !path.IsAbs(path.Clean(target)) {
		target = path.Join("/", dir, target)
	}
	if path.Clean(target) == "/" {
		return "", fmt.Errorf("invalid mount target %q", target)
	}
	return target, nil
}
