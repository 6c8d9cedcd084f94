// Package image keeps images: bytes with digests, and the names that people
// give them. It knows nothing of trees, namespaces or builds, and runs as the
// user that it was started by. Layers meet the rest of mk as uncompressed tar
// streams only.
//
// Most callers need two functions: [Open] gives the store, [Store.Resolve]
// turns what a person typed into an [Image]. Everything below is for those who
// keep the store whole.
//
// # The directory
//
// A store is an OCI image layout, so that skopeo, umoci and crane read it as
// it stands, with a few records of ours beside it:
//
//	oci-layout                {"imageLayoutVersion":"1.0.0"}
//	index.json                the names: one descriptor for each name
//	index.lock                flock, held while index.json is replaced
//	blobs/<alg>/<hex>         content; the name is its digest. Never changed
//	compressed/<alg>/<hex>    of a layer's DiffID: the compressed forms it has had, a line each:
//	                          media type, level ("6", "-" when unknown), digest, size
//	claims/<alg>/<hex>        of a layer's DiffID: blobs that are said to be it, compressed, a line each:
//	                          media type, digest, size
//	sources/<alg>/<hex>       of a blob: repositories that have it, a line each
//	partial/<alg>/<hex>       what came of a blob before its transfer broke off, flocked by
//	                          whoever goes on with it (Partial)
//	tmp/<random>              a file being written, flocked by its writer
//
// A name is an annotation of its descriptor, as docker and BuildKit write it:
// io.containerd.image.name holds the full name (docker.io/library/busybox:latest),
// org.opencontainers.image.ref.name the tag. An image with three names has
// three descriptors; an image that lost its last name to another has one
// descriptor without annotations until it is removed.
//
// # What must always hold
//
//   - A file under blobs has the digest that its name says.
//   - index.json names only manifests and indexes whose blobs exist.
//   - A manifest in the store names a config whose blob exists.
//   - Each layer that it names can be had: its blob exists, or [Layers] makes it
//     again from a tree (layers that were built here exist as trees only, and the
//     manifest names their uncompressed tar), or sources says which repository has
//     it (a base whose layers were not needed yet, see registry.Client.Manifest; a step that a
//     build cache knew), for the layer itself or for a form that is known or claimed to be it.
//   - An index may name manifests that are not in the store (platforms that
//     nobody asked for), but at least one that is.
//
// What should hold, and is only a waste where it does not: every blob is
// reachable from index.json; every record belongs to a blob that is.
//
// # Orders
//
// Writers go blob, config, manifest, index: [Store.Put] renames a whole and
// verified file into blobs, and the rename of index.json is the one commit point
// that makes an image visible. Deleters go the other way: [Store.Untag] renames
// index.json, then [Store.GC] removes indexes, manifests, and last what they
// named. A process that is killed at any instant leaves the index as it was or as
// it should be, and at most unreachable blobs.
//
// No file is synced: after a power cut a blob may be short. Its digest is checked
// whenever it is read, so it is found out and not used; renames over index.json
// are ordered after its data by ext4, btrfs and xfs.
//
// # Locks
//
// Whoever reads or adds holds the shared lock at the root of mk, and whoever runs
// [Store.GC] or removes files holds it exclusively: that lock is the caller's.
// This package takes two of its own, both for an instant and never nested: index.lock around
// read, change and rename of index.json, so that no process loses another's
// name; and one on each temporary file for as long as its writer lives, so that
// GC tells live from dead without guessing by age or pid.
// Any number of processes and goroutines may use one store. Not on NFS: flock and rename do
// not mean there what they mean here.
//
// # Trust
//
// Everything that comes from a registry or an archive is taken as hostile:
// digests have a grammar before they become paths, sizes and counts have limits
// before they become memory, a document that could be read as two things is
// refused, and no byte leaves [Store.Open] as the end of a blob before its digest
// was seen to be right.
package image
