package recipe

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestExpandWord(t *testing.T) {
	vars := NewVars([]string{"v=value", "e=", "p=a/b/c.tar.gz", "s=x y"})
	for _, tc := range []struct{ word, want, err string }{
		{"$v-${v}", "value-value", ""},
		{"$u.${u}", ".", ""},
		{"${v:-w}${e:-w}${u:-w}", "valueww", ""},
		{"${v-w}${e-w}${u-w}", "valuew", ""},
		{"${v:+w}${e:+w}${u:+w}", "w", ""},
		{"${v+w}${e+w}${u+w}", "ww", ""},
		{"${v:?m}${e?m}", "value", ""},
		{"${e:?no $v}", "", `failed to process "${e:?no $v}": e: no value`},
		{"${u:?}", "", `failed to process "${u:?}": u: is not allowed to be unset`},
		{"${e:?}", "", `failed to process "${e:?}": e: is not allowed to be empty`},
		{"${u?}", "", `failed to process "${u?}": u: is not allowed to be unset`},
		{"${p#*/}", "b/c.tar.gz", ""},
		{"${p##*/}", "c.tar.gz", ""},
		{"${p%.*}", "a/b/c.tar", ""},
		{"${p%%.*}", "a/b/c", ""},
		{"${p/./-}", "a/b/c-tar.gz", ""},
		{"${p//./-}", "a/b/c-tar-gz", ""},
		{"${p//\\//-}", "a-b-c.tar.gz", ""},
		{"${v#v?l}", "ue", ""},
		{"${v:=w}", "", `failed to process "${v:=w}": unsupported modifier (:=) in substitution`},
		{"${v=w}", "", `failed to process "${v=w}": unsupported modifier (=) in substitution`},
		{"${v:0:3}", "", `failed to process "${v:0:3}": unsupported modifier (:0) in substitution`},
		{"${v", "", `failed to process "${v": unsupported modifier (` + "\uFFFD" + `) in substitution`},
		{"$(date)", "$(date)", ""},
		{`\$v'$v'"$v"`, "$v$vvalue", ""},
		{"a'b c'", "ab c", ""},
		{"${u:-$v}", "value", ""},
	} {
		got, _, err := ExpandWord(tc.word, vars, '\\')
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: error %v, want %s", tc.word, err, tc.err)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%s: %q %v, want %q", tc.word, got, err, tc.want)
		}
	}
	if got, _, _ := ExpandWord("`$v\\$v", vars, '`'); got != `$v\value` {
		t.Errorf("escape by backquote: %q", got)
	}
}

