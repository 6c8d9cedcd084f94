package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// filter is what several --filter KEY=value say together: values of one key are alternatives, keys
// are not.
type filter[T any] map[string][]func(T) bool

func (f filter[T]) add(key string, test func(T) bool) { f[key] = append(f[key], test) }

func (f filter[T]) keeps(v T) bool {
	for _, tests := range f {
		if !slices.ContainsFunc(tests, func(test func(T) bool) bool { return test(v) }) {
			return false
		}
	}
	return true
}

// hasLabel tests labels by a filter's KEY or KEY=value.
func hasLabel(labels map[string]string, key, value string, anyValue bool) bool {
	have, ok := labels[key]
	return ok && (anyValue || have == value)
}

// filterOf reads --filter of a verb that knows these keys, each a test by a value.
func filterOf[T any](words []string, keys map[string]func(T, string) bool) (filter[T], error) {
	all := filter[T]{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		test := keys[key]
		if !ok || test == nil {
			return nil, fmt.Errorf("--filter %s: want %s=…", word, strings.Join(slices.Sorted(maps.Keys(keys)), "=…, "))
		}
		name := key
		if key == "label" || key == "label!" {
			name += value // each label is a key of its own
		}
		all.add(name, func(v T) bool { return test(v, value) })
	}
	return all, nil
}

// labelled tests labels by the value of a filter, KEY or KEY=value.
func labelled(labels map[string]string, value string) bool {
	k, want, has := strings.Cut(value, "=")
	return hasLabel(labels, k, want, !has)
}

// pruneFilter reads --filter of a prune: label=, label!= and until=, of things that have labels and a time.
func pruneFilter[T any](filters []string, labels func(T) map[string]string, made func(T) time.Time) (filter[T], error) {
	until, err := untilOf(filters)
	if err != nil {
		return nil, err
	}
	keys := map[string]func(T, string) bool{
		"label":  func(v T, value string) bool { return labelled(labels(v), value) },
		"label!": func(v T, value string) bool { return !labelled(labels(v), value) },
	}
	if made != nil {
		keys["until"] = func(v T, _ string) bool { return made(v).Before(until) }
	}
	return filterOf(filters, keys)
}

// untilOf reads the until=TIME or until=DURATION among filters: the earliest, or the zero time. unused-for is
// buildx's other word.
func untilOf(filters []string) (until time.Time, err error) {
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		if key != "until" && key != "unused-for" {
			continue
		}
		t, err := parseTime(value)
		if err != nil || t.IsZero() {
			return until, fmt.Errorf("--filter %s: want a time, or how long ago, as until=24h", f)
		}
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	return until, nil
}
