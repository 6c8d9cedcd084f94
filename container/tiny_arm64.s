#include "textflag.h"

// The programs of tiny.go. They are copied out of here, and so may call and name nothing.

// starter: fcntl(3, F_SETFD, FD_CLOEXEC); execve(argv[0], argv+1, envp); write(3, &errno, 8); exit_group(125)
TEXT ·starter(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	$3, R0
	MOVD	$2, R1
	MOVD	$1, R2
	MOVD	$25, R8
	SVC
	CMP	$0, R0
	BLT	end			// it was not mk that started it
	MOVD	8(RSP), R0		// argv[0]
	ADD	$16, RSP, R1		// argv+1
	MOVD	0(RSP), R2		// argc
	ADD	R2<<3, R1, R2		// after the NULL that ends argv
	MOVD	$221, R8
	SVC
	NEG	R0, R0
	MOVD	R0, 0(RSP)
	MOVD	$3, R0
	MOVD	RSP, R1
	MOVD	$8, R2
	MOVD	$64, R8
	SVC
end:
	MOVD	$125, R0
	MOVD	$94, R8
	SVC
	RET

TEXT ·starterEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// reaper: prctl(PR_SET_NAME, argv[0]); prctl(PR_SET_DUMPABLE, 0); for (;;) ppoll(NULL, 0, NULL, NULL, 8)
TEXT ·reaper(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	$15, R0
	MOVD	8(RSP), R1
	MOVD	$167, R8
	SVC
	MOVD	$4, R0
	MOVD	$0, R1
	MOVD	$167, R8
	SVC
again:
	MOVD	$0, R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$8, R4
	MOVD	$73, R8
	SVC
	B	again

TEXT ·reaperEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func programs() [2]code
TEXT ·programs(SB), NOSPLIT, $0-32
	MOVD	$·starter(SB), R0
	MOVD	R0, ret_0_from+0(FP)
	MOVD	$·starterEnd(SB), R0
	MOVD	R0, ret_0_to+8(FP)
	MOVD	$·reaper(SB), R0
	MOVD	R0, ret_1_from+16(FP)
	MOVD	$·reaperEnd(SB), R0
	MOVD	R0, ret_1_to+24(FP)
	RET
