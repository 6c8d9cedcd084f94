#include "textflag.h"

// func vfork(trap, a1, a2 uintptr) (pid, errno uintptr)
//
// The child runs first, on this stack, and writes over what lies below the caller's frame: so the
// return address stays in its register, which each of the two has for itself.
TEXT ·vfork(SB), NOSPLIT|NOFRAME, $0-40
	MOVD	trap+0(FP), R8
	MOVD	a1+8(FP), R0
	MOVD	a2+16(FP), R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	SVC
	MOVD	$0, R1
	CMN	$4096, R0
	BLS	done
	NEG	R0, R1
	MOVD	$0, R0
done:
	MOVD	R0, pid+24(FP)
	MOVD	R1, errno+32(FP)
	RET
