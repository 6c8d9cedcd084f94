package builder

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"
)

func maskedBy(t *testing.T, secrets []string, text string, at func(int) int) string {
	t.Helper()
	var mask secretMask
	for _, s := range secrets {
		mask.add([]byte(s))
	}
	var out bytes.Buffer
	w := mask.writer(&out)
	for i := 0; len(text) > 0; i++ {
		n := min(max(at(i), 1), len(text))
		if _, err := w.Write([]byte(text[:n])); err != nil {
			t.Fatal(err)
		}
		text = text[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestSecretMask(t *testing.T) {
	for _, c := range []struct {
		secrets    []string
		text, want string
	}{
		{nil, "hunter22", "hunter22"},
		{[]string{"hunter22"}, "a hunter22 b hunter2", "a **** b hunter2"},
		{[]string{" hunter22\r\n"}, "xhunter22x", "x****x"},
		{[]string{"abc"}, "abc", "abc"}, // too short to mean anything
		{[]string{"one-line\ntwo-line\n\n}\n"}, "one-line\ntwo-line\n}", "****\n****\n}"},
		{[]string{"abcd", "abcdef"}, "abcde abcdef abcd", "****e **** ****"},
		{[]string{"abcd", "cdef"}, "abcdef", "****ef"},
		{[]string{"aaaab"}, "aaaaaaab aaaa", "aaa**** aaaa"},
		{[]string{"hunter22"}, "hunter22hunter22", "********"},
		{[]string{"\x00\xff\x00\xff"}, "a\x00\xff\x00\xffb", "a****b"},
	} {
		for size := 1; size < len(c.text)+2; size++ {
			if got := maskedBy(t, c.secrets, c.text, func(int) int { return size }); got != c.want {
				t.Errorf("%q by %d in %q: %q, want %q", c.text, size, c.secrets, got, c.want)
			}
		}
	}
}

// What cannot become a secret is passed on at once.
func TestSecretMaskIsLive(t *testing.T) {
	var mask secretMask
	mask.add([]byte("hunter22"))
	var out bytes.Buffer
	w := mask.writer(&out)
	w.Write([]byte("line\nprompt: hu"))
	if got := out.String(); got != "line\nprompt: " {
		t.Errorf("%q", got)
	}
	w.Write([]byte("h?"))
	if got := out.String(); got != "line\nprompt: huh?" {
		t.Errorf("%q", got)
	}
	if _, err := mask.writer(iotest.TruncateWriter(&out, 0)).Write([]byte("x")); err != nil {
		t.Error(err)
	}
}

// However the text is cut, no secret comes through, and the result is the same.
func FuzzSecretMask(f *testing.F) {
	f.Add("hunter22", "hunter", "a hunter22b", []byte{1, 2, 3})
	f.Add("aaaa", "aaaab", "aaaaaaaabaaaa", []byte{2})
	f.Fuzz(func(t *testing.T, a, b, text string, cuts []byte) {
		secrets := []string{a, b}
		whole := maskedBy(t, secrets, text, func(int) int { return len(text) })
		cut := maskedBy(t, secrets, text, func(i int) int {
			if len(cuts) == 0 {
				return 1
			}
			return int(cuts[i%len(cuts)])
		})
		if whole != cut {
			t.Errorf("%q by pieces: %q, in one: %q", text, cut, whole)
		}
		for _, s := range secrets {
			// Where two secrets overlap, or ****s join with what is around them,
			// what is left may look like one.
			if s = strings.TrimSpace(s); len(s) >= minMasked && !strings.ContainsAny(s, "*\n\r") && !overlap(a, b) && strings.Contains(whole, s) {
				t.Errorf("%q is in %q", s, whole)
			}
		}
	})
}

func overlap(a, b string) bool {
	for _, s := range []string{a, b} {
		for i := range s {
			if strings.Contains(a, s[i:]) && strings.Contains(b, s[i:]) {
				return true
			}
		}
	}
	return false
}
