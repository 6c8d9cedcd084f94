package recipe

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func parse(t *testing.T, src string) *Recipe {
	t.Helper()
	r, err := Parse("Recipe", []byte(src), ParseOptions{})
	if err != nil {
		t.Fatalf("parse %q: %v", src, err)
	}
	return r
}

// The messages are BuildKit's: people search for them.
func TestParseErrors(t *testing.T) {
	const prefix = "dockerfile parse error on line 2: "
	for _, tc := range []struct {
		src, want  string
		start, end int
	}{
		{"", "the Dockerfile cannot be empty", 0, 0},
		{"# nothing\n\n# at all\n", "file with no instructions", 3, 3},
		{"ARG x=1\n", "dockerfile contains no stages to build", 0, 0},
		{"RUN true\n", "no build stage in current context", 1, 1},
		{"FROM a\nENTRYPOIN x\n", prefix + "unknown instruction: ENTRYPOIN (did you mean ENTRYPOINT?)", 2, 2},
		{"FROM a\nentrypoin x\n", prefix + "unknown instruction: entrypoin (did you mean entrypoint?)", 2, 2},
		{"FROM a\nBADCMD\n", prefix + "unknown instruction: BADCMD", 2, 2},
		{"FROM a\nENV x\n", "ENV must have two arguments", 2, 2},
		{"FROM a\nENV a=1 b\n", `Syntax error - can't find = in "b". Must be of the form: name=value`, 2, 2},
		{"FROM a\nENV\n", prefix + "ENV requires at least one argument", 2, 2},
		{"FROM a\nENV =x\n", prefix + "ENV names can not be blank", 2, 2},
		{"FROM a\nLABEL\n", prefix + "LABEL requires at least one argument", 2, 2},
		{"FROM a b\n", "dockerfile parse error on line 1: FROM requires either one or three arguments", 1, 1},
		{"FROM a AS 1b\n", `dockerfile parse error on line 1: invalid name for build stage: "1b", name can't start with a number or contain symbols`, 1, 1},
		{"FROM --platfrm=x a\n", "dockerfile parse error on line 1: unknown flag: --platfrm (did you mean platform?)", 1, 1},
		{"FROM a\nCOPY x\n", prefix + "COPY requires at least two arguments, but only one was provided. Destination could not be determined", 2, 2},
		{"FROM a\nCOPY --form=b x y\n", prefix + "unknown flag: --form (did you mean from?)", 2, 2},
		{"FROM a\nCOPY --from=$x y z\n", "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround", 2, 2},
		{"FROM a\nCOPY --from=9 y z\n", "invalid stage index 9", 2, 2},
		{"FROM a\nCOPY x <<EOF\nEOF\n", prefix + "COPY cannot accept a heredoc as a destination", 2, 3},
		{"FROM a\nCOPY <<EOF /x\nhello\n", "unterminated heredoc", 2, 3},
		{"FROM a\nCOPY [\"a\", 1]\n", "when using JSON array syntax, arrays must be comprised of strings only", 2, 2},
		{"FROM a\nRUN --mont=type=tmpfs true\n", prefix + "unknown flag: --mont (did you mean mount?)", 2, 2},
		{"FROM a\nRUN --mount=from=$x true\n", prefix + "'from' doesn't support variable expansion, define alias stage instead", 2, 2},
		{"FROM a\nRUN --network=x true\n", prefix + `invalid network mode "x"`, 2, 2},
		{"FROM a\nRUN --security=x true\n", prefix + `security "x" is not valid`, 2, 2},
		{"FROM a\nRUN --device=a,b true\n", prefix + "invalid field 'b' must be a key=value pair", 2, 2},
		{"FROM a\nSHELL sh -c\n", prefix + "SHELL requires the arguments to be in JSON form", 2, 2},
		{"FROM a\nSHELL []\n", prefix + "SHELL requires at least one argument", 2, 2},
		{"FROM a\nONBUILD ONBUILD RUN x\n", prefix + "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", 2, 2},
		{"FROM a\nONBUILD FROM x\n", prefix + "FROM isn't allowed as an ONBUILD trigger", 2, 2},
		{"FROM a\nONBUILD maintainer x\n", prefix + "MAINTAINER isn't allowed as an ONBUILD trigger", 2, 2},
		{"FROM a\nVOLUME [\"\"]\n", prefix + "VOLUME specified can not be an empty string", 2, 2},
		{"FROM a\nHEALTHCHECK NONE x\n", prefix + "HEALTHCHECK NONE takes no arguments", 2, 2},
		{"FROM a\nHEALTHCHECK CMD\n", prefix + "Missing command after HEALTHCHECK CMD", 2, 2},
		{"FROM a\nHEALTHCHECK --interval=1us CMD x\n", prefix + `Interval "interval" cannot be less than 1ms`, 2, 2},
		{"FROM a\nHEALTHCHECK --retries=-1 CMD x\n", prefix + "--retries cannot be negative (-1)", 2, 2},
		{"FROM a\nHEALTHCHECK RUN x\n", prefix + `Unknown type "RUN" in HEALTHCHECK (try CMD)`, 2, 2},
		{"FROM a\nWORKDIR\n", prefix + "WORKDIR requires exactly one argument", 2, 2},
		{"FROM a\nUSER\n", prefix + "USER requires exactly one argument", 2, 2},
		{"FROM a\nSTOPSIGNAL\n", prefix + "STOPSIGNAL requires exactly one argument", 2, 2},
		{"FROM a\nEXPOSE\n", prefix + "EXPOSE requires at least one argument", 2, 2},
		{"FROM a\nARG =x\n", prefix + "ARG names can not be blank", 2, 2},
		{"# escape=x\nFROM a\n", "invalid escape token 'x' does not match ` or \\", 1, 1},
		{"# syntax=a\n# syntax=b\nFROM a\n", "only one syntax parser directive can be used", 2, 2},
		{"# check=skipp=all\nFROM a\n", `failed to parse check options: invalid check option "skipp"`, 0, 0},
		{"FROM x AS a\nCOPY --from=b /x /\nFROM x AS b\nCOPY --from=a /x /\n", "circular dependency detected on stage: a", 4, 4},
		{"FROM x AS a\nRUN --mount=from=A true\n", "circular dependency detected on stage: a", 2, 2},
		{"FROM a\n\nRUN wh\\\nat\\\n--x\nBAD\n", "dockerfile parse error on line 6: unknown instruction: BAD (did you mean ADD?)", 6, 6},
	} {
		r, err := Parse("Recipe", []byte(tc.src), ParseOptions{})
		var e *Error
		if !errors.As(err, &e) || e.Error() != tc.want {
			t.Errorf("%q\n got %v\nwant %v", tc.src, err, tc.want)
			continue
		}
		if e.Pos != (Position{"Recipe", tc.start, tc.end}) {
			t.Errorf("%q: at %v, want %d-%d", tc.src, e.Pos, tc.start, tc.end)
		}
		if r == nil || strings.Join(r.Lines, "\n") != tc.src {
			t.Errorf("%q: the lines are lost on error", tc.src)
		}
	}
}

