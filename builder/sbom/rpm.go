package sbom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// rpm reads the database of rpm ≥ 4.16, a table of SQLite whose rows are package headers.
// Its older and other forms (Berkeley DB, ndb of SUSE) are noticed and not read.
func (s *scan) rpm(d distribution) error {
	for _, dir := range []string{"usr/lib/sysimage/rpm", "var/lib/rpm"} {
		name := dir + "/rpmdb.sqlite"
		f, err := s.open(name)
		if errors.Is(err, fs.ErrNotExist) {
			for _, other := range []string{"Packages", "Packages.db"} {
				if f, err := s.open(dir + "/" + other); err == nil {
					f.Close()
					s.notice("/%s/%s is rpm's database in a form that is not read (only rpmdb.sqlite is): the packages in it are missing", dir, other)
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if log, err := s.open(name + "-wal"); err == nil {
			if st, err := log.Stat(); err == nil && st.Size() > 0 {
				s.notice("/%s-wal: rpm was interrupted: what it wrote last may be missing", name)
			}
			log.Close()
		}
		db, err := openDatabase(f)
		if err == nil {
			err = db.rows("Packages", func(row []any) error {
				if len(row) < 2 {
					return errors.New("a package without a header")
				}
				blob, _ := row[1].([]byte)
				h, err := parseHeader(blob)
				if err != nil {
					return err
				}
				s.rpmPackage(h, d, name)
				return nil
			})
		}
		if err != nil {
			s.notice("/%s: %v: packages are missing", name, err)
		}
		return nil // one of the directories links to the other
	}
	return nil
}

// Tags of package headers that are read (rpm's include/rpm/rpmtag.h).
const (
	tagName, tagVersion, tagRelease, tagEpoch           = 1000, 1001, 1002, 1003
	tagVendor, tagLicense, tagURL, tagArch, tagSourceRP = 1011, 1014, 1020, 1022, 1044
)

func (s *scan) rpmPackage(h map[int]string, d distribution, file string) {
	if h[tagName] == "" || h[tagName] == "gpg-pubkey" { // keys are kept as packages
		return
	}
	p := Package{
		Type: "rpm", Namespace: d.id, Name: h[tagName], Version: h[tagVersion] + "-" + h[tagRelease], Epoch: h[tagEpoch], Arch: h[tagArch],
		Distro: d.String(), Upstream: h[tagSourceRP], License: h[tagLicense], Homepage: h[tagURL], From: file,
	}
	if h[tagVendor] != "" {
		p.Supplier = "Organization: " + h[tagVendor]
	}
	s.add(p)
}

// parseHeader reads strings and numbers of a header as it is in the database: two
// counts, an index of 16 bytes an entry (tag, type, offset, count), and the data.
func parseHeader(b []byte) (map[int]string, error) {
	bad := errors.New("a package's header is damaged")
	if len(b) < 8 {
		return nil, bad
	}
	n, size := int64(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[4:]))
	if 8+16*n+size > int64(len(b)) {
		return nil, bad
	}
	data := b[8+16*n : 8+16*n+size]
	h := map[int]string{}
	for i := range n {
		e := b[8+16*i:]
		tag, kind, at := int(binary.BigEndian.Uint32(e)), binary.BigEndian.Uint32(e[4:]), int64(binary.BigEndian.Uint32(e[8:]))
		if tag < tagName || tag > tagSourceRP {
			continue
		}
		switch {
		case at > size:
			return nil, bad
		case kind == 6 || kind == 9: // a string, or the first of its translations
			text, _, ok := strings.Cut(string(data[at:min(size, at+1<<16)]), "\x00")
			if !ok {
				return nil, bad
			}
			h[tag] = text
		case kind == 4: // 32 bits
			if at+4 > size {
				return nil, bad
			}
			h[tag] = strconv.FormatUint(uint64(binary.BigEndian.Uint32(data[at:])), 10)
		}
	}
	return h, nil
}

func (p Package) versionInfo() string {
	if p.Epoch != "" {
		return fmt.Sprintf("%s:%s", p.Epoch, p.Version)
	}
	return p.Version
}
