package container

import (
	"bytes"
	"encoding/json"
	"os"
	"sync"
	"time"
)

// LogLine is one line of a container's log, in docker's json-file form. A line longer than
// maxLogLine is cut into several, all but the last without the newline.
type LogLine struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"` // stdout or stderr; a terminal has only stdout
	Time   time.Time `json:"time"`
}

// maxLogLine is docker's.
const maxLogLine = 16 << 10

// logWriter turns what a container writes into lines of its log.
type logWriter struct {
	mu   sync.Mutex
	f    *os.File
	rest map[string][]byte // of each stream, what has no newline yet
}

func newLogWriter(path string) (*logWriter, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &logWriter{f: f, rest: map[string][]byte{}}, nil
}

// write adds a piece; whole lines go to the file in one write.
func (l *logWriter) write(stream string, piece []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UTC()
	text := piece
	if len(l.rest[stream]) > 0 {
		text = append(l.rest[stream], piece...)
		l.rest[stream] = nil
	}
	var out bytes.Buffer
	for len(text) > 0 {
		n := bytes.IndexByte(text[:min(len(text), maxLogLine)], '\n') + 1
		if n == 0 && len(text) >= maxLogLine {
			n = maxLogLine
		}
		if n == 0 {
			l.rest[stream] = append(l.rest[stream][:0], text...)
			break
		}
		encode(&out, LogLine{string(text[:n]), stream, now})
		text = text[n:]
	}
	_, err := l.f.Write(out.Bytes())
	return err
}

// flush writes the beginnings of lines that never ended.
func (l *logWriter) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out bytes.Buffer
	for stream, text := range l.rest {
		if len(text) > 0 {
			encode(&out, LogLine{string(text), stream, time.Now().UTC()})
		}
		delete(l.rest, stream)
	}
	l.f.Write(out.Bytes())
}

func encode(out *bytes.Buffer, line LogLine) {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.Encode(line) // into memory: it cannot fail
}
