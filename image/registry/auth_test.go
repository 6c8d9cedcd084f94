package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"mk/image"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

const user, password = "alice", "s3cret"

// basic wants a password for everything.
func basic(w http.ResponseWriter, r *http.Request, _ int) bool {
	if u, p, _ := r.BasicAuth(); u == user && p == password {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	w.WriteHeader(http.StatusUnauthorized)
	io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
	return true
}

func login(t *testing.T, host string) {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := SaveLogin("", host, user, password); err != nil {
		t.Fatal(err)
	}
}

func TestBasicAuth(t *testing.T) {
	f := newFaulty(t, basic)
	s := testStore(t)
	d := built(t, s, image.HostPlatform(), layerTar(1, 500))
	if _, err := quick().Push(ctx, s, d, f.ref(t, "app"), PushOptions{}); !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "401 Unauthorized: who are you?") {
		t.Errorf("without credentials: %v", err)
	}
	login(t, f.host)
	if _, err := quick().Push(ctx, s, d, f.ref(t, "app"), PushOptions{}); err != nil {
		t.Error(err)
	}
	if err := quick().Login(ctx, f.host, user, password); err != nil {
		t.Error(err)
	}
	if err := quick().Login(ctx, f.host, user, "wrong"); !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong password: %v", err)
	}
}

// tokens is a registry that gives bearer tokens for a password, each for the scopes asked for.
func tokens(t *testing.T) (*faulty, *[]string) {
	var mu sync.Mutex
	scopes := &[]string{}
	var f *faulty
	f = newFaulty(t, func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				w.WriteHeader(http.StatusUnauthorized)
				io.WriteString(w, `{"details":"incorrect username or password"}`)
				return true
			}
			mu.Lock()
			*scopes = append(*scopes, strings.Join(r.URL.Query()["scope"], " "))
			mu.Unlock()
			json.NewEncoder(w).Encode(map[string]string{"token": "t-" + base64.StdEncoding.EncodeToString([]byte(r.URL.RawQuery))})
			return true
		}
		if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer t-") {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	return f, scopes
}

func TestBearerAuth(t *testing.T) {
	f, scopes := tokens(t)
	s := testStore(t)
	d := built(t, s, image.HostPlatform(), layerTar(1, 500))
	if _, err := quick().Push(ctx, s, d, f.ref(t, "a/app"), PushOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("without credentials: %v", err)
	}
	login(t, f.host)
	sent, err := quick().Push(ctx, s, d, f.ref(t, "a/app"), PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(*scopes, ","); got != "repository:a/app:push,pull" {
		t.Errorf("scopes %s", got)
	}
	pulled := testStore(t)
	login(t, f.host)
	if _, err := quick().Pull(ctx, f.ref(t, "a/app"), pulled, nil, nil); err != nil {
		t.Fatal(err)
	}
	*scopes = nil
	if _, err := quick().Push(ctx, pulled, sent, f.ref(t, "b/app"), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(*scopes, ","); got != "repository:b/app:push,pull repository:a/app:pull" {
		t.Errorf("scopes for mounting: %s", got)
	}
	if err := quick().Login(ctx, f.host, user, password); err != nil {
		t.Error(err)
	}
	if err := quick().Login(ctx, f.host, user, "x"); !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "incorrect username or password") {
		t.Errorf("wrong password: %v", err)
	}
}

// attacks.md 11: a blob may be on another host: it is fetched there, and the credentials stay here.
func TestRedirectsCarryNoCredentials(t *testing.T) {
	for name, auth := range map[string]func(http.ResponseWriter, *http.Request, int) bool{"basic": basic, "bearer": nil} {
		t.Run(name, func(t *testing.T) {
			var f *faulty
			if auth == nil {
				f, _ = tokens(t)
				auth = f.fault
			} else {
				f = newFaulty(t, auth)
			}
			s := testStore(t)
			login(t, f.host)
			d := built(t, s, image.HostPlatform(), layerTar(1, 500))
			ref := f.ref(t, "app")
			if _, err := quick().Push(ctx, s, d, ref, PushOptions{}); err != nil {
				t.Fatal(err)
			}
			inner := f.Config.Handler
			asked := 0
			elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				for k, v := range r.Header {
					if k == "Authorization" || k == "Cookie" || strings.Contains(strings.Join(v, ""), password) {
						t.Errorf("%s: %s went along", k, v)
					}
				}
				r.Header.Set("X-Inner", "1")
				inner.ServeHTTP(w, r)
			}))
			defer elsewhere.Close()
			other := strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1) // another host, by name too
			f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
				if r.Header.Get("X-Inner") != "" {
					return false
				}
				if auth(w, r, n) {
					return true
				}
				if kindOf(r) == "blobs" && r.Method == http.MethodGet {
					http.Redirect(w, r, other+r.URL.Path+"?signature=s3cret2", http.StatusTemporaryRedirect)
					return true
				}
				return false
			})
			fresh := testStore(t)
			login(t, f.host)
			got, err := quick().Pull(ctx, ref, fresh, nil, nil)
			if err != nil || asked != 2 {
				t.Fatalf("%v, asked %d times", err, asked)
			}
			readable(t, fresh, got)
			elsewhere.Config.Handler = http.NotFoundHandler()
			fresh = testStore(t)
			login(t, f.host)
			if _, err := quick().Pull(ctx, ref, fresh, nil, nil); !errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), "s3cret2") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	s := testStore(t)
	d := built(t, s, image.HostPlatform(), layerTar(1, 500))
	f := wrap(t, httptest.NewTLSServer, ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), nil)
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	c := quick()
	if _, err := c.Push(ctx, s, d, f.ref(t, "app"), PushOptions{}); err == nil {
		t.Error("an unknown certificate was taken")
	}
	c = quick()
	c.SkipTLSVerify = true
	if _, err := c.Push(ctx, s, d, f.ref(t, "app"), PushOptions{}); err != nil {
		t.Error(err)
	}
	c = quick()
	c.RootCAs = f.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	if _, err := c.Push(ctx, s, d, f.ref(t, "app:2"), PushOptions{}); err != nil {
		t.Error(err)
	}
}

