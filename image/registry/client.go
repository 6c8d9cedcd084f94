// Package registry is one registry over HTTP: it finds, pulls and pushes images
// between a repository and an image.Store, and edits the files in which
// docker and podman keep credentials.
//
// Most callers need two methods, [Client.Pull] and [Client.Push]; a build that may
// never look at its base's files begins with [Client.Manifest], which brings the config
// and leaves the layers where they are until the store asks for one ([Client.FetchLayer]).
//
// Authentication (the challenge, basic and bearer, token refresh) is
// go-containerregistry's. Around it stand, from the outside in:
//
//	retries    of 408, 429, 5xx and broken connections, with growing waits or the server's Retry-After
//	auth       credentials and tokens, for the registry's own host only
//	guard      no plain http but where it was asked for; no redirect from https to http
//	http       the proxy and TLS settings of the environment
//
// Nothing that a registry says is believed: manifests and blobs are checked against their digests
// and sizes, foreign layers are refused, and its messages are stripped of control characters.
package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"mk/image"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
)

// Client talks to registries. The zero value is ready; its fields may be set
// before the first use. Its methods may be called by many goroutines at once.
type Client struct {
	// Mirrors are tried before the registry itself, in order, for pulls:
	// "docker.io" → "http://127.0.0.1:5001", see ParseMirrors.
	Mirrors map[string][]string
	// Keychain gives the credentials; nil: DefaultKeychain.
	Keychain authn.Keychain
	// SkipTLSVerify accepts any certificate, and plain http where there is no TLS at all (--tls-verify=false).
	SkipTLSVerify bool
	RootCAs       *x509.CertPool // nil: the system's, with SSL_CERT_FILE and SSL_CERT_DIR
	CertDir       string         // of *.crt, *.cert and *.key, as in containers-certs.d(5); "": the machine's and the user's certs.d
	UserAgent     string         // "" is "mk"
	Jobs          int            // blobs at once; 0: 4
	Retries       int            // of one request; 0: 5, negative: none
	Backoff       time.Duration  // before the first retry, doubling; 0: 500 ms
	Stall         time.Duration  // a download without a byte for so long is resumed; 0: 60 s
	Progress      Progress       // of FetchLayer, which nobody may be waiting for by name; nil: nobody is told

	telling sync.Mutex // held while Progress is called

	mu         sync.Mutex
	transports map[string]*http.Transport // by host; "" for all without certificates of their own
	sessions   map[string]*session
	flights    map[digest.Digest]*sync.Mutex
}

var _ image.Fetcher = (*Client)(nil)

// endpoint is a registry or a mirror of one.
type endpoint struct {
	host   string // with port
	plain  bool   // plain http, without trying TLS
	prefix string // of repositories: "dockerhub/" on a mirror that proxies several registries
	mirror bool
}

