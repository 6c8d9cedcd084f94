package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
)

// DefaultKeychain finds credentials where docker and podman keep them. The first
// file that has some for the registry, or a helper that does, wins:
//
//	$REGISTRY_AUTH_FILE, and no other when it is set
//	$DOCKER_CONFIG/config.json, else ~/.docker/config.json
//	$XDG_RUNTIME_DIR/containers/auth.json
//	$XDG_CONFIG_HOME/containers/auth.json, else ~/.config/containers/auth.json
//
// go-containerregistry's own keychain looks at REGISTRY_AUTH_FILE only where docker's file is missing.
var DefaultKeychain authn.Keychain = fileKeychain{}

// FileKeychain finds credentials in one file only (--authfile).
func FileKeychain(file string) authn.Keychain { return fileKeychain{file} }

// OneLogin gives a user's password to one registry, and nothing to others: mirrors are others.
func OneLogin(registry, user, password string) authn.Keychain {
	return oneLogin{upstream(registryHost(registry)).host, authn.FromConfig(authn.AuthConfig{Username: user, Password: password})}
}

type oneLogin struct {
	host string
	auth authn.Authenticator
}

func (l oneLogin) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() != l.host {
		return authn.Anonymous, nil
	}
	return l.auth, nil
}

type fileKeychain struct {
	only string // "": authFiles
}

// Resolve looks for the repository, then the namespaces above it (podman's
// files may have those), then the registry.
func (k fileKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	files := authFiles()
	if k.only != "" {
		files = []string{k.only}
	}
	for _, file := range files {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		cf, err := config.LoadFromReader(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		// docker's code reads "host/namespace", podman's key, as one for all of the host.
		namespaces := map[string]types.AuthConfig{}
		for key, entry := range cf.AuthConfigs {
			if strings.Contains(key, "/") && !strings.Contains(key, "://") {
				namespaces[key] = entry
				delete(cf.AuthConfigs, key)
			}
		}
		for _, key := range authKeys(r) {
			found, err := namespaces[key], error(nil)
			if found == (types.AuthConfig{}) {
				found, err = cf.GetAuthConfig(key)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			found.ServerAddress = "" // set though nothing was found
			if found == (types.AuthConfig{}) {
				found = cf.AuthConfigs[key] // docker's code reads "docker.io", podman's key, as its own
				found.ServerAddress = ""
			}
			if found != (types.AuthConfig{}) {
				return authn.FromConfig(authn.AuthConfig{Username: found.Username, Password: found.Password, Auth: found.Auth,
					IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken}), nil
			}
		}
	}
	return authn.Anonymous, nil
}

// dockerHubKey is docker's name for its own registry in these files.
const dockerHubKey = "https://index.docker.io/v1/"

func authKeys(r authn.Resource) []string {
	var keys []string
	host := r.RegistryStr()
	for at := r.String(); at != host && at != "." && at != "/"; at = path.Dir(at) {
		keys = append(keys, at)
	}
	if host == "index.docker.io" {
		return append(keys, dockerHubKey, "docker.io", host)
	}
	return append(keys, host)
}

// authFiles are the files to look into, whether they exist or not.
func authFiles() []string {
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		return []string{f}
	}
	files := []string{}
	if f := dockerConfig(); f != "" {
		files = append(files, f)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	if dir, err := os.UserConfigDir(); err == nil {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	return files
}

// dockerConfig is docker's config.json; "" without DOCKER_CONFIG and HOME.
func dockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker", "config.json")
}
