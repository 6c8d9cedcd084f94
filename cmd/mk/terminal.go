package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"mk/container"
)

var errNotTerminal = errors.New("the input device is not a TTY")

// terminalSize is the size of mk's terminal, 80 by 24 where it has none.
func terminalSize() container.Size {
	for _, f := range []*os.File{os.Stdin, os.Stdout} {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return container.Size{Rows: uint16(h), Cols: uint16(w)}
		}
	}
	return container.Size{Rows: 24, Cols: 80}
}

// drain waits for the last output of a terminal whose command has ended; one that it left behind
// may hold it open, and is not waited for.
func drain(out *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		out.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

// defaultDetachKeys are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads --detach-keys: characters and ctrl-X, separated by commas; "" is none.
func parseDetachKeys(text string) ([]byte, error) {
	var keys []byte
	for _, k := range strings.Split(text, ",") {
		switch c, ctrl := strings.CutPrefix(k, "ctrl-"); {
		case text == "":
		case !ctrl && len(k) == 1:
			keys = append(keys, k[0])
		case ctrl && len(c) == 1 && (c[0] >= 'a' && c[0] <= 'z' || strings.ContainsRune(`@[\]^_`, rune(c[0]))):
			keys = append(keys, c[0]&0x1f)
		default:
			return nil, fmt.Errorf("--detach-keys %s: want characters and ctrl-X, separated by commas", text)
		}
	}
	return keys, nil
}

// keySequence finds a sequence of keys in what is typed.
type keySequence struct {
	want []byte
	have int // how many of them were the last ones typed
}

// filter returns what of a piece is to be passed on, and whether the sequence is complete. A
// beginning of it is held back until the next key says that it is none.
func (k *keySequence) filter(piece []byte) (pass []byte, complete bool) {
	if len(k.want) == 0 {
		return piece, false
	}
	var out bytes.Buffer
	for _, b := range piece {
		if b != k.want[k.have] {
			out.Write(k.want[:k.have])
			k.have = 0
		}
		if b == k.want[k.have] {
			if k.have++; k.have == len(k.want) {
				return out.Bytes(), true
			}
			continue
		}
		out.WriteByte(b)
	}
	return out.Bytes(), false
}
