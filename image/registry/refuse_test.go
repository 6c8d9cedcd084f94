package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"mk/image"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Every fault that passes is passed; the bytes are right in the end.
func TestPullSurvives(t *testing.T) {
	cut := func(limit int) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if kindOf(r) != "blobs" || n >= 4 {
				return false
			}
			cutAfter(w, r, limit)
			return true
		}
	}
	status := func(code int, header string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n >= 2 {
				return false
			}
			if header != "" {
				w.Header().Set("Retry-After", header)
			}
			w.WriteHeader(code)
			return true
		}
	}
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, int) bool{
		"500 to everything first": status(500, ""),
		"502":                     status(502, ""),
		"503":                     status(503, ""),
		"429":                     status(429, ""),
		"429 with a date past":    status(429, time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)),
		"cut at once":             cut(0),
		"cut after 1 byte":        cut(1),
		"cut after 100 kB":        cut(100_000),
		"stalled": func(w http.ResponseWriter, r *http.Request, n int) bool {
			if kindOf(r) != "blobs" || n != 0 {
				return false
			}
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		},
		"broken, and no Range": func(w http.ResponseWriter, r *http.Request, n int) bool {
			if kindOf(r) != "blobs" {
				return false
			}
			r.Header.Del("Range")
			if n >= 3 {
				return false
			}
			cutAfter(w, r, 20_000)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, ref, sent := pushed(t)
			backend := f.Config.Handler
			f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
				if r.Header.Get("X-Inner") != "" {
					return false
				}
				return fault(w, withBackend(r, backend), n)
			})
			s := testStore(t)
			d, err := quick().Pull(ctx, ref, s, nil, nil)
			if err != nil || d.Digest != sent.Digest {
				t.Fatalf("%v, %v", d, err)
			}
			readable(t, s, d)
		})
	}
}

// A cut download goes on where it was cut.
func TestRangeResume(t *testing.T) {
	f, ref, _ := pushed(t)
	backend := f.Config.Handler
	var ranges []string
	f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.Header.Get("X-Inner") != "" || kindOf(r) != "blobs" {
			return false
		}
		ranges = append(ranges, r.Header.Get("Range"))
		cutAfter(w, withBackend(r, backend), 300_000)
		return true
	})
	c := quick()
	c.Jobs = 1
	s := testStore(t)
	d, err := c.Pull(ctx, ref, s, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	readable(t, s, d)
	joined := strings.Join(ranges, " ")
	if !strings.Contains(joined, "bytes=300000-") || !strings.Contains(joined, "bytes=600000-") {
		t.Errorf("asked for %v", ranges)
	}
}

type backendKey struct{}

// withBackend lets a fault ask the real registry.
func withBackend(r *http.Request, h http.Handler) *http.Request {
	r = r.Clone(r.Context())
	backends.Store(r, h)
	return r
}

// cutAfter answers truly, for limit bytes, and hangs up.
func cutAfter(w http.ResponseWriter, r *http.Request, limit int) {
	h, _ := backends.LoadAndDelete(r)
	inner := r.Clone(r.Context())
	inner.Header.Set("X-Inner", "1")
	rec := httptest.NewRecorder()
	h.(http.Handler).ServeHTTP(rec, inner)
	body := rec.Body.Bytes()
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(rec.Code)
	if len(body) <= limit {
		w.Write(body)
		return
	}
	w.Write(body[:limit])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// attacks.md 10, 11: what is wrong for good is an error at once, which says where and why, and leaves the store whole.
func TestPullRefuses(t *testing.T) {
	always := func(kind string, answer func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if kindOf(r) != kind {
				return false
			}
			answer(w, r)
			return true
		}
	}
	say := func(code int, body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	for name, c := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request, int) bool
		want  error
		says  string
	}{
		"401":         {always("manifests", say(401, `{"errors":[{"code":"UNAUTHORIZED","message":"log in\u001b[31m first"}]}`)), ErrUnauthorized, "401 Unauthorized: log in [31m first"},
		"403":         {always("manifests", say(403, `denied`)), ErrUnauthorized, "403 Forbidden: denied"},
		"404":         {always("manifests", say(404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)), ErrNotFound, "404 Not Found: manifest unknown"},
		"429 forever": {always("manifests", say(429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`)), ErrTooManyRequests, "429 Too Many Requests: slow down"},
		"429 until tomorrow": {always("manifests", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(429)
		}), ErrTooManyRequests, "429"},
		"500 forever":    {always("blobs", say(500, "<html>")), nil, "500 Internal Server Error"},
		"wrong bytes":    {always("blobs", say(200, "wrong")), image.ErrDigest, "sha256:"},
		"too many bytes": {always("blobs", say(200, strings.Repeat("x", 4<<20))), image.ErrDigest, "expected"},
		"no length and no end": {always("blobs", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Del("Content-Length")
			w.(http.Flusher).Flush()
			w.Write(make([]byte, 8<<20))
		}), image.ErrDigest, "more than"},
		"other manifest": {always("manifests", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			io.WriteString(w, `{"schemaVersion":2}`)
		}), image.ErrDigest, "got sha256:"},
		"garbage":         {always("manifests", say(200, "<html>welcome to the wifi</html>")), image.ErrInvalid, "manifest"},
		"endless":         {always("manifests", say(200, strings.Repeat(" ", image.MaxManifestSize+2))), image.ErrInvalid, "more than"},
		"schema 1":        {always("manifests", say(200, `{"schemaVersion":1,"fsLayers":[]}`)), image.ErrInvalid, "schema 1"},
		"redirect loop":   {always("manifests", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, 307) }), nil, "more than 10 redirects"},
		"redirect to ftp": {always("blobs", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "ftp://x/y", 307) }), nil, "unsupported protocol"},
		"foreign layer": {always("manifests", say(200, fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":2,"urls":["http://evil/"]}]}`,
			v1.MediaTypeImageConfig, digest.FromString("{}"), digest.FromString("x")))), image.ErrInvalid, "foreign layer"},
		"wrong Content-Range": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			if kindOf(r) != "blobs" {
				return false
			}
			if r.Header.Get("Range") == "" {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", "bytes 0-9/10")
			w.WriteHeader(206)
			return true
		}, nil, "asked for bytes from 1 on"},
	} {
		t.Run(name, func(t *testing.T) {
			f, ref, _ := pushed(t)
			f.spoil(c.fault)
			s := testStore(t)
			client := quick()
			client.Retries = 2
			_, err := client.Pull(ctx, ref, s, nil, nil)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "pull "+ref.Familiar()+": ") || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("says %q", err)
			}
			f.spoil(nil)
			if d, err := quick().Pull(ctx, ref, s, nil, nil); err != nil {
				t.Errorf("afterwards: %v", err)
			} else {
				readable(t, s, d)
			}
			wholesome(t, s)
		})
	}
}
