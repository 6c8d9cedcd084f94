package recipe

import (
	"reflect"
	"strings"
	"testing"
)

func TestPorts(t *testing.T) {
	for _, tc := range []struct{ in, out, err string }{
		{"80", "80/tcp", ""},
		{"80/tcp 80/UDP", "80/tcp 80/udp", ""},
		{"8000-8002/sctp", "8000/sctp 8001/sctp 8002/sctp", ""},
		{"8000-8000", "8000/tcp", ""},
		{"127.0.0.1:80:8080", "8080/tcp", ""},
		{"127.0.0.1::8080", "8080/tcp", ""},
		{"[::1]:80:8080/udp", "8080/udp", ""},
		{"2000-3000:80", "80/tcp", ""},
		{"0", "0/tcp", ""},
		{"80/tcpp", "", `invalid port: "80/tcpp": invalid proto: tcpp`},
		{"/tcp", "", `invalid port: "/tcp": no port specified`},
		{"", "", ""},
		{"x", "", "invalid containerPort: x"},
		{"65536", "", "invalid containerPort: 65536"},
		{"-1", "", "invalid containerPort: -1"},
		{"9-8", "", "invalid containerPort: 9-8"},
		{"a:80", "", "invalid hostPort: a"},
		{"1.2.3:1:80", "", "invalid IP address: 1.2.3"},
		{"1-2:3-5", "", "invalid ranges specified for container and host Ports: 3-5 and 1-2"},
	} {
		got, err := ParsePorts(strings.Fields(tc.in))
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: error %v, want %s", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != tc.out {
			t.Errorf("%s: %q %v, want %s", tc.in, got, err, tc.out)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		src    string
		shell  []string
		argv   []string
		script *Heredoc
	}{
		{"RUN a  b", nil, []string{"/bin/sh", "-c", "a  b"}, nil},
		{`RUN ["a", "b c"]`, []string{"x"}, []string{"a", "b c"}, nil},
		{"RUN my cmd", []string{"ls"}, []string{"ls", "my cmd"}, nil},
		{"RUN <<EOF\na\n\tb $x\nEOF", []string{"/bin/awk"}, []string{"/bin/awk", "a\n\tb $x\n"}, nil},
		{"RUN <<-EOF\n\ta\n\t\tb\n\tEOF", nil, []string{"/bin/sh", "-c", "a\nb\n"}, nil},
		{"RUN <<EOF\n#!/bin/x\nb\nEOF", nil, []string{"/bin/sh", "-c", "/dev/pipes/EOF"}, &Heredoc{Name: "EOF", Data: "#!/bin/x\nb\n"}},
		{"RUN <<-EOF\n\t#!/bin/x\n\tEOF", nil, []string{"/bin/sh", "-c", "/dev/pipes/EOF"}, &Heredoc{Name: "EOF", Data: "#!/bin/x\n", Chomp: true}},
		{"RUN 3<<A 4<<-B awk -f -\n1\nA\n\t2\n\tB", nil, []string{"/bin/sh", "-c", "3<<A 4<<-B awk -f -\n1\nA\n\t2\nB"}, nil},
		{"RUN cat <<'E'\n$x\nE", nil, []string{"/bin/sh", "-c", "cat <<'E'\n$x\nE"}, nil},
		{`RUN ["cat", "<<E"]`, nil, []string{"cat", "<<E"}, nil},
	} {
		argv, script := oneStep(t, tc.src).(*Run).CommandLine(tc.shell)
		if !reflect.DeepEqual(argv, tc.argv) || !reflect.DeepEqual(script, tc.script) {
			t.Errorf("%q\n got %q %+v\nwant %q %+v", tc.src, argv, script, tc.argv, tc.script)
		}
	}
}

