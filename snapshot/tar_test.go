package snapshot

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What ustar cannot hold comes back from the extended header.
func TestHeaderExtremes(t *testing.T) {
	for n := range 130 { // the length of a record counts its own digits
		h := header{name: strings.Repeat("n", n+1), flag: tarSymlink, link: strings.Repeat("l", 2*n+1),
			attrs: []attr{{"user.x", strings.Repeat("v", n)}}}
		got := readHeader(t, h)
		if got.Name != h.name || got.Linkname != h.link || got.PAXRecords[paxAttr+"user.x"] != h.attrs[0].value {
			t.Errorf("%d: %+v", n, got)
		}
	}
	for _, mtime := range []unix.Timespec{{}, {Nsec: 1}, {Sec: -1}, {Sec: -2, Nsec: 500_000_000}, {Sec: -1, Nsec: 999_999_999}, {Sec: 1 << 33}, {Sec: 1 << 33, Nsec: 10}} {
		h := header{name: "d/", flag: tarDir, mode: 0o7777, uid: 1<<32 - 2, gid: 0o10000000, mtime: mtime}
		got := readHeader(t, h)
		if !got.ModTime.Equal(time.Unix(mtime.Unix())) || got.Uid != 1<<32-2 || got.Gid != 0o10000000 || got.Mode != 0o7777 {
			t.Errorf("%+v: %+v", mtime, got)
		}
	}
	for _, size := range []int64{0, 1<<33 - 1, 1 << 33, 1 << 40} {
		if got := readHeader(t, header{name: "é\xff", flag: tarFile, size: size}); got.Size != size || got.Name != "é\xff" {
			t.Errorf("%d: %+v", size, got)
		}
	}
	if got := readHeader(t, header{name: "b", flag: tarBlock, major: 0xfff, minor: 0xfffff}); got.Devmajor != 0xfff || got.Devminor != 0xfffff {
		t.Errorf("%+v", got)
	}
}

func readHeader(t *testing.T, h header) *tar.Header {
	t.Helper()
	b := h.append(nil)
	if len(b)%blockSize != 0 {
		t.Errorf("%d bytes are no blocks", len(b))
	}
	got, err := tar.NewReader(bytes.NewReader(b)).Next()
	must(t, err)
	return got
}
