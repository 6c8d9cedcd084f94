package recipe

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// newStep makes our step of BuildKit's instruction.
func newStep(ins any, node *parser.Node, pos Position, escape rune) (Step, error) {
	l := Line{
		Pos:      pos,
		Word:     strings.ToUpper(node.Value),
		Source:   strings.TrimSpace(node.Original),
		spelled:  node.Value,
		escape:   escape,
		comments: node.PrevComment,
	}
	switch c := ins.(type) {
	case *instructions.RunCommand:
		return newRun(c, l, node), nil
	case *instructions.CopyCommand:
		if err := checkFrom(c.From, escape); err != nil {
			return nil, err
		}
		return &Copy{
			Line: l, Sources: c.SourcePaths, Inline: inline(c.SourceContents), Dest: c.DestPath,
			From: c.From, Chown: c.Chown, Chmod: c.Chmod, Link: c.Link, Parents: c.Parents, Exclude: c.ExcludePatterns,
		}, nil
	case *instructions.AddCommand:
		return &Copy{
			Line: l, Add: true, Sources: c.SourcePaths, Inline: inline(c.SourceContents), Dest: c.DestPath,
			Chown: c.Chown, Chmod: c.Chmod, Link: c.Link, Exclude: c.ExcludePatterns,
			Checksum: c.Checksum, KeepGit: c.KeepGitDir, Unpack: c.Unpack,
		}, nil
	case *instructions.EnvCommand:
		vars, legacy := pairs(c.Env)
		return &Env{Line: l, Vars: vars, legacy: legacy}, nil
	case *instructions.LabelCommand:
		labels, legacy := pairs(c.Labels)
		return &Label{Line: l, Labels: labels, legacy: legacy}, nil
	case *instructions.WorkdirCommand:
		return &Workdir{Line: l, Path: c.Path}, nil
	case *instructions.UserCommand:
		return &User{Line: l, User: c.User}, nil
	case *instructions.CmdCommand:
		return &Cmd{Line: l, Command: shellOrExec(c.ShellDependantCmdLine)}, nil
	case *instructions.EntrypointCommand:
		return &Entrypoint{Line: l, Command: shellOrExec(c.ShellDependantCmdLine)}, nil
	case *instructions.ExposeCommand:
		return &Expose{Line: l, Ports: c.Ports}, nil
	case *instructions.VolumeCommand:
		return &Volume{Line: l, Paths: c.Volumes}, nil
	case *instructions.StopSignalCommand:
		return &StopSignal{Line: l, Signal: c.Signal}, nil
	case *instructions.ShellCommand:
		return &Shell{Line: l, Shell: c.Shell}, nil
	case *instructions.MaintainerCommand:
		return &Maintainer{Line: l, Name: c.Maintainer}, nil
	case *instructions.OnbuildCommand:
		return &Onbuild{Line: l, Expression: c.Expression}, nil
	case *instructions.HealthCheckCommand:
		return &Healthcheck{
			Line: l, Test: c.Health.Test, Retries: c.Health.Retries,
			Interval: int64(c.Health.Interval), Timeout: int64(c.Health.Timeout),
			StartPeriod: int64(c.Health.StartPeriod), StartInterval: int64(c.Health.StartInterval),
		}, nil
	case *instructions.ArgCommand:
		arg := &Arg{Line: l}
		for _, a := range c.Args {
			arg.Args = append(arg.Args, ArgValue{Name: a.Key, Value: a.Value, Doc: a.DocComment})
		}
		return arg, nil
	}
	return nil, fmt.Errorf("%T is not a command type", ins)
}

func newRun(c *instructions.RunCommand, l Line, node *parser.Node) *Run {
	run := &Run{
		Line:     l,
		Command:  shellOrExec(c.ShellDependantCmdLine),
		Network:  instructions.GetNetwork(c),
		Security: instructions.GetSecurity(c),
	}
	for _, f := range c.Files {
		// The shell does the expansion, if any: the quotes are in Command.
		run.Files = append(run.Files, Heredoc{Name: f.Name, Data: f.Data, Chomp: f.Chomp})
	}
	for _, d := range instructions.GetDevices(c) {
		run.Devices = append(run.Devices, Device{Name: d.Name, Required: d.Required})
	}
	for _, m := range instructions.GetMounts(c) {
		run.Mounts = append(run.Mounts, Mount{From: m.From})
	}
	for _, flag := range node.Flags {
		if value, ok := strings.CutPrefix(flag, "--mount="); ok {
			run.mounts = append(run.mounts, value)
		}
	}
	return run
}

func shellOrExec(c instructions.ShellDependantCmdLine) Command {
	return Command{Args: c.CmdLine, Shell: c.PrependShell}
}

func inline(contents []instructions.SourceContent) []Heredoc {
	var docs []Heredoc
	for _, c := range contents {
		docs = append(docs, Heredoc{Name: c.Path, Data: c.Data, Expand: c.Expand})
	}
	return docs
}

func pairs(kvs instructions.KeyValuePairs) (list []Pair, legacy bool) {
	for _, kv := range kvs {
		list = append(list, Pair{kv.Key, kv.Value})
		legacy = legacy || kv.NoDelim
	}
	return list, legacy
}
