package main

// The proxy that scripts put between mk and a registry, to break what passes.

import (
	"bytes"
	"cmp"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// faulty KIND [HOST:PORT]
// starts a proxy before a registry (the scripts' own, unless another is named) that is broken in
// one way, and sets $FAULTY to its host:port. Each request is a line of $WORK/registry.log: method, path with query, status.
//
//	whole     is not broken
//	tls       is not broken, and speaks https by a certificate of its own authority: $WORK/ca.crt
//	auth      wants the basic credentials user:secret, and is whole otherwise
//	token     wants a token, which user:secret gets, and is whole otherwise
//	401       wants a token that nobody can have
//	429 500   answers everything with that status
//	busy      answers the first request for each URL by 429, with Retry-After: 1
//	flaky     answers the first two requests for each URL by 500, then 502
//	garbage   answers everything with 200 and a page of HTML
//	flip      flips a bit in every blob
//	digest    says another digest of every manifest than it has
//	cut       breaks off every blob in the middle, and knows no Range
//	crumbs    breaks off every blob after 100,000 bytes
//	halt      sends 1,000,000 bytes of every blob, and no more until the end
//	slow      sends blobs at about 4 MB/s
//	bad-layers, cut-layers  are flip and cut, which spare blobs that are JSON
//	silent    never answers a request for a manifest
//	redirect  wants credentials as auth does, and sends for blobs to another host, which refuses whoever brings them
func cmdFaulty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 && len(args) != 2 {
		ts.Fatalf("usage: faulty KIND [HOST:PORT]")
	}
	upstream := shared.registry
	if len(args) == 2 {
		upstream = args[1]
	}
	whole := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	whole.ErrorLog = log.New(io.Discard, "", 0)
	f := &fault{ts: ts, whole: whole, seen: map[string]int{}}
	broken, ok := faults[args[0]]
	if !ok {
		ts.Fatalf("no fault is called %q", args[0])
	}
	logFile := filepath.Join(theScript(ts).work, "registry.log")
	ts.Check(os.WriteFile(logFile, nil, 0o644))
	var mu sync.Mutex
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &statusWriter{ResponseWriter: w, status: 200}
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			if l, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND, 0); err == nil {
				fmt.Fprintln(l, r.Method, r.URL.RequestURI(), seen.status)
				l.Close()
			}
		}()
		broken(f, seen, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if args[0] == "tls" {
		server.StartTLS()
		authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		ts.Check(os.WriteFile(filepath.Join(theScript(ts).work, "ca.crt"), authority, 0o644))
	} else {
		server.Start()
	}
	ts.Defer(func() {
		server.CloseClientConnections()
		server.Close()
	})
	ts.Setenv("FAULTY", server.Listener.Addr().String())
}

// fault is a broken registry's state.
type fault struct {
	ts    *testscript.TestScript
	whole http.Handler

	mu        sync.Mutex
	seen      map[string]int // method and URL: times asked before
	elsewhere string         // URL of the host that redirect sends to
}

// times counts the requests for a URL, from 0. Uploads have a new one each time and count as one.
func (f *fault) times(r *http.Request) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	uri, _, _ := strings.Cut(r.URL.RequestURI(), "/uploads/")
	key := r.Method + " " + uri
	f.seen[key]++
	return f.seen[key] - 1
}