func TestExpand(t *testing.T) {
	vars := NewVars([]string{"a=A", "sp=x y", "ports=3000 4000/udp", "m=cache", "id=7", "empty=", "abc=hello"})
	for _, tc := range []struct {
		src    string
		want   Step
		unset  []string
		errors string
	}{
		{src: "ENV abc=bye def=$abc ${a}x=$no", want: &Env{Vars: []Pair{{"abc", "bye"}, {"def", "hello"}, {"Ax", ""}}}, unset: []string{"no"}},
		{src: `ENV p %s"$a"`, want: &Env{Vars: []Pair{{"p", "%sA"}}, legacy: true}},
		{src: "LABEL $a=$a '$a'='$a'", want: &Label{Labels: []Pair{{"A", "A"}, {"$a", "$a"}}}},
		{src: "WORKDIR /$a/${no:-w}", want: &Workdir{Path: "/A/w"}, unset: []string{"no"}},
		{src: "USER $a:$a", want: &User{User: "A:A"}},
		{src: "EXPOSE $ports 80 $no", want: &Expose{Ports: []string{"3000", "4000/udp", "80"}}},
		{src: "VOLUME $sp /$a", want: &Volume{Paths: []string{"x y", "/A"}}},
		{src: "VOLUME /x $empty", errors: "VOLUME specified can not be an empty string"},
		{src: "STOPSIGNAL SIG$k", errors: "invalid signal: SIG", unset: []string{"k"}},
		{src: "STOPSIGNAL ${k:-RTMIN+3}", want: &StopSignal{Signal: "RTMIN+3"}, unset: []string{"k"}},
		{src: "CMD echo $a", want: &Cmd{Command: Command{[]string{"echo $a"}, true}}},
		{src: `ENTRYPOINT ["$a"]`, want: &Entrypoint{Command: Command{[]string{"$a"}, false}}},
		{src: "HEALTHCHECK CMD $a", want: &Healthcheck{Test: []string{"CMD-SHELL", "$a"}}},
		{src: "ONBUILD RUN $a", want: &Onbuild{Expression: "RUN $a"}},
		{src: "MAINTAINER $a", want: &Maintainer{Name: "$a"}},
		{src: `SHELL ["$a"]`, want: &Shell{Shell: []string{"$a"}}},
		{src: "COPY $sp f$no '$a' $empty", want: &Copy{Sources: []string{"x y", "f", "$a"}, Dest: ""}, unset: []string{"no"}},
		{src: "COPY --chown=$id:$a --chmod=0${id}55 --exclude=$a x /", want: &Copy{Sources: []string{"x"}, Dest: "/", Chown: "7:A", Chmod: "0755", Exclude: []string{"$a"}}},
		{src: "COPY --chmod=64a x /", errors: "invalid chmod parameter: '64a'. it should be octal string and between 0 and 07777"},
		{src: "COPY --chmod=10000 x /", errors: "invalid chmod parameter: '10000'. it should be octal string and between 0 and 07777"},
		{src: "COPY --link --chown=$a x /", errors: "--chown=A: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead"},
		{src: "COPY http://x/y /", errors: "source can't be a URL for COPY"},
		{src: "COPY git@github.com:x/y.git /", errors: "source can't be a git ref for COPY"},
		{src: "ADD --checksum=sha256:$a x /", errors: "checksum requires HTTP(S) or Git sources"},
		{src: "ADD --checksum=$a https://x/y https://x/z /", errors: "checksum can't be specified for multiple sources"},
		{src: "ADD --checksum=sha256:$a https://x/$a /", want: &Copy{Add: true, Sources: []string{"https://x/A"}, Dest: "/", Checksum: "sha256:A"}},
		{src: "COPY <<E <<'F' /\n$a \"$a\" '$a' \\$a \\\\ $no\nE\n$a\nF", want: &Copy{Dest: "/", Inline: []Heredoc{
			{Name: "E", Data: "A \"A\" 'A' $a \\ \n", Expand: true}, {Name: "F", Data: "$a\n"}}}, unset: []string{"no"}},
		{src: "RUN echo $a", want: &Run{Command: Command{[]string{"echo $a"}, true}, Network: "default", Security: "sandbox"}},
		{src: "RUN --mount=type=$m,id=$id,target=/$a,sharing=locked,mode=0700 x", want: &Run{
			Command: Command{[]string{"x"}, true}, Network: "default", Security: "sandbox",
			Mounts: []Mount{{Type: "cache", ID: "7", Target: "/A", Sharing: "locked", Mode: ptr(uint64(0o700))}}}},
		{src: "ARG x=$a y=$x z", want: &Arg{Args: []ArgValue{{Name: "x", Value: ptr("A")}, {Name: "y", Value: ptr("A")}, {Name: "z"}}}},
		{src: "WORKDIR ${a:?", errors: `failed to process "${a:?": syntax error: missing '}'`},
	} {
		step := oneStep(t, tc.src)
		before := oneStep(t, tc.src)
		got, usage, err := Expand(step, vars)
		if !reflect.DeepEqual(step, before) {
			t.Errorf("%q: the step itself has changed", tc.src)
		}
		if !slices.Equal(usage.Unset, tc.unset) {
			t.Errorf("%q: unset %q, want %q", tc.src, usage.Unset, tc.unset)
		}
		if tc.errors != "" {
			var e *Error
			if !errors.As(err, &e) || e.Error() != tc.errors || e.Pos.Start != 2 {
				t.Errorf("%q: error %v, want %s", tc.src, err, tc.errors)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.src, err)
			continue
		}
		if bare(got).line().Source = ""; !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q\n got %+v\nwant %+v", tc.src, got, tc.want)
		}
	}
}

