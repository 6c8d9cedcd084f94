package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The rows are those of the refusals that people meet; see the comments for where.
func TestAdvice(t *testing.T) {
	normal := facts{maxUserns: "96365", exe: "/home/u/bin/mk", user: "u", nextSubid: 165536}
	ubuntu, filtered, nnp, debian, off := normal, normal, normal, normal, normal
	ubuntu.apparmor = "1"
	filtered.filtered = true
	nnp.noNewPrivs = true
	debian.cloneKnob = "0"
	off.maxUserns = "0"
	apt, onOverlay, onNFS := normal, normal, normal
	apt.installer = "apt-get"
	onOverlay.fsType = overlayMagic
	onNFS.fsType = nfsMagic

	for _, c := range []struct {
		op    Op
		err   error
		facts facts
		want  string
	}{
		{OpClone, syscall.ENOSPC, off, "user.max_user_namespaces=28633"},              // Bottlerocket, Talos
		{OpClone, syscall.EINVAL, off, "user.max_user_namespaces=28633"},              // EL7
		{OpClone, syscall.EINVAL, normal, "CONFIG_USER_NS"},                           // off on the command line
		{OpClone, syscall.ENOSPC, normal, "nested"},                                   //
		{OpClone, syscall.EPERM, debian, "kernel.unprivileged_userns_clone=1"},        // old Debian
		{OpClone, syscall.EPERM, filtered, "seccomp=unconfined"},                      // docker run
		{OpClone, syscall.EACCES, ubuntu, "profile mk /home/u/bin/mk"},                // Ubuntu 24.04
		{OpMap, syscall.EPERM, ubuntu, "apparmor_parser -r"},                          // Ubuntu 23.10
		{OpMap, syscall.EACCES, ubuntu, "apparmor_parser -r"},                         //
		{OpMap, syscall.EPERM, normal, "dmesg"},                                       //
		{OpPrivate, syscall.EACCES, ubuntu, "apparmor_parser -r"},                     //
		{OpPrivate, syscall.EACCES, filtered, "apparmor=unconfined"},                  // cri-containerd.apparmor.d
		{OpProc, syscall.EPERM, filtered, "systempaths=unconfined"},                   // VFS: Mount too revealing
		{OpHelper, exec.ErrNotFound, apt, "sudo apt-get install uidmap"},              //
		{OpHelper, errors.New("Could not set caps"), nnp, "allowPrivilegeEscalation"}, // PSA restricted
		{OpHelper, errNoNewPrivs, nnp, "--userns single"},                             //
		{OpHelper, errors.New("write to uid_map failed: Operation not permitted"), normal, "chmod u+s"},
		{OpHelper, errors.New("uid range [1-65537) -> [4-65540) not allowed"), normal, "getsubids"},
		{OpRanges, errNoRange, normal, "sudo usermod --add-subuids 165536-231071 --add-subgids 165536-231071 u"},
		{OpOverlay, syscall.EINVAL, onOverlay, "volume or a tmpfs"}, // state directory in a container
		{OpOverlay, syscall.EINVAL, onNFS, "NFS"},
		{OpOverlay, syscall.EPERM, normal, "5.11"}, // EL8
		{OpStore, errors.New("locks"), onNFS, "local disk"},
		{OpChown, syscall.EINVAL, normal, "/etc/subuid"}, // lchown /etc/gshadow
		{OpChown, syscall.EPERM, onNFS, "NFS"},
		{OpSetID, syscall.EINVAL, normal, "mode single"},
		{OpNotify, syscall.EBUSY, normal, "one"},
	} {
		if got := advise(c.op, "what", c.err, c.facts); !strings.Contains(got, c.want) {
			t.Errorf("%s: %v: advice %q lacks %q", c.op, c.err, got, c.want)
		}
	}
	if got := advise(OpClone, "", fs.ErrNotExist, normal); got != "" {
		t.Errorf("advice about a missing file: %q", got)
	}
}

func TestAdviceComesThroughWrapping(t *testing.T) {
	err := fmt.Errorf("build: %w", Explain(OpRanges, "u", errNoRange))
	if !strings.Contains(Advice(err), "usermod") || !errors.Is(err, errNoRange) {
		t.Errorf("%v: advice %q", err, Advice(err))
	}
	if again := Explain(OpClone, "", err); again != err {
		t.Errorf("explained twice: %v", again)
	}
	if Explain(OpClone, "", nil) != nil || Advice(errors.New("x")) != "" {
		t.Error("advice out of nothing")
	}
}