func TestWarningsBeforeError(t *testing.T) {
	r, err := Parse("Recipe", []byte("FROM scratch AS BadName\nMAINTAINER me\nBADCMD\n"), ParseOptions{})
	if err == nil || len(r.Warnings) != 2 || r.Warnings[0].Rule != "StageNameCasing" || r.Warnings[1].Rule != "MaintainerDeprecated" {
		t.Errorf("got %v, %+v", err, r.Warnings)
	}
}

func TestDirectives(t *testing.T) {
	for _, tc := range []struct {
		src, syntax string
		escape      rune
	}{
		{"FROM a\n", "", '\\'},
		{"# syntax=docker/dockerfile:1\n# escape=`\nFROM a\n", "docker/dockerfile:1", '`'},
		{"#!/usr/bin/env mk\n# syntax=x\nFROM a\n", "x", '\\'},
		{"\ufeff# EsCaPe = `\nFROM a\n", "", '`'},
		{"# a comment ends the search\n# escape=`\nFROM a\n", "", '\\'},
		{"\n# escape=`\nFROM a\n", "", '\\'},
		{"# unknown=x\n# escape=`\nFROM a\n", "", '\\'},
	} {
		r := parse(t, tc.src)
		if r.Syntax != tc.syntax || r.Escape != tc.escape {
			t.Errorf("%q: syntax %q, escape %q", tc.src, r.Syntax, r.Escape)
		}
	}
}

