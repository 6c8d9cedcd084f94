package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"mk/container"
)

// Secret says where the value of a --secret is. It is read when a step that is
// executed wants it, and not kept: the step has it in a file of a tmpfs that is in no
// other process's mounts, or in a variable. Keys, records, layers and history do
// not know it, and it is masked in the output of the step.
type Secret struct {
	File string // a path, or
	Env  string // a variable of mk's own environment
}

// maxSecret is BuildKit's limit, in bytes.
const maxSecret = 500 << 10

// Check makes sure that the secret can be read when it is wanted.
func (s Secret) Check() error {
	if s.Env != "" {
		return nil
	}
	st, err := os.Stat(s.File)
	if err != nil {
		return fmt.Errorf("failed to stat %s: %w", s.File, errors.Unwrap(err))
	}
	if st.IsDir() {
		return fmt.Errorf("%s is a directory", s.File)
	}
	if st.Size() > maxSecret {
		return fmt.Errorf("%s is too big: a secret has at most 500 KiB", s.File)
	}
	return nil
}

func (s Secret) read() ([]byte, error) {
	if s.Env != "" {
		return []byte(os.Getenv(s.Env)), nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(data) > maxSecret {
		err = fmt.Errorf("%s is too big: a secret has at most 500 KiB", s.File)
	}
	return data, err
}

// secret gives a step one secret. One that was not given is an error only if
// the mount requires it.
func (r *runStep) secret(m *runMount, spec *container.Spec, held *runHeld) ([]container.Mount, error) {
	source, ok := r.Sandbox.Secrets[m.ID]
	if !ok {
		if m.Required {
			return nil, fmt.Errorf("secret %s: not found", m.ID)
		}
		return nil, nil
	}
	data, err := source.read()
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", m.ID, err)
	}
	held.mask.add(data)
	if m.Env != "" {
		if bytes.IndexByte(data, 0) >= 0 {
			return nil, fmt.Errorf("secret %s has a NUL byte in it, which no variable can hold", m.ID)
		}
		spec.Env = setEnv(spec.Env, m.Env, string(data))
	}
	if m.target == "" {
		return nil, nil
	}
	etc, err := r.etcFiles()
	if err != nil {
		return nil, err
	}
	file, err := etc.temp("secret")
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", m.ID, err)
	}
	held.add(func() error { return errors.Join(os.Remove(file.Name()), file.Close()) })
	if _, err := file.Write(data); err != nil {
		return nil, fmt.Errorf("secret %s: %w", m.ID, err)
	}
	if err := r.giveMount(etc, file.Name(), m); err != nil {
		return nil, fmt.Errorf("secret %s: %w", m.ID, err)
	}
	return []container.Mount{{
		Type: container.Bind, Source: file.Name(), Dest: m.target, ReadOnly: true, NoSuid: true, NoDev: true, NoExec: true, Owned: true,
	}}, nil
}
