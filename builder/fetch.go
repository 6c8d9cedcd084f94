package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// Fetched is the part of the store that holds what ADD and contexts got from
// elsewhere: a directory, safe for many processes, because what is in it was
// renamed into place, complete.
//
//	fetched/url/<hash of the URL>   what its server said when it was last asked:
//	                                  digest sha256:…
//	                                  etag "…"            may be missing
//	                                  modified Mon, 02 …  Last-Modified; may be missing
//	fetched/url/<hash of the URL, a space and a digest>
//	                                the same, when it gave these bytes
//	fetched/sha256/<hex>            the bytes, 0600
//	fetched/git/<hash>/             a checkout; see gitcheckout.go
//	fetched/git/<hash>.used         its mtime is that of the last use
//	fetched/.tmp-*                  being written, or their writer is dead
//
// No URL is written down, since one may hold a password. Nothing here is needed:
// what is missing is fetched again.
type Fetched struct {
	dir string

	// Auth gives the Authorization header for git repositories of a host, "" for
	// none: GIT_AUTH_TOKEN and GIT_AUTH_HEADER. Nil: none.
	Auth func(host string) string
}

// OpenFetched returns the directory, which is made when something is kept.
func OpenFetched(dir string) *Fetched { return &Fetched{dir: dir} }

// File is what a URL gave.
type File struct {
	Digest   digest.Digest
	Modified time.Time // Last-Modified; zero: the server does not say
	file     string    // where the bytes are; "": known by its digest only
}

// Material is the file as the material that this address gave.
func (f *File) Material(address string) *Material { return fileMaterial(address, f.Digest) }

// Open opens the bytes; the caller closes.
func (f *File) Open() (*os.File, error) { return os.Open(f.file) }

const (
	maxFetched   = 64 << 30         // bytes: a server that never ends fills no disk larger than this
	fetchStall   = 60 * time.Second // without a byte, or an answer
	maxRedirects = 10
)

// errFetch is that a body would have to be read, and the caller wants none.
var errFetch = errors.New("it has to be fetched")

// URL asks the server for a file, or whether the one that is here is still right.
//
// With a checksum, bytes that have it and came from there are never asked for again, and
// others are an error: a new address with the old checksum is a mistake, and elsewhere, where
// the old bytes are not, it would be one, too. Unless download is set, a body that is not here is not read but errFetch.
// progress, which may be nil, is told of bytes so far and expected, 0 if unknown.
func (f *Fetched) URL(ctx context.Context, address string, checksum digest.Digest, download bool, progress func(done, total int64)) (*File, error) {
	file, err := f.url(ctx, address, checksum, download, progress)
	var inner *url.Error // says the URL again, credentials and all
	if errors.As(err, &inner) {
		err = inner.Err
	}
	if err != nil && !errors.Is(err, errFetch) {
		return nil, fmt.Errorf("fetch %s: %w", Redact(address), err)
	}
	return file, err
}

func (f *Fetched) url(ctx context.Context, address string, checksum digest.Digest, download bool, progress func(done, total int64)) (*File, error) {
	if checksum != "" {
		if had := f.recall(gave(address, checksum)); had.file != "" {
			return &had.File, nil
		}
		if !download {
			return nil, errFetch
		}
	}
	known := f.recall(address)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(fetchStall, func() { cancel(fmt.Errorf("no answer for %s", fetchStall)) })
	defer stall.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "mk")
	if known.file != "" && checksum == "" {
		if known.etag != "" {
			req.Header.Set("If-None-Match", known.etag)
		} else if !known.Modified.IsZero() {
			req.Header.Set("If-Modified-Since", known.Modified.UTC().Format(http.TimeFormat))
		}
	}
	resp, err := fetchClient.Do(req)
	if err != nil {
		return nil, cause(ctx, err)
	}
	defer resp.Body.Close()
	etag := resp.Header.Get("ETag")
	switch {
	case resp.StatusCode == http.StatusNotModified && known.file != "":
		return &known.File, nil
	case resp.StatusCode < 200 || resp.StatusCode >= 300:
		return nil, fmt.Errorf("invalid response status %d", resp.StatusCode)
	case known.file != "" && etag != "" && etag == known.etag && checksum == "":
		return &known.File, nil // some servers have tags and do not compare them
	case !download:
		return nil, errFetch
	}
	body := &fetchBody{Reader: resp.Body, stall: stall, total: max(resp.ContentLength, 0), progress: progress}
	got := fetchedFile{etag: etag}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		got.Modified = t
	}
	if got.Digest, err = f.keep(body, checksum); err != nil {
		return nil, cause(ctx, err)
	}
	got.file = f.path("sha256", got.Digest.Encoded())
	if err := f.remember(gave(address, got.Digest), got); err != nil {
		return nil, err
	}
	return &got.File, f.remember(address, got)
}

