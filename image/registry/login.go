package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// Login asks a registry whether it takes a user's password, without saving it.
// The error is ErrUnauthorized when it does not.
func (c *Client) Login(ctx context.Context, registry, user, password string) error {
	probe := &Client{Keychain: OneLogin(registry, user, password),
		SkipTLSVerify: c.SkipTLSVerify, RootCAs: c.RootCAs, CertDir: c.CertDir, UserAgent: c.UserAgent, Retries: c.Retries, Backoff: c.Backoff}
	err := probe.login(ctx, upstream(registryHost(registry)))
	if err != nil {
		return fmt.Errorf("log in to %s: %w", registry, err)
	}
	return nil
}

func (c *Client) login(ctx context.Context, e endpoint) error {
	s, err := c.openHost(ctx, e)
	if err != nil {
		return err
	}
	resp, err := s.do(ctx, request{method: http.MethodGet, url: s.root}, http.StatusOK)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// registryHost is the registry that a person means: "docker.io" for all of
// docker's own names, and a URL's host.
func registryHost(s string) string {
	for _, scheme := range []string{"https://", "http://"} {
		if len(s) > len(scheme) && s[:len(scheme)] == scheme {
			s = s[len(scheme):]
		}
	}
	for i := range s {
		if s[i] == '/' {
			s = s[:i]
			break
		}
	}
	switch s {
	case "", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return s
}

// credentialKey is the registry's key in the files.
func credentialKey(registry string) string {
	if host := registryHost(registry); host != "docker.io" {
		return host
	}
	return dockerHubKey
}

// SaveLogin keeps a user's password for a registry as docker does: with the credential helper that
// the file names, else in the file itself, readable by its owner only and not encrypted. It returns where.
// The file is the given one, else $REGISTRY_AUTH_FILE or docker's config.json; what else is in it stays.
func SaveLogin(file, registry, user, password string) (where string, err error) {
	file, err = loginFile(file)
	if err != nil {
		return "", err
	}
	key := credentialKey(registry)
	err = editAuth(file, func(a *authFile) (bool, error) {
		where = file
		entry := map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
		if helper := a.helper(key); helper != "" {
			where = "docker-credential-" + helper
			program := client.NewShellProgramFunc(where)
			if err := client.Store(program, &credentials.Credentials{ServerURL: key, Username: user, Secret: password}); err != nil {
				return false, fmt.Errorf("%s: %w", where, err)
			}
			entry = map[string]string{} // docker leaves the name, so that the file shows where one is logged in
		}
		raw, err := json.Marshal(entry)
		a.auths[key] = raw
		return true, err
	})
	if err != nil {
		return "", fmt.Errorf("save login to %s: %w", registry, err)
	}
	return where, nil
}

// RemoveLogin forgets the credentials for a registry, "" meaning all of them, and reports whether
// there were any. They go from every file that they would be found in, or from the given one only.
func RemoveLogin(file, registry string) (removed bool, err error) {
	files := authFiles()
	if file != "" {
		files = []string{file}
	}
	for _, file := range files {
		gone, err := removeLogin(file, registry)
		removed = removed || gone
		if err != nil {
			return removed, fmt.Errorf("remove login to %s: %w", cmp.Or(registry, "every registry"), err)
		}
	}
	return removed, nil
}

func removeLogin(file, registry string) (removed bool, err error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if file, err = loginFile(file); err != nil {
		return false, err
	}
	err = editAuth(file, func(a *authFile) (bool, error) {
		keys := []string{credentialKey(registry)}
		switch {
		case registry == "":
			keys = slices.Collect(maps.Keys(a.auths))
		case registryHost(registry) == "docker.io":
			keys = append(keys, "docker.io", "index.docker.io") // podman's spellings
		}
		for _, key := range keys {
			_, listed := a.auths[key]
			delete(a.auths, key)
			erased, err := eraseHelped(a.helper(key), key)
			if err != nil {
				return false, err
			}
			removed = removed || listed || erased
		}
		return removed, nil
	})
	return removed, err
}

// eraseHelped takes a login out of a credential helper's hands, if there is a helper and it has one.
func eraseHelped(helper, key string) (erased bool, err error) {
	if helper == "" {
		return false, nil
	}
	name := "docker-credential-" + helper
	program := client.NewShellProgramFunc(name)
	_, err = client.Get(program, key)
	if credentials.IsErrCredentialsNotFound(err) {
		return false, nil
	}
	if err == nil {
		err = client.Erase(program, key)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}

// KeptLogin returns the user and password that would log in to a registry, "" when there are none. A file,
// unless it is "", is the only one that is looked into.
func KeptLogin(file, registry string) (user, password string, err error) {
	auth, err := fileKeychain{file}.Resolve(resource(upstream(registryHost(registry)).host))
	if err != nil {
		return "", "", err
	}
	found, err := auth.Authorization()
	if err != nil {
		return "", "", err
	}
	return found.Username, found.Password, nil
}

type resource string

func (r resource) String() string      { return string(r) }
func (r resource) RegistryStr() string { return string(r) }

// loginFile is the file that logins are written to, where given says none.
func loginFile(given string) (string, error) {
	file := cmp.Or(given, os.Getenv("REGISTRY_AUTH_FILE"), dockerConfig())
	if file == "" {
		return "", errors.New("no place for credentials: set DOCKER_CONFIG or HOME")
	}
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real // dotfiles are often links; the rename is to replace what they point at
	}
	return file, nil
}

// authFile is config.json, of which only the parts about credentials are understood.
type authFile struct {
	all     map[string]json.RawMessage
	auths   map[string]json.RawMessage
	store   string
	helpers map[string]string
}

func (a *authFile) helper(key string) string {
	if h := a.helpers[key]; h != "" {
		return h
	}
	return a.store
}

// editAuth changes a credentials file by writing another in its place, mode 0600.
func editAuth(file string, change func(*authFile) (changed bool, err error)) error {
	a := &authFile{all: map[string]json.RawMessage{}, auths: map[string]json.RawMessage{}}
	raw, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(raw) > 0 {
		if err := a.parse(raw); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if changed, err := change(a); err != nil || !changed {
		return err
	}
	if a.all["auths"], err = json.Marshal(a.auths); err != nil {
		return err
	}
	if raw, err = json.MarshalIndent(a.all, "", "\t"); err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".config-") // made with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // not there after the rename
	_, err = f.Write(append(raw, '\n'))
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func (a *authFile) parse(raw []byte) error {
	if err := json.Unmarshal(raw, &a.all); err != nil {
		return err
	}
	for name, into := range map[string]any{"auths": &a.auths, "credsStore": &a.store, "credHelpers": &a.helpers} {
		if part, ok := a.all[name]; ok {
			if err := json.Unmarshal(part, into); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if a.all == nil {
		a.all = map[string]json.RawMessage{}
	}
	if a.auths == nil {
		a.auths = map[string]json.RawMessage{}
	}
	return nil
}
