package main

import (
	"os"

	"mk/container"
	"mk/snapshot"
	"mk/userns"
)

// emulate is what makes a container of this store see many owners where one ID is mapped; nil in
// the modes that have them all.
func (s *store) emulate() func(*container.Spec, *os.File) {
	if s.mode != userns.Single {
		return nil
	}
	e := userns.NewEmulator(marks{})
	return func(spec *container.Spec, root *os.File) {
		spec.Notify = userns.EmulationFilter(spec.User.UID != 0)
		spec.Listener = func(listener *os.File, pid int, owned []*os.File) (stop func(), err error) {
			return e.Serve(listener, pid, root, owned)
		}
	}
}

// marks keeps owners where snapshot looks for them.
type marks struct{}

var _ userns.Keeper = marks{}

func (marks) Look(path string, link bool) userns.Signs {
	return userns.Signs(snapshot.LookMark(path, link))
}

func (marks) Owner(path string, link bool, s userns.Signs) (userns.Owner, bool) {
	o, ok := snapshot.ReadMarkAt(path, link, snapshot.Marks(s))
	return userns.Owner{UID: o.UID, GID: o.GID, Mode: o.Mode, Rdev: o.Rdev}, ok
}

func (marks) SetOwner(path string, link bool, o userns.Owner) error {
	return snapshot.WriteMark(path, link, snapshot.Owner{UID: o.UID, GID: o.GID, Mode: o.Mode, Rdev: o.Rdev})
}

func (marks) LookOf(fd int) userns.Signs { return userns.Signs(snapshot.LookMarkOf(fd)) }

func (marks) OwnerOf(fd int, s userns.Signs) (userns.Owner, bool) {
	o, ok := snapshot.ReadMarkAtOf(fd, snapshot.Marks(s))
	return userns.Owner{UID: o.UID, GID: o.GID, Mode: o.Mode, Rdev: o.Rdev}, ok
}

func (marks) SetOwnerOf(fd int, o userns.Owner) error {
	return snapshot.WriteMarkOf(fd, snapshot.Owner{UID: o.UID, GID: o.GID, Mode: o.Mode, Rdev: o.Rdev})
}

func (marks) Attr(path, name string) []byte { return snapshot.ReadMarkedAttr(path, name) }

func (marks) SetAttr(path, name string, value []byte) error {
	return snapshot.WriteMarkedAttr(path, name, value)
}