// gave names what is written down of an address having given the bytes with a digest, once. No
// address holds a space.
func gave(address string, d digest.Digest) string { return address + " " + d.String() }

// cause is why a request ended: the stall, if that was it.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && errors.Is(err, context.Canceled) {
		return why
	}
	return err
}

// fetchClient asks servers. It follows redirects to http and https only, and never
// from https to http: what was asked for under the protection of TLS must come so.
var fetchClient = &http.Client{
	Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   30 * time.Second,
		ResponseHeaderTimeout: fetchStall,
		DisableCompression:    true, // the bytes of a .tar.gz, not those in it
		ForceAttemptHTTP2:     true,
	},
	CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch last := via[len(via)-1].URL; {
		case len(via) >= maxRedirects:
			return fmt.Errorf("stopped after %d redirects", maxRedirects)
		case req.URL.Scheme != "http" && req.URL.Scheme != "https":
			return fmt.Errorf("redirected to %s://, which is not fetched", req.URL.Scheme)
		case last.Scheme == "https" && req.URL.Scheme == "http":
			return fmt.Errorf("redirected from https to http://%s, which is not followed", req.URL.Host)
		}
		return nil
	},
}

// fetchBody counts, and notices that nothing comes.
type fetchBody struct {
	io.Reader
	stall       *time.Timer
	done, total int64
	told        time.Time
	progress    func(done, total int64)
}

func (b *fetchBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.stall.Reset(fetchStall)
	if b.done += int64(n); b.done > maxFetched {
		return n, fmt.Errorf("longer than %d bytes", int64(maxFetched))
	}
	if b.progress != nil && (err != nil || time.Since(b.told) > 100*time.Millisecond) {
		b.told = time.Now()
		b.progress(b.done, b.total)
	}
	return n, err
}

// fetchedFile is a File and the tag that its server gave it.
type fetchedFile struct {
	File
	etag string
}

// recall reads what was written down of a URL. The zero value is nothing.
func (f *Fetched) recall(address string) (known fetchedFile) {
	text, err := os.ReadFile(f.path("url", hashName(address)))
	if err != nil {
		return fetchedFile{}
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch name {
		case "digest":
			known.Digest = digest.Digest(value)
		case "etag":
			known.etag = value
		case "modified":
			known.Modified, _ = http.ParseTime(value)
		}
	}
	if known.file = f.bytes(known.Digest); known.file == "" {
		return fetchedFile{}
	}
	return known
}

// bytes tells where the bytes with a digest are, "" if they are not here.
func (f *Fetched) bytes(d digest.Digest) string {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return ""
	}
	file := f.path("sha256", d.Encoded())
	st, err := os.Lstat(file)
	if err != nil || !st.Mode().IsRegular() {
		return ""
	}
	touch(file, st.ModTime())
	return file
}

// usedStamp is what the file has at the end of its name that says by its mtime when a checkout was used.
const usedStamp = ".used"

// touchCheckout says that a checkout is used now: its own mtime is its commit's.
func touchCheckout(dir string) {
	stamp := dir + usedStamp
	st, err := os.Lstat(stamp)
	if err == nil {
		touch(stamp, st.ModTime())
	} else if f, err := os.OpenFile(stamp, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600); err == nil {
		f.Close()
	}
}

// keep writes a body to the store, and tells its digest.
func (f *Fetched) keep(body io.Reader, want digest.Digest) (digest.Digest, error) {
	if err := os.MkdirAll(f.path("sha256"), 0o700); err != nil {
		return "", err
	}
	tmp, err := os.CreateTemp(f.dir, ".tmp-")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name()) // gone after the rename
	defer tmp.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tmp, h), body); err != nil {
		return "", err
	}
	d := digest.NewDigest(digest.SHA256, h)
	if want != "" && d != want {
		return "", fmt.Errorf("digest mismatch: %s (expected: %s)", d, want)
	}
	return d, os.Rename(tmp.Name(), f.path("sha256", d.Encoded()))
}

