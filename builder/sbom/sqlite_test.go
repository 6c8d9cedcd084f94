package sbom

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// header makes a package header of strings.
func header(tags map[int]string) []byte {
	var index, data bytes.Buffer
	for tag := tagName; tag <= tagSourceRP; tag++ {
		value, ok := tags[tag]
		if !ok {
			continue
		}
		for _, n := range []int{tag, 6, data.Len(), 1} {
			binary.Write(&index, binary.BigEndian, uint32(n))
		}
		data.WriteString(value + "\x00")
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(index.Len()/16))
	b = binary.BigEndian.AppendUint32(b, uint32(data.Len()))
	return append(append(b, index.Bytes()...), data.Bytes()...)
}

// varbytes writes a varint of at most 14 bits.
func varbytes(n int) []byte {
	if n < 0x80 {
		return []byte{byte(n)}
	}
	return []byte{byte(n>>7) | 0x80, byte(n & 0x7f)}
}

// row is a leaf's cell of values: nil, an int below 128, a string or bytes.
func row(values ...any) []byte {
	var kinds, body []byte
	for _, v := range values {
		switch v := v.(type) {
		case nil:
			kinds = append(kinds, 0)
		case int:
			kinds, body = append(kinds, 1), append(body, byte(v))
		case string:
			kinds, body = append(kinds, varbytes(13+2*len(v))...), append(body, v...)
		case []byte:
			kinds, body = append(kinds, varbytes(12+2*len(v))...), append(body, v...)
		}
	}
	record := append(varbytes(len(kinds)+1), kinds...)
	record = append(record, body...)
	return append(append(varbytes(len(record)), 1), record...)
}

// databaseOf makes a file of two pages: the schema, and a table of one leaf.
func databaseOf(rows ...[]byte) []byte {
	const page = 4096
	file := make([]byte, 2*page)
	copy(file, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(file[16:], page)
	leaf := func(b []byte, at int, rows [][]byte) {
		b[at] = 13
		binary.BigEndian.PutUint16(b[at+3:], uint16(len(rows)))
		end := page
		for i, r := range rows {
			end -= len(r)
			copy(b[end:], r)
			binary.BigEndian.PutUint16(b[at+8+2*i:], uint16(end))
		}
	}
	leaf(file[:page], 100, [][]byte{row("table", "Packages", "Packages", 2, "CREATE TABLE …")})
	leaf(file[page:], 0, rows)
	return file
}

func scanOf(t testing.TB, name string, content []byte) Inventory {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	found, err := Scan(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const rpmdb = "usr/lib/sysimage/rpm/rpmdb.sqlite"

func TestRPM(t *testing.T) {
	bash := header(map[int]string{tagName: "bash", tagVersion: "5.2", tagRelease: "1.fc42", tagArch: "x86_64", tagSourceRP: "bash-5.2-1.fc42.src.rpm"})
	key := header(map[int]string{tagName: "gpg-pubkey", tagVersion: "1", tagRelease: "2"})
	found := scanOf(t, rpmdb, databaseOf(row(nil, key), row(nil, bash)))
	if len(found.Packages) != 1 || found.Packages[0].URL() != "pkg:rpm/bash@5.2-1.fc42?arch=x86_64&upstream=bash-5.2-1.fc42.src.rpm" || len(found.Notices) != 0 {
		t.Errorf("%+v", found)
	}
	// One page that names itself: it ends, with a notice.
	loop := databaseOf(row(nil, bash))
	copy(loop[4096:], make([]byte, 4096))
	loop[4096] = 5
	binary.BigEndian.PutUint32(loop[4096+8:], 2)
	if found := scanOf(t, rpmdb, loop); len(found.Notices) != 1 || len(found.Packages) != 0 {
		t.Errorf("%+v", found)
	}
}

// FuzzRPM and FuzzFiles find inputs that end mk: a tree is a stranger's.
func FuzzRPM(f *testing.F) {
	f.Add(databaseOf(row(nil, header(map[int]string{tagName: "a", tagVersion: "1", tagRelease: "2", tagVendor: "v"}))))
	f.Add(databaseOf(row(nil, header(nil)), row(nil, []byte{0, 0, 0, 1, 0, 0, 0, 1})))
	f.Fuzz(func(t *testing.T, b []byte) { scanOf(t, rpmdb, b) })
}

func FuzzFiles(f *testing.F) {
	for i, seed := range []string{
		"Package: a\nStatus: install ok installed\nVersion: 1\nMaintainer: M <m@x>\n\n", "P:a\nV:1\n\nP:b\n",
		`{"packages":{"node_modules/a":{"version":"1","integrity":"sha512-AAAA"}}}`, `{"dependencies":{"a":{"version":"1","dependencies":{"b":{}}}}}`,
	} {
		f.Add(uint8(i), []byte(seed))
	}
	names := []string{"var/lib/dpkg/status", "lib/apk/db/installed", "app/package-lock.json", "etc/os-release", "usr/bin/program"}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		found := scanOf(t, names[int(which)%len(names)], b)
		if _, err := found.SPDX("x", time.Unix(0, 0), "t"); err != nil {
			t.Fatal(err)
		}
	})
}
