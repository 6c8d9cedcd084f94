package main

// The web server that scripts fetch from.

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// serve DIR
// serves a directory over http and sets $HTTP to the server's host:port. Files have an
// ETag and a Last-Modified. Each request is a line in $WORK/http.log: method, path,
// status. Some paths mean more than a file:
//
//	/plain/FILE        without ETag and Last-Modified
//	/to/WHERE          a redirect to WHERE, as it stands
//	/stall             never answers more than its headers
//	/git/REPO.git      the repository DIR/REPO.git, by git's own protocol
//	/private/REPO.git  the same, for user:secret only
//	/REPO.git/…        the same as plain files: git's dumb protocol
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve DIR")
	}
	root := ts.MkAbs(args[0])
	log := filepath.Join(theScript(ts).work, "http.log")
	ts.Check(os.WriteFile(log, nil, 0o644))
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &statusWriter{ResponseWriter: w, status: 200}
		servePath(seen, r, root)
		mu.Lock()
		defer mu.Unlock()
		if f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			fmt.Fprintln(f, r.Method, r.URL.Path, seen.status)
			f.Close()
		}
	}))
	ts.Defer(func() {
		server.CloseClientConnections()
		server.Close()
	})
	ts.Setenv("HTTP", strings.TrimPrefix(server.URL, "http://"))
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

// Unwrap lets http.ResponseController flush.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func servePath(w http.ResponseWriter, r *http.Request, root string) {
	p := r.URL.Path
	if to, ok := strings.CutPrefix(r.URL.RequestURI(), "/to/"); ok {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
		return
	}
	if p == "/stall" {
		w.WriteHeader(http.StatusOK)
		w.(*statusWriter).ResponseWriter.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
		return
	}
	for _, prefix := range []string{"/git/", "/private/"} {
		if !strings.HasPrefix(p, prefix) {
			continue
		}
		if user, password, _ := r.BasicAuth(); prefix == "/private/" && (user != "user" || password != "secret") {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend, err := exec.Command("git", "--exec-path").Output()
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		(&cgi.Handler{
			Path:   filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"),
			Root:   strings.TrimSuffix(prefix, "/"),
			Env:    []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*", "REMOTE_USER="},
			Stderr: io.Discard,
		}).ServeHTTP(w, r)
		return
	}
	name, plain := strings.CutPrefix(p, "/plain")
	if name == "/" {
		name = "/index.html"
	}
	f, err := http.Dir(root).Open(name)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	data, rerr := io.ReadAll(f)
	if err != nil || rerr != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if plain {
		w.Write(data)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(data)))
	http.ServeContent(w, r, "", st.ModTime(), strings.NewReader(string(data)))
}
