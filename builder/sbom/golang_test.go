package sbom

import (
	"bytes"
	"debug/buildinfo"
	"encoding/binary"
	"os"
	"reflect"
	"strings"
	"testing"
)

// A program of the Go that compiled this test: as debug/buildinfo reads it.
func TestGoBuildInfo(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, err := buildinfo.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := goBuildInfo(f)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; debug/buildinfo reads %v", got, err, want)
	}
}

const (
	testModules = "path\tm\nmod\tm\tv1.2.3\t\ndep\tgithub.com/x/y\tv0.1.0\th1:x\n"
	sentinel    = "0123456789abcdef"
)

// goProgram makes an ELF file with one segment of data, as Go of before 1.18 (inline: false) or since.
func goProgram(bits int, order binary.AppendByteOrder, inline bool) []byte {
	const address, offset = 0x400ff8, 0x1ff8
	text := sentinel + testModules + sentinel
	size := byte(bits / 8)
	word := func(b []byte, v uint64) []byte {
		if bits == 32 {
			return order.AppendUint32(b, uint32(v))
		}
		return order.AppendUint64(b, v)
	}
	data := make([]byte, 8+48) // the header is not at its beginning
	head := len(data)
	data = append(data, goMagic...)
	if inline {
		data = append(data, size, goInline)
		data = append(data, make([]byte, head+goHeader-len(data))...)
		data = append(binary.AppendUvarint(data, 6), "go1.20"...)
		data = append(binary.AppendUvarint(data, uint64(len(text))), text...)
	} else {
		flags := byte(0)
		if b := order.AppendUint16(nil, 1); b[1] == 1 {
			flags = goBigEndian
		}
		data = append(data, size, flags)
		strings := uint64(head + goHeader)
		data = word(word(data, address+strings), address+strings+2*uint64(size))
		data = append(data, make([]byte, head+goHeader-len(data))...)
		texts := strings + 4*uint64(size)
		data = word(word(data, address+texts), 6)
		data = word(word(data, address+texts+6), uint64(len(text)))
		data = append(data, "go1.15"+text...)
	}
	elf := append([]byte("\x7fELF"), byte(bits/32), 1, 1)
	if b := order.AppendUint16(nil, 1); b[1] == 1 {
		elf[5] = 2
	}
	elf = append(elf, make([]byte, 9)...)
	elf = order.AppendUint32(order.AppendUint16(order.AppendUint16(elf, 2), 0), 1)
	header := 52
	if bits == 64 {
		header = 64
	}
	elf = word(word(word(elf, 0), uint64(header)), 0) // entry, program headers, section headers
	elf = order.AppendUint16(order.AppendUint32(elf, 0), uint16(header))
	elf = order.AppendUint16(elf, uint16(map[int]int{32: 32, 64: 56}[bits]))
	elf = order.AppendUint16(elf, 1)
	elf = append(elf, make([]byte, header-len(elf))...)
	elf = order.AppendUint32(elf, 1) // PT_LOAD
	const rw = 6
	if bits == 64 {
		elf = order.AppendUint32(elf, rw)
	}
	elf = word(word(word(elf, offset), address), address)
	elf = word(word(elf, uint64(len(data))), uint64(len(data)))
	if bits == 32 {
		elf = order.AppendUint32(elf, rw)
	}
	elf = word(elf, offset)
	return append(append(elf, make([]byte, offset-len(elf))...), data...)
}

func TestGoBuildInfoOfOtherMachines(t *testing.T) {
	for _, bits := range []int{32, 64} {
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			for _, inline := range []bool{true, false} {
				program := goProgram(bits, order, inline)
				want, err := buildinfo.Read(bytes.NewReader(program))
				if err != nil {
					t.Fatalf("%d bits, %v, inline %v: the test's program is none: %v", bits, order, inline, err)
				}
				got, err := goBuildInfo(bytes.NewReader(program))
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("%d bits, %v, inline %v: %v, %v", bits, order, inline, got, err)
				} else if len(got.Deps) != 1 || !strings.HasPrefix(got.GoVersion, "go1.") {
					t.Errorf("%d bits, %v, inline %v: %v", bits, order, inline, got)
				}
			}
		}
	}
}

func TestFind(t *testing.T) {
	for _, before := range []string{"", "0123456789abcdef", "x" + goMagic + "-", strings.Repeat("-", 64<<10), strings.Repeat("-", 64<<10-16), "misaligned"} {
		want := int64(len(before))
		if want%16 != 0 {
			want = -1
		}
		if at, err := find(strings.NewReader(before+goMagic+"after"), goMagic, 16); at != want || err != nil {
			t.Errorf("%d, %v; want %d", at, err, want)
		}
	}
}

// FuzzGoBuildInfo: whatever an image has for a program, it does not end mk, and is not read as another
// version than debug/buildinfo reads.
func FuzzGoBuildInfo(f *testing.F) {
	for _, bits := range []int{32, 64} {
		f.Add(goProgram(bits, binary.LittleEndian, true))
		f.Add(goProgram(bits, binary.BigEndian, false))
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		got, err := goBuildInfo(bytes.NewReader(program))
		if err == nil && got.GoVersion != "" && !bytes.Contains(program, []byte(got.GoVersion)) {
			t.Errorf("Go %q", got.GoVersion)
		}
	})
}
