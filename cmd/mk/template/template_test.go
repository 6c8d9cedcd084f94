package template

import (
	"io"
	"regexp"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/opencontainers/go-digest"
)

// templateData has something of each kind that documents have, and more.
func templateData() any {
	type inner struct {
		A string
		N *int
	}
	type part struct{ Promoted string }
	five := 5
	return &struct {
		S, Empty, Special string
		I                 int
		U                 uint16
		I64               int64
		F                 float64
		B                 bool
		List, None        []string
		Ints              []int
		Map               map[string]string
		Nested            map[string][]inner
		ByInt             map[int]string
		Any, Nil          any
		Anys              []any
		AnyMap            map[string]any
		Struct            inner
		P, NilP           *inner
		PP                **inner
		ID                digest.Digest
		Array             [2]int
		Time              time.Time
		When              *time.Time
		Long              time.Duration
		part
		hidden string
	}{
		S: "text", Special: `<a href="x">&'é` + "\x01\u2028=\\", I: -3, U: 7, I64: 1 << 40, F: 2.5, B: true,
		List: []string{"one", "two", "three"}, Ints: []int{3, 1, 2},
		Map:    map[string]string{"k": "v", "b": "x", "a": "y"},
		Nested: map[string][]inner{"80/tcp": {{"h", &five}, {"i", nil}}, "none": nil},
		ByInt:  map[int]string{10: "ten", 9: "nine"}, Any: map[string]any{"x": 1.5, "y": nil},
		Anys: []any{1, "two", nil, 3.5}, AnyMap: map[string]any{"l": []any{"p"}, "n": 3}, Struct: inner{A: "in"}, P: &inner{A: "to"},
		PP: func() **inner { p := &inner{A: "far"}; return &p }(), ID: digest.FromString("x"), Array: [2]int{4, 5},
		Time: time.Unix(1e9, 0).UTC(), Long: 90 * time.Second, part: part{"up"}, hidden: "h",
	}
}

