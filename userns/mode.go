package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Mode is how IDs of the container become IDs of the machine. Trees of different modes are kept
// apart, since their files have different owners.
type Mode string

const (
	Root   Mode = "root"   // real uid 0: every ID is itself
	Subid  Mode = "subid"  // 0 is the caller, 1… come from /etc/subuid through newuidmap
	Single Mode = "single" // 0 is the caller, there are no others
)

// Choice is a mode, why it was chosen, and the maps that go with it.
type Choice struct {
	Mode   Mode    `json:"mode"`
	Reason string  `json:"reason"` // one clause, for mk info
	Userns bool    `json:"userns"` // false: root where user namespaces are denied
	UIDs   []Range `json:"uids,omitempty"`
	GIDs   []Range `json:"gids,omitempty"`

	// What Enter tries when this one is refused, in order; none when the mode was forced and
	// has but one form.
	next []Choice
}

// Choose picks the mode that this machine should allow: root, then subid, then single, and gives
// the reason. force is "" or the name of a mode; a forced mode that cannot be is an error with
// Advice. Choose starts no process (unless ranges come from a directory service): the calls that
// could still be refused are tried by Enter, which then goes on to the next mode, so that
// Inside.Choice, not this one, tells which mode a command runs in.
func Choose(force string) (Choice, error) {
	switch Mode(force) {
	case "", Root, Subid, Single:
	default:
		return Choice{}, fmt.Errorf("unknown mode %q: want root, subid or single", force)
	}
	trials, whyNot := trials(caller())
	if force != "" {
		trials = only(Mode(force), trials)
		if len(trials) == 0 {
			return Choice{}, fmt.Errorf("mode %s: %w", force, whyNot[Mode(force)])
		}
		trials[0].Reason = "forced"
	}
	choice := trials[0]
	choice.next = trials[1:]
	return choice, nil
}

func only(mode Mode, trials []Choice) []Choice {
	var out []Choice
	for _, t := range trials {
		if t.Mode == mode {
			out = append(out, t)
		}
	}
	return out
}

// identity is what decides the order of trials: all of it can be asked without trying.
type identity struct {
	uid, gid   uint32
	admin      bool    // CAP_SYS_ADMIN here
	uids, gids []Range // the namespace that we are in already
	subids     func() (uids, gids []Range, err error)
	helpers    func() error // nil: newuidmap and newgidmap are there and may gain privilege
}

func caller() identity {
	return identity{
		uid:     uint32(os.Geteuid()),
		gid:     uint32(os.Getegid()),
		admin:   hasCapability(unix.CAP_SYS_ADMIN),
		uids:    readMap("/proc/self/uid_map"),
		gids:    readMap("/proc/self/gid_map"),
		subids:  subordinateRanges,
		helpers: lookHelpers,
	}
}

// trials lists what is worth trying, best first, and for each mode that is not, why. Single is
// always last: nothing needs less.
func trials(id identity) ([]Choice, map[Mode]error) {
	var list []Choice
	whyNot := map[Mode]error{}

	// uid 0 of a namespace that maps one ID is root in name only: the files of others
	// cannot be made there, and its trees belong with those of mode single.
	if id.uid != 0 {
		whyNot[Root] = fmt.Errorf("the caller is uid %d, not 0", id.uid)
	} else if count(id.uids) == 1 {
		whyNot[Root] = errors.New("the user namespace around mk maps only one ID")
	} else {
		list = append(list, Choice{Mode: Root, Reason: "the caller is root", Userns: true,
			UIDs: identityMap(id.uids), GIDs: identityMap(id.gids)})
		if id.admin {
			list = append(list, Choice{Mode: Root, Reason: "the caller is root, and user namespaces are denied"})
		}
	}

	uids, gids, err := id.subids()
	if err == nil {
		err = id.helpers()
	}
	if err != nil {
		whyNot[Subid] = err
	} else {
		list = append(list, Choice{Mode: Subid, Userns: true,
			Reason: fmt.Sprintf("%d subordinate uids and %d gids", count(uids), count(gids)),
			UIDs:   mapFrom(id.uid, uids), GIDs: mapFrom(id.gid, gids)})
	}

	single := Choice{Mode: Single, Userns: true, Reason: "it needs nothing but a user namespace",
		UIDs: []Range{{0, id.uid, 1}}, GIDs: []Range{{0, id.gid, 1}}}
	if err := whyNot[Subid]; err != nil {
		single.Reason = err.Error()
	}
	return append(list, single), whyNot
}

// lookHelpers asks for what newuidmap and newgidmap need before they are tried.
func lookHelpers() error {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(name); err != nil {
			return Explain(OpHelper, name, exec.ErrNotFound)
		}
	}
	if noNewPrivs() {
		return Explain(OpHelper, "newuidmap", errNoNewPrivs)
	}
	return nil
}

func noNewPrivs() bool {
	on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return err == nil && on == 1
}

func hasCapability(bit uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[bit/32].Effective&(1<<(bit%32)) != 0
}
