package recipe

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// alpine is a base image that sets PATH and nothing else.
func alpine(string, v1.Platform) (Base, bool) {
	return Base{Env: []string{"PATH=/bin"}, Platform: amd64}, true
}

// brief prints warnings as "3 Rule: detail".
func brief(ws []Warning) string {
	var b strings.Builder
	for _, w := range ws {
		fmt.Fprintf(&b, "%d %s: %s\n", w.Pos.Start, w.Rule, w.Detail)
	}
	return b.String()
}

func TestLint(t *testing.T) {
	for _, tc := range []struct {
		name, src, ignore string
		in                []string
		facts             Facts
		want              string
		err               string
	}{
		{name: "clean", src: "FROM scratch\nCOPY a /\n"},
		{name: "casing of stage and AS", src: "\nFROM scratch AS BadStageName\n\nFROM scratch as base2\n\nFROM scratch AS base3\n", want: `
2 StageNameCasing: Stage name 'BadStageName' should be lowercase
4 FromAsCasing: 'as' and 'FROM' keywords' casing do not match`},
		{name: "casing of AS in lower case", src: "from scratch AS base\nfrom scratch as base2\n", want: "\n1 FromAsCasing: 'AS' and 'from' keywords' casing do not match"},
		{name: "empty continuation", src: "FROM scratch\nCOPY Dockerfile \\\n\n.\nCOPY Dockerfile \\\n.\n", want: "\n4 NoEmptyContinuation: Empty continuation line"},
		{name: "mixed case", src: "From scratch as base\nFROM scratch AS base2\n", want: "\n1 ConsistentInstructionCasing: Command 'From' should match the case of the command majority (uppercase)"},
		{name: "majority upper", src: "FROM scratch\ncopy a /foo\nCOPY a /bar\n", want: "\n2 ConsistentInstructionCasing: Command 'copy' should match the case of the command majority (uppercase)"},
		{name: "majority lower", src: "FROM scratch\ncopy a /\ncopy b /\n", want: "\n1 ConsistentInstructionCasing: Command 'FROM' should match the case of the command majority (lowercase)"},
		{name: "tie is upper", src: "FROM scratch\ncopy a /\n", want: "\n2 ConsistentInstructionCasing: Command 'copy' should match the case of the command majority (uppercase)"},
		{name: "duplicate stage", src: "FROM scratch AS b\nFROM scratch AS b\n", want: "\n2 DuplicateStageName: Duplicate stage name \"b\", stage names should be unique"},
		{name: "reserved stage", src: "FROM scratch AS scratch\nFROM scratch AS context\n", want: `
1 ReservedStageName: Stage name should not use the same name as reserved stage "scratch"
2 ReservedStageName: Stage name should not use the same name as reserved stage "context"`},
		{name: "shell form", src: "FROM scratch\nCMD mycommand\nENTRYPOINT mycommand\n", want: `
2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
3 JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals`},
		{name: "shell form after SHELL", src: "FROM scratch AS b\nSHELL [\"x\"]\nCMD a\nFROM b\nENTRYPOINT a\n"},
		{name: "shell form after the base's SHELL", src: "FROM b\nCMD a\n", facts: Facts{Base: func(string, v1.Platform) (Base, bool) { return Base{Shell: []string{"x"}}, true }}},
		{name: "maintainer", src: "FROM scratch\nMAINTAINER me@example.org\n", want: "\n2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label"},
		{name: "undeclared in platform", src: "FROM --platform=$BULIDPLATFORM scratch\n", want: "\n1 UndefinedArgInFrom: FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)",
			err: "empty platform value from expression $BULIDPLATFORM (did you mean BUILDPLATFORM?)"},
		{name: "undeclared in base", src: "ARG tag=latest\nFROM busybox:${tag}${version} AS b\n", want: "\n2 UndefinedArgInFrom: FROM argument 'version' is not declared"},
		{name: "declared without a value", src: "ARG DEBUG\nFROM scratch${DEBUG}\n"},
		{name: "default in base", src: "ARG DEBUG=\"\"\nFROM scratch${DEBUG-@bogus}\n"},
		{name: "relative workdir", src: "FROM scratch\nWORKDIR app/\nWORKDIR more\n", want: "\n2 WorkdirRelativePath: Relative workdir \"app/\" can have unexpected results if the base image changes"},
		{name: "relative workdir after an absolute one", src: "FROM scratch AS a\nWORKDIR /app\nFROM a AS b\nWORKDIR subdir/\n"},
		{name: "declared variables", src: "FROM scratch\nARG foo\nCOPY Dockerfile${foo} .\n"},
		{name: "inherited variables", src: "FROM alpine AS base\nARG foo=Dockerfile\nFROM base\nCOPY $foo .\n"},
		{name: "undefined variable", src: "FROM alpine\nCOPY $foo .\nARG foo=bar\nRUN echo $foo $bar\n", want: "\n2 UndefinedVar: Usage of undefined variable '$foo'"},
		{name: "misspelt variable", src: "FROM alpine\nARG DIR_BINARIES=binaries/ DIR_ASSETS=assets/\nCOPY $DIR_ASSET .\n", want: "\n3 UndefinedVar: Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)"},
		{name: "misspelt PATH", src: "FROM alpine\nENV PATH=$PAHT:/tmp/bin\n", want: "\n2 UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?)"},
		{name: "unknown base says nothing about variables", src: "FROM alpine\nENV a=$b\n", facts: Facts{Base: func(string, v1.Platform) (Base, bool) { return Base{}, false }}},
		{name: "unused stages are left alone", src: "FROM scratch AS first\nCOPY $foo .\nFROM scratch AS second\nCOPY $bar .\n", want: "\n4 UndefinedVar: Usage of undefined variable '$bar'"},
		{name: "unless all are wanted", src: "FROM scratch AS first\nCOPY $foo .\nFROM scratch AS second\nCOPY $bar .\n", facts: Facts{All: true}, want: `
2 UndefinedVar: Usage of undefined variable '$foo'
4 UndefinedVar: Usage of undefined variable '$bar'`},
		{name: "stages used by COPY and mounts", src: "FROM scratch AS a\nENV x=$xx\nFROM scratch AS b\nENV y=$yy\nFROM scratch\nCOPY --from=A x /\nRUN --mount=from=b,target=/x true\n", want: `
2 UndefinedVar: Usage of undefined variable '$xx'
4 UndefinedVar: Usage of undefined variable '$yy'`},
		{name: "replaced stage", src: "FROM scratch AS a\nENV x=$xx\nFROM a\nENV y=$x\n", facts: Facts{Replaced: func(s string) bool { return s == "a" }}},
		{name: "the earlier of two", src: "FROM scratch\nENTRYPOINT [\"/a\"]\nENTRYPOINT [\"/b\"]\nCMD [\"/a\"]\nCMD [\"/b\"]\nHEALTHCHECK CMD [\"/a\"]\nHEALTHCHECK CMD [\"/b\"]\n", want: `
2 MultipleInstructionsDisallowed: Multiple ENTRYPOINT instructions should not be used in the same stage because only the last one will be used
4 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used
6 MultipleInstructionsDisallowed: Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one will be used`},
		{name: "one in each stage", src: "FROM scratch AS a\nCMD [\"/a\"]\nFROM a\nCMD [\"/b\"]\n"},
		{name: "legacy key value", src: "FROM scratch\nENV testkey value\nLABEL key value\n", want: `
2 LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format
3 LegacyKeyValueFormat: "LABEL key=value" should be used instead of legacy "LABEL key value" format`},
		{name: "wrong platform", src: "FROM --platform=$BUILDPLATFORM alpine:1\nFROM alpine:2\n", facts: Facts{All: true, Inputs: Inputs{BuildPlatform: amd64, Platform: armv7}}, want: `
2 InvalidBaseImagePlatform: Base image alpine:2 was pulled with platform "linux/amd64", expected "linux/arm/v7" for current build`},
		{name: "redundant platform", src: "FROM --platform=${TARGETPLATFORM} scratch\n", want: "\n1 RedundantTargetPlatform: Setting platform to predefined ${TARGETPLATFORM} in FROM is redundant as this is the default behavior"},
		{name: "constant platform", src: "FROM --platform=linux/amd64 scratch\n", want: "\n1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\""},
		{name: "constant platform in a stage named for it", src: "FROM --platform=linux/amd64 scratch AS my_amd64_stage\nFROM --platform=linux/amd64 scratch AS linux\n"},
		{name: "secrets", src: `FROM scratch
ARG SECRET_PASSPHRASE
ENV SUPER_Secret=foo
ENV password=bar secret=baz
ARG super_duper_secret_token=foo auth=bar
ENV apikey=bar sunflower=foo
ENV git_key=
ENV PUBLIC_KEY=
ARG public_token
ARG SECRET_PASSPHRASE_FILE
ENV password_file=bar secret_File=baz
ARG AUTH_MODULE_VERSION
# check=skip=SecretsUsedInArgOrEnv // allow secret in environment
ENV password=bar
# check=skip=all // is local to only this instruction
ARG alternate_password
`, want: `
2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "SECRET_PASSPHRASE")
3 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "SUPER_Secret")
4 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "password")
4 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "secret")
5 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "super_duper_secret_token")
5 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "auth")
6 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "apikey")
7 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "git_key")`},
		{name: "no default for the base", src: "ARG VERSION\nFROM busybox:$VERSION\n", in: []string{"VERSION=latest"}, want: "\n2 InvalidDefaultArgInFrom: Default value for ARG busybox:$VERSION results in empty or invalid base image name"},
		{name: "bad default for the base", src: "ARG SFX=\"box:\"\nFROM busy${SFX}\n", in: []string{"SFX=box:latest"}, want: "\n2 InvalidDefaultArgInFrom: Default value for ARG busy${SFX} results in empty or invalid base image name"},
		{name: "empty default is fine", src: "ARG V\nFROM busybox:stable${V}\n", in: []string{"V=-musl"}},
		{name: "ignored file", src: "FROM scratch\nCOPY Dockerfile .\nADD ./Dockerfile /windy\nADD https://x/Dockerfile /\n", ignore: "Dockerfile\n", want: `
2 CopyIgnoredFile: Attempting to Copy file "Dockerfile" that is excluded by .dockerignore
3 CopyIgnoredFile: Attempting to Add file "Dockerfile" that is excluded by .dockerignore`},
		{name: "ignored file of another stage", src: "FROM scratch AS base\nCOPY a /foobar\nFROM base\nCOPY --from=base /foobar /a\n", ignore: "foobar"},
		{name: "exceptions are not judged", src: "FROM scratch\nCOPY ./a .\nCOPY . .\n", ignore: "**\n!a\n"},
		{name: "dot with dotfiles ignored", src: "FROM scratch\nCOPY . .\n", ignore: ".*\n"},
		{name: "dot with all ignored", src: "FROM scratch\nCOPY . .\n", ignore: "*\n", want: "\n2 CopyIgnoredFile: Attempting to Copy file \".\" that is excluded by .dockerignore"},
		{name: "descriptions", src: `# check=experimental=InvalidDefinitionDescription
# bar this is the bar
ARG foo=bar
# BasE this is the BasE image
FROM scratch AS base
# definitely a bad comment
ARG version=latest
# definitely a bad comment
ARG foo=baz bar=qux baz=quux
# baz is right
ARG foo=baz bar=qux baz=quux
`, want: "\n3 InvalidDefinitionDescription: Comment for ARG should follow the format: `# foo <description>`" +
			"\n5 InvalidDefinitionDescription: Comment for FROM should follow the format: `# base <description>`" +
			"\n7 InvalidDefinitionDescription: Comment for ARG should follow the format: `# version <description>`" +
			"\n9 InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>`"},
		{name: "protocol in capitals", src: "FROM scratch\nEXPOSE 80/TcP 8080/TCP 8080/udp\n", want: `
2 ExposeProtoCasing: Defined protocol '80/TcP' in EXPOSE instruction should be lowercase
2 ExposeProtoCasing: Defined protocol '8080/TCP' in EXPOSE instruction should be lowercase`},
		{name: "host ports", src: "FROM scratch\nEXPOSE 127.0.0.1:80:80 [::1]:8080:8080 5000:5000 8000\n", want: `
2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'
2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '5000:5000'
2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '[::1]:8080:8080'`},
		{name: "bad port", src: "FROM scratch\nEXPOSE x\nCMD a\n", err: "invalid containerPort: x"},
		{name: "triggers of the base image", src: "FROM b\nCMD [\"x\"]\n", facts: Facts{Base: func(string, v1.Platform) (Base, bool) {
			return Base{OnBuild: []string{"ENV a=$b", "CMD x"}}, true
		}}, want: `
1 UndefinedVar: Usage of undefined variable '$b'
1 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
1 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used`},
		{name: "triggers of a stage", src: "FROM scratch AS a\nONBUILD ENV a=$b\nFROM a\nFROM scratch\n", facts: Facts{Inputs: Inputs{Target: "stage"}}, err: `target stage "stage" could not be found (did you mean stage-1?)`},
		{name: "triggers of a stage, run", src: "FROM scratch AS a\nONBUILD ENV a=$b\nFROM a\n", want: "\n3 UndefinedVar: Usage of undefined variable '$b'"},
		{name: "skip all", src: "#check=skip=all\nFROM scratch as base\ncopy a /\nENV a=$b\n"},
		{name: "skip some", src: "#check=skip=ConsistentInstructionCasing\nFROM scratch as base\ncopy a /\n", want: "\n2 FromAsCasing: 'as' and 'FROM' keywords' casing do not match"},
		{name: "skip here", src: "FROM scratch\n# check=skip=LegacyKeyValueFormat\nENV a b\n# check=skip=UndefinedVar\nENV a=$c\n# check=skip=JSONArgsRecommended\nCMD a\nENV a=$c\n", want: "\n8 UndefinedVar: Usage of undefined variable '$c' (did you mean $a?)"},
	} {
		facts := tc.facts
		if facts.Base == nil {
			facts.Base = alpine
		}
		if facts.Inputs.Platform.OS == "" {
			in := inputs(tc.in...)
			in.Target = facts.Inputs.Target
			facts.Inputs = in
		}
		if tc.ignore != "" {
			var err error
			if facts.Ignore, err = ParseIgnore(strings.NewReader(tc.ignore)); err != nil {
				t.Fatal(err)
			}
		}
		ws, err := Lint(parse(t, tc.src), facts)
		if got, want := brief(ws), strings.TrimPrefix(tc.want, "\n"); strings.TrimSuffix(got, "\n") != want {
			t.Errorf("%s\n got %s\nwant %s", tc.name, got, want)
		}
		if msg := fmt.Sprint(err); err != nil && msg != tc.err || err == nil && tc.err != "" {
			t.Errorf("%s: error %v, want %s", tc.name, err, tc.err)
		}
		for _, w := range ws {
			if w.Description == "" || w.URL == "" && w.Rule != "InvalidBaseImagePlatform" {
				t.Errorf("%s: incomplete %+v", tc.name, w)
			}
		}
	}
}

