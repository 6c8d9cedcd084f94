package builder

import (
	"bytes"
	"io"
	"slices"
	"sort"
)

// secretMask replaces secrets in what a step writes by ****. It looks for each
// line of each secret, without the space around it, as long as it has minMasked
// bytes: shorter ones are in every output by chance.
//
// It is no wall. A step that encodes a secret, or writes it in two halves, shows
// it: the mask is against accidents, such as set -x.
type secretMask struct {
	words  [][]byte // longest first
	starts [256]bool
}

const minMasked = 4

const masked = "****"

func (m *secretMask) add(secret []byte) {
	for line := range bytes.Lines(secret) {
		line = bytes.TrimSpace(line)
		if len(line) < minMasked || slices.ContainsFunc(m.words, func(w []byte) bool { return bytes.Equal(w, line) }) {
			continue
		}
		m.words = append(m.words, bytes.Clone(line))
		m.starts[line[0]] = true
	}
	sort.SliceStable(m.words, func(i, j int) bool { return len(m.words[i]) > len(m.words[j]) })
}

// writer masks what is written to w. It holds back the beginning of what may
// become a secret; Close writes the rest.
func (m *secretMask) writer(w io.Writer) io.WriteCloser {
	return &maskWriter{mask: m, to: w}
}

type maskWriter struct {
	mask *secretMask
	to   io.Writer
	held []byte
}

func (w *maskWriter) Write(p []byte) (int, error) {
	if len(w.mask.words) == 0 {
		return w.to.Write(p)
	}
	out, rest := w.mask.apply(append(w.held, p...), false)
	w.held = bytes.Clone(rest)
	if len(out) > 0 {
		if _, err := w.to.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (w *maskWriter) Close() error {
	out, _ := w.mask.apply(w.held, true)
	w.held = nil
	if len(out) == 0 {
		return nil
	}
	_, err := w.to.Write(out)
	return err
}

// apply masks text. rest is its end that is the beginning of a secret, empty when
// nothing more comes.
func (m *secretMask) apply(text []byte, last bool) (out, rest []byte) {
	for i := 0; i < len(text); {
		if !m.starts[text[i]] {
			out = append(out, text[i])
			i++
			continue
		}
		match := 0
		for _, word := range m.words {
			if bytes.HasPrefix(text[i:], word) {
				match = len(word)
				break
			}
			if !last && len(word) > len(text)-i && bytes.HasPrefix(word, text[i:]) {
				return out, text[i:] // the longest that it may become comes first
			}
		}
		if match > 0 {
			out = append(out, masked...)
			i += match
			continue
		}
		out = append(out, text[i])
		i++
	}
	return out, nil
}