func TestPlainHTTPOnlyWhereAskedFor(t *testing.T) {
	for _, c := range []struct {
		g      *guard
		url    string
		passes bool
	}{
		{&guard{host: "10.0.0.1:5000"}, "http://10.0.0.1:5000/v2/", false},
		{&guard{host: "10.0.0.1:5000", plain: true}, "http://10.0.0.1:5000/v2/", true},
		{&guard{host: "reg.io"}, "https://reg.io/v2/", true},
		{&guard{host: "reg.io"}, "http://elsewhere.io/blob", false},
		{&guard{host: "m.io", plain: true, onlyPlain: true}, "https://m.io/v2/", false},
		{&guard{host: "m.io", plain: true, onlyPlain: true}, "https://cdn.io/x", true},
	} {
		passed := false
		c.g.inner = roundTrip(func(*http.Request) (*http.Response, error) {
			passed = true
			return &http.Response{}, nil
		})
		r, _ := http.NewRequest("GET", c.url, nil)
		c.g.RoundTrip(r)
		if passed != c.passes {
			t.Errorf("%+v: %s passed: %v", c.g.host, c.url, passed)
		}
	}
	for host, want := range map[string]bool{"localhost": true, "localhost:5000": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:5000": true,
		"localhost.evil.io": false, "10.0.0.1:5000": false, "127.0.0.1.evil.io": false, "docker.io": false} {
		if isLoopback(host) != want {
			t.Errorf("%s", host)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCredentialFiles(t *testing.T) {
	testStore(t) // cleans the environment
	home := t.TempDir()
	t.Setenv("HOME", home)
	file := filepath.Join(home, ".docker", "config.json")
	os.MkdirAll(filepath.Dir(file), 0o700)
	os.WriteFile(file, []byte(`{"HttpHeaders":{"X":"y"},"psFormat":"table","auths":{"old.io":{"auth":"bzpw"}}}`), 0o644)
	for _, name := range []string{"reg.io", "https://reg2.io/v2/", "docker.io", "localhost:5000"} {
		if where, err := SaveLogin("", name, user, password); err != nil || where != file {
			t.Fatalf("%s: %s, %v", name, where, err)
		}
	}
	info, _ := os.Stat(file)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	raw, _ := os.ReadFile(file)
	var doc struct {
		HttpHeaders map[string]string
		PsFormat    string
		Auths       map[string]struct{ Auth string }
	}
	if err := json.Unmarshal(raw, &doc); err != nil || doc.HttpHeaders["X"] != "y" || doc.PsFormat != "table" {
		t.Errorf("%s: %v", raw, err)
	}
	want := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for _, key := range []string{"reg.io", "reg2.io", "https://index.docker.io/v1/", "localhost:5000"} {
		if doc.Auths[key].Auth != want {
			t.Errorf("%s: %v", key, doc.Auths)
		}
	}
	if doc.Auths["old.io"].Auth != "bzpw" {
		t.Error("another login went")
	}
	for name, who := range map[string]string{"reg.io": user, "docker.io": user, "old.io": "o", "none.io": ""} {
		if got, _, err := KeptLogin("", name); err != nil || got != who {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if ok, err := RemoveLogin("", "docker.io"); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if ok, err := RemoveLogin("", "docker.io"); ok || err != nil {
		t.Errorf("twice: %v, %v", ok, err)
	}
	// podman's file, when it is named, is the only one.
	auth := filepath.Join(t.TempDir(), "auth.json")
	t.Setenv("REGISTRY_AUTH_FILE", auth)
	if got, _, _ := KeptLogin("", "reg.io"); got != "" {
		t.Errorf("docker's login %q in spite of REGISTRY_AUTH_FILE", got)
	}
	os.WriteFile(auth, []byte(`{"auths":{"quay.io/org/team":{"auth":"dDp4"},"quay.io":{"auth":"cTp4"},"docker.io":{"auth":"ZDp4"}}}`), 0o600)
	for at, who := range map[resourceAt]string{{"quay.io", "quay.io/org/team/app"}: "t", {"quay.io", "quay.io/other"}: "q", {"index.docker.io", "index.docker.io/library/x"}: "d"} {
		a, err := DefaultKeychain.Resolve(at)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := a.Authorization(); got.Username != who {
			t.Errorf("%v: %q", at, got.Username)
		}
	}
	if _, err := SaveLogin("", "x.io", user, password); err != nil {
		t.Error(err)
	}
	os.WriteFile(auth, []byte(`{"auths":`), 0o600)
	if _, err := SaveLogin("", "x.io", user, password); err == nil || !strings.Contains(err.Error(), auth) {
		t.Errorf("a broken file: %v", err)
	}
	if raw, _ := os.ReadFile(auth); string(raw) != `{"auths":` {
		t.Error("a broken file was replaced")
	}
}

type resourceAt struct{ host, full string }

func (r resourceAt) String() string      { return r.full }
func (r resourceAt) RegistryStr() string { return r.host }

// A helper that the file names keeps the password, and the file only the registry's name.
func TestCredentialHelper(t *testing.T) {
	testStore(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	script := "#!/bin/sh\ncase $1 in\nstore) cat > " + dir + "/kept ;;\nget) cat > /dev/null; [ -f " + dir + "/kept ] && cat " + dir + "/kept || { echo credentials not found in native keychain; exit 1; } ;;\nerase) rm -f " + dir + "/kept ;;\nesac\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	os.WriteFile(file, []byte(`{"credsStore":"test"}`), 0o600)
	if where, err := SaveLogin("", "reg.io", user, password); err != nil || where != "docker-credential-test" {
		t.Fatalf("%s, %v", where, err)
	}
	raw, _ := os.ReadFile(file)
	if strings.Contains(string(raw), base64.StdEncoding.EncodeToString([]byte(user+":"+password))) || !strings.Contains(string(raw), "reg.io") {
		t.Errorf("file: %s", raw)
	}
	if got, _, err := KeptLogin("", "reg.io"); err != nil || got != user {
		t.Errorf("%q, %v", got, err)
	}
	if ok, err := RemoveLogin("", "reg.io"); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if got, _, err := KeptLogin("", "reg.io"); err != nil || got != "" {
		t.Errorf("after logout: %q, %v", got, err)
	}
}
