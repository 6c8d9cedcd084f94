package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/pflag"
)

// Flags that other builders have and mk build has not. None of them is unknown: each is
// refused by its name, with what to do in its place; and those which ask for what mk does
// anyhow are taken.

// fixed are flags whose one value is what mk does.
var fixed = []struct {
	name string
	does bool
	why  string
}{
	{"layers", true, "each step that changes files is a layer: --squash-all makes them one, --no-cache executes every step"},
	{"rm", true, "a step leaves no container behind"},
	{"force-rm", true, "a step leaves no container behind, whether it fails or not"},
	{"skip-unused-stages", true, "stages that the target does not need are not built: name one with --target"},
	{"rewrite-timestamp", true, "with SOURCE_DATE_EPOCH no file is newer than it"},
	{"identity-label", false, "mk adds no label of its own: --label io.buildah.version=… does"},
	{"created-annotation", false, "mk adds no annotation of its own: --annotation org.opencontainers.image.created=… does"},
	{"inherit-annotations", false, "a base's annotations are the base's: --annotation gives the image its own"},
	{"inherit-labels", true, "a base's labels are the image's: --unsetlabel NAME takes one away"},
	{"compat-volumes", false, "what a step changes below a VOLUME is kept, as BuildKit keeps it"},
	{"disable-content-trust", true, "mk checks digests, and no signatures"},
	{"save-stages", false, "stages are kept as cache, and are no images: build one by --target NAME -t IMAGE"},
}

// elsewhere are flags that mk build has not, by what to do in their place. A flag that
// another file registers is not looked at here.
var elsewhere = []struct {
	name string
	bare bool // it may stand without a value
	do   string
}{
	// docker
	{"builder", false, "there is no daemon to choose"},
	{"compress", true, "no context is sent anywhere"},
	{"isolation", false, "a step runs in namespaces of its own, as 'mk info' says: --userns chooses how"},
	{"policy", false, "policies in Rego are not read: --source-policy-file takes BuildKit's JSON"},
	{"squash", true, "the new layers cannot be made one by themselves: --squash-all makes all layers one, and so does a last stage FROM scratch with COPY --from=STAGE / /"},
	{"stream", true, "no context is sent anywhere"},
	// podman and buildah: platforms and names
	{"all-platforms", true, "name them: --platform linux/amd64,linux/arm64"},
	{"arch", false, "say --platform OS/ARCH"},
	{"os", false, "say --platform OS/ARCH"},
	{"variant", false, "say --platform OS/ARCH/VARIANT"},
	{"os-version", false, "is of Windows images, which mk does not build"},
	{"os-feature", false, "is of Windows images, which mk does not build"},
	{"manifest", false, "several values of --platform make an index, which -t names"},
	// podman and buildah: what steps get
	{"cgroupns", false, "a step has a cgroup namespace of its own"},
	{"dns", false, "a step has the resolvers of this machine: write them into /etc/resolv.conf in the step that needs others"},
	{"dns-option", false, "a step has the resolvers of this machine"},
	{"dns-search", false, "a step has the resolvers of this machine"},
	{"group-add", false, "a step has the groups that /etc/group of the image gives its USER"},
	{"hooks-dir", false, "mk runs no OCI hooks"},
	{"ipc", false, "a step has an IPC namespace of its own"},
	{"no-hostname", true, "/etc/hostname of a step is the build's, and never in the image"},
	{"no-hosts", true, "/etc/hosts of a step is the build's, and never in the image"},
	{"pid", false, "a step has a PID namespace of its own"},
	{"runtime", false, "mk runs steps itself"},
	{"runtime-flag", false, "mk runs steps itself"},
	{"stdin", true, "a step has no input: give it a secret, a COPY <<EOF or --build-arg"},
	{"transient-mount", false, "say --volume HOST:CONTAINER"},
	{"userns-gid-map", false, "the range of /etc/subgid is mapped: 'mk info' tells which"},
	{"userns-gid-map-group", false, "the range of /etc/subgid is mapped: 'mk info' tells which"},
	{"userns-uid-map", false, "the range of /etc/subuid is mapped: 'mk info' tells which"},
	{"userns-uid-map-user", false, "the range of /etc/subuid is mapped: 'mk info' tells which"},
	{"uts", false, "a step has a UTS namespace of its own"},
	// podman and buildah: registries and signatures
	{"creds", false, "say mk login REGISTRY first"},
	{"decryption-key", false, "encrypted layers are not read"},
	{"sign-by", false, "mk signs nothing: sign what was pushed with cosign or skopeo"},
	{"signature-policy", false, "mk checks digests, and no signatures"},
	// podman and buildah: the rest
	{"cpp-flag", false, "run cpp yourself: cpp -E Recipe.in | mk build -f - ."},
	{"cw", false, "confidential workloads are not made"},
	{"disable-compression", true, "layers are compressed where they are pushed or saved: -o type=oci,compression=uncompressed"},
	{"iidfile-raw", false, "say --iidfile FILE, and cut 'sha256:' off"},
	{"layer-label", false, "stages are kept as cache, and are no images: --label names the result"},
	{"logfile", false, "redirect standard error: mk build --progress plain . 2>FILE"},
	{"logsplit", true, "redirect standard error of each build"},
	{"stage-labels", true, "stages are kept as cache, and are no images: build one by --target NAME -t IMAGE"},
	{"timestamp", false, "say --source-date-epoch SECONDS"},
	{"unsetannotation", false, "a base's annotations are the base's"},
}

// refusal is the value of a flag that mk build has not.
type refusal struct {
	name, do string
	given    *error // set when the flag was
}

func (r refusal) String() string { return "" }
func (r refusal) Type() string   { return "string" }
func (r refusal) Set(value string) error {
	if *r.given == nil {
		*r.given = fmt.Errorf("--%s: mk build has no such flag: %s", r.name, r.do)
	}
	return nil
}

// standing is the value of a flag that can ask for one thing only.
type standing struct {
	name, why string
	does      bool
	given     *error
}

func (s standing) String() string { return strconv.FormatBool(s.does) }
func (s standing) Type() string   { return "bool" }
func (s standing) Set(value string) error {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return err
	}
	if b != s.does && *s.given == nil {
		*s.given = fmt.Errorf("--%s=%t: %s", s.name, b, s.why)
	}
	return nil
}

// registerElsewhere makes the flags above known, hidden from the help. It is called when
// all others are registered; what it returns is, after parsing, the first refusal or nil.
func registerElsewhere(fl *pflag.FlagSet) *error {
	given := new(error)
	add := func(name string, v pflag.Value, bare string) {
		if fl.Lookup(name) != nil {
			return
		}
		f := fl.VarPF(v, name, "", "")
		f.Hidden, f.NoOptDefVal = true, bare
	}
	for _, a := range fixed {
		add(a.name, standing{a.name, a.why, a.does, given}, "true")
	}
	for _, e := range elsewhere {
		bare := ""
		if e.bare {
			bare = "true"
		}
		add(e.name, refusal{e.name, e.do, given}, bare)
	}
	return given
}