func TestLintError(t *testing.T) {
	for _, tc := range []struct{ src, check, want string }{
		{"FROM scratch as base\ncopy a /\n", "", ""},
		{"#check=error=true\nFROM scratch as base\ncopy a /\n", "", "lint violation found for rules: ConsistentInstructionCasing, FromAsCasing"},
		{"#check=skip=all;error=true\nFROM scratch as base\n", "", ""},
		{"#check=skip=all\nFROM scratch as base\ncopy a /\n", "skip=ConsistentInstructionCasing;error=true", "lint violation found for rules: FromAsCasing"},
		{"#check=error=true\nFROM scratch as base\n", "skip=all", ""},
	} {
		r, err := Parse("Recipe", []byte(tc.src), ParseOptions{Check: tc.check})
		if err != nil {
			t.Fatal(err)
		}
		err = r.LintError(r.Warnings)
		if got := fmt.Sprint(err); err != nil && got != tc.want || err == nil && tc.want != "" {
			t.Errorf("%q: %v, want %s", tc.src, err, tc.want)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; -update writes it\n%s", file, got)
	}
}

// What a person sees, read as output.
func TestLintGolden(t *testing.T) {
	r := parse(t, `# syntax=docker/dockerfile:1
ARG base=alpine
FROM --platform=linux/amd64 $base as Build
WORKDIR src
COPY go.mod \

  $DRI ./
ENV TOKEN x
RUN <<E
echo one
E
CMD run
cmd ["run"]
EXPOSE 127.0.0.1:80:80/TCP
MAINTAINER me
`)
	ws, err := Lint(r, Facts{Inputs: inputs(), Base: alpine})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "lint.txt", FormatWarnings(r.Lines, ws))
}