func TestHistoryLine(t *testing.T) {
	vars := NewVars([]string{"v=1", "ports=3000 4000/udp"})
	for _, tc := range []struct {
		src, want string
		runArgs   []string
	}{
		{"RUN echo $v", "RUN /bin/sh -c echo $v # buildkit", nil},
		{"RUN --mount=type=secret,id=s,env=S echo $v", "RUN |2 a=1 b=2 3 /bin/sh -c echo $v # buildkit", []string{"a=1", "b=2 3"}},
		{`RUN ["a","b c"]`, "RUN a b c # buildkit", nil},
		{"COPY --from=b --link --exclude=x --chown=1 --chmod=755 a$v b /c", "COPY --chown=1 --chmod=755 a1 b /c # buildkit", nil},
		{"COPY --parents a /c", "COPY --parents a /c # buildkit", nil},
		{"ADD <<E <<F x /d/\nE\nF", "ADD x <<E <<F /d/ # buildkit", nil},
		{"ENV a=$v b=\"x y\"", "ENV a=1 b=x y", nil},
		{"ENV a $v  z", "ENV a=1  z", nil},
		{"LABEL a=$v", "LABEL a=1", nil},
		{"ARG a=$v b c=", "ARG a=1 b c=", nil},
		{"WORKDIR /$v", "WORKDIR /1", nil},
		{"USER u$v", "USER u1", nil},
		{"CMD a b", `CMD ["/bin/sh" "-c" "a b"]`, nil},
		{`CMD ["a","b"]`, `CMD ["a" "b"]`, nil},
		{"ENTRYPOINT []", "ENTRYPOINT []", nil},
		{"ENTRYPOINT []random string", `ENTRYPOINT ["/bin/sh" "-c" "[]random string"]`, nil},
		{"EXPOSE 5000 2375/tcp 1234/udp", "EXPOSE [1234/udp 2375/tcp 5000/tcp]", nil},
		{"EXPOSE $ports", "EXPOSE [3000/tcp 4000/udp]", nil},
		{"VOLUME /a /b", "VOLUME [/a /b]", nil},
		{"STOPSIGNAL SIGTERM", "STOPSIGNAL SIGTERM", nil},
		{`SHELL ["a","-c"]`, "SHELL [a -c]", nil},
		{"MAINTAINER me", "MAINTAINER me", nil},
		{"HEALTHCHECK --interval=90s CMD a b", "HEALTHCHECK {Test:[CMD-SHELL a b] Interval:1m30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}", nil},
		{"ONBUILD RUN x", "", nil},
	} {
		step, _, err := Expand(oneStep(t, tc.src), vars)
		if err != nil {
			t.Errorf("%q: %v", tc.src, err)
			continue
		}
		if got := HistoryLine(step, nil, tc.runArgs); got != tc.want {
			t.Errorf("%q\n got %s\nwant %s", tc.src, got, tc.want)
		}
	}
}

func TestTitle(t *testing.T) {
	vars := NewVars([]string{"v=1"})
	for src, want := range map[string]string{
		"run echo $v '$v' ${u:-x} $u":                "RUN echo 1 '$v' ${u:-x} $u",
		"RUN --mount=type=secret,id=s,env=v echo $v": "RUN --mount=type=secret,id=s,env=v echo ****",
		"RUN <<E\n  first\nsecond\nE":                "RUN <<E (first...)",
		"RUN cat <<E\nfirst\nE":                      "RUN cat <<E",
		"copy $v $u /x":                              "COPY 1  /x",
		"WORKDIR /$v":                                "WORKDIR /1",
		"RUN echo ${":                                "RUN echo ${",
	} {
		step, _, err := Expand(oneStep(t, src), vars)
		if err != nil {
			t.Fatal(err)
		}
		if got := Title(step, vars); got != want {
			t.Errorf("%q\n got %s\nwant %s", src, got, want)
		}
	}
}

func TestExcerpt(t *testing.T) {
	lines := strings.Split("one\ntwo\nthree\nfour\nfive\nsix\nseven\n", "\n")
	for _, tc := range []struct {
		start, end int
		want       string
	}{
		{4, 4, "Recipe:4\n--------------------\n   2 |     two\n   3 |     three\n   4 | >>> four\n   5 |     five\n   6 |     six\n--------------------\n"},
		{3, 4, "Recipe:3\n--------------------\n   2 |     two\n   3 | >>> three\n   4 | >>> four\n   5 |     five\n--------------------\n"},
		{1, 1, "Recipe:1\n--------------------\n   1 | >>> one\n   2 |     two\n   3 |     three\n--------------------\n"},
		{8, 8, "Recipe:8\n--------------------\n   6 |     six\n   7 |     seven\n   8 | >>> \n--------------------\n"},
		{7, 99, "Recipe:7\n--------------------\n   6 |     six\n   7 | >>> seven\n   8 | >>> \n--------------------\n"},
		{0, 0, ""},
		{9, 9, ""},
	} {
		if got := Excerpt(lines, Position{"Recipe", tc.start, tc.end}); got != tc.want {
			t.Errorf("%d-%d\n got %s\nwant %s", tc.start, tc.end, got, tc.want)
		}
	}
}

