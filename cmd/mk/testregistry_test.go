package main

// The registry that scripts pull from and push to, and the broken ones.

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
)

// sharedRegistry returns host:port of the one registry of this test process. Its blobs
// are on disk: a Debian base in memory would be a third of CI's.
func sharedRegistry(t *testing.T) string {
	t.Helper()
	if err := startRegistry(); err != nil {
		t.Fatal(err)
	}
	return shared.registry
}

var startRegistry = sync.OnceValue(func() error {
	dir, err := sharedDir()
	if err != nil {
		return err
	}
	blobs := filepath.Join(dir, "blobs")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	shared.registry = listener.Addr().String()
	handler := registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)), registry.Logger(log.New(io.Discard, "", 0)))
	go http.Serve(listener, handler)
	return nil
})

// faulty KIND
// starts a registry that is broken in one way and sets $FAULTY to its host:port.
//
//	auth     wants the basic credentials user:secret, and is whole otherwise
//	401      wants a token that nobody can have
//	429 500  answers everything with that status
//	garbage  answers everything with 200 and a page of HTML
//	flip     flips a bit in every blob
//	cut      breaks off every blob in the middle
func cmdFaulty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: faulty KIND")
	}
	handler, err := faultyRegistry(args[0])
	ts.Check(err)
	server := httptest.NewServer(handler)
	ts.Defer(server.Close)
	ts.Setenv("FAULTY", strings.TrimPrefix(server.URL, "http://"))
}

func faultyRegistry(kind string) (http.Handler, error) {
	whole := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: shared.registry})
	whole.ErrorLog = log.New(io.Discard, "", 0)
	blob := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
	}
	switch kind {
	case "auth":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, ok := r.BasicAuth(); !ok || user != "user" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				registryError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
				return
			}
			whole.ServeHTTP(w, r)
		}), nil
	case "401":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			registryError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		}), nil
	case "429":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			registryError(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "pull rate limit reached")
		}), nil
	case "500":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			registryError(w, http.StatusInternalServerError, "UNKNOWN", "the disk is on fire")
		}), nil
	case "garbage":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html><body>Welcome to the hotel's network</body></html>")
		}), nil
	case "flip":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !blob(r) {
				whole.ServeHTTP(w, r)
				return
			}
			answer := httptest.NewRecorder()
			whole.ServeHTTP(answer, r)
			body := answer.Body.Bytes()
			if len(body) > 0 {
				body[len(body)/2] ^= 1
			}
			w.WriteHeader(answer.Code)
			w.Write(body)
		}), nil
	case "cut":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !blob(r) {
				whole.ServeHTTP(w, r)
				return
			}
			answer := httptest.NewRecorder()
			whole.ServeHTTP(answer, r)
			w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
			w.WriteHeader(answer.Code)
			w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
			panic(http.ErrAbortHandler)
		}), nil
	}
	return nil, fmt.Errorf("no fault is called %q", kind)
}

func registryError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}
