package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// helper is what a child process of these tests does.
func helper(what string) {
	s, err := Open(os.Getenv("IMAGE_TEST_STORE"))
	if err == nil {
		s.SetLayers(trees{})
		switch what {
		case "tag":
			err = tagMany(s, os.Getenv("IMAGE_TEST_NAME"), 20)
		case "memory":
			err = sendAndReceive()
		case "forever":
			for i := uint64(0); err == nil; i++ {
				err = putAndTag(s, os.Getenv("IMAGE_TEST_NAME"), i)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func tagMany(s *Store, name string, n int) error {
	d, err := s.PutImage(context.Background(), Config{}, nil, PutOptions{})
	for i := 0; i < n && err == nil; i++ {
		err = s.Tag(name+":"+strconv.Itoa(i), d)
	}
	return err
}

// putAndTag stores an image with a layer blob and moves a name to it.
func putAndTag(s *Store, name string, i uint64) error {
	ctx := context.Background()
	raw := layerTar(i, 100_000)
	l, err := s.Put(ctx, bytes.NewReader(raw), nil)
	if err != nil {
		return err
	}
	l = LayerDescriptor(l.Digest, l.Size)
	var c Config
	c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.Digest)
	d, err := s.PutImage(ctx, c, []v1.Descriptor{l}, PutOptions{})
	if err != nil {
		return err
	}
	return s.Tag(name, d)
}

// process is a helper that runs, and what it prints.
type process struct {
	*exec.Cmd
	out io.Reader
}

func child(t *testing.T, s *Store, what, name string) process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "IMAGE_TEST_HELPER="+what, "IMAGE_TEST_STORE="+s.Dir(), "IMAGE_TEST_NAME="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return process{cmd, out}
}

// Processes and goroutines that tag at once lose nobody's name.
func TestConcurrentTags(t *testing.T) {
	s := testStore(t)
	var cmds []process
	for p := range 6 {
		cmds = append(cmds, child(t, s, "tag", fmt.Sprintf("process%d", p)))
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			if err := tagMany(s, fmt.Sprintf("goroutine%d", g), 20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if got := must[[]Tagged](t)(s.List()); len(got) != 240 {
		t.Errorf("%d names of 240", len(got))
	}
	wholesome(t, s)
}

// Two processes that create a store at once get one store.
func TestConcurrentOpen(t *testing.T) {
	dir := t.TempDir() + "/new/store"
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			s, err := Open(dir)
			if err == nil {
				err = tagMany(s, fmt.Sprintf("g%d", g), 3)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := must[*Store](t)(Open(dir))
	if got := must[[]Tagged](t)(s.List()); len(got) != 24 {
		t.Errorf("%d names of 24", len(got))
	}
}

// kill -9 at any instant leaves the store whole, and what it leaves behind is garbage that GC takes.
func TestKilledWriters(t *testing.T) {
	s := testStore(t)
	for round := range 15 {
		cmd := child(t, s, "forever", fmt.Sprintf("victim%d", round%3))
		time.Sleep(time.Duration(5+rand.IntN(60)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if round%5 == 4 {
			wholesome(t, s)
		}
	}
	for _, e := range must[[]Tagged](t)(s.List()) {
		if e.Name == "" {
			s.Remove(e.Descriptor.Digest)
		}
	}
	must[Freed](t)(s.GC(ctx, nil))
	wholesome(t, s)
	if left, _ := os.ReadDir(s.path("tmp")); len(left) != 0 {
		t.Errorf("%d temporary files of the dead are left", len(left))
	}
	if err := putAndTag(s, "after", 1); err != nil {
		t.Error(err)
	}
}
