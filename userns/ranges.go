package userns

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"sort"
	"strconv"
	"strings"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent/idtools"
)

// Range maps Length IDs from Inside on to the IDs from Outside on.
type Range struct {
	Inside  uint32 `json:"inside"`
	Outside uint32 `json:"outside"`
	Length  uint32 `json:"length"`
}

// maxExtents is the number of lines that the kernel takes in one map (UID_GID_MAP_MAX_EXTENTS).
const maxExtents = 340

// count is the number of IDs in ranges.
func count(ranges []Range) (n uint64) {
	for _, r := range ranges {
		n += uint64(r.Length)
	}
	return n
}

// mapFrom makes self the root of the namespace and lines the ranges up after it, so that the IDs
// inside have no holes: images are full of 65534, and a hole there is an EINVAL in the middle of
// a package installation.
func mapFrom(self uint32, ranges []Range) []Range {
	out := []Range{{0, self, 1}}
	next := uint32(1)
	for _, r := range ranges {
		if len(out) == maxExtents {
			break
		}
		out = append(out, Range{next, r.Outside, r.Length})
		next += r.Length
	}
	return out
}

// identityMap maps every ID that exists here to itself.
func identityMap(here []Range) []Range {
	var out []Range
	for _, r := range here {
		out = append(out, Range{r.Inside, r.Inside, r.Length})
	}
	return out
}

// readMap reads a uid_map or gid_map; nil where there is none (no user namespaces in the kernel).
func readMap(path string) []Range {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []Range
	for line := range strings.Lines(string(text)) {
		var r Range
		if _, err := fmt.Sscan(line, &r.Inside, &r.Outside, &r.Length); err == nil {
			out = append(out, r)
		}
	}
	return out
}

// formatMap is the text that the kernel reads from a map file.
func formatMap(ranges []Range) string {
	var b strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&b, "%d %d %d\n", r.Inside, r.Outside, r.Length)
	}
	return b.String()
}

// subordinateRanges finds the caller's ranges: in /etc/subuid and /etc/subgid, or, where
// nsswitch.conf says that they live in a directory service, by getsubids. The error is a Refusal.
func subordinateRanges() (uids, gids []Range, err error) {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if service() {
		uids, err = getsubids(name)
		if err == nil {
			gids, err = getsubids("-g", name)
		}
	} else {
		var u, g []idtools.SubIDRange
		u, g, err = idtools.GetSubIDRanges(os.Getuid(), name)
		uids, gids = fromIDTools(u), fromIDTools(g)
	}
	uids, gids = tidy(uids, uint32(os.Getuid())), tidy(gids, uint32(os.Getgid()))
	if err != nil || len(uids) == 0 || len(gids) == 0 {
		return nil, nil, Explain(OpRanges, name, errNoRange)
	}
	return uids, gids, nil
}

func fromIDTools(in []idtools.SubIDRange) []Range {
	var out []Range
	for _, r := range in {
		if r.Start > 0 && r.Length > 0 && int64(r.Start)+int64(r.Length) < 1<<32 {
			out = append(out, Range{Outside: uint32(r.Start), Length: uint32(r.Length)})
		}
	}
	return out
}

// tidy sorts ranges and drops those that overlap another one or contain self: the same range may
// be listed by name and by number, and newuidmap refuses a map with an ID in it twice.
func tidy(in []Range, self uint32) []Range {
	sort.Slice(in, func(i, j int) bool { return in[i].Outside < in[j].Outside })
	var out []Range
	end := uint32(0)
	for _, r := range in {
		if r.Outside < end || self-r.Outside < r.Length {
			continue
		}
		out = append(out, r)
		end = r.Outside + r.Length
	}
	return out
}

// service reports whether nsswitch.conf names a source of its own for subordinate IDs. It is what
// getsubids itself goes by; asking costs 20 µs, and running getsubids four times in vain 6 ms.
func service() bool {
	f, err := os.Open("/etc/nsswitch.conf")
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "subid" {
			return strings.TrimSpace(value) != "files"
		}
	}
	return false
}

// getsubids runs the tool of that name, whose lines read "0: foo 100000 65536". rootlesskit's
// dynidtools does this too, but brings a logger and asks four times.
func getsubids(args ...string) ([]Range, error) {
	out, err := exec.Command("getsubids", args...).Output()
	if err != nil {
		return nil, err
	}
	return parseGetsubids(string(out)), nil
}

func parseGetsubids(text string) []Range {
	var out []Range
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		length, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && start > 0 && length > 0 && start+length < 1<<32 {
			out = append(out, Range{Outside: uint32(start), Length: uint32(length)})
		}
	}
	return out
}
