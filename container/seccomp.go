package container

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

//go:generate go run gen_syscalls.go

// dockerProfile is docker's default profile, the file default.json of github.com/moby/profiles/seccomp
// v0.2.3 (Apache-2.0) unchanged. As a file, and not as the package, because the package's next
// version cannot be had and this one would take BuildKit back with it; and because a user's
// --security-opt seccomp=FILE comes in through the same door.
//
//go:embed seccomp.json
var dockerProfile []byte

// The profile compiled for DefaultCaps; see TestCompiledProfile.
var (
	//go:embed seccomp_amd64.bpf
	compiledAMD64 string
	//go:embed seccomp_arm64.bpf
	compiledARM64 string
)

// call is a system call's name and number.
type call struct {
	name string
	nr   uint32
}

// profile is docker's format of a seccomp profile, as far as a filter depends on it.
type profile struct {
	DefaultAction   string `json:"defaultAction"`
	DefaultErrnoRet *uint32
	Syscalls        []profileRule
}

type profileRule struct {
	Names    []string
	Name     string // docker's old format
	Action   string
	ErrnoRet *uint32
	Args     []struct {
		Index    uint32
		Value    uint64
		ValueTwo uint64
		Op       string
	}
	Includes, Excludes struct {
		Caps, Arches []string
		MinKernel    string
	}
}

var filters struct {
	mu   sync.Mutex
	made map[CapSet]Filter
}

// DefaultFilter is docker's default profile compiled for a container with these capabilities: a
// call that a capability is for is allowed with it only. For the default set it was compiled
// beforehand (0.7 ms, as long as two of the three namespaces of a container take); any other one is
// compiled once per process.
func DefaultFilter(caps CapSet) (Filter, error) {
	if caps == DefaultCaps {
		switch runtime.GOARCH {
		case "amd64":
			return Filter(compiledAMD64), nil
		case "arm64":
			return Filter(compiledARM64), nil
		}
	}
	filters.mu.Lock()
	defer filters.mu.Unlock()
	if f := filters.made[caps]; f != nil {
		return f, nil
	}
	f, err := CompileFilter(dockerProfile, caps)
	if err != nil {
		return nil, err
	}
	if filters.made == nil {
		filters.made = map[CapSet]Filter{}
	}
	filters.made[caps] = f
	return f, nil
}

// CompileFilter compiles a profile in docker's JSON format. Names that this architecture does not
// have are left out, as libseccomp does it. Calls newer than all of those named get ENOSYS, so that
// programs use their older way, which EPERM would not tell them to (runc does the same).
func CompileFilter(profileJSON []byte, caps CapSet) (Filter, error) {
	return compileFor(runtime.GOARCH, profileJSON, caps)
}

func compileFor(goarch string, profileJSON []byte, caps CapSet) (Filter, error) {
	var p profile
	if err := json.Unmarshal(profileJSON, &p); err != nil {
		return nil, fmt.Errorf("read the seccomp profile: %w", err)
	}
	kernel := kernelVersion()
	var archs []archFilter
	for _, a := range architectures(goarch) {
		spans, err := p.spans(a.calls, func(r *profileRule) bool { return r.applies(goarch, caps, kernel) })
		if err != nil {
			return nil, err
		}
		if a.audit == unix.AUDIT_ARCH_X86_64 {
			spans = append(spans, span{x32Bit, verdict{action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}})
		}
		archs = append(archs, archFilter{a.audit, spans})
	}
	if len(archs) == 0 {
		return nil, fmt.Errorf("there are no seccomp filters for %s", goarch)
	}
	return assemble(archs)
}

// architectures are those that programs on a machine may be of: the machine's own, which comes
// first, and the 32-bit one that its kernel can run.
func architectures(goarch string) []architecture {
	switch goarch {
	case "amd64":
		return []architecture{{unix.AUDIT_ARCH_X86_64, callsAMD64}, {unix.AUDIT_ARCH_I386, calls386}}
	case "arm64":
		return []architecture{{unix.AUDIT_ARCH_AARCH64, callsARM64}, {unix.AUDIT_ARCH_ARM, callsARM}}
	}
	return nil
}

type architecture struct {
	audit uint32
	calls []call
}

