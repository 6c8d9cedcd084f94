package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"mk/builder"
)

// live redraws a block at the end of the terminal, ten times a second:
//
//	[+] Building 3.2s (4/6)
//	 => [1/3] FROM debian                    0.0s
//	 => CACHED [2/3] COPY go.mod .           0.0s
//	 => [3/3] RUN go build                   2.1s
//	 => => # compiling mk/builder
type live struct {
	mu     sync.Mutex
	f      *os.File
	tracks tracks
	start  time.Time
	drawn  int // lines of the block on the screen
	stop   chan struct{}
	done   chan struct{}
	ending
}

const (
	redraw   = 100 * time.Millisecond
	logLines = 6 // of a step at work
)

func newLive(f *os.File) *live {
	l := &live{f: f, start: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	go l.loop()
	return l
}

func (l *live) loop() {
	defer close(l.done)
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.draw()
		case <-l.stop:
			l.draw()
			return
		}
	}
}

func (l *live) Close() {
	close(l.stop)
	<-l.done
	l.ending.print(l.f, l.tracks.order)
}

func (l *live) Event(e builder.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tracks.of(e.Vertex)
	switch e.Kind {
	case builder.Started:
		t.started = e.Time
	case builder.Logged:
		t.lines(e, func(line string) {
			t.log.add(fmt.Sprintf("%.3f %s", e.Time.Sub(t.started).Seconds(), line))
		})
	case builder.Progressed:
		t.status = e.Status
		if e.Total > 0 {
			t.status += " " + size(e.Done) + " / " + size(e.Total)
		}
	case builder.Cached:
		t.started, t.ended, t.cached = e.Time, e.Time, true
	case builder.Ended:
		t.ended, t.err = e.Time, e.Err
		t.rest(t.log.add)
	}
}

func (l *live) draw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	width, height, err := term.GetSize(int(l.f.Fd()))
	if err != nil || width < 20 {
		width, height = 80, 24
	}
	var lines []string
	ended := 0
	for _, t := range l.tracks.order {
		took := time.Since(t.started)
		mark := ""
		if !t.ended.IsZero() {
			ended++
			took = t.ended.Sub(t.started)
		}
		switch {
		case t.cached:
			mark = "CACHED "
		case t.err != nil && canceled(t.err):
			mark = "CANCELED "
		case t.err != nil:
			mark = "ERROR "
		}
		lines = append(lines, fit(" => "+mark+t.v.Name, fmt.Sprintf("%.1fs", took.Seconds()), width))
		if t.ended.IsZero() {
			if t.status != "" {
				lines = append(lines, fit(" => => "+t.status, "", width))
			}
			log := t.log.lines
			if len(log) > logLines {
				log = log[len(log)-logLines:]
			}
			for _, s := range log {
				_, text, _ := strings.Cut(s, " ")
				lines = append(lines, fit(" => => # "+printable(text), "", width))
			}
		}
	}
	if room := height - 2; len(lines) > room && room > 0 {
		lines = lines[len(lines)-room:]
	}
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", l.drawn)
	}
	b.WriteString("\r\x1b[J")
	fmt.Fprintf(&b, "[+] Building %.1fs (%d/%d)\n", time.Since(l.start).Seconds(), ended, len(l.tracks.order))
	for _, s := range lines {
		b.WriteString(s + "\n")
	}
	l.drawn = len(lines) + 1
	l.f.WriteString(b.String())
}

// fit cuts a line to the terminal's width and puts right at its end.
func fit(left, right string, width int) string {
	room := width - len(right) - 1
	r := []rune(left)
	if len(r) > room {
		r = r[:room]
	}
	return string(r) + strings.Repeat(" ", max(0, room-len(r))) + right
}

// printable drops what would move the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}
