package recipe

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	armv7 = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
)

func inputs(args ...string) Inputs {
	in := Inputs{BuildPlatform: amd64, Platform: amd64, Args: map[string]string{}}
	for _, kv := range args {
		k, v := cut(kv)
		in.Args[k] = v
	}
	return in
}

// run walks the last stage of a recipe (and those it is FROM) over a base with
// this Env, and gives the variables at the end.
func run(t *testing.T, src string, in Inputs, baseEnv ...string) (*Scope, error) {
	t.Helper()
	r := parse(t, src)
	g, err := r.Globals(in)
	if err != nil {
		return nil, err
	}
	var scopes []*Scope
	for _, st := range r.Stages {
		from, err := g.From(st)
		if err != nil {
			return nil, err
		}
		s := g.Scope(baseEnv)
		if base, ok := r.BaseStage(st, from.Base); ok {
			s = scopes[base.Index].Child()
		}
		scopes = append(scopes, s)
		for _, step := range st.Steps {
			if _, _, err := s.Expand(step); err != nil {
				return nil, err
			}
		}
	}
	return scopes[len(scopes)-1], nil
}

// values prints the wanted variables: "a=1 b=<unset>".
func values(v *Vars, names string) string {
	var out []string
	for _, n := range strings.Fields(names) {
		value, ok := v.Get(n)
		if !ok {
			value = "<unset>"
		}
		out = append(out, n+"="+value)
	}
	return strings.Join(out, " ")
}

