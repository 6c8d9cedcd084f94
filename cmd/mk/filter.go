package main

import "slices"

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
