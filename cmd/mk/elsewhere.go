package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// otherwise is a flag that docker or podman has for a verb and mk has not, and what to do in its place.
type otherwise struct{ name, do string }

// everyOne and latest are podman's short words for what the shell can say.
const (
	everyOne = "name them: $(mk ps -q)"
	latest   = "name it: $(mk ps -lq)"
)

// flagsElsewhere are such flags, of each verb. None of them is unknown: it is refused by its name, with
// what to do in its place. Nothing of this is looked at before an unknown flag is met; those of
// mk build are in buildelsewhere.go.
var flagsElsewhere = map[string][]otherwise{
	"run":    runElsewhere,
	"create": runElsewhere,
	"start": {
		{"checkpoint", "mk makes no checkpoints"},
		{"checkpoint-dir", "mk makes no checkpoints"},
		{"all", "name them: $(mk ps -aq)"},
		{"filter", "name them: $(mk ps -aq --filter …)"},
		{"latest", latest},
		{"sig-proxy", "signals are passed on, unless there is a terminal"},
	},
	"stop":    someElsewhere,
	"kill":    someElsewhere,
	"pause":   someElsewhere,
	"unpause": someElsewhere,
	"restart": someElsewhere,
	"wait": {
		{"condition", "mk wait waits for the end; mk inspect -f {{.State.Status}} tells the rest"},
		{"interval", "nobody asks again and again: the end is told"},
		{"ignore", "say mk wait NAME || true"},
		{"latest", latest},
	},
	"rm": append([]otherwise{
		{"link", "there are no links: mk network disconnect takes a container off a network"},
		{"depend", "no container depends on another to be removed"},
		{"time", "--force kills at once: say mk stop -t SECONDS first"},
	}, someElsewhere...),
	"ps": {
		{"ns", "say mk inspect"}, {"pod", "there are no pods"},
		{"sort", "the newest is first: sort(1) has other orders"},
		{"sync", "nothing is ever out of date"}, {"watch", "say watch mk ps"},
		{"noheading", "say --format with a template without table"},
		{"external", "there are no other containers"},
	},
	"logs": {
		{"details", "a log has no attributes: mk inspect shows labels"},
		{"color", "one container's log is shown at a time"}, {"names", "one container's log is shown at a time"},
		{"latest", latest},
	},
	"attach": {{"latest", latest}},
	"exec": {
		{"latest", latest},
		{"preserve-fds", "only standard streams are passed on"},
	},
	"cp":   {{"overwrite", "a file never takes a directory's place: remove it first"}},
	"diff": {{"latest", latest}, {"format", "its lines are docker's: KIND PATH"}},
	"commit": {
		{"no-pause", "the container goes on in any case: mk pause and mk unpause it for a still image"},
		{"format", "images are OCI's: mk save --format docker-archive writes the other"},
		{"iidfile", "the ID is printed: mk commit NAME > FILE"},
		{"include-volumes", "volumes are never part of an image: mk cp NAME:PATH - copies one"},
		{"squash", "say mk export NAME | mk import -"},
	},
	"top":   {{"latest", latest}},
	"stats": {{"interval", "it is a second"}, {"latest", latest}, {"no-reset", "say --no-stream"}},
	"port":  {{"all", "say mk ps"}, {"latest", latest}},
	"update": {
		{"cpu-rt-period", "cgroup v2 has no real-time scheduling"}, {"cpu-rt-runtime", "cgroup v2 has no real-time scheduling"},
		{"kernel-memory", "cgroup v2 counts it with --memory"},
	},
	"inspect": {{"latest", latest}},
	"events":  {{"stream", "say --until now"}, {"no-trunc", "nothing is shortened"}},
	"volume create": {
		{"opt", "a volume is a directory of the machine: --mount type=tmpfs,tmpfs-size=… and -v HOST:PATH do what options do"},
		{"ignore", "a volume that is there already is no error"},
	},
	"volume ls":      {{"noheading", "say -q, or --format with a template without table"}},
	"volume rm":      {{"all", "say mk volume prune --all"}, {"time", "say mk stop first"}},
	"volume inspect": {{"all", "name them: $(mk volume ls -q)"}},
	"network create": {
		{"attachable", "every network is open to your containers, and to nobody else's"}, {"ingress", "there is no swarm"}, {"scope", "there is no swarm"},
		{"config-from", "there is no swarm"}, {"config-only", "there is no swarm"},
		{"aux-address", addressesElsewhere}, {"ip-range", addressesElsewhere}, {"ipam-driver", addressesElsewhere}, {"ipam-opt", addressesElsewhere},
		{"ipv4", "every network has IPv4"}, {"opt", "there is no driver with options"},
		{"disable-dns", "give the container --dns"}, {"dns", "give the container --dns"}, {"route", "a container has one way out, whatever networks it is on"},
		{"ignore", "say … || true"},
	},
	"network inspect": {{"verbose", "there is no swarm"}},
	"network rm":      {{"time", "say mk stop first"}},
	"network connect": {
		{"link", "the names of a network are known to all that are on it: --alias gives another"},
		{"link-local-ip", "the kernel gives link-local addresses; --ip and --ip6 ask for others"},
		{"driver-opt", "there is no driver with options"},
		{"gw-priority", "a container has one way out, whatever networks it is on"},
	},
}

// addressesElsewhere are of networks.
const addressesElsewhere = "a container gets the first address that is free, or the one of --ip"

// someElsewhere are of verbs for some containers.
var someElsewhere = []otherwise{
	{"all", everyOne}, {"running", everyOne}, {"latest", latest},
	{"cidfile", "name it: $(cat FILE)"},
	{"filter", "name them: $(mk ps -q --filter …)"},
	{"ignore", "say … || true"},
}