// endpoints returns where to look for a registry's content, best first.
func (c *Client) endpoints(domain string) ([]endpoint, error) {
	var out []endpoint
	for _, m := range c.Mirrors[domain] {
		e, err := parseMirror(m)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return append(out, upstream(domain)), nil
}

func upstream(domain string) endpoint {
	if domain == "docker.io" {
		domain = "index.docker.io"
	}
	return endpoint{host: domain}
}

// isLoopback reports whether host, perhaps with a port, is this machine: http is
// as good as https there, and what a registry started by hand speaks.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// mayPlain reports whether plain http is allowed with this endpoint.
func (c *Client) mayPlain(e endpoint) bool {
	return e.plain || c.SkipTLSVerify || isLoopback(e.host)
}

// session is an authenticated way to one repository.
type session struct {
	client  *Client
	at      endpoint
	http    *http.Client
	root    string // scheme://host/v2/repository
	retries int
}

// open authenticates for a repository. actions is transport.PullScope or PushScope; other
// repositories are those that blobs are to be mounted from. The session is kept.
func (c *Client) open(ctx context.Context, e endpoint, repository, actions string, others []string) (*session, error) {
	repository = e.prefix + repository
	scopes := []string{"repository:" + repository + ":" + actions}
	for _, other := range others {
		scopes = append(scopes, "repository:"+other+":pull")
	}
	return c.connect(ctx, e, repository, scopes)
}

// openHost authenticates with a registry as a whole; the session's root is its /v2/.
func (c *Client) openHost(ctx context.Context, e endpoint) (*session, error) {
	return c.connect(ctx, e, "", nil)
}

func (c *Client) connect(ctx context.Context, e endpoint, repository string, scopes []string) (*session, error) {
	key := e.host + " " + strings.Join(scopes, " ")
	c.mu.Lock()
	s := c.sessions[key]
	c.mu.Unlock()
	if s != nil {
		return s, nil
	}
	options := []name.Option{}
	if c.mayPlain(e) {
		options = append(options, name.Insecure) // try https, then http
	}
	reg, err := name.NewRegistry(e.host, options...)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", e.host, err)
	}
	keychain := c.Keychain
	if keychain == nil {
		keychain = DefaultKeychain
	}
	var resource authn.Resource = reg
	if repository != "" {
		resource = reg.Repo(repository)
	}
	auth, err := authn.Resolve(ctx, keychain, resource)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", e.host, err)
	}
	g := &guard{inner: hosts{c}, host: reg.RegistryStr(), plain: c.mayPlain(e), onlyPlain: e.plain}
	s = &session{client: c, at: e, retries: cmp.Or(c.Retries, 5)}
	if e.mirror {
		s.retries = 1 // there is another place to ask
	}
	var rt http.RoundTripper
	err = s.retry(ctx, func() error {
		rt, err = transport.NewWithContext(ctx, reg, auth, transport.NewUserAgent(g, cmp.Or(c.UserAgent, "mk")), scopes)
		if distrust := g.distrusted(); err != nil && distrust != nil {
			err = distrust // says more than what the same port answers to plain http
		}
		return asError(err)
	})
	if err != nil {
		return nil, err
	}
	s.http = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	s.root = g.scheme() + "://" + reg.RegistryStr() + "/v2/" + repository
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions == nil {
		c.sessions = map[string]*session{}
	}
	c.sessions[key] = s
	return s, nil
}

// guard lets plain http through only where it was asked for, whatever a ping, a
// token realm or a redirect says, and remembers what the registry itself speaks.
type guard struct {
	inner     http.RoundTripper
	host      string
	plain     bool // http may be used
	onlyPlain bool // the URL said http: do not try TLS with the host first

	mu       sync.Mutex
	spoken   string
	distrust *url.Error // of the host's certificate: it speaks https, and plain http is no way around that
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && !g.plain {
		return nil, fmt.Errorf("plain http to %s is refused", r.URL.Host)
	}
	if r.URL.Scheme == "https" && g.onlyPlain && r.URL.Host == g.host {
		return nil, fmt.Errorf("%s is named with http://", r.URL.Host)
	}
	if r.URL.Scheme == "http" && r.URL.Host == g.host {
		if distrust := g.distrusted(); distrust != nil {
			return nil, distrust
		}
	}
	resp, err := g.inner.RoundTrip(r)
	if r.URL.Host == g.host {
		g.mu.Lock()
		defer g.mu.Unlock()
		var wrong *tls.CertificateVerificationError
		if err == nil {
			g.spoken = r.URL.Scheme
		} else if errors.As(err, &wrong) {
			g.distrust = &url.Error{Op: r.Method, URL: r.URL.String(), Err: err}
		}
	}
	return resp, err
}

func (g *guard) distrusted() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.distrust == nil {
		return nil
	}
	return g.distrust
}

func (g *guard) scheme() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return cmp.Or(g.spoken, "https")
}

// checkRedirect bounds redirects. Credentials do not follow them: they are set below, per
// request, and only for the registry's own host.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("more than 10 redirects")
	}
	if r.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return fmt.Errorf("redirect from https to %s is refused", r.URL.Scheme)
	}
	r.Header.Del("Authorization")
	return nil
}
