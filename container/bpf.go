package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Filter is a seccomp program: struct sock_filter, in the byte order of this machine.
type Filter []byte

// x32 calls have the number of their own ABI with this bit set. Distributions have it off, and a
// filter that forgot it once let everything through; here it does not exist either.
const x32Bit = 0x40000000

// Where struct seccomp_data has what.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16 // six of 64 bits
)

// verdict is what happens to a call: one action, or the first rule whose conditions hold.
type verdict struct {
	action uint32 // SECCOMP_RET_…, when no rule does
	rules  []rule
}

type rule struct {
	action uint32
	conds  []condition // all of them
}

func (v verdict) equal(w verdict) bool {
	return v.action == w.action && v.rules == nil && w.rules == nil
}

// condition compares one argument, as 64 bits without sign.
type condition struct {
	arg   uint32
	op    string // SCMP_CMP_…
	value uint64 // the mask, for SCMP_CMP_MASKED_EQ
	equal uint64 // SCMP_CMP_MASKED_EQ only
}

// span gives one verdict to the calls from first on, up to the next span.
type span struct {
	first uint32
	verdict
}

// archFilter is what one architecture gets.
type archFilter struct {
	audit uint32 // AUDIT_ARCH_…
	spans []span // ascending; the first starts at 0
}

// assemble makes the program: architecture, then a binary search for the span of the call, then
// the conditions. 350 calls are 8 comparisons deep, where a list would ask 350 times.
func assemble(archs []archFilter) (Filter, error) {
	prog := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: 4}}
	for _, a := range archs {
		body, err := search(a.spans)
		if err != nil {
			return nil, err
		}
		body = append([]bpf.Instruction{bpf.LoadAbsolute{Off: offNr, Size: 4}}, body...)
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: a.audit, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		prog = append(prog, body...)
	}
	prog = append(prog, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}) // an architecture we know nothing of
	if len(prog) > 4096 {
		return nil, fmt.Errorf("the seccomp profile needs %d instructions, and the kernel takes 4096", len(prog))
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, err
	}
	out := make(Filter, 0, 8*len(raw))
	for _, r := range raw {
		out = binary.NativeEndian.AppendUint16(out, r.Op)
		out = append(out, r.Jt, r.Jf)
		out = binary.NativeEndian.AppendUint32(out, r.K)
	}
	return out, nil
}

// search is the binary tree over spans, the accumulator holding the call's number.
func search(spans []span) ([]bpf.Instruction, error) {
	if len(spans) == 1 {
		return spans[0].decide()
	}
	half := len(spans) / 2
	low, err := search(spans[:half])
	if err != nil {
		return nil, err
	}
	high, err := search(spans[half:])
	if err != nil {
		return nil, err
	}
	var head []bpf.Instruction
	if len(low) <= 255 {
		head = []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipTrue: uint8(len(low))}}
	} else { // conditional jumps have 8 bits
		head = []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))},
		}
	}
	return slices.Concat(head, low, high), nil
}

func (v verdict) decide() ([]bpf.Instruction, error) {
	var out []bpf.Instruction
	for _, r := range v.rules {
		code := []bpf.Instruction{bpf.RetConstant{Val: r.action}}
		for _, c := range slices.Backward(r.conds) {
			test, err := c.test(len(code))
			if err != nil {
				return nil, err
			}
			code = append(test, code...)
		}
		out = append(out, code...)
	}
	return append(out, bpf.RetConstant{Val: v.action}), nil
}

// test compares in halves, high first. It falls through when the condition holds, and jumps over
// what follows of the rule, rest instructions, when it does not.
func (c condition) test(rest int) ([]bpf.Instruction, error) {
	if rest > 200 {
		return nil, errors.New("a seccomp rule has too many conditions")
	}
	lo := bpf.LoadAbsolute{Off: offArgs + 8*c.arg, Size: 4}
	hi := bpf.LoadAbsolute{Off: offArgs + 8*c.arg + 4, Size: 4}
	if nativeIsBig() {
		lo, hi = hi, lo
	}
	vlo, vhi := uint32(c.value), uint32(c.value>>32)
	fail := uint8(rest) // from the last instruction of the test
	jump := func(cond bpf.JumpTest, v uint32, yes, no uint8) bpf.JumpIf {
		return bpf.JumpIf{Cond: cond, Val: v, SkipTrue: yes, SkipFalse: no}
	}
	switch c.op {
	case "SCMP_CMP_EQ":
		return []bpf.Instruction{hi, jump(bpf.JumpEqual, vhi, 0, fail+2), lo, jump(bpf.JumpEqual, vlo, 0, fail)}, nil
	case "SCMP_CMP_NE":
		return []bpf.Instruction{hi, jump(bpf.JumpEqual, vhi, 0, 2), lo, jump(bpf.JumpEqual, vlo, fail, 0)}, nil
	case "SCMP_CMP_MASKED_EQ":
		return []bpf.Instruction{
			hi, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vhi}, jump(bpf.JumpEqual, uint32(c.equal>>32), 0, fail+3),
			lo, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vlo}, jump(bpf.JumpEqual, uint32(c.equal), 0, fail),
		}, nil
	case "SCMP_CMP_GT":
		return []bpf.Instruction{hi, jump(bpf.JumpGreaterThan, vhi, 3, 0), jump(bpf.JumpEqual, vhi, 0, fail+2), lo, jump(bpf.JumpGreaterThan, vlo, 0, fail)}, nil
	case "SCMP_CMP_GE":
		return []bpf.Instruction{hi, jump(bpf.JumpGreaterThan, vhi, 3, 0), jump(bpf.JumpEqual, vhi, 0, fail+2), lo, jump(bpf.JumpGreaterOrEqual, vlo, 0, fail)}, nil
	case "SCMP_CMP_LT":
		return []bpf.Instruction{hi, jump(bpf.JumpGreaterThan, vhi, fail+3, 0), jump(bpf.JumpEqual, vhi, 0, 2), lo, jump(bpf.JumpGreaterOrEqual, vlo, fail, 0)}, nil
	case "SCMP_CMP_LE":
		return []bpf.Instruction{hi, jump(bpf.JumpGreaterThan, vhi, fail+3, 0), jump(bpf.JumpEqual, vhi, 0, 2), lo, jump(bpf.JumpGreaterThan, vlo, fail, 0)}, nil
	}
	return nil, fmt.Errorf("unknown seccomp operator %q", c.op)
}

func nativeIsBig() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }
