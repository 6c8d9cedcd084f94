package userns

// Mode is how IDs of the container become IDs of the machine. Trees of different modes are kept
// apart, since their files have different owners.
type Mode string

const (
	Root   Mode = "root"   // real uid 0: every ID is itself
	Subid  Mode = "subid"  // 0 is the caller, 1… come from /etc/subuid through newuidmap
	Single Mode = "single" // 0 is the caller, there are no others
)

// Range maps Length IDs from Inside on to the IDs from Outside on.
type Range struct {
	Inside  uint32 `json:"inside"`
	Outside uint32 `json:"outside"`
	Length  uint32 `json:"length"`
}

// Choice is a mode, why it was chosen, and the map that goes with it.
type Choice struct {
	Mode   Mode    `json:"mode"`
	Reason string  `json:"reason"` // one clause, for mk info
	Userns bool    `json:"userns"` // false: root where user namespaces are denied
	UIDs   []Range `json:"uids,omitempty"`
	GIDs   []Range `json:"gids,omitempty"`

	next []Choice // what Enter tries after this one was refused; none when forced
}
