// Package template carries out Go templates, which are what --format takes.
//
// The language is text/template's, read by its own parser and carried out here. text/template itself calls any
// method by a name that it learns at run time, for which the linker has to keep every exported method of every
// type: 2.4 of the 19 MB that mk was. Here the methods that templates may call have a list, method. The rest is
// text/template's to the byte, which TestTemplate and FuzzTemplate compare, with docker's and podman's functions.
package template

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sort"
	"strings"
	"text/template"
	"text/template/parse"
	"time"

	"github.com/opencontainers/go-digest"
)

// Template is a parsed template.
type Template struct {
	trees map[string]*parse.Tree // by name: rootName, and what it defines
}

// rootName is the template's name in errors, which are text/template's: "template: format:1:2: …".
const rootName = "format"

// Parse parses a template.
func Parse(text string) (*Template, error) {
	trees, err := parse.Parse(rootName, text, "", "", funcs)
	if err != nil {
		return nil, err
	}
	return &Template{trees}, nil
}

// Execute writes data as the template has it. What was written before an error stays written.
func (t *Template) Execute(w io.Writer, data any) error {
	x := execution{Template: t, tree: t.trees[rootName], w: w, vars: []variable{{"$", data}}}
	return x.walk(data, x.tree.Root)
}

// ExecuteHead executes a template of a table's rows for its heading: data has the headings of fields, and
// functions that make another text of a field leave its heading as it is.
func (t *Template) ExecuteHead(w io.Writer, data any) error {
	x := execution{Template: t, tree: t.trees[rootName], w: w, vars: []variable{{"$", data}}, head: true}
	return x.walk(data, x.tree.Root)
}

// execution is a template being carried out. A value is an any: nil is what text/template prints as <no value>.
type execution struct {
	*Template
	tree  *parse.Tree
	w     io.Writer
	vars  []variable // the innermost last
	depth int        // of templates that call templates
	head  bool       // it makes a heading
}

type variable struct {
	name  string
	value any
}

// maxDepth ends a template that calls itself for ever.
const maxDepth = 10000

// How break and continue leave what stands between them and their range.
var (
	errBreak    = errors.New("break outside of range")
	errContinue = errors.New("continue outside of range")
)

// errorf is an error with its place.
func (x *execution) errorf(n parse.Node, format string, args ...any) error {
	place, what := x.tree.ErrorContext(n)
	return fmt.Errorf("template: %s: executing %q at <%s>: %w", place, x.tree.Name, what, fmt.Errorf(format, args...))
}

func (x *execution) walk(dot any, n parse.Node) error {
	switch n := n.(type) {
	case *parse.ListNode:
		for _, n := range n.Nodes {
			if err := x.walk(dot, n); err != nil {
				return err
			}
		}
		return nil
	case *parse.TextNode:
		_, err := x.w.Write(n.Text)
		return err
	case *parse.CommentNode:
		return nil
	case *parse.BreakNode:
		return errBreak
	case *parse.ContinueNode:
		return errContinue
	case *parse.ActionNode:
		v, err := x.pipeline(dot, n.Pipe)
		if err != nil || len(n.Pipe.Decl) > 0 {
			return err
		}
		if v = indirect(v); v == nil {
			v = "<no value>"
		}
		_, err = fmt.Fprint(x.w, v)
		return err
	case *parse.IfNode:
		return x.branch(dot, n.Pipe, n.List, n.ElseList, false)
	case *parse.WithNode:
		return x.branch(dot, n.Pipe, n.List, n.ElseList, true)
	case *parse.RangeNode:
		return x.loop(dot, n)
	case *parse.TemplateNode:
		tree := x.trees[n.Name]
		if tree == nil || tree.Root == nil {
			return x.errorf(n, "template %q not defined", n.Name)
		}
		if x.depth == maxDepth {
			return x.errorf(n, "exceeded maximum template depth (%d)", maxDepth)
		}
		v, err := x.pipeline(dot, n.Pipe)
		if err != nil {
			return err
		}
		inner := execution{Template: x.Template, tree: tree, w: x.w, vars: []variable{{"$", v}}, depth: x.depth + 1}
		return inner.walk(v, tree.Root)
	}
	return x.errorf(n, "unknown node")
}

// leave forgets the variables that were declared since there were n.
func (x *execution) leave(n int) { x.vars = x.vars[:n] }

// branch is if, or with.
func (x *execution) branch(dot any, pipe *parse.PipeNode, then, otherwise *parse.ListNode, with bool) error {
	defer x.leave(len(x.vars))
	v, err := x.pipeline(dot, pipe)
	if err != nil {
		return err
	}
	if truth(v) {
		if with {
			dot = v
		}
		return x.walk(dot, then)
	}
	if otherwise != nil {
		return x.walk(dot, otherwise)
	}
	return nil
}