func TestOutline(t *testing.T) {
	r := parse(t, `
ARG inherited=box
ARG inherited2=box2
ARG unused=abc${inherited2}
# sfx is a suffix
ARG sfx="usy${inherited}"

FROM b${sfx} AS first
# this is not assigned to anything
ARG FOO=123
# BAR is a number
ARG BAR=456
RUN --mount=type=secret,target=/etc/passwd,required=true --mount=type=ssh true

FROM alpine${unused} AS second
ARG BAZ
RUN --mount=type=secret,id=unused --mount=type=ssh,id=ssh2 true

FROM scratch AS third
ARG ABC=a
# alternate_password will show up in the outline
# check=skip=all
ARG alternate_password
RUN --mount=type=secret,id=second${BAR} --mount=type=cache,target=/var/cache/$ABC true

# target defines build target
FROM third AS target
COPY --from=first /etc/passwd /
ARG TARGETARCH
ARG BAR
RUN --mount=type=ssh,id=ssh3,required --mount=type=secret,id=number$BAR true

FROM second
`)
	in := inputs("BAR=678")
	in.Target = "target"
	o, err := NewOutline(r, Facts{Inputs: in})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", o.Name, o.Doc)
	for _, a := range o.Args {
		fmt.Fprintf(&b, "arg %s=%q at %d: %s\n", a.Name, a.Value, a.Pos.Start, a.Doc)
	}
	for kind, list := range [][]OutlineMount{o.Secrets, o.SSH, o.Caches} {
		for _, m := range list {
			fmt.Fprintf(&b, "%s %s required=%v at %d\n", []string{"secret", "ssh", "cache"}[kind], m.ID, m.Required, m.Pos.Start)
		}
	}
	golden(t, "outline.txt", b.String())
	if _, err := NewOutline(r, Facts{Inputs: Inputs{Target: "tagret"}}); err == nil || err.Error() != `target stage "tagret" could not be found (did you mean target?)` {
		t.Error(err)
	}
}

func TestOutlineRecursiveArgs(t *testing.T) {
	r := parse(t, "ARG FOO=123\nARG ABC=abc\nARG DEF=def\nARG FOO=${FOO}${ABC}\nARG BAR=${FOO}456\nARG FOO=${FOO}456${BAR}\nFROM scratch\nARG FOO\n")
	o, err := NewOutline(r, Facts{Inputs: inputs()})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range o.Args {
		got = append(got, a.Name+"="+a.Value)
	}
	if want := "ABC=abc BAR=123abc456 FOO=123abc456123abc456"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
