package sbom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime/debug"
)

// What Go's linker writes of a program into the program (cmd/link/internal/ld, buildinfo), at an address that is a multiple of
// 16 in a segment of data: goMagic, the size of a pointer (1 byte), flags (1), and
//
//   - since Go 1.18, at 32 the two texts, each behind its length as a varint;
//   - before, two pointers to string headers, which are a pointer and a length.
//
// debug/buildinfo reads it too, and every section of the file for it, and formats that no image for Linux has: 0.3 MB of mk.
const (
	goMagic     = "\xff Go buildinf:"
	goHeader    = 32
	goBigEndian = 1
	goInline    = 2

	maxGoText = 4 << 20 // of either text: Kubernetes' has 20 KB
)

var errNoGo = errors.New("no program of Go's")

// elf is what is loaded of an ELF file.
type elf struct {
	r    io.ReaderAt
	data []elfSegment // its own
	all  []elfSegment
}

// elfSegment is a part of a file, and the address where it is loaded.
type elfSegment struct{ offset, address, size int64 }

// readELF reads the program headers (elf(5)).
func readELF(r io.ReaderAt) (elf, error) {
	e := elf{r: r}
	head, err := readAt(r, 0, 64)
	if err != nil || string(head[:4]) != "\x7fELF" {
		return e, errNoGo
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	word := func(b []byte, at32, at64 int) int64 { return int64(order.Uint32(b[at32:])) }
	table, size, count := int64(order.Uint32(head[28:])), int64(order.Uint16(head[42:])), int64(order.Uint16(head[44:]))
	least, flags := int64(32), 24
	if head[4] == 2 { // 64 bits
		word = func(b []byte, at32, at64 int) int64 { return int64(order.Uint64(b[at64:])) }
		table, size, count = word(head, 0, 32), int64(order.Uint16(head[54:])), int64(order.Uint16(head[56:]))
		least, flags = 56, 4
	}
	if size < least {
		return e, errNoGo
	}
	headers, err := readAt(r, table, size*count)
	if err != nil {
		return e, err
	}
	const load, executable, writable = 1, 1, 2
	for ; len(headers) > 0; headers = headers[size:] {
		s := elfSegment{offset: word(headers, 4, 8), address: word(headers, 8, 16), size: word(headers, 16, 32)}
		if order.Uint32(headers) != load || s.offset < 0 || s.size <= 0 || s.offset > math.MaxInt64-s.size {
			continue
		}
		e.all = append(e.all, s)
		if order.Uint32(headers[flags:])&(executable|writable) == writable && len(e.data) < maxData {
			e.data = append(e.data, s)
		}
	}
	return e, nil
}

// maxData is how many segments of data are searched: lld makes up to three. A hostile program may have
// 65,535, one over the other.
const maxData = 4

// at reads what is loaded at an address.
func (e elf) at(address uint64, n int64) ([]byte, error) {
	for _, s := range e.all {
		if from := address - uint64(s.address); address >= uint64(s.address) && from < uint64(s.size) && n >= 0 && n <= s.size-int64(from) {
			return readAt(e.r, s.offset+int64(from), n)
		}
	}
	return nil, errNoGo
}

// goBuildInfo reads the version of Go and the modules of a program.
func goBuildInfo(r io.ReaderAt) (*debug.BuildInfo, error) {
	e, err := readELF(r)
	if err != nil {
		return nil, err
	}
	at := int64(-1)
	for _, s := range e.data {
		skip := -s.address & 15 // the multiple is one of the address
		if at, err = find(io.NewSectionReader(r, s.offset+skip, max(0, s.size-skip)), goMagic, 16); err != nil {
			return nil, err
		}
		if at >= 0 {
			at += s.offset + skip
			break
		}
	}
	if at < 0 {
		return nil, errNoGo
	}
	head, err := readAt(r, at, goHeader)
	if err != nil {
		return nil, err
	}
	var version, modules []byte
	pointer, kind := head[len(goMagic)], head[len(goMagic)+1]
	if kind&goInline != 0 {
		version, at, err = inlineText(r, at+goHeader)
		if err == nil {
			modules, _, err = inlineText(r, at)
		}
	} else {
		version, err = e.pointedText(head[16:], pointer, kind)
		if err == nil {
			modules, err = e.pointedText(head[16+pointer:], pointer, kind)
		}
	}
	if err != nil {
		return nil, err
	}
	// The modules stand between two sentinels of 16 bytes (cmd/go/internal/modload).
	info := &debug.BuildInfo{}
	if n := len(modules); n >= 33 && modules[n-17] == '\n' {
		if info, err = debug.ParseBuildInfo(string(modules[16 : n-16])); err != nil {
			return nil, err
		}
	}
	info.GoVersion = string(version)
	return info, nil
}

// inlineText reads a text behind its length, and gives where it ends.
func inlineText(r io.ReaderAt, at int64) ([]byte, int64, error) {
	b := make([]byte, binary.MaxVarintLen64)
	n, err := r.ReadAt(b, at)
	if err != nil && err != io.EOF {
		return nil, 0, err
	}
	size, width := binary.Uvarint(b[:n])
	if width <= 0 || size > maxGoText {
		return nil, 0, errNoGo
	}
	text, err := readAt(r, at+int64(width), int64(size))
	return text, at + int64(width) + int64(size), err
}

// pointedText reads the text of a pointer to a string header.
func (e elf) pointedText(b []byte, pointer, kind byte) ([]byte, error) {
	var order binary.ByteOrder = binary.LittleEndian
	if kind&goBigEndian != 0 {
		order = binary.BigEndian
	}
	word := func(b []byte) uint64 { return order.Uint64(b) }
	switch pointer {
	case 4:
		word = func(b []byte) uint64 { return uint64(order.Uint32(b)) }
	case 8:
	default:
		return nil, errNoGo
	}
	header, err := e.at(word(b), 2*int64(pointer))
	if err != nil {
		return nil, err
	}
	size := word(header[pointer:])
	if size > maxGoText {
		return nil, errNoGo
	}
	return e.at(word(header), int64(size))
}

// find gives where something is that stands at a multiple of align, or -1.
func find(r io.Reader, what string, align int) (int64, error) {
	buf := make([]byte, 64<<10) // what is aligned and shorter than align does not cross its end
	for at := int64(0); ; at += int64(len(buf)) {
		n, err := io.ReadFull(r, buf)
		for i := 0; ; i++ {
			j := bytes.Index(buf[i:n], []byte(what))
			if j < 0 {
				break
			}
			if i += j; i%align == 0 {
				return at + int64(i), nil
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return -1, nil
		default:
			return -1, err
		}
	}
}

// readAt reads n bytes, at most as many as a text may have.
func readAt(r io.ReaderAt, at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || n > maxGoText {
		return nil, errNoGo
	}
	b := make([]byte, n)
	if m, err := r.ReadAt(b, at); int64(m) < n {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, at, err)
	}
	return b, nil
}