// loop is range: over a list, a map in the order of its keys, or as often as a number says.
func (x *execution) loop(dot any, n *parse.RangeNode) error {
	defer x.leave(len(x.vars))
	over, err := x.pipeline(dot, n.Pipe)
	if err != nil {
		return err
	}
	declared := len(x.vars)
	body := func(index, elem any) error {
		defer x.leave(declared)
		switch names := n.Pipe.Decl; len(names) {
		case 1:
			x.set(names[0].Ident[0], elem)
		case 2:
			x.set(names[0].Ident[0], index)
			x.set(names[1].Ident[0], elem)
		}
		return x.walk(elem, n.List)
	}
	err, some := nil, false
	step := func(index, elem any) bool { // false ends the loop
		some = true
		err = body(index, elem)
		if err == errContinue {
			err = nil
		}
		return err == nil
	}
	v := reflect.ValueOf(indirect(over))
	switch {
	case !v.IsValid():
	case v.Kind() == reflect.Slice, v.Kind() == reflect.Array:
		for i := 0; i < v.Len() && step(i, v.Index(i).Interface()); i++ {
		}
	case v.Kind() == reflect.Map:
		for _, k := range sortedKeys(v) {
			if !step(k.Interface(), v.MapIndex(k).Interface()) {
				break
			}
		}
	case v.CanInt(), v.CanUint():
		if len(n.Pipe.Decl) > 1 {
			return x.errorf(n.Pipe, "can't use %v to iterate over more than one variable", over)
		}
		for i := range v.Seq() {
			if !step(nil, i.Interface()) {
				break
			}
		}
	default:
		return x.errorf(n.Pipe, "range can't iterate over %v", over)
	}
	if err == errBreak {
		return nil
	}
	if !some && n.ElseList != nil {
		return x.walk(dot, n.ElseList)
	}
	return err
}

func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	sort.Slice(keys, func(i, j int) bool { // slices.SortFunc is 10 KB for each kind of slice
		a, b := keys[i], keys[j]
		lt, err := less(a.Interface(), b.Interface())
		return lt || err != nil && fmt.Sprint(a) < fmt.Sprint(b)
	})
	return keys
}

// set assigns to the innermost variable of a name. The parser has seen to it that there is one.
func (x *execution) set(name string, v any) {
	for i := len(x.vars) - 1; i >= 0; i-- {
		if x.vars[i].name == name {
			x.vars[i].value = v
			return
		}
	}
}

func (x *execution) get(name string) any {
	for i := len(x.vars) - 1; i >= 0; i-- {
		if x.vars[i].name == name {
			return x.vars[i].value
		}
	}
	return nil
}

// pipeline evaluates commands, each of which is given the value before as its last argument.
func (x *execution) pipeline(dot any, pipe *parse.PipeNode) (v any, err error) {
	if pipe == nil {
		return nil, nil
	}
	var last []any
	for _, c := range pipe.Cmds {
		if _, ok := c.Args[0].(*parse.NilNode); ok {
			return nil, x.errorf(c, "nil is not a command")
		}
		if v, err = x.value(dot, c.Args[0], c.Args[1:], last); err != nil {
			return nil, err
		}
		last = []any{v}
	}
	for _, d := range pipe.Decl {
		if pipe.IsAssign {
			x.set(d.Ident[0], v)
		} else {
			x.vars = append(x.vars, variable{d.Ident[0], v})
		}
	}
	return v, nil
}

// value evaluates one word. Functions and methods take args, and after them last, which is what a pipeline passes on,
// or nothing.
func (x *execution) value(dot any, n parse.Node, args []parse.Node, last []any) (any, error) {
	switch n := n.(type) {
	case *parse.IdentifierNode:
		fn := funcs[n.Ident]
		if x.head && slices.Contains(ofText, n.Ident) {
			fn = leave
		}
		return x.call(dot, n, n.Ident, fn, args, last)
	case *parse.FieldNode:
		return x.fields(dot, dot, n, n.Ident, args, last)
	case *parse.ChainNode: // (pipeline).Field.Field
		v, err := x.value(dot, n.Node, nil, nil)
		if err != nil {
			return nil, err
		}
		return x.fields(dot, v, n, n.Field, args, last)
	case *parse.VariableNode:
		if v := x.get(n.Ident[0]); len(n.Ident) > 1 {
			return x.fields(dot, v, n, n.Ident[1:], args, last)
		}
	}
	if len(args)+len(last) > 0 {
		return nil, x.errorf(n, "can't give argument to non-function %s", n)
	}
	switch n := n.(type) {
	case *parse.PipeNode:
		return x.pipeline(dot, n)
	case *parse.VariableNode:
		return x.get(n.Ident[0]), nil
	case *parse.DotNode:
		return dot, nil
	case *parse.NilNode:
		return nil, nil
	case *parse.BoolNode:
		return n.True, nil
	case *parse.StringNode:
		return n.Text, nil
	case *parse.NumberNode:
		return x.number(n)
	}
	return nil, x.errorf(n, "can't evaluate %s", n)
}

