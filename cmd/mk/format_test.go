package main

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"mk/container"
)

// Every type with methods that --format may come by is one whose methods someone has thought of: they are in
// template.method.
func TestTemplateMethods(t *testing.T) {
	seen := map[reflect.Type]bool{}
	types := map[string]bool{}
	var visit func(reflect.Type)
	visit = func(typ reflect.Type) {
		if seen[typ] {
			return
		}
		seen[typ] = true
		if typ.NumMethod() > 0 && typ.Kind() != reflect.Pointer && typ.Kind() != reflect.Interface {
			types[typ.String()] = true
		}
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array:
			visit(typ.Elem())
		case reflect.Map:
			visit(typ.Key())
			visit(typ.Elem())
		case reflect.Struct:
			for f := range typ.Fields() {
				if f.IsExported() || f.Anonymous {
					visit(f.Type)
				}
			}
		}
	}
	for _, v := range []any{
		imageLine{}, cacheLine{}, historyLine{}, referrerLine{}, containerLine{}, statsLine{}, container.Event{},
		containerDocument{}, imageDocument{}, v1.History{}, volumeDocument{}, networkRecord{}, infoDocument{}, versionDocument{},
	} {
		visit(reflect.TypeOf(v))
	}
	for _, known := range []string{"time.Time", "time.Duration", "digest.Digest", "digest.Algorithm", "main.containerLine" /* Label */} {
		delete(types, known)
	}
	if len(types) > 0 {
		t.Errorf("templates cannot call the methods of %v", slices.Sorted(maps.Keys(types)))
	}
}
