package main

// The registries that scripts pull from and push to.

import (
	"bufio"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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

// distribution
// starts Debian's docker-registry, which is docker's own, and sets $DISTRIBUTION to its host:port.
func cmdDistribution(ts *testscript.TestScript, neg bool, args []string) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		theScript(ts).t.Skip(err)
	}
	dir := filepath.Join(theScript(ts).work, "distribution")
	ts.Check(os.MkdirAll(dir, 0o755))
	config := filepath.Join(dir, "config.yml")
	ts.Check(os.WriteFile(config, []byte("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: "+dir+"/data}, delete: {enabled: true}}\nhttp: {addr: '127.0.0.1:0'}\n"), 0o644))
	run := exec.Command(program, "serve", config)
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := run.StderrPipe()
	ts.Check(err)
	ts.Check(run.Start())
	ts.Defer(func() {
		run.Process.Kill()
		run.Wait()
	})
	at := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(said)
		for lines.Scan() {
			if _, rest, ok := strings.Cut(lines.Text(), "listening on "); ok {
				addr, _, _ := strings.Cut(rest, "\"")
				at <- addr
				break
			}
		}
		io.Copy(io.Discard, said)
	}()
	select {
	case addr := <-at:
		ts.Setenv("DISTRIBUTION", addr)
	case <-time.After(30 * time.Second):
		ts.Fatalf("docker-registry does not come up")
	}
}
