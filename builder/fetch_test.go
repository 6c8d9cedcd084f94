package builder

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// What arrives is kept under its digest, and asked for again only by its tag.
func TestFetchURL(t *testing.T) {
	body, asked := "one", ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("If-None-Match")
		w.Header().Set("ETag", `"`+body+`"`)
		w.Header().Set("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
		io.WriteString(w, body) // never 304: the tag has to be compared here
	}))
	defer server.Close()
	f := OpenFetched(filepath.Join(t.TempDir(), "fetched"))
	ctx := context.Background()
	if _, err := f.URL(ctx, server.URL, "", false, nil); err != errFetch {
		t.Fatalf("without a download: %v", err)
	}
	first, err := f.URL(ctx, server.URL, "", true, nil)
	must(t, err)
	if first.Digest != digest.FromString("one") || first.Modified.Year() != 2020 {
		t.Errorf("%+v", first)
	}
	if again, err := f.URL(ctx, server.URL, "", false, nil); err != nil || again.Digest != first.Digest || asked != `"one"` {
		t.Errorf("the same: %+v %v, asked %q", again, err, asked)
	}
	body = "two"
	if _, err := f.URL(ctx, server.URL, "", false, nil); err != errFetch {
		t.Errorf("changed, without a download: %v", err)
	}
	second, err := f.URL(ctx, server.URL, "", true, nil)
	must(t, err)
	if second.Digest != digest.FromString("two") {
		t.Errorf("%+v", second)
	}
	if old, err := f.URL(ctx, server.URL, first.Digest, false, nil); err != nil || old.Digest != first.Digest {
		t.Errorf("by its checksum: %v", err)
	}
	must(t, filepath.WalkDir(f.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".tmp-") {
			t.Errorf("left %s", p)
		}
		if info, _ := d.Info(); err == nil && info.Mode().IsRegular() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		return err
	}))
	if n, err := f.Prune(); err != nil || n < 6 {
		t.Errorf("pruned %d bytes: %v", n, err)
	}
}

// A server cannot lead to another scheme, in circles, out of TLS, or end early.
func TestFetchRefuses(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }))
	defer plain.Close()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/short":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "four")
		case "/circle":
			http.Redirect(w, r, "/circle", http.StatusFound)
		case "/plain":
			http.Redirect(w, r, plain.URL, http.StatusFound)
		case "/file":
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusMovedPermanently)
		}
	})
	tls := httptest.NewTLSServer(handler)
	defer tls.Close()
	before := fetchClient.Transport
	fetchClient.Transport = tls.Client().Transport
	defer func() { fetchClient.Transport = before }()

	f := OpenFetched(t.TempDir())
	for path, want := range map[string]string{
		"/short":  "unexpected EOF",
		"/circle": fmt.Sprintf("stopped after %d redirects", maxRedirects),
		"/plain":  "redirected from https to http://",
		"/file":   "redirected to file://",
	} {
		_, err := f.URL(context.Background(), strings.Replace(tls.URL, "https://", "https://u:canary@", 1)+path, "", true, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	entries, err := os.ReadDir(filepath.Join(f.dir, "sha256"))
	if len(entries) > 0 {
		t.Errorf("kept %v %v", entries, err)
	}
}