func TestMounts(t *testing.T) {
	root, m400, m600 := ptr(uint64(0)), ptr(uint64(0o400)), ptr(uint64(0o600))
	for _, tc := range []struct {
		flag string
		want Mount
		err  string
	}{
		{"target=/x", Mount{Type: "bind", Target: "/x", ReadOnly: true}, ""},
		{"type=bind,from=b,src=/s,dst=x,rw", Mount{Type: "bind", From: "b", Source: "/s", Target: "x"}, ""},
		{"TYPE=Bind,destination=/x,readonly=false", Mount{Type: "bind", Target: "/x"}, ""},
		{"type=cache,target=/x/../y", Mount{Type: "cache", Target: "/x/../y", ID: "/y", Sharing: "shared"}, ""},
		{"type=cache,target=/x,ro,uid=1,gid=2", Mount{Type: "cache", Target: "/x", ID: "/x", Sharing: "shared", ReadOnly: true, UID: ptr(uint64(1)), GID: ptr(uint64(2))}, ""},
		{"type=tmpfs,target=/x,size=128m", Mount{Type: "tmpfs", Target: "/x", Size: 128 << 20}, ""},
		{"type=secret,id=s", Mount{Type: "secret", ID: "s", Target: "/run/secrets/s", ReadOnly: true, Mode: m400, UID: root, GID: root}, ""},
		{"type=secret,src=d/s,required", Mount{Type: "secret", ID: "d/s", Target: "/run/secrets/s", ReadOnly: true, Required: true, Mode: m400, UID: root, GID: root}, ""},
		{"type=secret,target=/a/b,mode=0741,uid=100", Mount{Type: "secret", ID: "b", Target: "/a/b", ReadOnly: true, Mode: ptr(uint64(0o741)), UID: ptr(uint64(100)), GID: root}, ""},
		{"type=secret,id=s,env=S", Mount{Type: "secret", ID: "s", Env: "S", ReadOnly: true, Mode: m400, UID: root, GID: root}, ""},
		{"type=secret,id=s,env=S,target=/t", Mount{Type: "secret", ID: "s", Env: "S", Target: "/t", ReadOnly: true, Mode: m400, UID: root, GID: root}, ""},
		{"type=ssh", Mount{Type: "ssh", ID: "default", ReadOnly: true, Mode: m600, UID: root, GID: root}, ""},
		{`"type=cache","target=/a,b"`, Mount{Type: "cache", Target: "/a,b", ID: "/a,b", Sharing: "shared"}, ""},
		{"typ=bind", Mount{}, "unexpected key 'typ' in 'typ=bind' (did you mean type?)"},
		{"type=tmp", Mount{}, `unsupported mount type "tmp" (did you mean tmpfs?)`},
		{"type=cache,sharing=share", Mount{}, `unsupported sharing value "share" (did you mean shared?)`},
		{"target", Mount{}, "invalid field 'target' must be a key=value pair"},
		{"type=bind,required", Mount{}, "unexpected key 'required' for mount type 'bind'"},
		{"type=bind,size=1", Mount{}, "unexpected key 'size' for mount type 'bind'"},
		{"type=bind,mode=1", Mount{}, `mode not allowed for "bind" type mounts`},
		{"type=bind,sharing=shared", Mount{}, "invalid cache sharing set for bind mount"},
		{"type=secret", Mount{}, "invalid secret mount. one of source, target required"},
		{"type=secret,id=a,src=b", Mount{}, "both source and id can't be set"},
		{"type=secret,id=a,from=b", Mount{}, "secret mount should not have a from"},
		{"type=ssh,src=a", Mount{}, "ssh does not support source"},
		{"type=cache,target=/x,mode=9", Mount{}, "invalid value 9 for mode"},
	} {
		got, _, err := Expand(oneStep(t, "RUN --mount='"+tc.flag+"' true"), nil)
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: error %v, want %s", tc.flag, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.flag, err)
			continue
		}
		if m := got.(*Run).Mounts[0]; !reflect.DeepEqual(m, tc.want) {
			t.Errorf("%s\n got %+v\nwant %+v", tc.flag, m, tc.want)
		}
	}
	for _, tc := range []struct{ target, dir, want string }{
		{"/x/", "/w", "/x/"}, {"x", "/w", "/w/x"}, {"x", "", "/x"}, {"../x", "/w", "/x"},
	} {
		if got, err := (Mount{Type: "bind", Target: tc.target}).TargetIn(tc.dir); err != nil || got != tc.want {
			t.Errorf("%v: %q, %v", tc, got, err)
		}
	}
	if _, err := (Mount{Type: "bind", Target: ".."}).TargetIn("/w"); err == nil || err.Error() != `invalid mount target "/"` {
		t.Error(err)
	}
	if s, err := (Mount{Type: "ssh"}).TargetIn("/w"); s != "" || err != nil {
		t.Error(s, err)
	}
}

func TestUsed(t *testing.T) {
	vars := NewVars([]string{"a=1", "b=2", "c=3"})
	for src, want := range map[string]string{
		"COPY $b ${a:-$c} /": "a b c",
		"EXPOSE $c":          "c",
		"ENV x=$c y=$c":      "c",
		"RUN --mount=type=cache,id=$a,target=/x echo $b": "a",
	} {
		_, usage, err := Expand(oneStep(t, src), vars)
		if got := strings.Join(usage.Used, " "); err != nil || got != want {
			t.Errorf("%s: used %q, want %q; %v", src, got, want, err)
		}
	}
}
