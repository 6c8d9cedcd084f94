// Package snapshot keeps immutable file trees and their differences.
//
// A Snapshot is one directory of changes on its parent, another snapshot; the
// tree it stands for is an overlay mount of them all. A new one begins as a
// Draft, is changed through a mount or by unpacking a layer, and ends with
// Commit:
//
//	d, err := store.NewDraft(parent)
//	defer d.Discard()           // nothing after Commit
//	root, err := d.Mount()      // a detached mount: hand it to the container
//	…
//	root.Close()
//	snap, err := d.Commit()
//
// Most callers need two more: Draft.Apply unpacks an OCI layer tar, and
// Snapshot.WriteLayer writes one, the same bytes for the same tree whoever made
// it. No layer is kept as a tar here, and no image is known: this package and
// images meet in a stream of tar.
//
// What touches trees (Draft, Mount, WriteLayer, Digests that nobody computed,
// Changes, Remove, Check) runs where mk is root: in a user and mount namespace of
// its own. Open, Get, ByChain, ByDiffID, Snapshots and Recorded only read small
// files and run anywhere.
//
// # The store on disk
//
//	lock                   flock: shared to make a draft or a record, exclusive to delete; held for moments
//	empty/                 never anything in it: the lowest layer of mounts that have no other
//	bottom/                what lies below the trees of steps (Draft.MountOn), made by ReadDir
//	drafts/<id>/           a tree being changed; flock on the directory while its process lives
//	snapshots/<id>/        a snapshot, complete
//	  meta                 text: parent, whether the layer is the parent's with changes, what the parent counts as, epoch, and
//	                       the layer it was applied from
//	  tree/                the changes, in overlay's own form (user.overlay.*, whiteouts as devices 0:0)
//	  owners               text: what files should have and could not be given; may be missing
//	  names                hashes of the names of files that an outline does not show (outline.go); may be missing
//	  digests              text: content, DiffID, chain and size; missing until somebody has asked;
//	                       and of a layer that Rebase put here, its content without a parent
//	chains/sha256/<hex>    text: the ID of a snapshot with that chain
//	outlines/sha256/<hex>  text: the same of a snapshot that is an outline (Draft.SetOutline)
//	diffids/sha256/<hex>   text: the ID of a snapshot whose WriteLayer has that DiffID
//
// Every text file begins with its name and version, but for the look-up records,
// which are an ID. Of a draft the same files exist, and work directories
// work<n>/, one for each time it was mounted.
//
//   - A snapshot's tree, meta and owners must never change. Its digests, once
//     written, must not either.
//   - A snapshot's parent must exist. So must every snapshot that a look-up
//     record names; one that lost its record should get it again, but is only
//     not found.
//   - The owners table must speak only of files in tree/, and of each whose
//     owner, device number or attributes the kernel refused.
//   - Names beginning with .new- are being written, or their writer is dead.
//
// Writers go tree → owners → meta → rename of drafts/<id> to snapshots/<id>,
// which is the commit point; then diffids → chains → digests, each by a rename.
// Remove goes the other way: records, then the snapshot by a rename back to
// drafts/, children before parents, where it is a draft whose lock is free; and
// only then its files. A kill between any two steps leaves a store that is
// whole, and garbage that the next Remove finds. Nothing is synced: after a
// crash of the machine itself, ask Check.
//
// A snapshot may amend its parent: its layer is then the parent's with the changes in tree/, and
// lies on what the parent's lies on (see amend.go). For all of the above the parent is a parent.
//
// The lock of a draft keeps its ancestors too. Somebody who only reads a
// snapshot, or has committed one and not yet written down why, must keep Remove
// away by other means: mk holds the lock of its root.
//
// # Owners that cannot be set
//
// In mode single one ID is mapped: every chown to another is refused. A store
// opened for that remembers: what a header asks for is kept in the owners table,
// WriteLayer puts it into the tar, Content counts it, and layers are the same
// as where chown works. Beside the table each file carries a mark, an attribute
// that overlay copies up with it (see ReadMark), by which a step that runs sees
// the owners and leaves others; Commit makes one of the other.
// Two things are remembered in every store, since no user namespace can have
// them: device nodes, for which an empty file stands, and attributes that are
// none of the kernel's business (trusted.*, security.* other than capabilities).
package snapshot