// Each is what text/template makes of it, too.
var templates = []string{
	"", "plain", "{{/* comment */}}x", "{{.}}", "{{$}}", "{{.S}}", "{{ .S -}}  x", "a {{- .S}}", "{{$.S}} {{with .P}}{{$.S}}{{.A}}{{end}}",
	"{{.I}} {{.U}} {{.I64}} {{.F}} {{.B}} {{.List}} {{.None}} {{.Map}} {{.ByInt}} {{.Any}} {{.Nil}} {{.Anys}} {{.Struct}} {{.P}} {{.NilP}} {{.ID}} {{.Array}} {{.Promoted}} {{.Time}} {{.When}} {{.Long}}",
	"{{.Struct.A}} {{.P.A}} {{.PP}} {{.PP.A}} {{.Struct.N}} {{.Map.k}} {{.Map.missing}} {{.Map.missing.more}} {{.Any.x}} {{.Any.y}} {{.AnyMap.l}} {{.AnyMap.none}}",
	"{{.Nothing}}", "{{.hidden}}", "{{.NilP.A}}", "{{.NilP.Z}}", "{{.S.X}}", "{{.List.X}}", "{{.S 1}}", "{{.Map.k 1}}", "{{1 2}}", "{{nil}}", "{{.ByInt.x}}",
	"{{if .S}}y{{end}}{{if .Empty}}y{{else}}n{{end}}{{if .I}}y{{end}}{{if .NilP}}y{{else}}n{{end}}{{if .Nil}}{{else if .None}}{{else if .B}}third{{end}}",
	"{{with .P}}{{.A}}{{else}}n{{end}}{{with .NilP}}y{{else}}n{{end}}{{with .Empty}}{{else with .S}}{{.}}{{end}}{{with $x := .S}}{{$x}}{{.}}{{end}}",
	"{{range .List}}{{.}},{{end}}", "{{range $e := .List}}{{$e}}{{$.S}},{{end}}", "{{range $i, $e := .List}}{{$i}}={{$e}},{{end}}",
	"{{range $k, $v := .Map}}{{$k}}={{$v}} {{end}}", "{{range $k, $v := .ByInt}}{{$k}}={{$v}} {{end}}", "{{range .None}}x{{else}}none{{end}}", "{{range .Nil}}x{{else}}none{{end}}",
	"{{range $p, $l := .Nested}}{{$p}}{{range $l}} {{.A}}{{if .N}}{{.N}}{{end}}{{end}};{{end}}",
	"{{(index .Nested \"80/tcp\" 0).A}} {{(index (index .Nested \"80/tcp\") 1).N}}",
	"{{range $i, $e := .List}}{{if $i}},{{end}}{{if eq . \"two\"}}{{continue}}{{end}}{{.}}{{end}}", "{{range .List}}{{if eq . \"two\"}}{{break}}{{end}}{{.}}{{else}}e{{end}}!",
	"{{range .Ints}}{{range $.List}}{{break}}{{end}}{{.}}{{end}}", "{{range 3}}{{.}}{{end}}", "{{range $i := .U}}{{$i}}{{end}}", "{{range $i, $j := 3}}{{end}}", "{{range .S}}{{end}}", "{{range .F}}{{end}}", "{{range .NilP}}{{end}}", "{{range 0}}x{{else}}e{{end}}",
	"{{$x := 1}}{{if true}}{{$x = 2}}{{$x := 3}}{{$x}}{{end}}{{$x}}", "{{$l := \"\"}}{{range .List}}{{$l = .}}{{end}}{{$l}}", "{{$i := 9}}{{$e := 9}}{{range $i, $e = .Ints}}{{end}}{{$i}}{{$e}}", "{{$e := 0}}{{range $e = .Ints}}{{end}}{{$e}}", "{{range $i, $i := .Ints}}{{$i}}{{end}}",
	"{{define \"t\"}}[{{.}}{{$}}]{{end}}{{template \"t\" .S}}{{template \"t\"}}", "{{block \"b\" .List}}{{len .}}{{end}}", "{{template \"none\"}}", "{{define \"a\"}}{{end}}",
	"{{define \"down\"}}{{if .}}{{.}}{{template \"down\" (slice . 1)}}{{end}}{{end}}{{template \"down\" \"abc\"}}",
	"{{define \"t\"}}{{.X}}{{end}}{{template \"t\" .S}}", "{{define \"t\"}}{{range .}}{{end}}{{end}}\n  {{template \"t\" true}}",
	"{{and}}", "{{and 1 0 .Nothing}}", "{{and 1 \"\" 2}} {{or 0 .S .Nothing}} {{or 0 \"\"}} {{and .B .S}} {{not .B}} {{not .Nil}} {{.S | and true}} {{.Empty | or false}} {{.S | or 1}}", "{{or .Nothing 1}}",
	"{{eq .S \"text\"}} {{eq .S \"a\" \"text\"}} {{eq .I -3}} {{eq .U 7}} {{eq 7 .U}} {{eq -7 .U}} {{ne .U 8}} {{eq .F 2.5}} {{eq .B true}} {{eq .P .P}} {{eq .Nil nil}} {{eq .NilP nil}} {{eq .ID .ID}} {{ne .NilP nil}} {{eq .None nil}} {{eq .Struct .Struct}} {{eq .Array .Array}} {{eq 1i 1i}}",
	"{{eq .S 1}}", "{{eq .List .List}}", "{{eq .S}}", "{{eq}}", "{{eq .S nil}}", "{{ne 1 1.0}}", "{{lt .B true}}", "{{lt 1 \"a\"}}", "{{lt nil 1}}", "{{gt .Nil 1}}", "{{eq .Map nil}}",
	"{{lt 1 2}} {{lt 2 1}} {{le 2 2}} {{gt 3 2}} {{gt 2 2}} {{ge 2 2}} {{lt .I .U}} {{lt .U .I}} {{gt .U .I}} {{lt 1.5 2.5}} {{lt \"a\" \"b\"}} {{le .S \"text\"}} {{ge .I64 1}}",
	"{{len .S}} {{len .List}} {{len .None}} {{len .Map}} {{len .Array}}", "{{len .I}}", "{{len nil}}", "{{len .NilP}}", "{{len}}", "{{len 1 2}}",
	"{{index .List 1}} {{index .Map \"k\"}} {{index .Map \"no\"}}| {{index .ByInt 10}} {{index .Nested \"80/tcp\" 0}} {{index .S 0}} {{index .Anys 2}} {{index .AnyMap \"l\" 0}} {{index .AnyMap \"none\"}} {{index .List}} {{index .Array 1}} {{index .List .U | printf \"%s\"}}",
	"{{index .List 3}}", "{{index .List -1}}", "{{index .List \"a\"}}", "{{index nil 1}}", "{{index .I 1}}", "{{index .Map 1}}", "{{index .List 1.5}}", "{{index .List nil}}", "{{index .NilP 1}}", "{{index .List (index .Ints 1)}}",
	"{{slice .S 1}} {{slice .S 1 3}} {{slice .List 1 2}} {{slice .S}} {{slice .List 0 1 2}} {{slice .List 3}}", "{{slice .S 9}}", "{{slice .S 2 1}}", "{{slice .I 1}}", "{{slice .S 1 2 3}}", "{{slice .List 0 1 2 3}}", "{{slice nil}}", "{{slice .List 1 2 1}}",
	"{{print 1 2 \"a\" \"b\" 3 nil}} {{printf \"%05d|%-5s|%q|%v|%T\" .I .S .S .List .I}} {{println .S 1}}{{printf \"%s\" .ID}} {{printf \"%d\" \"x\"}} {{.S | printf \"%s-%s\" \"a\"}} {{printf \"%v\" .Nil}}", "{{printf 1}}", "{{printf}}", "{{printf nil}}",
	"{{html .Special}} {{js .Special}} {{urlquery .Special}} {{.Special | html}} {{html 1 .S nil}} {{.I | urlquery}} {{js .P}}",
	"{{json .Map}} {{json .Special}} {{.List | json}} {{json .Nil}} {{json .Time}} {{json .Any}}", "{{json .S .S}}", "{{json}}",
	"{{join .List \", \"}} {{join .None \"x\"}} {{split .S \"x\"}} {{index (split \"a:b\" \":\") 1}} {{lower \"ABC\"}} {{upper .S}} {{title \"ab cd\"}} {{.S | upper | lower}}", "{{join .S \"x\"}}", "{{upper 1}}", "{{upper nil}}", "{{upper .Nil}}", "{{upper .P}}",
	"{{pad .S 1 2}}|{{pad .Empty 1 2}}|{{truncate .S 2}} {{truncate .S 9}}", "{{truncate .S -1}}", "{{pad .S -1 0}}", "{{truncate .S 1.0}}", "{{truncate .S \"1\"}}",
	"{{1}} {{0x1F}} {{1e3}} {{1.0}} {{'a'}} {{1i}} {{0x1p4}} {{-5}} {{1_000}} {{true}} {{\"s\\n\"}} {{`raw`}} {{0b11}}", "{{9223372036854775808}}", "{{1e1000}}",
	"{{.Time.Format \"2006-01-02\"}} {{.Time.Unix}} {{(.Time.UTC).Local.UTC}} {{.Long.Seconds}} {{.ID.Encoded}} {{.ID.Algorithm}} {{.ID.Hex}} {{.ID.String}} {{.Time.IsZero}}", "{{.Time.Format}}", "{{.Time.Format 1}}", "{{\"2006\" | .Time.Format}}", "{{.When.Unix}}", "{{.When.String}}", "{{.ID.Nothing}}", "{{pad .S 4611686018427387904 1}}",
	"{{", "{{.S", "{{if}}{{end}}", "{{end}}", "{{nofunc}}", "{{.S | 1}}", "{{range}}{{end}}", "{{break}}", "{{$undefined}}", "{{if .S}}", "{{define}}", "{{template .S}}", "{{(.S)}}", "{{((.P).A)}}", "{{(.P).Z}}", "{{(1).X}}", "{{.S.}}", "{{nil | printf \"%v\"}}", "{{.P.A | printf \"%s %s\" (index .List 0)}}", "{{(printf \"%s\" .S).X}}", "{{not}}",
	"line\n{{.S}}\n  {{.Nothing}}", "{{with .Map}}{{.k}}{{$.I}}{{end}}", "{{- range $k, $v := .Map }}\n{{ $k }}: {{ $v }}\n{{- end }}", "{{if and (eq .S \"text\") (gt .U 3) }}both{{end}}", "{{if or .Empty (not .B)}}{{else}}neither{{end}}",
}