func TestScope(t *testing.T) {
	for _, tc := range []struct {
		name, src string
		args      []string
		base      []string
		names     string
		want      string
	}{
		{name: "globals need a bare ARG", src: "ARG a=1 b=2\nFROM x\nARG a\nENV c=$b", names: "a b c", want: "a=1 b=<unset> c="},
		{name: "quotes and globals in defaults", src: "ARG a1=\"foo bar\" a2=box\nARG a3=\"$a2-foo\"\nFROM busy$a2\nARG a3 a4=\"123 456\" a1",
			names: "a1 a2 a3 a4", want: "a1=foo bar a2=<unset> a3=box-foo a4=123 456"},
		{name: "a stage's default wins over the global's", src: "ARG a=1\nFROM x\nARG a=2", names: "a", want: "a=2"},
		{name: "a build argument wins over both", src: "ARG a=1\nFROM x\nARG a=2", args: []string{"a=3"}, names: "a", want: "a=3"},
		{name: "an undeclared build argument is nothing", src: "FROM x\nENV b=$a", args: []string{"a=3"}, names: "a b", want: "a=<unset> b="},
		{name: "empty is set, bare is not", src: "FROM x\nARG a= b", names: "a b", want: "a= b=<unset>"},
		{name: "one snapshot per instruction", src: "FROM x\nENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc", names: "abc def ghi", want: "abc=bye def=hello ghi=bye"},
		{name: "names of one ARG see those before them", src: "FROM x\nARG a=1 b=$a", names: "b", want: "b=1"},
		{name: "ENV after ARG wins", src: "FROM x\nARG a=1\nENV a=2", args: []string{"a=3"}, names: "a", want: "a=2"},
		{name: "default of ENV from an argument: nil", src: "FROM x\nARG my_arg\nENV my_arg \"my_arg=${my_arg:-def_val}\"", names: "my_arg", want: "my_arg=my_arg=def_val"},
		{name: "default of ENV from an argument: empty", src: "FROM x\nARG my_arg\nENV my_arg \"my_arg=${my_arg:-def_val}\"", args: []string{"my_arg="}, names: "my_arg", want: "my_arg=my_arg=def_val"},
		{name: "default of ENV from an argument: override", src: "FROM x\nARG my_arg\nENV my_arg \"my_arg=${my_arg:-def_val}\"", args: []string{"my_arg=override"}, names: "my_arg", want: "my_arg=my_arg=override"},
		{name: "trimmed", src: "FROM x\nENV x=one,eleven\nENV my \"${x%%e*}\"", names: "my", want: "my=on"},
		{name: "empty", src: "FROM x\nENV empty=\"\"", names: "empty", want: "empty="},
		{name: "base image", src: "FROM x\nENV b=$a:$a", base: []string{"a=1", "PATH=/p"}, names: "b PATH", want: "b=1:1 PATH=/p"},
		{name: "PATH is never missing", src: "FROM x", names: "PATH", want: "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{name: "children inherit both kinds", src: "FROM x AS p\nARG a=1\nENV b=2\nFROM P\nENV c=$a$b", names: "a b c", want: "a=1 b=2 c=12"},
		{name: "inherited ENV wins over inherited ARG", src: "FROM x AS p\nENV a=1\nARG a=2\nFROM p", names: "a", want: "a=1"},
		{name: "strangers inherit nothing", src: "FROM x AS p\nARG a=1\nFROM x\nENV b=$a", names: "a b", want: "a=<unset> b="},
		{name: "use before declaration", src: "FROM x\nUSER ${username:-x}\nENV u=${username:-x}\nARG username", args: []string{"username=me"}, names: "u username", want: "u=x username=me"},
		{name: "platform", src: "FROM x\nARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDOS TARGETOSVERSION", names: "TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDOS TARGETOSVERSION",
			want: "TARGETPLATFORM=linux/amd64 TARGETARCH=amd64 TARGETVARIANT= BUILDOS=linux TARGETOSVERSION="},
		{name: "a stage's default beats the automatic value", src: "FROM x\nARG TARGETPLATFORM=mine", names: "TARGETPLATFORM", want: "TARGETPLATFORM=mine"},
		{name: "an argument beats the automatic value", src: "FROM x\nARG TARGETARCH", args: []string{"TARGETARCH=z80"}, names: "TARGETARCH", want: "TARGETARCH=z80"},
		{name: "last stage without a name", src: "FROM x\nARG TARGETSTAGE", names: "TARGETSTAGE", want: "TARGETSTAGE=default"},
		{name: "last stage with a name", src: "FROM x AS final\nARG TARGETSTAGE", names: "TARGETSTAGE", want: "TARGETSTAGE=final"},
		{name: "hidden arguments", src: "FROM x\nARG BUILDKIT_SBOM_SCAN_STAGE=true", names: "BUILDKIT_SBOM_SCAN_STAGE", want: "BUILDKIT_SBOM_SCAN_STAGE=<unset>"},
		{name: "percent", src: "FROM x\nENV a=foo%sbar\nENV b=$a", names: "b", want: "b=foo%sbar"},
	} {
		s, err := run(t, tc.src, inputs(tc.args...), tc.base...)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := values(s.Vars(), tc.names); got != tc.want {
			t.Errorf("%s\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

func TestTargetStage(t *testing.T) {
	in := inputs()
	in.Target = "Foo"
	s, err := run(t, "FROM x AS foo\nFROM x\nARG TARGETSTAGE", in)
	if err != nil || values(s.Vars(), "TARGETSTAGE") != "TARGETSTAGE=Foo" {
		t.Error(values(s.Vars(), "TARGETSTAGE"), err)
	}
}

func TestScopeErrors(t *testing.T) {
	for _, tc := range []struct {
		src, want string
		line      int
		args      []string
	}{
		{"ARG x\nARG y=\"${x:?need x}\"\nFROM a", `failed to process "\"${x:?need x}\"": x: need x`, 2, nil},
		{"ARG x\nARG y=\"${x:?need x}\"\nFROM a", "", 0, []string{"y=1"}},
		{"FROM a\nARG FOO=${FOO:?\"custom error\"}", `failed to process "${FOO:?\"custom error\"}": FOO: custom error`, 2, nil},
		{"FROM a\nARG FOO=${FOO:?\"custom error\"}", "", 0, []string{"FOO=1"}},
		{"FROM $x", "base name ($x) should not be blank", 1, nil},
		{"ARG x\nFROM a\nFROM ${x}", "base name (${x}) should not be blank", 3, nil},
		{"FROM busy${image#idle}", "", 0, nil},
		{"FROM --platform=$BULIDPLATFORM a", "empty platform value from expression $BULIDPLATFORM (did you mean BUILDPLATFORM?)", 1, nil},
		{"ARG MY_OS=linux\nARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} busybox",
			`failed to parse platform linux/${MYARCH}: "" is an invalid component of "linux/": platform specifier component must match "^[A-Za-z0-9_.-]+$": invalid argument (did you mean MY_ARCH?)`, 3, nil},
		{"FROM --platform=nonsense a", `failed to parse platform nonsense: "nonsense": unknown operating system or architecture: invalid argument`, 1, nil},
		{"FROM --platform=${a:?b} a", `failed to process arguments for platform : failed to process "${a:?b}": a: b`, 1, nil},
	} {
		_, err := run(t, tc.src, inputs(tc.args...))
		if tc.want == "" {
			if err != nil {
				t.Errorf("%q: %v", tc.src, err)
			}
			continue
		}
		var e *Error
		if !errors.As(err, &e) || e.Error() != tc.want || e.Pos.Start != tc.line {
			t.Errorf("%q\n got %+v\nwant %s at %d", tc.src, err, tc.want, tc.line)
		}
	}
}

func TestFrom(t *testing.T) {
	r := parse(t, "ARG tag=nosuchtag p=linux/arm/v7\nFROM --platform=$p busybox:${tag}\nFROM --platform=$BUILDPLATFORM x$nope")
	g, err := r.Globals(inputs("tag=latest"))
	if err != nil {
		t.Fatal(err)
	}
	from, err := g.From(r.Stages[0])
	want := From{"busybox:latest", &armv7, Usage{Used: []string{"p", "tag"}}}
	if err != nil || !reflect.DeepEqual(from, want) {
		t.Errorf("got %+v %v, want %+v", from, err, want)
	}
	from, err = g.From(r.Stages[1])
	want = From{"x", &amd64, Usage{Used: []string{"BUILDPLATFORM"}, Unset: []string{"nope"}}}
	if err != nil || !reflect.DeepEqual(from, want) {
		t.Errorf("got %+v %v, want %+v", from, err, want)
	}
}

// The config's Env holds ENV only, each name in its first place.
func TestEnvOrder(t *testing.T) {
	s, err := run(t, "FROM x\nARG z=1\nENV b=2 a=1\nENV b=3\nENV z=9", inputs(), "PATH=/p", "a=0")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Env(), " "); got != "PATH=/p a=1 b=3 z=9" {
		t.Error(got)
	}
	if got := strings.Join(s.RunArgs(), " "); got != "z=9" {
		t.Error(got)
	}
}

func TestRunArgs(t *testing.T) {
	s, err := run(t, "FROM x AS p\nARG a=1 b\nFROM p\nARG c=3\nARG a=2", inputs())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.RunArgs(), " "); got != "a=2 b= c=3" {
		t.Error(got)
	}
}

func TestUndeclared(t *testing.T) {
	r := parse(t, "FROM x\nARG a b=$a$c\nCOPY $a $d $e /")
	g, _ := r.Globals(inputs())
	s := g.Scope(nil)
	var unset [][]string
	for _, step := range r.Stages[0].Steps {
		_, usage, err := s.Expand(step)
		if err != nil {
			t.Fatal(err)
		}
		unset = append(unset, usage.Unset)
	}
	if want := [][]string{{"c"}, {"d", "e"}}; !reflect.DeepEqual(unset, want) {
		t.Errorf("got %q, want %q", unset, want)
	}
}

func TestReplaceGlobal(t *testing.T) {
	r := parse(t, "ARG SOURCE_DATE_EPOCH=context\nFROM x\nARG SOURCE_DATE_EPOCH")
	for value, want := range map[string]string{"42": "SOURCE_DATE_EPOCH=42", "": "SOURCE_DATE_EPOCH=<unset>"} {
		for _, args := range [][]string{nil, {"SOURCE_DATE_EPOCH=context"}} {
			g, err := r.Globals(inputs(args...))
			if err != nil {
				t.Fatal(err)
			}
			g.Replace("SOURCE_DATE_EPOCH", value)
			s := g.Scope(nil)
			if _, _, err := s.Expand(r.Stages[0].Steps[0]); err != nil {
				t.Fatal(err)
			}
			if got := values(s.Vars(), "SOURCE_DATE_EPOCH"); got != want {
				t.Errorf("%q: got %s, want %s", args, got, want)
			}
		}
	}
}

func TestPlatform(t *testing.T) {
	for _, tc := range []struct{ in, out, err string }{
		{"linux/amd64", "linux/amd64", ""},
		{"Linux/x86_64", "linux/amd64", ""},
		{"arm64", "linux/arm64", ""},
		{"linux/aarch64", "linux/arm64", ""},
		{"linux/arm64/v8", "linux/arm64/v8", ""},
		{"linux/arm/v7", "linux/arm/v7", ""},
		{"linux/arm", "linux/arm", ""},
		{"armel", "linux/arm/v6", ""},
		{"macos/arm64", "darwin/arm64", ""},
		{"windows(10.0.17763+win32k)/amd64", "windows(10.0.17763+win32k)/amd64", ""},
		{"linux/*", "", `"linux/*": wildcards not yet supported: invalid argument`},
		{"a/b/c/d", "", `"a/b/c/d": cannot parse platform specifier: invalid argument`},
		{"a b", "", `"a b" is an invalid OS component of "a b": OSAndVersion specifier component must match "^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)((?:\\+[A-Za-z0-9_.-]+)*)\\))?$": invalid argument`},
	} {
		p, err := ParsePlatform(tc.in)
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: error %v, want %s", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil || FormatPlatform(p) != tc.out {
			t.Errorf("%s: %s %v, want %s", tc.in, FormatPlatform(p), err, tc.out)
		}
	}
}

func TestVars(t *testing.T) {
	v := NewVars([]string{"a=1", "b=2", "a=3", "c"})
	if got := strings.Join(v.List(), " "); got != "b=2 a=3 c=" {
		t.Error(got)
	}
	w := v.Clone()
	w.Set("b", "9")
	w.Unset("c")
	w.Unset("none")
	if got := strings.Join(v.List(), " ") + "|" + strings.Join(w.List(), " "); got != "b=2 a=3 c=|a=3 b=9" {
		t.Error(got)
	}
	for range 100 {
		v.Set("a", "4")
	}
	if got := strings.Join(v.List(), " "); got != "b=2 c= a=4" || len(v.slots) > 32 {
		t.Error(got, len(v.slots))
	}
	var none *Vars
	if _, ok := none.Get("a"); ok || none.Keys() != nil || none.List() != nil || none.Clone().Keys() != nil {
		t.Error("a nil *Vars is not empty")
	}
}
