package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
)

// Login asks a registry whether it takes a user's password, without saving it.
// The error is ErrUnauthorized when it does not.
func (c *Client) Login(ctx context.Context, registry, user, password string) error {
	probe := &Client{Keychain: oneLogin{authn.FromConfig(authn.AuthConfig{Username: user, Password: password})},
		SkipTLSVerify: c.SkipTLSVerify, RootCAs: c.RootCAs, UserAgent: c.UserAgent, Retries: c.Retries, Backoff: c.Backoff}
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

type oneLogin struct{ auth authn.Authenticator }

func (l oneLogin) Resolve(authn.Resource) (authn.Authenticator, error) { return l.auth, nil }

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
// The file is $REGISTRY_AUTH_FILE or docker's config.json; what else is in it stays.
func SaveLogin(registry, user, password string) (where string, err error) {
	file, err := loginFile()
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

// RemoveLogin forgets the credentials for a registry and reports whether there were any.
func RemoveLogin(registry string) (removed bool, err error) {
	file, err := loginFile()
	if err != nil {
		return false, err
	}
	err = editAuth(file, func(a *authFile) (bool, error) {
		keys := []string{credentialKey(registry)}
		if host := registryHost(registry); host == "docker.io" {
			keys = append(keys, "docker.io", "index.docker.io") // podman's spellings
		}
		for _, key := range keys {
			if _, ok := a.auths[key]; ok {
				delete(a.auths, key)
				removed = true
			}
		}
		if helper := a.helper(keys[0]); helper != "" && removed {
			if err := client.Erase(client.NewShellProgramFunc("docker-credential-"+helper), keys[0]); err != nil {
				return false, fmt.Errorf("docker-credential-%s: %w", helper, err)
			}
		}
		return removed, nil
	})
	if err != nil {
		return false, fmt.Errorf("remove login to %s: %w", registry, err)
	}
	return removed, nil
}

// LoginName returns the user that would log in to a registry; "" when nobody would.
func LoginName(registry string) (string, error) {
	auth, err := DefaultKeychain.Resolve(resource(upstream(registryHost(registry)).host))
	if err != nil {
		return "", err
	}
	found, err := auth.Authorization()
	if err != nil {
		return "", err
	}
	return found.Username, nil
}

type resource string

func (r resource) String() string      { return string(r) }
func (r resource) RegistryStr() string { return string(r) }

// loginFile is the file that logins are written to.
func loginFile() (string, error) {
	file := cmp.Or(os.Getenv("REGISTRY_AUTH_FILE"), dockerConfig())
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
