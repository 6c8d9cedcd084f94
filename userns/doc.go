// Package userns answers one question: who is mk on this machine, and how does it become root?
//
// mk is one binary that runs as three processes, told apart by argv[0] alone (see Stage):
//
//	host    mk              the caller's own namespaces; waits
//	inside  mk:inside       a new user and mount namespace; owns the trees
//	init    mk:init NAME    pid 1 of one container (package container)
//
// Most callers need two functions. The host calls Enter, which clones the same binary with the
// same arguments into the namespaces and waits for it:
//
//	host                                    inside
//	clone(NEWUSER|NEWNS), ambient caps  →   exec; read(lifeline) …
//	newuidmap ∥ newgidmap, or write maps    …
//	write(lifeline, Choice)             →   … Arrive returns: uid 0, all capabilities, / private
//	wait; pass signals on                   the command
//	(dies)                              →   EOF on the lifeline: the command's context ends
//
// How IDs are mapped is the Mode, and Choose picks it: root, then subid, then single. What cannot
// be known without trying is tried by Enter itself: the child that a refusal leaves behind has run
// nothing yet and is thrown away, the child that was let through is kept and becomes inside. So
// trying costs nothing where it succeeds.
//
// Two stages inside that are to share a network must share the user namespace that owns it: Join
// is Launch into one that is there.
//
// A refusal of the kernel is a Refusal: the errno, what it means on this machine, and the one
// command that mends it (Advice). Survey tries everything once, for mk info.
//
// In mode single there is one ID, and an Emulator answers the calls by which programs would find
// that out: chown, setuid, stat and their like.
//
// The package does not read trees, mount anything but the propagation of /, or know of containers.
package userns
