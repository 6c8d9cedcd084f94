package userns

import (
	"errors"
	"reflect"
	"testing"
)

func TestMapLinesUpRangesAndDropsDoubles(t *testing.T) {
	in := []Range{{0, 300000, 10}, {0, 100000, 65536}, {0, 100000, 65536}, {0, 150000, 5}, {0, 900, 200}}
	got := mapFrom(1000, tidy(in, 1000)) // 900…1099 holds the caller itself
	want := []Range{{0, 1000, 1}, {1, 100000, 65536}, {65537, 300000, 10}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if s := formatMap(want[:2]); s != "0 1000 1\n1 100000 65536\n" {
		t.Errorf("formatted: %q", s)
	}
}

func TestParseGetsubids(t *testing.T) {
	got := parseGetsubids("0: foo 100000 65536\n1: foo 4294967295 7\nnonsense\n2: foo x y\n3: foo 7 0\n")
	if want := []Range{{0, 100000, 65536}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOrderOfTrials(t *testing.T) {
	all := []Range{{0, 0, 1<<32 - 1}}
	ranges := func() (u, g []Range, err error) { return []Range{{0, 100000, 65536}}, []Range{{0, 100000, 65536}}, nil }
	none := func() (u, g []Range, err error) { return nil, nil, errNoRange }
	ok := func() error { return nil }
	for _, c := range []struct {
		name string
		id   identity
		want []Mode
	}{
		{"user with a range", identity{uid: 1000, uids: all, subids: ranges, helpers: ok}, []Mode{Subid, Single}},
		{"user without", identity{uid: 1000, uids: all, subids: none, helpers: ok}, []Mode{Single}},
		{"user whose newuidmap is powerless", identity{uid: 1000, uids: all, subids: ranges,
			helpers: func() error { return errNoNewPrivs }}, []Mode{Single}},
		{"root", identity{admin: true, uids: all, subids: none, helpers: ok}, []Mode{Root, Root, Single}},
		{"root of a docker container", identity{uids: all, subids: none, helpers: ok}, []Mode{Root, Single}},
		{"root inside of mode single", identity{admin: true, uids: []Range{{0, 1000, 1}}, subids: none, helpers: ok}, []Mode{Single}},
	} {
		list, whyNot := trials(c.id)
		var got []Mode
		for _, t := range list {
			got = append(got, t.Mode)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for _, mode := range []Mode{Root, Subid} {
			if (whyNot[mode] == nil) != (len(only(mode, list)) > 0) {
				t.Errorf("%s: mode %s: reason %v", c.name, mode, whyNot[mode])
			}
		}
	}
}

func TestChooseRefusesUnknownModes(t *testing.T) {
	if _, err := Choose("docker"); err == nil {
		t.Error("mode docker was taken")
	}
	if _, err := Choose("single"); err != nil {
		t.Error(err)
	}
	if _, err := Choose("root"); err != nil && errors.Unwrap(err) == nil {
		t.Errorf("no reason: %v", err)
	}
}

func TestStageOf(t *testing.T) {
	for argv0, want := range map[string]Stage{
		"mk": StageHost, "/usr/bin/mk": StageHost, "mk:inside": StageInside, "mk:init": StageInit,
		"mk:init web": StageInit, "mk:insider": StageHost, "": StageHost,
	} {
		if got := StageOf(argv0); got != want {
			t.Errorf("StageOf(%q) = %v, want %v", argv0, got, want)
		}
	}
}
