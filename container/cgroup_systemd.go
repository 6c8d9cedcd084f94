package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// On machines with systemd the hierarchy is systemd's, and what others make in it comes to harm:
// a controller that no unit needs is turned off. A unit with Delegate=yes is the exception
// (systemd.io/CGROUP_DELEGATION). So this process asks its user's manager, over D-Bus and by the
// methods of org.freedesktop.systemd1(5), to be put into a scope of its own that is delegated; from
// there on it has a directory like everybody else. The scope goes with its last process.

// systemdWait is how long systemd may take; it needs milliseconds.
const systemdWait = 10 * time.Second

// systemdUnit gives the top of what this process' unit may divide, where there is systemd and the
// unit was given it; else the top of all, and whether that is systemd's to divide.
func systemdUnit(mount, own string) (top string, systemds bool) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return mount, false
	}
	for dir := own; len(dir) > len(mount); dir = filepath.Dir(dir) {
		name := filepath.Base(dir)
		var yes [1]byte // systemd 251 and later mark what they delegate
		if n, err := unix.Getxattr(dir, "user.delegate", yes[:]); err == nil && n == 1 && yes[0] == '1' {
			if strings.HasPrefix(name, "user@") { // given to a manager, which is systemd too
				return mount, true
			}
			return dir, false
		}
		if strings.HasPrefix(name, scopePrefix) && strings.HasSuffix(name, ".scope") {
			return dir, false
		}
	}
	return mount, true
}

const scopePrefix = "mk-"

// systemdBus is the address of the bus where systemd is to be asked.
func systemdBus() (string, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return "", errNoSystemd
	}
	uid := outerUID()
	if uid == "0" {
		return "unix:path=/run/dbus/system_bus_socket", nil
	}
	if a := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); a != "" {
		return a, nil
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = "/run/user/" + uid
	}
	path := filepath.Join(dir, "bus")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no systemd of yours is there to give one: %w", err)
	}
	return "unix:path=" + path, nil
}

var errNoSystemd = errors.New("there is no systemd to give one")

// outerUID is who this process is to the machine.
func outerUID() string {
	text, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(text)); err == nil && len(f) >= 3 && os.Getuid() == 0 {
		return f[1]
	}
	return strconv.Itoa(os.Getuid())
}

// askSystemd has this process moved into a delegated scope, of that slice, and returns when it is there.
func askSystemd(slice string) error {
	address, err := systemdBus()
	if err != nil {
		return err
	}
	conn, err := dbus.Dial(address)
	if err != nil {
		return fmt.Errorf("the bus of systemd: %w", err)
	}
	defer conn.Close()
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(outerUID())}); err != nil {
		return fmt.Errorf("the bus of systemd: %w", err)
	}
	if err := conn.Hello(); err != nil {
		return fmt.Errorf("the bus of systemd: %w", err)
	}
	manager := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	const iface = "org.freedesktop.systemd1.Manager."
	if err := manager.Call(iface+"Subscribe", 0).Err; err != nil { // without it there are no signals
		return fmt.Errorf("systemd: %w", err)
	}
	if err := conn.AddMatchSignal(dbus.WithMatchInterface("org.freedesktop.systemd1.Manager"), dbus.WithMatchMember("JobRemoved")); err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)

	type property struct {
		Name  string
		Value dbus.Variant
	}
	properties := []property{
		{"Description", dbus.MakeVariant("mk: containers with limits")},
		{"PIDs", dbus.MakeVariant([]uint32{uint32(os.Getpid())})},
		{"Delegate", dbus.MakeVariant(true)},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
	}
	if slice != "" {
		properties = append(properties, property{"Slice", dbus.MakeVariant(slice)})
	}
	var auxiliary []struct {
		Name       string
		Properties []property
	}
	name := scopePrefix + NewID()[:12] + ".scope"
	var job dbus.ObjectPath
	if err := manager.Call(iface+"StartTransientUnit", 0, name, "fail", properties, auxiliary).Store(&job); err != nil {
		return fmt.Errorf("systemd: start %s: %w", name, err)
	}
	late := time.After(systemdWait)
	for {
		select {
		case s := <-signals:
			if s == nil {
				return errors.New("systemd: the bus was closed")
			}
			var id uint32
			var ended dbus.ObjectPath
			var unit, result string
			if dbus.Store(s.Body, &id, &ended, &unit, &result) != nil || ended != job {
				continue
			}
			if result != "done" {
				return fmt.Errorf("systemd: start %s: %s", name, result)
			}
			return nil
		case <-late:
			return fmt.Errorf("systemd: start %s: no answer in %s", name, systemdWait)
		}
	}
}

// systemdControllers lists what systemd gives its users, as far as can be seen.
func systemdControllers(mount string) []string {
	uid := outerUID()
	dir := mount
	if uid != "0" {
		dir = filepath.Join(mount, "user.slice", "user-"+uid+".slice", "user@"+uid+".service")
	}
	return strings.Fields(readCgroup(dir, "cgroup.controllers"))
}

// The advice of refusals.
const (
	ownScope     = "systemd-run --user --scope -p Delegate=yes mk …"
	adviceParent = "name a cgroup that was given to you with cgroup.procs and cgroup.subtree_control, or leave --cgroup-parent out"
)

// adviceDelegate tells how to be given a cgroup; asked is why systemd was of no help.
func adviceDelegate(asked error) string {
	if hybrid() {
		return adviceUnified
	}
	if errors.Is(asked, errNoSystemd) {
		return "as root, once: d=/sys/fs/cgroup/$USER; echo +cpu +memory +pids +io +cpuset > /sys/fs/cgroup/cgroup.subtree_control; " +
			"mkdir -p $d/session; chown -R $USER $d; and for a shell of yours, as root: echo PID > $d/session/cgroup.procs"
	}
	return "be a user with a session: 'sudo loginctl enable-linger $USER', and XDG_RUNTIME_DIR=/run/user/$(id -u); or start it as '" + ownScope + "'"
}

const adviceUnified = "limits are those of cgroup v2: boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 alone"

// hybrid tells whether cgroup v1 has the controllers.
func hybrid() bool {
	text, _ := os.ReadFile("/proc/self/cgroup")
	return strings.Contains(string(text), ":memory:")
}

// noController is the refusal of a limit whose controller was not given along.
func noController(dir string, have []string, what, controller string) error {
	list := strings.Join(have, " ")
	if list == "" {
		list = "none"
	}
	if hybrid() {
		return cgroupRefusal(what, "the controller "+controller+" is one of cgroup v1 here, which cannot be given to users", adviceUnified)
	}
	return cgroupRefusal(what, fmt.Sprintf("the controller %s is not given to %s, which has: %s", controller, dir, list),
		"have systemd give it to users: sudo mkdir -p /etc/systemd/system/user@.service.d; "+
			`printf '[Service]\nDelegate=cpu cpuset io memory pids\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf; `+
			"sudo systemctl daemon-reload; and log in anew")
}
