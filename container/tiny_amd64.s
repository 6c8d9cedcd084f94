#include "textflag.h"

// The programs of tiny.go. They are copied out of here, and so may call and name nothing.

// starter: fcntl(3, F_SETFD, FD_CLOEXEC); execve(argv[0], argv+1, envp); write(3, &errno, 8); exit_group(125)
TEXT ·starter(SB), NOSPLIT|NOFRAME, $0-0
	MOVL	$72, AX
	MOVL	$3, DI
	MOVL	$2, SI
	MOVL	$1, DX
	SYSCALL
	TESTQ	AX, AX
	JLT	end			// it was not mk that started it
	MOVQ	8(SP), DI		// argv[0]
	LEAQ	16(SP), SI		// argv+1
	MOVQ	0(SP), AX		// argc
	LEAQ	16(SP)(AX*8), DX	// after the NULL that ends argv
	MOVL	$59, AX
	SYSCALL
	NEGQ	AX
	MOVQ	AX, 0(SP)
	MOVL	$1, AX
	MOVL	$3, DI
	MOVQ	SP, SI
	MOVL	$8, DX
	SYSCALL
end:
	MOVL	$231, AX
	MOVL	$125, DI
	SYSCALL
	RET

TEXT ·starterEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// reaper: prctl(PR_SET_NAME, argv[0]); prctl(PR_SET_DUMPABLE, 0); for (;;) pause()
TEXT ·reaper(SB), NOSPLIT|NOFRAME, $0-0
	MOVL	$157, AX
	MOVL	$15, DI
	MOVQ	8(SP), SI
	SYSCALL
	MOVL	$157, AX
	MOVL	$4, DI
	XORL	SI, SI
	SYSCALL
again:
	MOVL	$34, AX
	SYSCALL
	JMP	again

TEXT ·reaperEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func programs() [2]code
TEXT ·programs(SB), NOSPLIT, $0-32
	LEAQ	·starter(SB), AX
	MOVQ	AX, ret_0_from+0(FP)
	LEAQ	·starterEnd(SB), AX
	MOVQ	AX, ret_0_to+8(FP)
	LEAQ	·reaper(SB), AX
	MOVQ	AX, ret_1_from+16(FP)
	LEAQ	·reaperEnd(SB), AX
	MOVQ	AX, ret_1_to+24(FP)
	RET
