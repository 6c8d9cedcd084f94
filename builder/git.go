package builder

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// git runs the machine's git on repositories that may be hostile. What it reads and
// runs is decided here and nowhere else:
//
//   - no config of the system, the user or a template: a home of its own, with one
//     config file, which a submodule's git reads too;
//   - no hooks, no file system monitor, no credential helper, no prompt, no pager;
//   - http, https, git and ssh, also for submodules: never file:// or ext::, by
//     which a repository could name this host's files and programs;
//   - the environment has nothing but PATH, proxies and the ssh agent;
//   - credentials are in the config file, 0600 and gone with the home: not among
//     the arguments, which every user of the machine can read, nor in .git/config;
//   - what an address says stands behind "--" or was checked (GitAddress.check).
type git struct {
	home string
}

const gitConfig = `[core]
	hooksPath = /dev/null
	fsmonitor = false
	pager = cat
	askPass =
[credential]
	helper =
[advice]
	detachedHead = false
[init]
	defaultBranch = master
	templateDir =
[gc]
	auto = 0
[maintenance]
	auto = false
[transfer]
	bundleURI = false
[fetch]
	recurseSubmodules = false
`

// gitStall is how long a transfer over http may stand still.
const gitStall = 60 * time.Second

// newGit makes the home that git runs in, below dir. The caller closes.
func newGit(dir string, a *GitAddress, auth func(host string) string) (*git, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, errors.New("git is not installed: it is needed to fetch git repositories")
	}
	home, err := os.MkdirTemp(dir, ".tmp-git-")
	if err != nil {
		return nil, err
	}
	g := &git{home}
	config := gitConfig
	if header := a.header(auth); header != "" {
		u, _ := url.Parse(a.Remote)
		config += fmt.Sprintf("[http %s]\n\textraHeader = %s\n", quoteGit(u.Scheme+"://"+u.Host+"/"), quoteGit("Authorization: "+header))
	}
	if err := os.WriteFile(g.config(), []byte(config), 0o600); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// quoteGit writes a value as git's config files have it.
func quoteGit(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func (g *git) config() string { return filepath.Join(g.home, "gitconfig") }

func (g *git) Close() error { return os.RemoveAll(g.home) }

// header is the Authorization header for the repository's host, "" for none.
func (a *GitAddress) header(auth func(host string) string) string {
	u, err := url.Parse(a.Remote)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return ""
	}
	if a.user != nil {
		password, _ := a.user.Password()
		return "basic " + base64.StdEncoding.EncodeToString([]byte(a.user.Username()+":"+password))
	}
	if auth != nil {
		if h := auth(u.Host); strings.IndexFunc(h, func(r rune) bool { return r < ' ' }) < 0 {
			return h
		}
	}
	return ""
}

// GitAuth finds the Authorization header for a host among the secrets of a build, by
// BuildKit's names: GIT_AUTH_HEADER.HOST or GIT_AUTH_TOKEN.HOST, else the same without
// the host. It is for Fetched.Auth.
func GitAuth(secrets map[string]Secret) func(host string) string {
	return func(host string) string {
		for _, suffix := range []string{"." + host, ""} {
			if value := readSecret(secrets, "GIT_AUTH_HEADER"+suffix); value != "" {
				return value
			}
			if value := readSecret(secrets, "GIT_AUTH_TOKEN"+suffix); value != "" {
				return "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+value))
			}
		}
		return ""
	}
}

// readSecret is a secret's value, "" for none: the server then says that it wants one.
func readSecret(secrets map[string]Secret, id string) string {
	s, ok := secrets[id]
	if !ok {
		return ""
	}
	value, err := s.read()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value))
}

// run runs git in dir and returns what it wrote to standard output. What it said
// on standard error is in the error.
func (g *git) run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.home, "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_ATTR_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + g.config(),
		"GIT_ALLOW_PROTOCOL=http:https:git:ssh", "GIT_TERMINAL_PROMPT=0", "GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
		"GIT_HTTP_LOW_SPEED_LIMIT=1", fmt.Sprintf("GIT_HTTP_LOW_SPEED_TIME=%d", int(gitStall.Seconds())),
		"GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND=" + sshCommand(),
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		for _, n := range []string{name, strings.ToLower(name)} {
			if v, ok := os.LookupEnv(n); ok {
				cmd.Env = append(cmd.Env, n+"="+v)
			}
		}
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // git's helpers do not end with it
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		said := strings.TrimSpace(complaint.String())
		if before, fatal, ok := strings.Cut(said, "fatal: "); ok {
			said = fatal
			if before = strings.TrimSpace(before); before != "" && strings.HasPrefix(fatal, "Could not read from remote") {
				said = before // ssh said why, git only that
			}
		}
		if strings.Contains(said, "Host key verification failed") {
			return "", fmt.Errorf("git %s: %w", args[0], &UnknownHostError{Redact(said)})
		}
		return "", fmt.Errorf("git %s: %s", args[0], Redact(strings.ReplaceAll(said, "\n", "; ")))
	}
	return out.String(), nil
}

// UnknownHostError is a server of ssh that is not among the user's known hosts, in ssh's
// words.
type UnknownHostError struct{ said string }

func (e *UnknownHostError) Error() string { return strings.Join(strings.Fields(e.said), " ") }

// sshCommand is how git calls ssh. The keys are the agent's, the known hosts those
// of the user: ssh itself would look for both in the home of root, whom we are
// inside.
func sshCommand() string {
	known := ""
	if home := os.Getenv("HOME"); filepath.IsAbs(home) && !strings.ContainsAny(home, " \t\n'\"\\") {
		known = " -o UserKnownHostsFile=" + filepath.Join(home, ".ssh", "known_hosts")
	}
	return "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=30" + known
}
