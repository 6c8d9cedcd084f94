package main

import (
	"os"
	"testing"

	"mk/builder"
)

func TestParseSecret(t *testing.T) {
	t.Setenv("VAR", "x")
	os.Unsetenv("UNSET")
	for word, want := range map[string]struct {
		id string
		builder.Secret
		err string
	}{
		"id=a,src=f":            {"a", builder.Secret{File: "f"}, ""},
		"ID=a,source=f":         {"a", builder.Secret{File: "f"}, ""},
		`"id=a","src=f,g"`:      {"a", builder.Secret{File: "f,g"}, ""},
		"id=a,src=k=v":          {"a", builder.Secret{File: "k=v"}, ""},
		"id=a,env=VAR":          {"a", builder.Secret{Env: "VAR"}, ""},
		"id=a,env=UNSET":        {"a", builder.Secret{Env: "UNSET"}, ""},
		"id=VAR":                {"VAR", builder.Secret{Env: "VAR"}, ""},
		"id=VAR,type=file":      {"VAR", builder.Secret{File: "VAR"}, ""},
		"id=UNSET":              {"UNSET", builder.Secret{File: "UNSET"}, ""},
		"id=UNSET,type=env":     {"UNSET", builder.Secret{Env: "UNSET"}, ""},
		"type=env,id=a,src=VAR": {"a", builder.Secret{Env: "VAR"}, ""},
		"id=a,src=f,env=VAR":    {"a", builder.Secret{Env: "VAR"}, ""},
		"src=f":                 {"", builder.Secret{}, "secret missing ID"},
		"id=a,type=x":           {"", builder.Secret{}, `unsupported secret type "x"`},
		"id=a,x=y":              {"", builder.Secret{}, "unexpected key 'x' in 'x=y'"},
		"id":                    {"", builder.Secret{}, "invalid field 'id' must be a key=value pair"},
		"":                      {"", builder.Secret{}, "failed to parse csv secret: EOF"},
	} {
		id, s, err := parseSecret(word)
		if want.err != "" {
			if err == nil || err.Error() != want.err {
				t.Errorf("%s: %v, want %s", word, err, want.err)
			}
			continue
		}
		if err != nil || id != want.id || s != want.Secret {
			t.Errorf("%s: %s %+v: %v", word, id, s, err)
		}
	}
}

func TestParseUlimit(t *testing.T) {
	for word, want := range map[string][3]uint64{
		"nofile=1062:1062": {7, 1062, 1062}, "core=0": {4, 0, 0}, "stack=-1": {3, 1<<64 - 1, 1<<64 - 1}, "nproc=5:-1": {6, 5, 1<<64 - 1},
	} {
		l, err := parseUlimit(word)
		if got := [3]uint64{uint64(l.Resource), l.Soft, l.Hard}; err != nil || got != want {
			t.Errorf("%s: %v, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "nofile", "nofile=", "nofile=a", "x=1", "nofile=2:1", "nofile=1:2:3", "nofile=-1:5"} {
		if l, err := parseUlimit(word); err == nil {
			t.Errorf("%s is %+v", word, l)
		}
	}
}
