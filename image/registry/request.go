package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"mk/image"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

var (
	ErrUnauthorized    = errors.New("registry refuses the credentials, or wants some") // 401, 403
	ErrNotFound        = errors.New("not in the registry")                             // 404
	ErrTooManyRequests = errors.New("registry's rate limit is reached")                // 429
)

// Error is an answer of a registry that is none of those that were hoped for.
type Error struct {
	Method  string
	URL     string // without user, password and query, which may hold signatures
	Status  int
	Code    string // the registry's: "MANIFEST_UNKNOWN"; "" when it gave none
	Message string // the registry's own words, one line

	wait time.Duration // the registry's Retry-After; 0: it did not say
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Is makes the sentinel errors of this package match by status.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrTooManyRequests:
		return e.Status == http.StatusTooManyRequests
	}
	return false
}

// maxWait is the longest Retry-After that is waited for; what wants more is an error at once.
const maxWait = 2 * time.Minute

// request makes a fresh request for every attempt.
type request struct {
	method string
	url    string
	header http.Header
	body   func() (io.Reader, error) // nil: none
	size   int64                     // of the body; -1: not known, sent in chunks
}

// do sends a request until its answer is one of ok, or not worth another try. The caller closes the body.
func (s *session) do(ctx context.Context, r request, ok ...int) (*http.Response, error) {
	var resp *http.Response
	err := s.retry(ctx, func() error {
		var err error
		resp, err = s.once(ctx, r, ok...)
		return err
	})
	return resp, err
}

// once sends a request one time.
func (s *session) once(ctx context.Context, r request, ok ...int) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		var err error
		if body, err = r.body(); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.method, err)
	}
	if body != nil {
		req.ContentLength = r.size
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, asError(err)
	}
	if slices.Contains(ok, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // an error here leaves the status, which says enough
	e := &Error{Method: resp.Request.Method, URL: redact(resp.Request.URL), Status: resp.StatusCode, wait: retryAfter(resp.Header)}
	e.Code, e.Message = registryMessage(raw, resp.Header.Get("Content-Type"))
	return nil, e
}

// retry calls f until it succeeds, fails for good, or has failed too often.
func (s *session) retry(ctx context.Context, f func() error) error {
	wait := cmp.Or(s.client.Backoff, 500*time.Millisecond)
	for attempt := 0; ; attempt++ {
		err := f()
		if err == nil || attempt >= s.retries || ctx.Err() != nil || !temporary(err) {
			return err
		}
		pause := wait + rand.N(wait/4+1) // so that many runners do not come back at once
		var e *Error
		if errors.As(err, &e) && e.wait > 0 {
			if e.wait > maxWait {
				return err
			}
			pause = e.wait
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// temporary reports whether the same request may succeed later.
func temporary(err error) bool {
	if errors.Is(err, errLocal) {
		return false
	}
	var e *Error
	if errors.As(err, &e) {
		switch e.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var n *netError
	return errors.As(err, &n) && n.temporary()
}

// netError is a request that got no answer.
type netError struct {
	method, url string
	err         error
}

func (e *netError) Error() string { return e.method + " " + e.url + ": " + e.err.Error() }
func (e *netError) Unwrap() error { return e.err }

// temporary leaves out what waiting does not mend: names that do not exist, certificates,
// refusals of our own.
func (e *netError) temporary() bool {
	s := e.err.Error()
	for _, permanent := range []string{"no such host", "certificate", "x509:", "is refused", "more than 10 redirects", "unsupported protocol", "gave HTTP response to HTTPS", "is named with http://"} {
		if strings.Contains(s, permanent) {
			return false
		}
	}
	return !errors.Is(e.err, context.Canceled)
}

// errLocal marks an error of the bytes that were to be sent: whoever gives them has tried what there is to try.
var errLocal = errors.New("while reading what is sent")

// asError turns what net/http and go-containerregistry return into this package's errors,
// with the URL redacted and each fact said once.
func asError(err error) error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var te *transport.Error
	if errors.As(err, &te) {
		e := &Error{Status: te.StatusCode}
		if te.Request != nil {
			e.Method, e.URL = te.Request.Method, redact(te.Request.URL)
			if resp := te.Request.Response; resp != nil {
				e.wait = retryAfter(resp.Header)
			}
		}
		for _, d := range te.Errors {
			e.Code, e.Message = string(d.Code), clean(d.Message)
			break
		}
		if _, body, ok := strings.Cut(te.Error(), http.StatusText(te.StatusCode)+": "); ok && len(te.Errors) == 0 {
			e.Code, e.Message = registryMessage([]byte(body), "")
		}
		return e
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		where := ue.URL
		if u, parseErr := url.Parse(ue.URL); parseErr == nil {
			where = redact(u)
		}
		return &netError{method: strings.ToUpper(ue.Op), url: where, err: ue.Err}
	}
	return err
}

// redact returns a URL without what may be secret.
func redact(u *url.URL) string {
	v := *u
	v.User, v.Fragment = nil, ""
	if v.RawQuery != "" {
		v.RawQuery = ""
		return v.String() + "?…"
	}
	return v.String()
}

// registryMessage takes the message out of an error's body.
func registryMessage(raw []byte, contentType string) (code, message string) {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Detail  any    `json:"detail"`
		} `json:"errors"`
		Details string `json:"details"` // of token servers
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &doc) == nil {
		for _, e := range doc.Errors {
			return clean(e.Code), clean(cmp.Or(e.Message, e.Code))
		}
		return "", clean(cmp.Or(doc.Message, doc.Details))
	}
	if strings.Contains(contentType, "html") {
		return "", "" // a proxy's page
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(raw)), "\n")
	return "", clean(line)
}

// clean makes a stranger's words fit for a terminal: one line, no control characters, not long.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

// retryAfter reads the header in both of its forms.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(v); err == nil && seconds > 0 && seconds < 1<<20 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// what begins every error of an operation: "pull busybox:latest".
func what(verb string, ref image.Reference, err error) error {
	return fmt.Errorf("%s %s: %w", verb, ref.Familiar(), err)
}
