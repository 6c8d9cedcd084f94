package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Refusal is something that this machine does not let mk do. Its message is what was tried and
// the kernel's reason; Advice is what that means here and the command that mends it.
type Refusal struct {
	Op     Op
	What   string // the path or helper, or ""
	Err    error
	Advice string // "" where there is none
}

func (r *Refusal) Error() string {
	if r.What == "" {
		return fmt.Sprintf("%s: %v", r.Op, r.Err)
	}
	return fmt.Sprintf("%s %s: %v", r.Op, r.What, r.Err)
}

func (r *Refusal) Unwrap() error { return r.Err }

// Op is a step that machines are known to refuse.
type Op string

const (
	OpClone   Op = "create a user and mount namespace"
	OpMap     Op = "write"                      // What: uid_map, gid_map, setgroups
	OpHelper  Op = "run"                        // What: newuidmap, newgidmap
	OpRanges  Op = "look up subordinate IDs of" // What: the user's name
	OpPrivate Op = "make mounts private below"
	OpProc    Op = "mount proc on"
	OpMount   Op = "mount"
	OpOverlay Op = "mount an overlay in" // What: the directory of upper and work
	OpChown   Op = "change the owner of"
	OpSetID   Op = "become" // What: "uid 33"
	OpStore   Op = "keep trees in"
	OpNotify  Op = "install a seccomp notifier"
	OpCgroup  Op = "limit" // What: a flag, or the container
	OpTun     Op = "use"   // What: /dev/net/tun
	OpWayOut  Op = "make a way out of the container's network"
	OpListen  Op = "listen on" // What: the number of a port
)

var (
	errNoRange    = errors.New("there are none")
	errNoNewPrivs = errors.New("no_new_privs is set")
)

// Advice is the advice that err carries, or "".
func Advice(err error) string {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Advice
	}
	return ""
}

// Explain wraps err, the failure of op on what, with the advice for this machine; nil stays nil.
// It belongs at the boundary, where the errno comes back from the kernel. An error that is a
// Refusal already is returned as it is.
func Explain(op Op, what string, err error) error {
	if err == nil {
		return nil
	}
	var r *Refusal
	if errors.As(err, &r) {
		return err
	}
	return &Refusal{Op: op, What: what, Err: err, Advice: advise(op, what, err, readFacts(op, what))}
}

// facts is what advice goes by. It is read after a refusal only: what mk does depends on what
// the kernel did, never on these.
type facts struct {
	maxUserns  string // /proc/sys/user/max_user_namespaces
	cloneKnob  string // kernel.unprivileged_userns_clone (Debian), "" where there is none
	apparmor   string // kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
	noNewPrivs bool
	filtered   bool   // a seccomp filter is on us: we are in somebody's container
	fsType     int64  // of the directory in question
	exe        string // where mk is
	user       string
	nextSubid  uint64 // the first ID above every range in /etc/subuid and /etc/subgid
	installer  string // the package manager on PATH
	firstPort  string // net.ipv4.ip_unprivileged_port_start
}

