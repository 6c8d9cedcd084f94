package main

import (
	"os"
	"sync"
	"sync/atomic"
)

// stdout is where commands print. What it cannot write is an error of the command even where
// nobody looks: it keeps the first one, and execute ends mk with it. Only what hands the
// descriptor itself on, or asks whether it is a terminal, names os.Stdout; a test enforces that.
//
// A reader who has left (mk ps | head) ends mk by SIGPIPE without a word, as it ends cat.
var stdout printer

type printer struct {
	mu  sync.Mutex
	err atomic.Pointer[error] // the first; nothing is written after it
}

func (p *printer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.lost(); err != nil {
		return 0, err
	}
	n, err := os.Stdout.Write(b)
	if err != nil {
		p.err.Store(&err)
	}
	return n, err
}

// lost is the error of the first write that failed. It does not wait for one that the reader keeps waiting, which
// nobody may be interested in any more.
func (p *printer) lost() error {
	if err := p.err.Load(); err != nil {
		return *err
	}
	return nil
}