// textTemplate is what text/template makes of it.
func textTemplate(text string, data any, w io.Writer) error {
	added := template.FuncMap{}
	for name, f := range funcs {
		switch name {
		case "json", "join", "split", "lower", "upper", "title", "pad", "truncate":
			added[name] = f
		}
	}
	t, err := template.New(rootName).Funcs(added).Parse(text)
	if err != nil {
		return err
	}
	return t.Execute(w, data)
}

// compareTemplate runs a template here and there. What text/template refuses may work here, if loose.
func compareTemplate(t *testing.T, text string, data any, loose bool) {
	t.Helper()
	var got, want strings.Builder
	wantErr := textTemplate(text, data, &want)
	tmpl, err := Parse(text)
	if err == nil {
		err = tmpl.Execute(&got, data)
	}
	switch {
	case wantErr == nil && err != nil:
		t.Errorf("%q: %v; text/template prints %q", text, err, want.String())
	case wantErr == nil && got.String() != want.String():
		t.Errorf("%q\n    prints %q\n    not    %q", text, got.String(), want.String())
	case wantErr != nil && err == nil && !loose:
		t.Errorf("%q prints %q; text/template says %v", text, got.String(), wantErr)
	case wantErr != nil && err != nil:
		// The template, the line, and where it does not begin with a bracket or := also the column.
		place := func(err error) string {
			place, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "--format: "), ": executing")
			if strings.ContainsAny(text, "(=") {
				place = place[:strings.LastIndex(place, ":")]
			}
			return place
		}
		if !loose && place(err) != place(wantErr) {
			t.Errorf("%q: error at\n    %v\n    text/template:\n    %v", text, err, wantErr)
		}
	}
}