// number gives a constant the type that it has in Go where nothing else is asked for.
func (x *execution) number(n *parse.NumberNode) (any, error) {
	hex := strings.HasPrefix(strings.ToLower(n.Text), "0x") && !strings.ContainsAny(n.Text, "pP")
	switch {
	case n.IsComplex:
		return n.Complex128, nil
	case n.IsFloat && !hex && n.Text[0] != '\'' && strings.ContainsAny(n.Text, ".eEpP"):
		return n.Float64, nil
	case n.IsInt:
		return int(n.Int64), nil
	}
	return nil, x.errorf(n, "%s overflows int", n.Text)
}

// fields goes from v to a field of it, to a field of that, and so on; the last may be a method with arguments.
func (x *execution) fields(dot, v any, n parse.Node, names []string, args []parse.Node, last []any) (any, error) {
	for i, name := range names {
		var err error
		if i < len(names)-1 {
			v, err = x.field(dot, v, n, name, nil, nil)
		} else {
			v, err = x.field(dot, v, n, name, args, last)
		}
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// field is a method of v, a field of a struct, or an entry of a map.
func (x *execution) field(dot, v any, n parse.Node, name string, args []parse.Node, last []any) (any, error) {
	if v == nil {
		return nil, nil
	}
	if fn := method(indirect(v), name); fn != nil {
		return x.call(dot, n, name, fn, args, last)
	}
	r := reflect.ValueOf(indirect(v))
	known := true
	switch r.Kind() {
	case reflect.Struct:
		var f reflect.StructField
		if f, known = r.Type().FieldByName(name); !known {
			// docker takes the field's name and that in JSON, and scripts are written for either.
			switch name {
			case "Id":
				f, known = r.Type().FieldByName("ID")
			case "ID":
				f, known = r.Type().FieldByName("Id")
			}
			if !known {
				break
			}
		}
		if !f.IsExported() {
			return nil, x.errorf(n, "%s is an unexported field of struct type %T", name, v)
		}
		if len(args)+len(last) > 0 {
			return nil, x.errorf(n, "%s has arguments but cannot be invoked as function", name)
		}
		r, err := r.FieldByIndexErr(f.Index)
		if err != nil {
			return nil, x.errorf(n, "%w", err)
		}
		return r.Interface(), nil
	case reflect.Map:
		if known = r.Type().Key().Kind() == reflect.String; !known {
			break
		}
		if len(args)+len(last) > 0 {
			return nil, x.errorf(n, "%s is not a method but has arguments", name)
		}
		r = r.MapIndex(reflect.ValueOf(name).Convert(r.Type().Key()))
		if !r.IsValid() {
			return nil, nil
		}
		return r.Interface(), nil
	case reflect.Pointer: // to nothing
		if of := r.Type().Elem(); of.Kind() == reflect.Struct {
			_, known = of.FieldByName(name)
		}
		if known {
			return nil, x.errorf(n, "nil pointer evaluating %T.%s", v, name)
		}
	}
	return nil, x.errorf(n, "can't evaluate field %s in type %T", name, v)
}

// labeled is a line of ps.
type labeled interface{ Label(key string) string }

// method is the method of v that templates call by that name, or nil: those that people call on what --format
// is given. TestTemplateMethods has a look at its types.
func method(v any, name string) any {
	switch v := v.(type) {
	case labeled:
		switch name {
		case "Label":
			return v.Label
		}
	case digest.Digest:
		switch name {
		case "Algorithm":
			return v.Algorithm
		case "Encoded", "Hex":
			return v.Encoded
		case "String":
			return v.String
		}
	case time.Time:
		switch name {
		case "Format":
			return v.Format
		case "IsZero":
			return v.IsZero
		case "Local":
			return v.Local
		case "String":
			return v.String
		case "UTC":
			return v.UTC
		case "Unix":
			return v.Unix
		case "UnixNano":
			return v.UnixNano
		}
	case time.Duration:
		switch name {
		case "Hours":
			return v.Hours
		case "Milliseconds":
			return v.Milliseconds
		case "Minutes":
			return v.Minutes
		case "Seconds":
			return v.Seconds
		case "String":
			return v.String
		}
	case fmt.Stringer:
		if name == "String" {
			return v.String
		}
	}
	return nil
}

// call calls a function; its arguments become what it takes.
func (x *execution) call(dot any, n parse.Node, name string, fn any, args []parse.Node, last []any) (any, error) {
	if name == "and" || name == "or" {
		return x.logic(dot, n, name == "or", args, last)
	}
	f := reflect.ValueOf(fn)
	t := f.Type()
	fixed, got := t.NumIn(), len(args)+len(last)
	switch {
	case t.IsVariadic():
		if fixed--; got < fixed {
			return nil, x.errorf(n, "wrong number of args for %s: want at least %d got %d", name, fixed, got)
		}
	case got != fixed:
		return nil, x.errorf(n, "wrong number of args for %s: want %d got %d", name, fixed, got)
	}
	var in []reflect.Value
	for i := range got {
		v, at := any(nil), n
		if i < len(args) {
			var err error
			if v, err = x.value(dot, args[i], nil, nil); err != nil {
				return nil, err
			}
			at = args[i]
		} else {
			v = last[0]
		}
		want := t.In(min(i, t.NumIn()-1))
		if i >= fixed {
			want = want.Elem()
		}
		a, err := argument(v, want)
		if err != nil {
			return nil, x.errorf(at, "%w", err)
		}
		in = append(in, a)
	}
	out, err := called(f, in)
	if err != nil {
		return nil, x.errorf(n, "error calling %s: %w", name, err)
	}
	if len(out) == 2 && !out[1].IsNil() {
		return nil, x.errorf(n, "error calling %s: %w", name, out[1].Interface().(error))
	}
	return out[0].Interface(), nil
}

// called makes an error of a panic: a width that no memory holds, a method of a nil pointer.
func called(f reflect.Value, in []reflect.Value) (out []reflect.Value, err error) {
	defer func() {
		if r := recover(); r != nil {
			if of, ok := r.(error); ok {
				err = of
			} else {
				err = fmt.Errorf("%v", r)
			}
		}
	}()
	return f.Call(in), nil
}

// logic is and, or or: the first value that decides, and what stands behind it is not evaluated.
func (x *execution) logic(dot any, n parse.Node, or bool, args []parse.Node, last []any) (v any, err error) {
	if len(args)+len(last) == 0 {
		return nil, x.errorf(n, "wrong number of args for %s: want at least 1 got 0", n)
	}
	for _, a := range args {
		if v, err = x.value(dot, a, nil, nil); err != nil || truth(v) == or {
			return v, err
		}
	}
	if len(last) > 0 {
		v = last[0]
	}
	return v, nil
}

// argument makes v an argument of type t. Beyond what text/template does, strings and numbers of any type are
// strings and numbers: an ID, which is a digest here, is a string to whom docker taught these words.
func argument(v any, t reflect.Type) (reflect.Value, error) {
	if v == nil {
		switch t.Kind() {
		case reflect.Interface, reflect.Map, reflect.Pointer, reflect.Slice:
			return reflect.Zero(t), nil
		}
		return reflect.Value{}, fmt.Errorf("invalid value; expected %s", t)
	}
	r := reflect.ValueOf(v)
	if r.Type().AssignableTo(t) {
		return r, nil
	}
	r = reflect.ValueOf(indirect(v))
	switch k := t.Kind(); {
	case k == reflect.String && r.Kind() == k,
		k == reflect.Int && (r.CanInt() || r.CanUint()),
		k == reflect.Int && r.CanFloat() && r.Float() == float64(int(r.Float())),
		k == reflect.Int64 && r.CanInt():
		return r.Convert(t), nil
	case k == reflect.Slice && r.Kind() == k:
		list := reflect.MakeSlice(t, r.Len(), r.Len())
		for i := range r.Len() {
			e, err := argument(r.Index(i).Interface(), t.Elem())
			if err != nil {
				return reflect.Value{}, err
			}
			list.Index(i).Set(e)
		}
		return list, nil
	}
	return reflect.Value{}, fmt.Errorf("wrong type for value; expected %s; got %T", t, v)
}

// indirect is what v points to, or v. A pointer to nothing remains.
func indirect(v any) any {
	r := reflect.ValueOf(v)
	for r.Kind() == reflect.Pointer && !r.IsNil() {
		r = r.Elem()
	}
	if !r.IsValid() {
		return nil
	}
	return r.Interface()
}

// truth: whatever is not the zero of its type, and not empty.
func truth(v any) bool {
	yes, _ := template.IsTrue(v)
	return yes
}
