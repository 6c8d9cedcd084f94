package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"text/template"
)

// funcs are text/template's functions, which it does not export one by one, and those that
// docker and podman add.
var funcs = map[string]any{
	"and": truth, "or": truth, // their names; it is execution.logic that does not evaluate what it need not
	"not":      func(v any) bool { return !truth(v) },
	"eq":       equalToAny,
	"ne":       func(a, b any) (bool, error) { eq, err := equal(a, b); return !eq && err == nil, err },
	"lt":       less,
	"le":       lessOrEqual,
	"gt":       func(a, b any) (bool, error) { le, err := lessOrEqual(a, b); return !le && err == nil, err },
	"ge":       func(a, b any) (bool, error) { lt, err := less(a, b); return !lt && err == nil, err },
	"len":      length,
	"index":    index,
	"slice":    slice,
	"print":    fmt.Sprint,
	"printf":   fmt.Sprintf,
	"println":  fmt.Sprintln,
	"html":     template.HTMLEscaper,
	"js":       template.JSEscaper,
	"urlquery": template.URLQueryEscaper,

	"json":     toJSON,
	"join":     strings.Join,
	"split":    strings.Split,
	"lower":    strings.ToLower,
	"upper":    strings.ToUpper,
	"title":    strings.Title, // deprecated for languages that it does not know; docker's is this one
	"pad":      pad,
	"truncate": truncate,
}

// ofText are functions of a text, that comes first, for which a heading is left as it is.
var ofText = []string{"len", "index", "slice", "json", "join", "split", "lower", "upper", "title", "truncate"}

func leave(heading any, _ ...any) any { return heading }

var errNotComparable = errors.New("invalid type for comparison")

func equalToAny(a any, list ...any) (bool, error) {
	if len(list) == 0 {
		return false, errors.New("missing argument for comparison")
	}
	for _, b := range list {
		if eq, err := equal(a, b); eq || err != nil {
			return eq, err
		}
	}
	return false, nil
}

// equal compares values of one kind, numbers of one sort or the other, and anything with nil.
func equal(a, b any) (bool, error) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	switch {
	case isNil(x) || isNil(y):
		return isNil(x) && isNil(y), nil
	case x.CanInt() && y.CanInt():
		return x.Int() == y.Int(), nil
	case x.CanUint() && y.CanUint():
		return x.Uint() == y.Uint(), nil
	case x.CanInt() && y.CanUint():
		return x.Int() >= 0 && uint64(x.Int()) == y.Uint(), nil
	case x.CanUint() && y.CanInt():
		return equal(b, a)
	case x.Kind() == reflect.String && y.Kind() == reflect.String:
		return x.String() == y.String(), nil
	case x.CanFloat() && y.CanFloat():
		return x.Float() == y.Float(), nil
	case x.Kind() != y.Kind():
		return false, fmt.Errorf("incompatible types for comparison: %T and %T", a, b)
	case !x.Comparable() || !y.Comparable():
		return false, fmt.Errorf("non-comparable type %T", a)
	}
	return a == b, nil
}

func isNil(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Map, reflect.Pointer, reflect.Slice, reflect.Func, reflect.Chan:
		return v.IsNil()
	}
	return false
}

// less compares what has an order: strings, and numbers of one sort or the other.
func less(a, b any) (bool, error) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	switch {
	case x.CanInt() && y.CanInt():
		return x.Int() < y.Int(), nil
	case x.CanUint() && y.CanUint():
		return x.Uint() < y.Uint(), nil
	case x.CanInt() && y.CanUint():
		return x.Int() < 0 || uint64(x.Int()) < y.Uint(), nil
	case x.CanUint() && y.CanInt():
		return y.Int() >= 0 && x.Uint() < uint64(y.Int()), nil
	case x.CanFloat() && y.CanFloat():
		return x.Float() < y.Float(), nil
	case x.Kind() == reflect.String && y.Kind() == reflect.String:
		return x.String() < y.String(), nil
	}
	return false, fmt.Errorf("%w: %T and %T", errNotComparable, a, b)
}

func lessOrEqual(a, b any) (bool, error) {
	if lt, err := less(a, b); lt || err != nil {
		return lt, err
	}
	return equal(a, b)
}

func length(v any) (int, error) {
	switch r := reflect.ValueOf(indirect(v)); r.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return r.Len(), nil
	}
	return 0, fmt.Errorf("len of type %T", v)
}

// index is v[i][j]…; a map has the zero of its values for what it does not have.
func index(v any, indexes ...any) (any, error) {
	if v == nil {
		return nil, errors.New("index of untyped nil")
	}
	for _, i := range indexes {
		r := reflect.ValueOf(indirect(v))
		switch r.Kind() {
		case reflect.Array, reflect.Slice, reflect.String:
			at, err := position(i, r.Len()-1)
			if err != nil {
				return nil, err
			}
			v = r.Index(at).Interface()
		case reflect.Map:
			key, err := argument(i, r.Type().Key())
			if err != nil {
				return nil, err
			}
			if e := r.MapIndex(key); e.IsValid() {
				v = e.Interface()
			} else {
				v = reflect.Zero(r.Type().Elem()).Interface()
			}
		default:
			return nil, fmt.Errorf("can't index item of type %T", v)
		}
	}
	return v, nil
}

// slice is v[i:j:k], of which each may be left out.
func slice(v any, indexes ...any) (any, error) {
	r := reflect.ValueOf(indirect(v))
	var end int
	switch {
	case r.Kind() == reflect.String && len(indexes) < 3:
		end = r.Len()
	case r.Kind() == reflect.Slice && len(indexes) < 4:
		end = r.Cap()
	default:
		return nil, fmt.Errorf("can't slice item of type %T by %d indexes", v, len(indexes))
	}
	at := []int{0, r.Len(), end}
	for n, i := range indexes {
		var err error
		if at[n], err = position(i, end); err != nil {
			return nil, err
		}
	}
	if at[0] > at[1] || at[1] > at[2] {
		return nil, fmt.Errorf("invalid slice index: %v", at[:max(2, len(indexes))])
	}
	if r.Kind() == reflect.String {
		return r.Slice(at[0], at[1]).Interface(), nil
	}
	return r.Slice3(at[0], at[1], at[2]).Interface(), nil
}

// position is an index, of at most last.
func position(i any, last int) (int, error) {
	r := reflect.ValueOf(i)
	switch {
	case r.CanInt() && r.Int() >= 0 && r.Int() <= int64(last):
		return int(r.Int()), nil
	case r.CanUint() && last >= 0 && r.Uint() <= uint64(last):
		return int(r.Uint()), nil
	case r.CanInt(), r.CanUint():
		return 0, fmt.Errorf("index out of range: %d", i)
	}
	return 0, fmt.Errorf("cannot index slice/array with type %T", i)
}

// toJSON prints < > & as they are, as docker and podman do.
func toJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// pad puts spaces before and behind what is not empty.
func pad(s string, before, behind int) (string, error) {
	if before < 0 || behind < 0 {
		return "", fmt.Errorf("pad by %d and %d", before, behind)
	}
	if s == "" {
		return "", nil
	}
	return strings.Repeat(" ", before) + s + strings.Repeat(" ", behind), nil
}

// truncate leaves the first n bytes.
func truncate(s string, n int) (string, error) {
	if n < 0 {
		return "", fmt.Errorf("truncate to %d", n)
	}
	return s[:min(n, len(s))], nil
}