// runElsewhere are of run and create.
var runElsewhere = []otherwise{
	// docker
	{"annotation", "mk hands no specification to a runtime: --label marks a container"},
	{"blkio-weight-device", "say --device-write-bps and its like, or --blkio-weight for all"},
	{"cpu-rt-period", "cgroup v2 has no real-time scheduling"},
	{"cpu-rt-runtime", "cgroup v2 has no real-time scheduling"},
	{"device-cgroup-rule", "without root of the machine there is no rule for devices: the rights of the file count"},
	{"disable-content-trust", "mk checks digests, and no signatures"},
	{"gpus", "give the devices, --device /dev/dri or /dev/nvidia0 and its like, and the driver's libraries, -v"},
	{"isolation", "is of Windows"},
	{"kernel-memory", "cgroup v2 counts it with --memory"},
	{"link", "give both a network: mk network create NET, then --network NET; --network-alias gives another name"},
	{"link-local-ip", "the kernel gives link-local addresses; --ip and --ip6 ask for others"},
	{"log-opt", "logs are kept whole, as JSON lines, until mk rm"},
	{"memory-swappiness", "cgroup v2 has none: --memory-swap bounds what is swapped"},
	{"oom-kill-disable", "cgroup v2 has no such switch: give it more --memory"},
	{"runtime", "mk runs containers itself"},
	{"storage-opt", "a container's changes are bounded by the disk: --tmpfs PATH:size=… bounds a part, --read-only all"},
	{"use-api-socket", "there is no daemon"},
	{"volume-driver", "a volume is a directory of the machine: -v NAME:PATH"},
	// podman
	{"arch", "say --platform OS/ARCH"}, {"os", "say --platform OS/ARCH"}, {"variant", "say --platform OS/ARCH/VARIANT"},
	{"authfile", "say mk pull --authfile FILE first"}, {"creds", "say mk login first"},
	{"cert-dir", "say mk pull --cert-dir DIR first"}, {"tls-verify", "say mk pull first, with MK_REGISTRY_MIRRORS for a registry without TLS"},
	{"retry", "say mk pull --retry N first"}, {"retry-delay", "say mk pull --retry-delay DURATION first"},
	{"decryption-key", "encrypted layers are not read"},
	{"cgroup-conf", "say --memory, --cpus and their like"}, {"cgroups", "a container has a cgroup where mk is given one"},
	{"chrootdirs", "only the root is a container's: -v binds what another root needs"},
	{"conmon-pidfile", "there is no conmon: the parent of mk inspect -f {{.State.Pid}} holds the container"},
	{"pidfile", "say mk inspect -f {{.State.Pid}}"},
	{"env-merge", "say -e NAME=value"},
	{"gidmap", "the range of /etc/subgid is mapped: mk info tells which"}, {"uidmap", "the range of /etc/subuid is mapped: mk info tells which"},
	{"subgidname", "the range of /etc/subgid is mapped: mk info tells which"}, {"subuidname", "the range of /etc/subuid is mapped: mk info tells which"},
	{"group-entry", "mk writes no /etc/group: the image's is used"}, {"passwd", "mk writes no /etc/passwd: the image's is used"},
	{"passwd-entry", "mk writes no /etc/passwd: the image's is used"}, {"hostuser", "mk writes no /etc/passwd: the image's is used"},
	{"health-on-failure", "say --restart, and a health command that ends the container"},
	{"health-log-destination", "mk inspect shows the last checks"},
	{"health-startup-cmd", "say --health-start-period"},
	{"hosts-file", "say --add-host name:address"},
	{"http-proxy", "pass one on: -e http_proxy"},
	{"image-volume", "volumes of the image are made, seeded and removed with the container"},
	{"init-path", "--init is mk's own"},
	{"no-hostname", "/etc/hostname is the container's, and never part of an image"}, {"no-hosts", "/etc/hosts is the container's, and never part of an image"},
	{"personality", "say setarch in the container"},
	{"pod", "there are no pods: --network container:NAME and its like share"}, {"pod-id-file", "there are no pods"},
	{"preserve-fds", "only standard streams are passed on"}, {"preserve-fd", "only standard streams are passed on"},
	{"rdt-class", "it takes root of the machine"},
	{"read-only-tmpfs", "say --tmpfs /tmp --tmpfs /run"},
	{"replace", "say mk rm -f NAME first"},
	{"requires", "start them in their order"},
	{"rmi", "say mk rmi after"},
	{"sdnotify", "no systemd is told: mk run in front ends with the container"},
	{"seccomp-policy", "say --security-opt seccomp=FILE"},
	{"secret", "bind the file: -v ./secret:/run/secrets/NAME:ro"},
	{"shm-size-systemd", "say --tmpfs /run:size=…"}, {"systemd", "say --tmpfs /run --tmpfs /tmp --stop-signal RTMIN+3"},
	{"timeout", "say timeout SECONDS mk run …"},
	{"tz", "say -e TZ=Area/City, where the image has zones"},
}

// refuseFlag says of a flag that a verb does not know what to do in its place, if another tool has it.
func refuseFlag(c *cobra.Command, err error) error {
	name, long := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !long {
		return err
	}
	verb := strings.TrimPrefix(strings.TrimPrefix(c.CommandPath(), "mk "), "container ")
	for _, o := range flagsElsewhere[verb] {
		if o.name == name {
			return fmt.Errorf("--%s: mk %s has no such flag: %s", name, verb, o.do)
		}
	}
	return err
}
