package sbom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// database reads tables of an SQLite 3 file from first to last row, which is all that
// rpm's needs: no indexes, no log, no query. The numbers in the comments are sections
// of https://www.sqlite.org/fileformat2.html.
type database struct {
	r      io.ReaderAt
	page   int64 // bytes
	usable int64 // of each page
	budget int64 // bytes that may still be read: a file cannot make this go round for ever
	seen   int   // rows
}

var errDatabase = errors.New("damaged SQLite database")

const (
	maxRows = 1 << 20
	maxRow  = 64 << 20 // bytes
)

func openDatabase(r io.ReaderAt) (*database, error) {
	head := make([]byte, 100) // 1.3
	if _, err := r.ReadAt(head, 0); err != nil || string(head[:16]) != "SQLite format 3\x00" {
		return nil, errDatabase
	}
	d := &database{r: r, page: int64(binary.BigEndian.Uint16(head[16:])), budget: maxDatabase}
	if d.page == 1 {
		d.page = 1 << 16
	}
	d.usable = d.page - int64(head[20])
	if d.page < 512 || d.usable < 480 {
		return nil, errDatabase
	}
	return d, nil
}

// rows calls f for every row of a table. Values are nil, int64, []byte or string; one
// that is the row's number is nil.
func (d *database) rows(table string, f func(row []any) error) error {
	root := int64(0)
	err := d.walk(1, 0, func(row []any) error { // 2.6: the schema
		if len(row) < 4 {
			return errDatabase
		}
		if row[0] == "table" && row[1] == table {
			root, _ = row[3].(int64)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if root == 0 {
		return fmt.Errorf("no table %s", table)
	}
	return d.walk(root, 0, f)
}

func (d *database) read(page int64) ([]byte, error) {
	if d.budget -= d.page; page < 1 || d.budget < 0 {
		return nil, errDatabase
	}
	b := make([]byte, d.page)
	if _, err := d.r.ReadAt(b, (page-1)*d.page); err != nil {
		return nil, errDatabase
	}
	return b, nil
}

// walk visits a table's tree of pages, left to right (1.6).
func (d *database) walk(page int64, depth int, f func(row []any) error) error {
	b, err := d.read(page)
	if err != nil {
		return err
	}
	if depth > 32 {
		return errDatabase
	}
	at := 0
	if page == 1 {
		at = 100
	}
	kind, cells := b[at], int(binary.BigEndian.Uint16(b[at+3:]))
	pointers := at + 8
	if kind == 5 {
		pointers = at + 12
	}
	if kind != 5 && kind != 13 || pointers+2*cells > len(b) {
		return errDatabase
	}
	for i := range cells {
		cell := int(binary.BigEndian.Uint16(b[pointers+2*i:]))
		if cell+4 > len(b) {
			return errDatabase
		}
		if kind == 5 {
			err = d.walk(int64(binary.BigEndian.Uint32(b[cell:])), depth+1, f)
		} else {
			err = d.leaf(b, cell, f)
		}
		if err != nil {
			return err
		}
	}
	if kind == 5 {
		return d.walk(int64(binary.BigEndian.Uint32(b[at+8:])), depth+1, f)
	}
	return nil
}

// leaf reads one row, which may go on in other pages (1.6, 1.7).
func (d *database) leaf(b []byte, cell int, f func(row []any) error) error {
	size, n := varint(b[cell:])
	_, m := varint(b[cell+n:])
	start := int64(cell + n + m)
	if n == 0 || m == 0 || size < 0 || size > maxRow {
		return errDatabase
	}
	local := size
	if most := d.usable - 35; size > most {
		least := (d.usable-12)*32/255 - 23
		if local = least + (size-least)%(d.usable-4); local > most {
			local = least
		}
	}
	if start+local > d.usable {
		return errDatabase
	}
	row := append(make([]byte, 0, size), b[start:start+local]...)
	if local < size {
		if start+local+4 > d.page {
			return errDatabase
		}
		for next := int64(binary.BigEndian.Uint32(b[start+local:])); int64(len(row)) < size; {
			more, err := d.read(next)
			if err != nil {
				return err
			}
			row = append(row, more[4:4+min(d.usable-4, size-int64(len(row)))]...)
			next = int64(binary.BigEndian.Uint32(more))
		}
	}
	if d.seen++; d.seen > maxRows {
		return fmt.Errorf("more than %d rows", maxRows)
	}
	values, err := record(row)
	if err != nil {
		return err
	}
	return f(values)
}

// record splits a row into its values (2.1).
func record(b []byte) ([]any, error) {
	head, n := varint(b)
	if n == 0 || head < int64(n) || head > int64(len(b)) {
		return nil, errDatabase
	}
	kinds, body := b[n:head], b[head:]
	var values []any
	for len(kinds) > 0 {
		kind, n := varint(kinds)
		if n == 0 {
			return nil, errDatabase
		}
		kinds = kinds[n:]
		size := int64(0)
		switch {
		case kind >= 12:
			size = (kind - 12) / 2
		case kind >= 1 && kind <= 7:
			size = []int64{1, 2, 3, 4, 6, 8, 8}[kind-1]
		}
		if kind < 0 || size > int64(len(body)) {
			return nil, errDatabase
		}
		raw := body[:size]
		body = body[size:]
		switch {
		case kind >= 12 && kind%2 == 0:
			values = append(values, raw)
		case kind >= 12:
			values = append(values, string(raw))
		case kind >= 1 && kind <= 6:
			v := int64(int8(raw[0])) // two's complement, the first byte has the sign
			for _, c := range raw[1:] {
				v = v<<8 | int64(c)
			}
			values = append(values, v)
		case kind == 8 || kind == 9:
			values = append(values, kind-8)
		default: // null, and numbers that rpm has none of
			values = append(values, nil)
		}
	}
	return values, nil
}

// varint reads a number of one to nine bytes, 7 bits each and 8 in the ninth; n is 0
// where b ends too soon.
func varint(b []byte) (v int64, n int) {
	for i := range min(9, len(b)) {
		if i == 8 {
			return v<<8 | int64(b[i]), 9
		}
		v = v<<7 | int64(b[i]&0x7f)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