func readFacts(op Op, what string) facts {
	f := facts{
		maxUserns:  readKnob("/proc/sys/user/max_user_namespaces"),
		cloneKnob:  readKnob("/proc/sys/kernel/unprivileged_userns_clone"),
		apparmor:   readKnob("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
		noNewPrivs: noNewPrivs(),
		exe:        "/usr/local/bin/mk",
		nextSubid:  100000,
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err == nil {
		f.filtered = mode != 0
	}
	if exe, err := os.Executable(); err == nil {
		f.exe = exe
	}
	switch op {
	case OpRanges:
		f.user = what
		for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
			text, _ := os.ReadFile(file)
			f.nextSubid = max(f.nextSubid, endOfRanges(string(text)))
		}
	case OpListen:
		f.firstPort = readKnob("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	case OpHelper, OpWayOut:
		for _, name := range []string{"apt-get", "dnf", "yum", "apk", "pacman", "zypper"} {
			if _, err := exec.LookPath(name); err == nil {
				f.installer = name
				break
			}
		}
	case OpOverlay, OpStore, OpChown:
		var st unix.Statfs_t
		if unix.Statfs(what, &st) == nil {
			f.fsType = int64(st.Type)
		}
	}
	return f
}

func readKnob(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// endOfRanges is the first ID behind every range in the text of a subuid file.
func endOfRanges(text string) (end uint64) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		length, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil {
			end = max(end, start+length)
		}
	}
	return end
}

const (
	nfsMagic     = 0x6969
	overlayMagic = 0x794c7630
	lustreMagic  = 0x0bd00bd0
	gpfsMagic    = 0x47504653
	smb2Magic    = 0xfe534d42
)

// networkFS names the file systems that keep the IDs of another machine.
var networkFS = map[int64]string{nfsMagic: "NFS", lustreMagic: "Lustre", gpfsMagic: "GPFS", smb2Magic: "SMB"}

const (
	adviceFilter = "a seccomp filter of the container around mk forbids it; start that container with " +
		"'--security-opt seccomp=unconfined --security-opt apparmor=unconfined' (Kubernetes: a pod with hostUsers: false " +
		"and seccompProfile Unconfined)"
	adviceMountLSM = "the security module around mk forbids mounting; start the container around it with " +
		"'--security-opt apparmor=unconfined' (Kubernetes: appArmorProfile: {type: Unconfined})"
)

// advise is the table of refusals: which call, which errno, which facts → what to do.
func advise(op Op, what string, err error, f facts) string {
	denied := errors.Is(err, fs.ErrPermission) // EPERM and EACCES
	switch op {
	case OpClone:
		switch {
		case f.maxUserns == "0":
			return "user namespaces are switched off on this machine; run 'sudo sysctl -w user.max_user_namespaces=28633'"
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
			return "there are too many user namespaces, or they are nested more than 32 deep; the limit is in 'sysctl user.max_user_namespaces'"
		case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS):
			return "this kernel was built or booted without user namespaces; it needs CONFIG_USER_NS, and on RHEL 7 " +
				"'sudo grubby --args=user_namespace.enable=1 --update-kernel=ALL' and a reboot"
		case denied && f.cloneKnob == "0":
			return "user namespaces are for root only on this machine; run 'sudo sysctl -w kernel.unprivileged_userns_clone=1'"
		case denied && f.apparmor == "1":
			return adviceAppArmor(f.exe)
		case denied && f.filtered:
			return adviceFilter
		case denied:
			return "a security module forbids user namespaces, or mk runs in a chroot, where the kernel does"
		}
	case OpMap:
		if denied && f.apparmor == "1" {
			return adviceAppArmor(f.exe)
		}
		if denied {
			return "a security module lets mk have a user namespace but no rights in it; 'sudo dmesg | tail' names it"
		}
	case OpPrivate, OpMount:
		if denied && f.apparmor == "1" {
			return adviceAppArmor(f.exe)
		}
		if denied {
			return adviceMountLSM
		}
	case OpProc:
		if denied {
			return "parts of the outer /proc are hidden, and so the kernel allows no new one; start the container around mk " +
				"with '--security-opt systempaths=unconfined' (Kubernetes: procMount: Unmasked)"
		}
	case OpHelper:
		return adviseHelper(what, err, f)
	case OpRanges:
		last := f.nextSubid + 65535
		return fmt.Sprintf("run 'sudo usermod --add-subuids %d-%d --add-subgids %d-%d %s'", f.nextSubid, last, f.nextSubid, last, f.user)
	case OpOverlay:
		switch {
		case f.fsType == overlayMagic:
			return "the directory is itself on an overlay, as in a container, and overlays do not stack that way; set MK_ROOT to a volume or a tmpfs"
		case networkFS[f.fsType] != "":
			return fmt.Sprintf("the directory is on %s, which cannot hold the changes of an overlay; set MK_ROOT to a local disk", networkFS[f.fsType])
		case denied && f.apparmor == "1":
			return adviceAppArmor(f.exe)
		case denied || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV):
			return "overlays in user namespaces need Linux 5.11 and the module: 'uname -r', 'sudo modprobe overlay'"
		}
	case OpStore:
		if name := networkFS[f.fsType]; name != "" {
			return fmt.Sprintf("the directory is on %s, whose locks and owners are not this machine's; set MK_ROOT to a local disk, such as /var/tmp/mk-$USER", name)
		}
	case OpChown:
		switch {
		case errors.Is(err, syscall.EINVAL):
			return "this owner is outside of the IDs that the caller may use; a range of 65536 in /etc/subuid and /etc/subgid holds all that images use ('mk info' shows yours)"
		case denied && networkFS[f.fsType] != "":
			return fmt.Sprintf("%s does not take owners from a user namespace; set MK_ROOT to a local disk", networkFS[f.fsType])
		}
	case OpSetID:
		if denied || errors.Is(err, syscall.EINVAL) {
			return "the container has no such ID: mode single maps one, and a subordinate range only as many as it is long; 'mk info' shows the maps and what a range needs"
		}
	case OpTun:
		switch {
		case denied:
			return "the device of user-mode networks is for others only; run 'sudo chmod 0666 " + what + "', as distributions have it"
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
			return "the device of user-mode networks is missing; run 'sudo modprobe tun' (in a container: give it --device " + what + ")"
		}
	case OpWayOut:
		if errors.Is(err, exec.ErrNotFound) {
			return adviseWayOut(f)
		}
	case OpListen:
		if denied {
			return "ports below " + f.firstPort + " are for root only on this machine, and in a user namespace not even for it; take a higher one, or run " +
				"'sudo sysctl -w net.ipv4.ip_unprivileged_port_start=" + what + "'"
		}
	case OpNotify:
		if errors.Is(err, syscall.EBUSY) {
			return "the container around mk has a seccomp notifier of its own, and the kernel allows one"
		}
		if denied || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) {
			return "owners other than root cannot be remembered without it; it needs Linux 5.9 and a seccomp profile that allows seccomp(2)"
		}
	}
	return ""
}

