// Package sbom tells what packages a file tree holds, by what package managers and
// compilers left in it, and writes that down as SPDX 2.3.
//
//	found, err := sbom.Scan(ctx, root)        // root: the tree's top directory
//	text, err := found.SPDX(name, created)
//
// It reads
//
//	var/lib/dpkg/status, status.d/*                      Debian and its kin; distroless images
//	lib/apk/db/installed, usr/lib/apk/db/installed       Alpine and its kin
//	usr/lib/sysimage/rpm/rpmdb.sqlite, var/lib/rpm/…     Fedora and its kin
//	every executable ELF file                            the modules that Go linked into it
//	every package-lock.json                              npm, outside of node_modules
//
// and nothing else: what was unpacked by hand, other languages' packages and licences
// in files are for an external scanner (see builder.Scanner). A tree is a stranger's:
// paths are resolved inside it by the kernel, only regular files are read, and
// what is longer than any database should be is an error.
package sbom