// applies is docker's choice of rules: all of the included capabilities, none of the excluded.
func (r *profileRule) applies(goarch string, caps CapSet, kernel [2]int) bool {
	in, ex := &r.Includes, &r.Excludes
	for _, c := range in.Caps {
		if !caps.hasName(c) {
			return false
		}
	}
	for _, c := range ex.Caps {
		if caps.hasName(c) {
			return false
		}
	}
	if len(in.Arches) > 0 && !slices.Contains(in.Arches, goarch) || slices.Contains(ex.Arches, goarch) {
		return false
	}
	if in.MinKernel != "" && older(kernel, in.MinKernel) {
		return false
	}
	return ex.MinKernel == "" || older(kernel, ex.MinKernel)
}

// spans lays the rules that apply out over the numbers of one architecture.
func (p *profile) spans(calls []call, applies func(*profileRule) bool) ([]span, error) {
	standard, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	verdicts := map[uint32]*verdict{}
	newest := uint32(0)
	for i := range p.Syscalls {
		r := &p.Syscalls[i]
		act, err := action(r.Action, r.ErrnoRet)
		if err != nil {
			return nil, err
		}
		names := r.Names
		if r.Name != "" {
			names = append(names, r.Name)
		}
		use := applies(r)
		for _, a := range r.Args {
			if a.Index > 5 {
				return nil, fmt.Errorf("seccomp rule for %s: there is no argument %d", strings.Join(names, ", "), a.Index)
			}
		}
		for _, name := range names {
			nr, ok := number(calls, name)
			if !ok {
				continue
			}
			newest = max(newest, nr) // known to the author, whether it applies or not
			if !use {
				continue
			}
			v := verdicts[nr]
			if v == nil {
				v = &verdict{action: standard}
				verdicts[nr] = v
			}
			v.add(r, act)
		}
	}
	numbers := make([]uint32, 0, len(verdicts))
	for nr := range verdicts {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)

	rest := verdict{action: standard}
	spans := []span{{0, rest}}
	next := uint32(0)
	push := func(first uint32, v verdict) {
		last := &spans[len(spans)-1]
		switch {
		case last.first == first:
			last.verdict = v
		case !last.verdict.equal(v):
			spans = append(spans, span{first, v})
		}
	}
	for _, nr := range numbers {
		if nr > next {
			push(next, rest)
		}
		push(nr, *verdicts[nr])
		next = nr + 1
	}
	push(next, rest)
	if standard&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		push(newest+1, verdict{action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	return spans, nil
}

// add takes one more rule. Conditions on different arguments must all hold; several on the same
// one are alternatives. This is what runc makes of the format.
func (v *verdict) add(r *profileRule, act uint32) {
	if len(r.Args) == 0 {
		v.action, v.rules = act, nil
		return
	}
	var conds []condition
	seen, alternatives := uint32(0), false
	for _, a := range r.Args {
		alternatives = alternatives || seen>>a.Index&1 == 1
		seen |= 1 << a.Index
		conds = append(conds, condition{a.Index, a.Op, a.Value, a.ValueTwo})
	}
	if !alternatives {
		v.rules = append(v.rules, rule{act, conds})
		return
	}
	for _, c := range conds {
		v.rules = append(v.rules, rule{act, []condition{c}})
	}
}

func number(calls []call, name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(calls, name, func(c call, name string) int { return strings.Compare(c.name, name) })
	if !ok {
		return 0, false
	}
	return calls[i].nr, true
}

func action(name string, errno *uint32) (uint32, error) {
	switch name {
	case "SCMP_ACT_ALLOW":
		return unix.SECCOMP_RET_ALLOW, nil
	case "SCMP_ACT_ERRNO":
		if errno != nil {
			return unix.SECCOMP_RET_ERRNO | *errno&unix.SECCOMP_RET_DATA, nil
		}
		return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), nil
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD":
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case "SCMP_ACT_KILL_PROCESS":
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case "SCMP_ACT_TRAP":
		return unix.SECCOMP_RET_TRAP, nil
	case "SCMP_ACT_LOG":
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("unknown seccomp action %q", name)
}

// kernelVersion is major and minor of the running kernel.
func kernelVersion() (v [2]int) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &v[0], &v[1])
	}
	return v
}

// older reports whether kernel is older than min, which reads "4.8".
func older(kernel [2]int, min string) bool {
	major, minor, _ := strings.Cut(min, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return kernel[0] < a || kernel[0] == a && kernel[1] < b
}