func adviseWayOut(f facts) string {
	switch f.installer {
	case "apt-get", "dnf", "yum", "apk", "zypper":
		verb := map[string]string{"apk": "add"}[f.installer]
		if verb == "" {
			verb = "install"
		}
		return "run 'sudo " + f.installer + " " + verb + " passt', or slirp4netns"
	case "pacman":
		return "run 'sudo pacman -S passt', or slirp4netns"
	}
	return "install pasta, of the package passt, or slirp4netns"
}

func adviseHelper(name string, err error, f facts) string {
	switch {
	case errors.Is(err, exec.ErrNotFound):
		switch f.installer {
		case "apt-get":
			return "run 'sudo apt-get install uidmap'"
		case "dnf", "yum":
			return "run 'sudo " + f.installer + " install shadow-utils'"
		case "apk":
			return "run 'sudo apk add shadow-subids'"
		case "pacman":
			return "run 'sudo pacman -S shadow'"
		case "zypper":
			return "run 'sudo zypper install shadow'"
		}
		return "it comes with the package uidmap or shadow-utils"
	case f.noNewPrivs:
		return "no_new_privs keeps newuidmap from gaining its privilege (Kubernetes: allowPrivilegeEscalation: true); or use '--userns single'"
	case strings.Contains(err.Error(), "not allowed"):
		return "the ranges in /etc/subuid and /etc/subgid are not those that newuidmap reads; compare 'getsubids $USER' with the files"
	default:
		return fmt.Sprintf("%s may have lost its privilege; run 'sudo chmod u+s $(command -v newuidmap newgidmap)', or use '--userns single'", name)
	}
}

// adviceAppArmor is Ubuntu's own way, since 23.10, to let one program have user namespaces.
func adviceAppArmor(exe string) string {
	return "AppArmor keeps user namespaces from programs without a profile; run " +
		`'printf "abi <abi/4.0>,\ninclude <tunables/global>\nprofile mk ` + exe + ` flags=(unconfined) { userns, }\n" | ` +
		"sudo tee /etc/apparmor.d/mk && sudo apparmor_parser -r /etc/apparmor.d/mk'"
}
