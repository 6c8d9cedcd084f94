package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Benchmarks stand beside the tool that does the same work, on the same files:
// go test -run '^$' -bench . -benchtime 3x
func BenchmarkLayers(b *testing.B) {
	if os.Getenv(modeEnv) == "" {
		cmd := insideCommand(b, "single", "-test.run=^$", "-test.bench=^BenchmarkLayers$", "-test.benchtime=3x")
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		fmt.Printf("%s", out)
		b.SkipNow()
	}
	for _, w := range []struct {
		name  string
		layer string
	}{
		{"20000files", benchTar(b, 20_000, 4_000)},
		{"500MiB", benchTar(b, 1, 500<<20)},
	} {
		b.Run(w.name, func(b *testing.B) {
			info, err := os.Stat(w.layer)
			must(b, err)
			measure := func(name string, f func(b *testing.B)) {
				b.Run(name, func(b *testing.B) {
					b.SetBytes(info.Size())
					before := cpuTime()
					f(b)
					// Truer than the clock on a machine that does other things.
					b.ReportMetric(float64(cpuTime()-before)/1e6/float64(b.N), "cpu-ms/op")
				})
			}
			measure("tar-x", func(b *testing.B) {
				for range b.N {
					dir := b.TempDir()
					must(b, exec.Command("tar", "-xpf", w.layer, "-C", dir).Run())
					b.StopTimer()
					must(b, removeTree(dir))
					must(b, os.Mkdir(dir, 0o700))
					b.StartTimer()
				}
			})
			// The way not taken: unpacking through the overlay.
			measure("tar-x-overlay", func(b *testing.B) {
				s := openStore(b, "single")
				for range b.N {
					d, err := s.NewDraft(nil)
					must(b, err)
					m, err := d.Mount()
					must(b, err)
					cmd := exec.Command("tar", "-xpf", w.layer, "-C", "/proc/self/fd/3")
					cmd.ExtraFiles = []*os.File{m}
					must(b, cmd.Run())
					b.StopTimer()
					m.Close()
					must(b, d.Discard())
					b.StartTimer()
				}
			})
			s := openStore(b, "single")
			base := applyTar(b, s, nil, tarOf(b, reg("some", "thing")))
			apply := func(parent *Snapshot) func(b *testing.B) {
				return func(b *testing.B) {
					for range b.N {
						f, err := os.Open(w.layer)
						must(b, err)
						d, err := s.NewDraft(parent)
						must(b, err)
						must(b, d.Apply(context.Background(), f))
						b.StopTimer()
						f.Close()
						must(b, d.Discard())
						b.StartTimer()
					}
				}
			}
			measure("apply", apply(nil))
			measure("apply-on-parent", apply(base))
			d, err := s.NewDraft(base)
			must(b, err)
			f, err := os.Open(w.layer)
			must(b, err)
			must(b, d.Apply(context.Background(), f))
			f.Close()
			snap := commit(b, d)
			measure("tar-c", func(b *testing.B) {
				for range b.N {
					must(b, exec.Command("sh", "-c", "tar --format=pax -c -C "+snap.tree()+" . | cat > /dev/null").Run())
				}
			})
			measure("write", func(b *testing.B) {
				for range b.N {
					must(b, snap.WriteLayer(context.Background(), io.Discard))
				}
			})
			measure("tar-c-sha256sum", func(b *testing.B) {
				for range b.N {
					must(b, exec.Command("sh", "-c", "tar --format=pax -c -C "+snap.tree()+" . | sha256sum > /dev/null").Run())
				}
			})
			measure("sha256sum", func(b *testing.B) {
				for range b.N {
					must(b, exec.Command("sha256sum", w.layer).Run())
				}
			})
			measure("digests", func(b *testing.B) {
				for range b.N {
					_, err := snap.hashTree(context.Background(), nil, nil)
					must(b, err)
				}
			})
		})
	}
	b.Run("mount", func(b *testing.B) {
		s := openStore(b, "single")
		var snap *Snapshot
		for range 20 {
			d, err := s.NewDraft(snap)
			must(b, err)
			snap = commit(b, d)
		}
		for name, mount := range map[string]func(stack) (*os.File, error){"context": mountByContext, "options": mountByOptions} {
			b.Run(name, func(b *testing.B) {
				for range b.N {
					m, err := mount(stack{store: s, lower: snap})
					must(b, err)
					m.Close()
				}
			})
		}
	})
}

// cpuTime is what this process and those it waited for have used, in ns.
func cpuTime() (ns int64) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		unix.Getrusage(who, &u)
		ns += u.Utime.Nano() + u.Stime.Nano()
	}
	return ns
}

// benchTar writes a tar of n files of the size, 100 a directory.
func benchTar(b *testing.B, n int, size int64) string {
	f, err := os.Create(b.TempDir() + "/layer.tar")
	must(b, err)
	defer f.Close()
	w := tar.NewWriter(f)
	block := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{})
	for i := range n {
		if i%100 == 0 {
			h := entry(tar.TypeDir, fmt.Sprintf("dir%03d", i/100), "")
			must(b, w.WriteHeader(&h.Header))
		}
		h := reg(fmt.Sprintf("dir%03d/file%05d", i/100, i), "")
		h.Size = size
		must(b, w.WriteHeader(&h.Header))
		for left := size; left > 0; left -= int64(len(block)) {
			part := block[:min(left, int64(len(block)))]
			r.Read(part)
			_, err := io.Copy(w, bytes.NewReader(part))
			must(b, err)
		}
	}
	must(b, w.Close())
	return f.Name()
}