func TestChmod(t *testing.T) {
	for _, tc := range []struct {
		chmod  string
		before uint32
		dir    bool
		after  uint32
	}{
		{"0", 0o777, false, 0}, {"0644", 0o777, true, 0o644}, {"7777", 0, false, 0o7777},
		{"=", 0o777, false, 0}, {"+", 0o421, false, 0o421}, {"-", 0o777, false, 0o777},
		{"+t", 0o421, false, 0o1421}, {"-t", 0o1421, false, 0o421}, {"o+t", 0o421, false, 0o1421},
		{"u+r", 0, false, 0o400}, {"g+w", 0, false, 0o020}, {"o+x", 0, false, 0o001}, {"u+s", 0, false, 0o4000}, {"g+s", 0, false, 0o2000}, {"o+s", 0, false, 0},
		{"+X", 0, false, 0}, {"+X", 0o010, false, 0o111}, {"+X", 0, true, 0o111}, {"-X", 0o777, false, 0o666},
		{"a+X", 0o666, false, 0o666}, {"a+X", 0o124, true, 0o135}, {"go-w", 0o666, false, 0o644}, {"go-w", 0o124, true, 0o104},
		{"u=rw,g=r,o=r", 0o666, false, 0o644}, {"u+rw,g+r,o-x,o+w", 0o124, true, 0o766},
		{"-s", 0o6777, false, 0o777}, {"u=", 0o777, false, 0o077}, {"=rw", 0o777, false, 0o666},
		{"u=g", 0o742, false, 0o442}, {"u=g-w", 0o742, false, 0o442}, {"-u", 0o111, false, 0},
		{"a=r,ug=rw,u+x", 0o777, false, 0o764}, {"+7", 0o600, false, 0o607},
		{"=rw,+X", 0o766, false, 0o666}, {"u=rwx,go=u-w", 0, false, 0o755}, {"go=", 0o777, false, 0o700},
		{"u=rwX,go=rX", 0o444, false, 0o644}, {"u=rwX,go=rX", 0o442, true, 0o755}, {"u=rwX,go=rX", 0o641, false, 0o755},
		{"=X", 0o424, false, 0}, {"=X", 0o421, false, 0o111}, {"=rX", 0o421, false, 0o555}, {"go-X", 0o777, false, 0o766},
	} {
		c, err := ParseChmod(tc.chmod)
		if err != nil {
			t.Errorf("%s: %v", tc.chmod, err)
			continue
		}
		if got := c.Apply(tc.before, tc.dir); got != tc.after {
			t.Errorf("%s on %04o (dir %v): %04o, want %04o", tc.chmod, tc.before, tc.dir, got, tc.after)
		}
	}
	for _, bad := range []string{"", "z", "u", "go", "9", "10000", "64a", "u+r,", "u+q", ",", "u+go"} {
		if _, err := ParseChmod(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestKindOf(t *testing.T) {
	for s, want := range map[string]Kind{
		"a/b": Local, "./git@x:y": Local, "github.com/x/y": Local, "ftp://x/y": Local, "": Local, "a:b": Local,
		"http://x/y": HTTP, "https://x/y.tar.gz": HTTP, "https://x/y.git/z": HTTP, "HTTP://x/y": Local,
		"https://x/y.git": Git, "https://x/y.git#v1:dir": Git, "https://x/y.git?tag=v1": Git, "http://x/y.git": Git,
		"git@github.com:x/y.git": Git, "git://x/y": Git, "ssh://git@x/y": Git,
	} {
		if got := KindOf(s); got != want {
			t.Errorf("%s: %d, want %d", s, got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	for _, tc := range []struct{ word, options, want string }{
		{"tow", "one two", "two"}, {"one", "one two", ""}, {"x", "yyyy zzzz", ""}, {"BULID", "BUILD", "BUILD"}, {"ab", "ax ay", "ax"}, {"", "a", "a"}, {"ünö", "üno", "üno"},
	} {
		if got := Suggest(tc.word, strings.Fields(tc.options)); got != tc.want {
			t.Errorf("%s of %s: %q, want %q", tc.word, tc.options, got, tc.want)
		}
	}
}

func TestValidReference(t *testing.T) {
	hex := strings.Repeat("a1", 32)
	for s, want := range map[string]bool{
		"busybox": true, "a/b:c": true, "localhost:5000/a/b": true, "Host.io/a": true, "a@sha256:" + hex: true, "a:t@sha256:" + hex: true, "[::1]:5000/a": true, "a__b/c--d": true,
		"": false, "busybox:": false, "Busybox": false, "host.io/A": false, "a b": false, "a@sha256:12": false, hex: false, "-a": false, "a/": false, strings.Repeat("a", 256): false,
	} {
		if got := validReference(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
