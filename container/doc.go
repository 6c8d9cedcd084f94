// Package container runs a command in a root: namespaces, mounts, a pivot into the root, and then
// no more rights than docker gives. Most callers need three functions.
//
//	spec := container.DefaultSpec(container.Namespaces{Net: true})
//	spec.Args = []string{"nginx", "-g", "daemon off;"}
//	spec.User, home, err = container.LookupUser(root, "www-data")
//	p, err := container.Start(ctx, spec, root, container.IO{Stdout: os.Stdout})
//	status, err := p.Wait()
//
// Start runs in stage inside (package userns), init in the new namespaces:
//
//	inside                      a thread of it                     the command
//	open what is to be mounted
//	make missing mount points
//	                        →   unshare(NEWNS|NEWPID|…); root over
//	                            /, mounts by the plan, pty
//	                            pivot_root; look the command up
//	                            fork                           →   /proc, masks; limits, directory
//	Notices, Terminal       ←   come back for the mounts           bounding set, IDs, capabilities, filter
//	Start returns           ←                                  ←   execve
//	…
//	Wait: the end of pid 1 and so of all; mount points taken away
//
// A container that is not alone in its pid namespace is made by an exec'd init, mk:init, which does
// all that by itself, and so does a command of Exec.
//
// The root is a detached mount, and the package does not know of what: an overlay of snapshots, a
// directory (open_tree). A mount can be attached once, so a root serves one container.
//
// Everything that names a path in the root is resolved in the root, by descriptors: the image and
// whoever runs in it are taken for hostile. What the machine does not allow is an error with
// advice, or, where the container can go without, one of Process.Notices.
//
// A container that outlives its caller is a Container of a Store, a directory of state. Hold keeps one
// while it runs, in the process that started it; others talk to that by its socket (Dial, Ask), and
// Process.Exec is how it starts another command there. The tree on disk, and who may do what when,
// stand at Store; the protocol at Request.
//
// The files of a container: spec.go what it is, start.go and stubs.go before and after it, here.go
// its beginning, read straight through, and fork.go the child's part; init.go both for an exec'd init, which talks
// by wire.go; the steps in mounts.go, dev.go, terminal.go, become.go, reap.go; seccomp.go and bpf.go the filter. Of its life:
// state.go what is kept, holder.go who keeps it, and exec.go. Of its network: network.go, its way out
// in network_user.go, its ways in in ports.go, to others in network_bridge.go and names.go, and how the kernel is
// asked in netlink.go.
package container
