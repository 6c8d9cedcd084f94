package nofile_test

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"mk/container/nofile"
)

// TestLimitIsTheOneBeforeGo starts this test with a soft limit of 321, which Go raises at once.
func TestLimitIsTheOneBeforeGo(t *testing.T) {
	if os.Getenv("NOFILE_TEST") != "" {
		var now unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
			t.Fatal(err)
		}
		if now.Cur == 321 {
			t.Error("Go has not raised the limit: is this package needed?")
		}
		if nofile.Soft != 321 || nofile.Hard != now.Max {
			t.Errorf("limits are %d and %d, want 321 and %d", nofile.Soft, nofile.Hard, now.Max)
		}
		return
	}
	cmd := exec.Command("sh", "-c", `ulimit -S -n 321; exec "$0" -test.run TestLimitIsTheOneBeforeGo`, os.Args[0])
	cmd.Env = append(os.Environ(), "NOFILE_TEST=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