// bare takes a step's Line away but for its text, to be compared.
func bare(s Step) Step {
	l := s.line()
	*l = Line{Source: l.Source, Trigger: l.Trigger}
	if r, ok := s.(*Run); ok {
		r.mounts = nil
	}
	return s
}

func ptr[T any](v T) *T { return &v }

// oneStep parses a stage of one step.
func oneStep(t *testing.T, src string) Step {
	t.Helper()
	r := parse(t, "FROM x\n"+src+"\n")
	if len(r.Stages) != 1 || len(r.Stages[0].Steps) != 1 {
		t.Fatalf("%q: not one step", src)
	}
	return r.Stages[0].Steps[0]
}

func TestSteps(t *testing.T) {
	l := func(s string) Line { return Line{Source: s} }
	for _, tc := range []struct {
		src  string
		want Step
	}{
		{"RUN echo  a   b", &Run{Line: l("RUN echo  a   b"), Command: Command{[]string{"echo  a   b"}, true}, Network: "default", Security: "sandbox"}},
		{"run a \\\n# gone\n  b", &Run{Line: l("run a   b"), Command: Command{[]string{"a   b"}, true}, Network: "default", Security: "sandbox"}},
		{`RUN ["echo","hello"]this is invalid`, &Run{Line: l(`RUN ["echo","hello"]this is invalid`), Command: Command{[]string{`["echo","hello"]this is invalid`}, true}, Network: "default", Security: "sandbox"}},
		{`RUN --network=none --security=insecure --device=a/b=c,required ["a", "b c"]`, &Run{
			Line:    l(`RUN --network=none --security=insecure --device=a/b=c,required ["a", "b c"]`),
			Command: Command{[]string{"a", "b c"}, false}, Network: "none", Security: "insecure", Devices: []Device{{"a/b=c", true}}}},
		{"RUN <<-EOF\n\techo $x\n\tEOF", &Run{Line: l("RUN <<-EOF"), Command: Command{[]string{"<<-EOF"}, true},
			Files: []Heredoc{{Name: "EOF", Data: "\techo $x\n", Chomp: true}}, Network: "default", Security: "sandbox"}},
		{"RUN --mount=from=b,target=/x true", &Run{Line: l("RUN --mount=from=b,target=/x true"), Command: Command{[]string{"true"}, true},
			Mounts: []Mount{{From: "b"}}, Network: "default", Security: "sandbox"}},
		{"COPY --from=b --chown=1:2 --chmod=u+x --link --parents --exclude=*.o --exclude=x a b c/", &Copy{
			Line: l("COPY --from=b --chown=1:2 --chmod=u+x --link --parents --exclude=*.o --exclude=x a b c/"), Sources: []string{"a", "b"}, Dest: "c/",
			From: "b", Chown: "1:2", Chmod: "u+x", Link: true, Parents: true, Exclude: []string{"*.o", "x"}}},
		{`ADD --checksum=sha256:x --keep-git-dir --unpack=false ["a b", "c d"]`, &Copy{
			Line: l(`ADD --checksum=sha256:x --keep-git-dir --unpack=false ["a b", "c d"]`), Add: true, Sources: []string{"a b"}, Dest: "c d",
			Checksum: "sha256:x", KeepGit: ptr(true), Unpack: ptr(false)}},
		{"COPY <<a <<-'b' x /d/\n$v\na\n\t$v\n\tb", &Copy{Line: l("COPY <<a <<-'b' x /d/"), Sources: []string{"x"}, Dest: "/d/",
			Inline: []Heredoc{{Name: "a", Data: "$v\n", Expand: true}, {Name: "b", Data: "$v\n"}}}},
		{`ENV a=1 b="x y" c=x\ y`, &Env{Line: l(`ENV a=1 b="x y" c=x\ y`), Vars: []Pair{{"a", "1"}, {"b", `"x y"`}, {"c", `x\ y`}}}},
		{"ENV a b  c", &Env{Line: l("ENV a b  c"), Vars: []Pair{{"a", "b  c"}}, legacy: true}},
		{"LABEL a=b", &Label{Line: l("LABEL a=b"), Labels: []Pair{{"a", "b"}}}},
		{"WORKDIR /a b", &Workdir{Line: l("WORKDIR /a b"), Path: "/a b"}},
		{"USER a:b", &User{Line: l("USER a:b"), User: "a:b"}},
		{"CMD []", &Cmd{Line: l("CMD []"), Command: Command{[]string{}, false}}},
		{"CMD a  b", &Cmd{Line: l("CMD a  b"), Command: Command{[]string{"a  b"}, true}}},
		{"ENTRYPOINT []", &Entrypoint{Line: l("ENTRYPOINT []")}},
		{"ENTRYPOINT []random string", &Entrypoint{Line: l("ENTRYPOINT []random string"), Command: Command{[]string{"[]random string"}, true}}},
		{"EXPOSE 5000 2375/tcp 1234/udp", &Expose{Line: l("EXPOSE 5000 2375/tcp 1234/udp"), Ports: []string{"1234/udp", "2375/tcp", "5000"}}},
		{"VOLUME /a b", &Volume{Line: l("VOLUME /a b"), Paths: []string{"/a", "b"}}},
		{"STOPSIGNAL 9", &StopSignal{Line: l("STOPSIGNAL 9"), Signal: "9"}},
		{`SHELL ["a", "-c"]`, &Shell{Line: l(`SHELL ["a", "-c"]`), Shell: []string{"a", "-c"}}},
		{"MAINTAINER a b", &Maintainer{Line: l("MAINTAINER a b"), Name: "a b"}},
		{"ONBUILD copy <<E /x\n1\nE", &Onbuild{Line: l("ONBUILD copy <<E /x"), Expression: "copy <<E /x\n1\nE"}},
		{"HEALTHCHECK NONE", &Healthcheck{Line: l("HEALTHCHECK NONE"), Test: []string{"NONE"}}},
		{"HEALTHCHECK --interval=1m --timeout=2s --start-period=3s --start-interval=4s --retries=5 CMD a b", &Healthcheck{
			Line: l("HEALTHCHECK --interval=1m --timeout=2s --start-period=3s --start-interval=4s --retries=5 CMD a b"),
			Test: []string{"CMD-SHELL", "a b"}, Interval: 60e9, Timeout: 2e9, StartPeriod: 3e9, StartInterval: 4e9, Retries: 5}},
		{`HEALTHCHECK CMD ["a", "b"]`, &Healthcheck{Line: l(`HEALTHCHECK CMD ["a", "b"]`), Test: []string{"CMD", "a", "b"}}},
		{"# a is for x\nARG a=1 b c=", &Arg{Line: l("ARG a=1 b c="), Args: []ArgValue{{Name: "a", Value: ptr("1"), Doc: "is for x"}, {Name: "b"}, {Name: "c", Value: ptr("")}}}},
	} {
		if got := bare(oneStep(t, tc.src)); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q\n got %+v\nwant %+v", tc.src, got, tc.want)
		}
	}
}