// remember writes down what a server said. The rename is the commit point.
func (f *Fetched) remember(address string, got fetchedFile) error {
	var b strings.Builder
	fmt.Fprintf(&b, "digest %s\n", got.Digest)
	if got.etag != "" && strings.IndexFunc(got.etag, unicode.IsControl) < 0 {
		fmt.Fprintf(&b, "etag %s\n", got.etag)
	}
	if !got.Modified.IsZero() {
		fmt.Fprintf(&b, "modified %s\n", got.Modified.UTC().Format(http.TimeFormat))
	}
	if err := os.MkdirAll(f.path("url"), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(f.dir, ".tmp-")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(b.String())
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.path("url", hashName(address)))
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// FetchedFile is what an address gave: a file, or a checkout.
type FetchedFile struct {
	Kind, Name string // "sha256" or "git", and its hash
	Path       string
	Used       time.Time // when a build last wanted it, to the minute
}

// List lists what is kept.
func (f *Fetched) List() ([]FetchedFile, error) {
	var all []FetchedFile
	for _, kind := range []string{"sha256", "git"} {
		entries, err := os.ReadDir(f.path(kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), usedStamp) {
				continue
			}
			file := FetchedFile{Kind: kind, Name: e.Name(), Path: f.path(kind, e.Name())}
			at := file.Path
			if kind == "git" {
				at += usedStamp
			}
			if st, err := os.Lstat(at); err == nil {
				file.Used = st.ModTime()
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("look at %s: %w", at, err)
			}
			all = append(all, file)
		}
	}
	return all, nil
}

// Sweep removes what killed processes left, and what is known of addresses whose bytes are gone. The caller
// holds the store's exclusive lock.
func (f *Fetched) Sweep() (freed int64, err error) {
	gone := func(kind, name string) bool {
		switch {
		case kind == "":
			return strings.HasPrefix(name, unfinished)
		case kind == "git":
			dir, ok := strings.CutSuffix(name, usedStamp)
			_, err := os.Lstat(f.path(kind, dir))
			return ok && errors.Is(err, fs.ErrNotExist)
		}
		text, err := os.ReadFile(f.path(kind, name))
		line, _, _ := strings.Cut(string(text), "\n")
		d := digest.Digest(strings.TrimPrefix(line, "digest "))
		return err == nil && (d.Validate() != nil || !f.has(d))
	}
	for _, kind := range []string{"", "git", "url"} {
		entries, err := os.ReadDir(f.path(kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		for _, e := range entries {
			if !gone(kind, e.Name()) {
				continue
			}
			bytes, err := removeCounting(f.path(kind, e.Name()))
			if freed += bytes; err != nil {
				return freed, fmt.Errorf("remove what fetching left: %w", err)
			}
		}
	}
	return freed, nil
}

func (f *Fetched) has(d digest.Digest) bool {
	_, err := os.Lstat(f.path("sha256", d.Encoded()))
	return err == nil
}

// Prune removes everything and tells how many bytes that were. The caller holds
// the store's exclusive lock.
func (f *Fetched) Prune() (freed int64, err error) {
	return removeCounting(f.dir)
}

func (f *Fetched) path(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

func hashName(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// unnamed is the file of a URL without a name in its path, as in BuildKit.
const unnamed = "__unnamed__"

// urlName is the name that a URL's file has in a directory it is added to: the
// last part of its path. Headers of the server have no say in it.
func urlName(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return unnamed
	}
	switch name := path.Base(u.Path); {
	case name == "." || name == "/" || name == "..":
		return unnamed
	case strings.IndexFunc(name, unicode.IsControl) >= 0:
		return "download"
	default:
		return name
	}
}

var credentials = pattern(`(?i)(https?://)[^/\s@]+@`)

// Redact takes user and password out of the URLs in a text: what is shown or
// written down must not hold them.
func Redact(text string) string {
	if !strings.Contains(text, "@") {
		return text
	}
	return credentials().ReplaceAllString(text, "${1}xxxxx@")
}