func TestTemplate(t *testing.T) {
	data := templateData()
	for _, text := range templates {
		compareTemplate(t, text, data, false)
	}
}

// big finds numbers that templates could take for a width, or range over.
var big = regexp.MustCompile(`[0-9]{3}|[0-9][eExXpP_]`)

func FuzzTemplate(f *testing.F) {
	for _, text := range templates {
		f.Add(text)
	}
	data := templateData()
	f.Fuzz(func(t *testing.T, text string) {
		if big.MatchString(text) {
			return // as wide as memory, or as often as the day is long
		}
		compareTemplate(t, text, data, true)
	})
}

// docker inspect takes {{.Id}} and {{.ID}}, of an image and of a container.
func TestIdAndID(t *testing.T) {
	for text, data := range map[string]any{"{{.Id}}": struct{ ID string }{"x"}, "{{.ID}}": struct{ Id string }{"x"}} {
		tmpl, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := tmpl.Execute(&out, data); err != nil || out.String() != "x" {
			t.Errorf("%s: %q, %v", text, out.String(), err)
		}
	}
}

// What docker's users write works although an ID has a type of its own here.
func TestDigestsAreStrings(t *testing.T) {
	var out strings.Builder
	tmpl, err := Parse(`{{truncate .Id 9}} {{upper (slice .Id 7 9)}} {{join .Layers ","}}`)
	if err != nil {
		t.Fatal(err)
	}
	err = tmpl.Execute(&out, struct {
		Id     digest.Digest
		Layers []digest.Digest
	}{"sha256:abcd", []digest.Digest{"sha256:1", "sha256:2"}})
	if err != nil || out.String() != "sha256:ab AB sha256:1,sha256:2" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
