package main

import "testing"

func TestDetachKeys(t *testing.T) {
	for _, test := range []struct {
		keys   string
		typed  []string // read by read
		passed string
		left   bool
	}{
		{"ctrl-p,ctrl-q", []string{"ls\n\x10\x11more"}, "ls\n", true},
		{"ctrl-p,ctrl-q", []string{"a\x10", "\x11"}, "a", true},
		{"ctrl-p,ctrl-q", []string{"\x10", "x"}, "\x10x", false},
		{"ctrl-p,ctrl-q", []string{"\x10\x10\x11"}, "\x10", true},
		{"ctrl-p,ctrl-q", []string{"\x11"}, "\x11", false},
		{"a,b", []string{"aab"}, "a", true},
		{"ctrl-@,q", []string{"\x00q"}, "", true},
		{"", []string{"\x10\x11"}, "\x10\x11", false},
	} {
		want, err := parseDetachKeys(test.keys)
		if err != nil {
			t.Errorf("%s: %v", test.keys, err)
			continue
		}
		k := keySequence{want: want}
		passed, left := "", false
		for _, typed := range test.typed {
			var p []byte
			p, left = k.filter([]byte(typed))
			passed += string(p)
		}
		if passed != test.passed || left != test.left {
			t.Errorf("%s, typed %q: passed %q, left %v; want %q, %v", test.keys, test.typed, passed, left, test.passed, test.left)
		}
	}
	for _, wrong := range []string{"ctrl-", "ctrl-1", "ab", "ctrl-p,", ","} {
		if keys, err := parseDetachKeys(wrong); err == nil {
			t.Errorf("%q: %q", wrong, keys)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{"9": 9, "KILL": 9, "SIGTERM": 15, "term": 15, "RTMIN+3": 37, "SIGRTMAX-1": 63} {
		if got, err := parseSignal(text); err != nil || int(got) != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, wrong := range []string{"", "0", "65", "-1", "SIGNOPE", "RTMIN+31"} {
		if got, err := parseSignal(wrong); err == nil {
			t.Errorf("%q: %d", wrong, got)
		}
	}
}
