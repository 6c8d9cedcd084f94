package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bytes of a transfer that broke off are gone on with; wrong ones are not kept.
func TestPartial(t *testing.T) {
	s, ctx := testStore(t), context.Background()
	raw := bytes.Repeat([]byte("layer "), 1000)
	d := v1.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	begin := func(want int64) *Partial {
		t.Helper()
		p, err := s.Resume(ctx, d)
		if err != nil || p.Size() != want || p.Resumed() != (want > 0) {
			t.Fatalf("%d bytes, resumed %v, %v", p.Size(), p.Resumed(), err)
		}
		return p
	}
	p := begin(0)
	p.Write(raw[:2000])
	p.Close()
	p = begin(2000)
	p.Write(raw[2000:])
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if ok, err := s.Has(d); !ok || err != nil {
		t.Fatalf("%v, %v", ok, err)
	}
	os.Remove(s.path(blobPath(d.Digest)))

	for name, wrong := range map[string][]byte{"short": raw[:10], "other": bytes.ToUpper(raw), "long": append(bytes.Clone(raw), 0)} {
		p = begin(0)
		p.Write(wrong)
		if err := p.Commit(); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
		p.Close()
	}
	p = begin(0) // nothing is left of them
	p.Write(append(bytes.Clone(raw), 0))
	p.Close()
	begin(0).Close() // longer than it can be

	p = begin(0)
	p.Write(raw[:100])
	freed, err := s.dropPartials()
	if err != nil || freed != 0 {
		t.Errorf("one that is being written: %d, %v", freed, err)
	}
	p.Close()
	if freed, err = s.dropPartials(); err != nil || freed != 100 {
		t.Errorf("one that is not: %d, %v", freed, err)
	}
	begin(0).Close()
}

// A second one waits for the first while that goes on, and finds the blob.
func TestPartialOfAnother(t *testing.T) {
	s, ctx := testStore(t), context.Background()
	d := v1.Descriptor{Digest: digest.FromString("x"), Size: 1}
	first, err := s.Resume(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan error, 1)
	go func() {
		p, err := s.Resume(ctx, d)
		if err == nil {
			defer p.Close()
			if ok, _ := s.Has(d); !ok {
				err = errors.New("the blob is not there")
			}
		}
		found <- err
	}()
	first.Write([]byte("x"))
	if err := first.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Error(err)
	}
	canceled, cancel := context.WithCancel(ctx)
	if first, err = s.Resume(ctx, d); err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	cancel()
	if _, err := s.Resume(canceled, d); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
