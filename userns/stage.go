package userns

import "strings"

// Stage is which of mk's processes this one is; decided once, in main, from argv[0].
type Stage int

const (
	StageHost   Stage = iota // the caller's namespaces: flags, plan, cache look-ups, waiting
	StageInside              // root of a user namespace: trees, snapshots, the builder
	StageInit                // pid 1 of a container
)

// The names by which the stages call each other. ps shows them.
const (
	InsideName = "mk:inside"
	InitName   = "mk:init"
)

// StageOf reads the stage from argv[0]. Anything that is not one of mk's own names is the host.
func StageOf(argv0 string) Stage {
	switch name, _, _ := strings.Cut(argv0, " "); name {
	case InsideName:
		return StageInside
	case InitName:
		return StageInit
	}
	return StageHost
}

func (s Stage) String() string {
	switch s {
	case StageInside:
		return "inside"
	case StageInit:
		return "init"
	}
	return "host"
}
