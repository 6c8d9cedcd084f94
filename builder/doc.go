// Package builder turns a recipe into an image: steps → snapshots → layers.
//
// Two functions are most of it. NewPlan makes the graph of steps that a target
// needs, every variable replaced, every image found, nothing executed.
// Builder.Build makes what the graph's target is:
//
//	each ready step, at most Jobs at once:
//	  key  = H(format, platform, the parent tree's content, the step's facts, digests of the files it takes)
//	  hit  → the snapshot that the key's record names
//	  miss → a draft on the parent → mount → run, copy or mkdir → commit → record
//
// A Key is of what goes in, a digest is of what came out, and the next key takes
// the parent's digest, not its key: a step that ran again and made the same tree
// lets everything after it hit. Digests are computed beside the steps that
// follow. A step waits for its parent's digest only if it ran before on some
// tree; the first time, nothing could hit.
//
// A build that the records know whole opens no tree and enters no namespace:
// bases are known by their layers' digests, files of the context by their stat,
// steps by their records. Anything else ends with ErrNeedsInside outside, and is
// begun again inside (see package userns).
//
// The files by story:
//
//	plan.go evaluate.go     recipe → Plan: stages, bases, configs, history
//	build.go                Plan → Result: what runs when
//	key.go                  keys, and the records that they are looked up in
//	action.go               one step, ready: run.go, place.go (COPY, ADD), workdir.go
//	mounts*.go etc.go       what a RUN is shown; cachemount*.go, secrets*.go
//	files*.go select.go statcache.go   which files a COPY takes, and their digest
//	copy*.go untar*.go      those files into a tree; copykeep.go, what the last layer has already
//	outline.go              COPY and WORKDIR on a base that stays in its registry, by what its
//	                        author or a cache says is in it
//	link.go                 COPY --link: layers made on nothing, laid on any tree
//	remote*.go              caches elsewhere: --cache-from, --cache-to; remoteoutline.go, of bases
//	fetch*.go git*.go       what ADD and contexts get from URLs and git repositories
//	inputs.go provenance.go what a result was made of, for those who ask
//	compare.go              two builds of one recipe: what is not the same
//	scanner.go sbom/        what packages are in it
//	base.go                 images → snapshots, when a step first needs them
//	export.go tree.go       Result → image, directory, tar
//	event.go                what the display is told
//
// The package prints nothing and knows no flags. It does not compress: layers
// are trees until somebody asks for their bytes.
package builder