var faults = map[string]func(*fault, http.ResponseWriter, *http.Request){
	"tls":   func(f *fault, w http.ResponseWriter, r *http.Request) { f.whole.ServeHTTP(w, r) },
	"whole": func(f *fault, w http.ResponseWriter, r *http.Request) { f.whole.ServeHTTP(w, r) },
	"auth": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if known(w, r) {
			f.whole.ServeHTTP(w, r)
		}
	},
	"token": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if known(w, r) {
				fmt.Fprint(w, `{"token":"good"}`)
			}
			return
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="test"`)
			registryError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
			return
		}
		f.whole.ServeHTTP(w, r)
	},
	"401": func(f *fault, w http.ResponseWriter, r *http.Request) { refuse(w) },
	"429": func(f *fault, w http.ResponseWriter, r *http.Request) {
		registryError(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "pull rate limit reached")
	},
	"500": func(f *fault, w http.ResponseWriter, r *http.Request) {
		registryError(w, http.StatusInternalServerError, "UNKNOWN", "the disk is on fire")
	},
	"busy": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if f.times(r) == 0 {
			w.Header().Set("Retry-After", "1")
			registryError(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "not so fast")
			return
		}
		f.whole.ServeHTTP(w, r)
	},
	"flaky": func(f *fault, w http.ResponseWriter, r *http.Request) {
		switch f.times(r) {
		case 0:
			registryError(w, http.StatusInternalServerError, "UNKNOWN", "the disk is on fire")
		case 1:
			w.WriteHeader(http.StatusBadGateway)
		default:
			f.whole.ServeHTTP(w, r)
		}
	},
	"garbage": func(f *fault, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html><body>Welcome to the hotel's network</body></html>")
	},
	"flip": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			f.whole.ServeHTTP(w, r)
			return
		}
		answer := f.answer(r)
		if body := answer.Body.Bytes(); len(body) > 0 {
			body[len(body)/2] ^= 1
		}
		send(w, answer, answer.Body.Len())
	},
	"bad-layers": func(f *fault, w http.ResponseWriter, r *http.Request) {
		answer := f.answer(r)
		if body := answer.Body.Bytes(); isBlob(r) && body[0] != '{' {
			body[len(body)/2] ^= 1
		}
		send(w, answer, answer.Body.Len())
	},
	"cut-layers": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			r.Header.Del("Range")
		}
		answer := f.answer(r)
		if !isBlob(r) || answer.Body.Bytes()[0] == '{' {
			send(w, answer, answer.Body.Len())
			return
		}
		send(w, answer, answer.Body.Len()/2)
		panic(http.ErrAbortHandler)
	},
	"silent": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			<-r.Context().Done()
			return
		}
		f.whole.ServeHTTP(w, r)
	},
	"digest": func(f *fault, w http.ResponseWriter, r *http.Request) {
		answer := f.answer(r)
		if strings.Contains(r.URL.Path, "/manifests/") {
			answer.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
		}
		send(w, answer, answer.Body.Len())
	},
	"cut": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			f.whole.ServeHTTP(w, r)
			return
		}
		r.Header.Del("Range")
		answer := f.answer(r)
		send(w, answer, answer.Body.Len()/2)
		panic(http.ErrAbortHandler)
	},
	"crumbs": func(f *fault, w http.ResponseWriter, r *http.Request) {
		answer := f.answer(r)
		if isBlob(r) && answer.Body.Len() > 100_000 {
			send(w, answer, 100_000)
			panic(http.ErrAbortHandler)
		}
		send(w, answer, answer.Body.Len())
	},
	"halt": func(f *fault, w http.ResponseWriter, r *http.Request) {
		answer := f.answer(r)
		if !isBlob(r) || answer.Body.Len() <= 1_000_000 {
			send(w, answer, answer.Body.Len())
			return
		}
		send(w, answer, 1_000_000)
		<-r.Context().Done()
	},
	"slow": func(f *fault, w http.ResponseWriter, r *http.Request) {
		answer := f.answer(r)
		if !isBlob(r) {
			send(w, answer, answer.Body.Len())
			return
		}
		send(w, answer, 0)
		for body := answer.Body.Bytes(); len(body) > 0 && r.Context().Err() == nil; {
			n := min(len(body), 40_000)
			w.Write(body[:n])
			flush(w)
			body = body[n:]
			time.Sleep(10 * time.Millisecond)
		}
	},
	"redirect": func(f *fault, w http.ResponseWriter, r *http.Request) {
		if !known(w, r) {
			return
		}
		if !isBlob(r) {
			f.whole.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Location", f.otherHost()+r.URL.Path+"?signature=canary")
		w.WriteHeader(http.StatusTemporaryRedirect)
	},
}

// otherHost is a server of the same blobs under another name, which refuses credentials.
func (f *fault) otherHost() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.elsewhere == "" {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
				registryError(w, http.StatusBadRequest, "DENIED", "credentials came along")
				return
			}
			f.whole.ServeHTTP(w, r)
		}))
		f.ts.Defer(server.Close)
		f.elsewhere = strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	}
	return f.elsewhere
}

// isBlob reports whether a request is for the bytes of a blob.
func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

// known reports whether a request brings user:secret, and refuses one that does not.
func known(w http.ResponseWriter, r *http.Request) bool {
	if user, password, ok := r.BasicAuth(); ok && user == "user" && password == "secret" {
		return true
	}
	refuse(w)
	return false
}

func refuse(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	registryError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

// answer asks the registry behind; it gives ranges by itself, for not every registry does.
func (f *fault) answer(r *http.Request) *httptest.ResponseRecorder {
	var from int
	inner := r.Clone(r.Context())
	if isBlob(r) {
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err != nil {
			from = 0
		}
		inner.Header.Del("Range")
	}
	answer := httptest.NewRecorder()
	f.whole.ServeHTTP(answer, inner)
	if body := answer.Body.Bytes(); from > 0 && from < len(body) && answer.Code == http.StatusOK {
		answer.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
		answer.Code, answer.Body = http.StatusPartialContent, bytes.NewBuffer(body[from:])
	}
	return answer
}

// send passes an answer on, as far as n bytes of its body.
func send(w http.ResponseWriter, answer *httptest.ResponseRecorder, n int) {
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	if answer.Body.Len() > 0 {
		w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
	}
	w.WriteHeader(cmp.Or(answer.Code, http.StatusOK))
	w.Write(answer.Body.Bytes()[:n])
	flush(w)
}

func flush(w http.ResponseWriter) {
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
}

func registryError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}
