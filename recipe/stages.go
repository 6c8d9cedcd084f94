package recipe

import (
	"fmt"
	"strconv"
	"strings"
)

// DisplayName is the stage's name, or the one that progress gives it: stage-2.
func (st *Stage) DisplayName() string {
	if st.Name != "" {
		return st.Name
	}
	return "stage-" + strconv.Itoa(st.Index)
}

// Named finds a stage by its name in any case. Of several it is the last, as for
// BuildKit; what FROM names is found by BaseStage.
func (r *Recipe) Named(name string) (*Stage, bool) {
	return last(r.Stages, name)
}

// BaseStage finds the stage that a FROM with this (expanded) base continues: the
// nearest one before it of that name. False means an image.
func (r *Recipe) BaseStage(st *Stage, base string) (*Stage, bool) {
	return last(r.Stages[:st.Index], base)
}

func last(stages []*Stage, name string) (*Stage, bool) {
	for i := len(stages) - 1; i >= 0 && name != ""; i-- {
		if strings.EqualFold(stages[i].Name, name) {
			return stages[i], true
		}
	}
	return nil, false
}

// Target finds the stage to build: by name, or the last for "".
func (r *Recipe) Target(name string) (*Stage, error) {
	if name == "" {
		return r.Stages[len(r.Stages)-1], nil
	}
	if st, ok := r.Named(name); ok {
		return st, nil
	}
	return nil, fmt.Errorf("target stage %q could not be found%s", name, didYouMean(name, r.stageNames()))
}

// SuggestBase finds what a base that does not exist was probably meant to be: a
// stage, or an image that everybody uses. "" when nothing is near.
func (r *Recipe) SuggestBase(name string) string {
	names := r.stageNames()
	for _, image := range [...]string{"alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"} {
		names = append(names, image, image+":latest")
	}
	return Suggest(name, names)
}

func (r *Recipe) stageNames() []string {
	var names []string
	for _, st := range r.Stages {
		names = append(names, st.DisplayName())
	}
	return names
}

// CopySource finds the stage that COPY --from means in a step of st: a number is
// an index, anything else a name; nil is an image or a named context. A stage
// that is not before st is an error.
func (r *Recipe) CopySource(st *Stage, from string) (*Stage, error) {
	source, err := r.copySource(from)
	if err == nil && source != nil && source.Index >= st.Index {
		err = fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", from, st.DisplayName())
	}
	return source, err
}

func (r *Recipe) copySource(from string) (*Stage, error) {
	index, err := strconv.Atoi(from)
	if err != nil {
		source, _ := r.Named(from)
		return source, nil
	}
	if index < 0 || index >= len(r.Stages) {
		return nil, fmt.Errorf("invalid stage index %d", index)
	}
	return r.Stages[index], nil
}

// MountSource finds the stage that a RUN --mount=from= means in a step of st: by
// name only, nil is an image or a named context. A stage that is not before st
// is an error. target is the mount's, for the message.
func (r *Recipe) MountSource(st *Stage, from, target string) (*Stage, error) {
	source, ok := r.Named(from)
	if ok && source.Index >= st.Index {
		return nil, fmt.Errorf("cannot mount from stage %q to %q, stage needs to be defined before current command", from, target)
	}
	return source, nil
}

// checkCircles refuses stages that need each other's files, and indices of
// stages that are not there.
func (r *Recipe) checkCircles() error {
	type need struct {
		stage *Stage
		step  Step
	}
	needs := make([][]need, len(r.Stages))
	for _, st := range r.Stages {
		for _, step := range st.Steps {
			switch s := step.(type) {
			case *Copy:
				if s.From == "" {
					continue
				}
				source, err := r.copySource(s.From)
				if err != nil {
					return &Error{Pos: s.Pos, Err: err}
				}
				if source != nil {
					needs[st.Index] = append(needs[st.Index], need{source, step})
				}
			case *Run:
				for _, m := range s.Mounts {
					if source, ok := r.Named(m.From); ok {
						needs[st.Index] = append(needs[st.Index], need{source, step})
					}
				}
			}
		}
	}
	const (
		fresh = iota
		open
		done
	)
	state := make([]int, len(r.Stages))
	var visit func(*Stage) Step
	visit = func(st *Stage) Step {
		if state[st.Index] == done {
			return nil
		}
		state[st.Index] = open
		for _, n := range needs[st.Index] {
			if state[n.stage.Index] == open {
				return n.step
			}
			if step := visit(n.stage); step != nil {
				return step
			}
		}
		state[st.Index] = done
		return nil
	}
	for _, st := range r.Stages {
		if step := visit(st); step != nil {
			return &Error{Pos: step.At(), Err: fmt.Errorf("circular dependency detected on stage: %s", st.DisplayName())}
		}
	}
	return nil
}