// A file in lower case, positions over continued lines and here-documents, a
// backquote as the escape that leaves backslashes alone.
func TestPositions(t *testing.T) {
	r := parse(t, "# escape=`\narg v=1\nfrom x as A\n\n# note\ncopy f c:\\\nrun a `\n  b\nrun <<E\n1\nE\nworkdir /x\n")
	if len(r.Args) != 1 || r.Args[0].At() != (Position{"Recipe", 2, 2}) {
		t.Errorf("global arg: %+v", r.Args)
	}
	st := r.Stages[0]
	if st.Name != "a" || st.Base != "x" || st.Pos.Start != 3 || st.Source != "from x as A" {
		t.Errorf("stage: %+v", st)
	}
	want := []Position{{"Recipe", 6, 6}, {"Recipe", 7, 8}, {"Recipe", 9, 11}, {"Recipe", 12, 12}}
	for i, step := range st.Steps {
		if step.At() != want[i] {
			t.Errorf("step %d at %v, want %v", i, step.At(), want[i])
		}
	}
	if c := st.Steps[0].(*Copy); c.Dest != `c:\` || c.Keyword() != "COPY" {
		t.Errorf("copy: %+v", c)
	}
}

func TestOnbuild(t *testing.T) {
	at := Position{"Recipe", 7, 7}
	steps, err := ParseOnbuild("RUN --mount=from=b,target=/x <<E\nhi\nE", at, '\\')
	if err != nil || len(steps) != 1 {
		t.Fatal(steps, err)
	}
	run := steps[0].(*Run)
	if run.At() != at || run.Trigger != "RUN --mount=from=b,target=/x <<E\nhi\nE" || run.Files[0].Data != "hi\n" || run.Mounts[0].From != "b" {
		t.Errorf("%+v", run)
	}
	for expr, want := range map[string]string{
		"RUN a\nRUN b":       "onbuild trigger should be a single expression",
		"from x":             "FROM isn't allowed as an ONBUILD trigger",
		"ONBUILD RUN x":      "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
		"MAINTAINER x":       "MAINTAINER isn't allowed as an ONBUILD trigger",
		"":                   "file with no instructions",
		"COPY --from=$x a b": "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
		"WORKDIRR x":         "unknown instruction: WORKDIRR (did you mean WORKDIR?)",
	} {
		_, err := ParseOnbuild(expr, at, '\\')
		var e *Error
		if !errors.As(err, &e) || e.Error() != want || e.Pos != at {
			t.Errorf("%q: got %v, want %v", expr, err, want)
		}
	}
}

func TestStageNames(t *testing.T) {
	r := parse(t, "FROM x AS One\nFROM one AS two\nFROM x AS one\nCOPY --from=0 a b\nFROM x\nCOPY --from=0 a b\n")
	if st, err := r.Target("TWO"); err != nil || st.Index != 1 {
		t.Error(st, err)
	}
	if st, err := r.Target(""); err != nil || st.Index != 3 || st.DisplayName() != "stage-3" {
		t.Error(st, err)
	}
	if _, err := r.Target("tow"); err == nil || err.Error() != `target stage "tow" could not be found (did you mean two?)` {
		t.Error(err)
	}
	for name, want := range map[string]string{"alpin": "alpine", "tow": "two", "debain:latest": "debian:latest", "something": "", "two": ""} {
		if got := r.SuggestBase(name); got != want {
			t.Errorf("%s: meant %q, want %q", name, got, want)
		}
	}
	if st, ok := r.BaseStage(r.Stages[1], "one"); !ok || st.Index != 0 {
		t.Error("FROM means the stage before it", st)
	}
	if st, ok := r.Named("one"); !ok || st.Index != 2 {
		t.Error("--from means the last of a name", st)
	}
	if _, ok := r.BaseStage(r.Stages[0], "two"); ok {
		t.Error("FROM cannot mean a later stage")
	}
	if st, err := r.CopySource(r.Stages[3], "0"); err != nil || st.Index != 0 {
		t.Error(st, err)
	}
	if st, err := r.CopySource(r.Stages[3], "busybox"); err != nil || st != nil {
		t.Error(st, err)
	}
	_, err := r.CopySource(r.Stages[1], "2")
	if err == nil || err.Error() != `cannot copy from stage "2", it needs to be defined before current stage "two"` {
		t.Error(err)
	}
	_, err = r.MountSource(r.Stages[1], "one", "/x")
	if err == nil || err.Error() != `cannot mount from stage "one" to "/x", stage needs to be defined before current command` {
		t.Error(err)
	}
	if st, err := r.MountSource(r.Stages[3], "0", "/x"); err != nil || st != nil {
		t.Error("a mount knows no indices", st, err)
	}
}
