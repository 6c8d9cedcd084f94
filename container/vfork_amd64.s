#include "textflag.h"

// func vfork(trap, a1, a2 uintptr) (pid, errno uintptr)
//
// The child runs first, on this stack, and writes over what lies below the caller's frame: so the
// return address waits in a register, which each of the two has for itself.
TEXT ·vfork(SB), NOSPLIT|NOFRAME, $0-40
	MOVQ	trap+0(FP), AX
	MOVQ	a1+8(FP), DI
	MOVQ	a2+16(FP), SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	XORL	DX, DX
	CMPQ	AX, $-4096
	JLS	done
	MOVQ	AX, DX
	NEGQ	DX
	XORL	AX, AX
done:
	MOVQ	AX, pid+24(FP)
	MOVQ	DX, errno+32(FP)
	RET
