package main

import (
	"os"
	"sync"
)

// stdout is where commands print. What it cannot write is an error of the command even where
// nobody looks: it keeps the first one, and execute ends mk with it. Only what hands the
// descriptor itself on, or asks whether it is a terminal, names os.Stdout; a test enforces that.
//
// A reader who has left (mk ps | head) ends mk by SIGPIPE without a word, as it ends cat.
var stdout printer

type printer struct {
	mu  sync.Mutex
	err error // the first; nothing is written after it
}

func (p *printer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	n, err := os.Stdout.Write(b)
	p.err = err
	return n, err
}

// lost is the error of the first write that failed.
func (p *printer) lost() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
