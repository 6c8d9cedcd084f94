package registry

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A layer that is sent on comes from whoever has it, to its last byte, and none of it is stored.
func TestLayersPass(t *testing.T) {
	f, ref, sent := pushed(t)
	breaks := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodGet || kindOf(r) != "blobs" || r.Header.Get("Range") != "" {
			return false // which has nothing
		}
		whole, err := http.Get(f.URL + r.URL.Path)
		if err != nil {
			t.Error(err)
			return false
		}
		defer whole.Body.Close()
		io.CopyN(w, whole.Body, 300)
		panic(http.ErrAbortHandler)
	}
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, int) bool{
		"none":    nil,
		"absent":  func(w http.ResponseWriter, r *http.Request, _ int) bool { http.NotFound(w, r); return true },
		"breaks":  breaks,
		"garbage": func(w http.ResponseWriter, _ *http.Request, _ int) bool { w.Write([]byte("hello")); return true },
	} {
		t.Run(name, func(t *testing.T) {
			mirror, target := newFaulty(t, fault), newFaulty(t, nil)
			c := quick()
			c.Mirrors = map[string][]string{f.host: {mirror.URL}}
			s := testStore(t)
			im, err := c.Manifest(ctx, ref, s, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.SetFetcher(c)
			got, err := c.Push(ctx, s, im.Descriptor(), target.ref(t, "app:v1"), PushOptions{})
			if err != nil || got.Digest != sent.Digest {
				t.Fatalf("%v, %v", got, err)
			}
			for _, l := range im.Layers() {
				if here, err := l.Present(); err != nil || here {
					t.Errorf("layer %s is in the store: %v", l.Descriptor.Digest, err)
				}
			}
			fresh := testStore(t)
			if _, err := quick().Pull(ctx, target.ref(t, "app:v1"), fresh, nil, nil); err != nil {
				t.Fatal(err)
			}
			readable(t, fresh, sent)
		})
	}
}

// Wrong bytes of a mirror are those of one place: the registry itself has the right ones.
func TestWrongBytesAreNotPassed(t *testing.T) {
	f, ref, sent := pushed(t)
	s := testStore(t)
	im, err := quick().Manifest(ctx, ref, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	big := im.Layers()[0].Descriptor
	mirror := newFaulty(t, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if kindOf(r) == "ping" {
			return false
		}
		w.Write(make([]byte, big.Size))
		return true
	})
	c := quick()
	c.Mirrors = map[string][]string{f.host: {mirror.URL}}
	s.SetFetcher(c)
	target := newFaulty(t, nil)
	got, err := c.Push(ctx, s, im.Descriptor(), target.ref(t, "app:v1"), PushOptions{})
	if err != nil || got.Digest != sent.Digest {
		t.Fatalf("%v, %v", got, err)
	}
	fresh := testStore(t)
	if _, err := quick().Pull(ctx, target.ref(t, "app:v1"), fresh, nil, nil); err != nil {
		t.Fatal(err)
	}
	readable(t, fresh, sent)
}

// A part of a layer costs its bytes; a registry that does not know Range is not asked for all of it.
func TestPartsOfLayers(t *testing.T) {
	f, ref, _ := pushed(t)
	s := testStore(t)
	im, err := quick().Manifest(ctx, ref, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := im.Layers()[0].Descriptor
	whole := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		r.Header.Del("Range")
		return false
	}
	mirror := wrap(t, httptest.NewServer, f.Config.Handler, whole)
	c := quick()
	c.Mirrors = map[string][]string{f.host: {mirror.URL}}
	part, err := c.ReadPart(ctx, s, d, 10, 100)
	if err != nil {
		t.Fatal(err)
	}
	s.SetFetcher(c)
	rc, err := s.Open(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	all, err := io.ReadAll(rc)
	if err != nil || string(part) != string(all[10:110]) {
		t.Errorf("%v, %q", err, part)
	}
	f.spoil(whole)
	if _, err := c.ReadPart(ctx, s, d, 10, 100); err == nil || !strings.Contains(err.Error(), "does not serve parts") {
		t.Errorf("no part: %v", err)
	}
	if _, err := c.ReadPart(ctx, s, d, d.Size-5, 100); err == nil {
		t.Error("a part behind the end")
	}
}
