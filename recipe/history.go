package recipe

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// DefaultShell goes before a shell form when no SHELL was given.
var DefaultShell = []string{"/bin/sh", "-c"}

// Argv is the command with its shell in front, where it has the shell form.
// shell nil is DefaultShell.
func (c Command) Argv(shell []string) []string {
	if !c.Shell {
		return c.Args
	}
	if len(shell) == 0 {
		shell = DefaultShell
	}
	return append(slices.Clone(shell), strings.Join(c.Args, " "))
}

// PipesDir is where a RUN finds the body of a here-document that is a script.
const PipesDir = "/dev/pipes"

// CommandLine is the argv of a RUN, its here-documents put where they belong.
// A body alone on its line is the whole command; when it begins with "#!" it is
// returned as script, a file to be found read-only and executable (0755) at
// PipesDir/script.Name. Other bodies go back behind the command, for the shell.
func (r *Run) CommandLine(shell []string) (argv []string, script *Heredoc) {
	if len(r.Files) == 0 || len(r.Args) != 1 {
		return r.Argv(shell), nil
	}
	if parser.MustParseHeredoc(r.Args[0]) == nil {
		var b strings.Builder
		b.WriteString(r.Args[0])
		for _, f := range r.Files {
			b.WriteString("\n" + f.Data + f.Name)
		}
		return Command{[]string{b.String()}, r.Shell}.Argv(shell), nil
	}
	body := r.Files[0]
	if body.Chomp {
		body.Data = parser.ChompHeredocContent(body.Data)
	}
	if strings.HasPrefix(body.Data, "#!") {
		return Command{[]string{path.Join(PipesDir, body.Name)}, r.Shell}.Argv(shell), &body
	}
	return Command{[]string{body.Data}, r.Shell}.Argv(shell), nil
}

// HistoryLine is the created_by of an expanded step, as BuildKit writes it; "" for
// a step that leaves no history (ONBUILD). shell is the SHELL in force, runArgs
// are Scope.RunArgs. A Workdir is given with its absolute path.
func HistoryLine(step Step, shell []string, runArgs []string) string {
	switch s := step.(type) {
	case *Run:
		argv, _ := s.CommandLine(shell)
		if len(runArgs) > 0 {
			argv = slices.Concat([]string{fmt.Sprintf("|%d", len(runArgs))}, runArgs, argv)
		}
		return "RUN " + strings.Join(argv, " ") + " # buildkit"
	case *Copy:
		return copyHistory(s)
	case *Env:
		return "ENV" + joined(s.Vars)
	case *Label:
		return "LABEL" + joined(s.Labels)
	case *Arg:
		line := "ARG"
		for _, a := range s.Args {
			line += " " + a.Name
			if a.Value != nil {
				line += "=" + *a.Value
			}
		}
		return line
	case *Workdir:
		return "WORKDIR " + s.Path
	case *User:
		return "USER " + s.User
	case *Cmd:
		return fmt.Sprintf("CMD %q", s.Argv(shell))
	case *Entrypoint:
		return fmt.Sprintf("ENTRYPOINT %q", s.Argv(shell))
	case *Expose:
		ports, err := ParsePorts(s.Ports)
		if err != nil {
			ports = s.Ports
		}
		return fmt.Sprintf("EXPOSE %v", ports)
	case *Volume:
		return fmt.Sprintf("VOLUME %v", s.Paths)
	case *StopSignal:
		return "STOPSIGNAL " + s.Signal
	case *Shell:
		return fmt.Sprintf("SHELL %v", s.Shell)
	case *Maintainer:
		return "MAINTAINER " + s.Name
	case *Healthcheck:
		return fmt.Sprintf("HEALTHCHECK {Test:%v Interval:%v Timeout:%v StartPeriod:%v StartInterval:%v Retries:%d}",
			s.Test, time.Duration(s.Interval), time.Duration(s.Timeout), time.Duration(s.StartPeriod), time.Duration(s.StartInterval), s.Retries)
	}
	return ""
}

func copyHistory(s *Copy) string {
	words := []string{"COPY"}
	if s.Add {
		words[0] = "ADD"
	}
	if s.Parents {
		words = append(words, "--parents")
	}
	if s.Chown != "" {
		words = append(words, "--chown="+s.Chown)
	}
	if s.Chmod != "" {
		words = append(words, "--chmod="+s.Chmod)
	}
	words = append(words, s.Sources...)
	for _, f := range s.Inline {
		words = append(words, "<<"+f.Name)
	}
	return strings.Join(append(words, s.Dest), " ") + " # buildkit"
}

func joined(list []Pair) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(" " + p.Key + "=" + p.Value)
	}
	return b.String()
}

// Title is a step as progress shows it: the instruction with its variables
// replaced where they are set, a here-document by its first line. Of an expanded
// RUN, a variable that is a secret shows as stars. vars are those before the step.
func Title(step Step, vars *Vars) string {
	l := step.line()
	text := l.Source
	lex := shell.NewLex(l.escape)
	if run, ok := step.(*Run); ok {
		lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
		if len(run.Files) > 0 && len(run.Args) == 1 && parser.MustParseHeredoc(run.Args[0]) != nil {
			text += " (" + summary(run.Files[0].Data) + ")"
		}
		for _, m := range run.Mounts {
			if m.Type == "secret" && m.Env != "" {
				vars = vars.Clone()
				vars.Set(m.Env, "****")
			}
		}
	}
	if !plainWord(text) {
		if res, err := lex.ProcessWordWithMatches(text, vars); err == nil {
			text = res.Result
		}
	}
	keyword, rest, found := strings.Cut(text, " ")
	if !found {
		return strings.ToUpper(keyword)
	}
	return strings.ToUpper(keyword) + " " + rest
}

// summary is the first line of a here-document, with dots for the others.
func summary(doc string) string {
	first, _, more := strings.Cut(strings.TrimSpace(doc), "\n")
	first = strings.TrimSuffix(first, "\r")
	if more {
		first += "..."
	}
	return first
}
