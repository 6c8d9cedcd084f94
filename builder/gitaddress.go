package builder

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// GitAddress is a git repository as ADD and contexts name it, and what of it is
// wanted:
//
//	https://host/path.git                     http, https: the path ends in .git
//	git://host/path   ssh://user@host/path
//	user@host:path                            ssh, as scp writes it
//	…#ref:subdir                              fragment: branch, tag or commit; directory
//	…?ref= branch= tag= commit= checksum= subdir= keep-git-dir= submodules= mtime= fetch-by-commit=
type GitAddress struct {
	Remote        string // as git takes it: no credentials, query or fragment
	Ref           string // "": the default branch
	Subdir        string // clean, relative; "": all
	Checksum      string // commit, or the beginning of one, that Ref has to be
	KeepDir       *bool  // .git stays
	Submodules    *bool  // nil: yes
	CommitTimes   bool   // files have the time of the commit
	FetchByCommit bool   // Checksum is fetched, and Ref not asked for
	user          *url.Userinfo
}

var (
	gitScheme = pattern(`^[a-zA-Z0-9]+://`)
	scpStyle  = pattern(`^([a-zA-Z0-9-_]+)@([a-zA-Z0-9-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?$`)
	commitSHA = pattern(`^([a-f0-9]{40}|[a-f0-9]{64})$`)
	someSHA   = pattern(`^[a-fA-F0-9]+$`)
)

// pattern is compiled when it is first asked for: every one of mk's processes would pay for it
// at its start, 20 µs each, and few need it.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// ParseGitAddress reads an address. What cannot be one is ok false; one that is
// wrong is an error. What git or ssh could take for an option is refused here, and
// schemes that are not listed: ext:: and file:// run programs and read this host.
func ParseGitAddress(s string) (a *GitAddress, ok bool, err error) {
	a = &GitAddress{}
	var query url.Values
	var host, fragment, repo string
	switch m := scpStyle().FindStringSubmatch(s); {
	case gitScheme().MatchString(s):
		u, err := url.Parse(s)
		if err != nil {
			return nil, false, nil
		}
		switch u.Scheme = strings.ToLower(u.Scheme); u.Scheme {
		case "git", "ssh":
		case "http", "https":
			if !strings.HasSuffix(u.Path, ".git") {
				return nil, false, nil
			}
		default:
			return nil, false, nil
		}
		query, fragment, host, repo = u.Query(), u.Fragment, u.Hostname(), u.Path
		u.RawQuery, u.Fragment, u.RawFragment, u.ForceQuery = "", "", "", false
		if u.Scheme != "ssh" { // there it is no secret, and part of the name
			a.user, u.User = u.User, nil
		}
		a.Remote = u.String()
	case m != nil:
		host, repo, fragment = m[2], m[3], m[5]
		a.Remote = m[1] + "@" + host + ":" + repo
		if query, err = url.ParseQuery(m[4]); err != nil {
			return nil, true, fmt.Errorf("invalid query in git address: %w", err)
		}
	default:
		return nil, false, nil
	}
	if host == "" || strings.HasPrefix(host, "-") || strings.HasPrefix(repo, "-") || strings.IndexFunc(a.Remote, unicode.IsControl) >= 0 {
		return nil, true, fmt.Errorf("invalid git address %q", a.Remote)
	}
	a.Ref, a.Subdir, _ = strings.Cut(fragment, ":")
	a.Subdir = cleanSubdir(a.Subdir)
	if err := a.query(query); err != nil {
		return nil, true, err
	}
	return a, true, a.check()
}

// query reads the query form.
func (a *GitAddress) query(q url.Values) error {
	set := func(field *string, what, value string) error {
		if *field != "" && *field != value {
			return fmt.Errorf("%s conflicts: %q vs %q", what, *field, value)
		}
		*field = value
		return nil
	}
	flag := func(name, value string) (*bool, error) {
		on, err := strconv.ParseBool(value)
		if value == "" {
			on, err = true, nil
		}
		if err != nil {
			return nil, fmt.Errorf("invalid %s value: %q", name, value)
		}
		return &on, nil
	}
	if q.Has("tag") && q.Has("branch") {
		return errors.New("branch conflicts with tag")
	}
	for _, name := range []string{"ref", "tag", "branch"} { // ref first: the others are compared with it
		if values := q[name]; len(values) == 1 && values[0] != "" {
			ref := values[0]
			if prefix := map[string]string{"tag": "refs/tags/", "branch": "refs/heads/"}[name]; !strings.HasPrefix(ref, prefix) {
				ref = prefix + ref
			}
			if err := set(&a.Ref, "ref", ref); err != nil {
				return err
			}
		}
	}
	for name, values := range q {
		if len(values) > 1 {
			return fmt.Errorf("query %q has multiple values", name)
		}
		value, err := values[0], error(nil)
		var on *bool
		switch name {
		case "keep-git-dir", "submodules", "fetch-by-commit":
		default:
			if value == "" {
				return fmt.Errorf("query %q has no value", name)
			}
		}
		switch name {
		case "ref", "tag", "branch":
		case "subdir":
			err = set(&a.Subdir, "subdir", cleanSubdir(value))
		case "checksum", "commit":
			err = set(&a.Checksum, "checksum", value)
		case "keep-git-dir":
			a.KeepDir, err = flag(name, value)
		case "submodules":
			a.Submodules, err = flag(name, value)
		case "fetch-by-commit":
			if on, err = flag(name, value); err == nil {
				a.FetchByCommit = *on
			}
		case "mtime":
			if value != "checkout" && value != "commit" {
				err = fmt.Errorf("invalid mtime value: %q (must be \"checkout\" or \"commit\")", value)
			}
			a.CommitTimes = value == "commit"
		default:
			err = fmt.Errorf("unexpected query %q", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// check refuses refs that are none, above all those that look like options.
func (a *GitAddress) check() error {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) }
	if strings.HasPrefix(a.Ref, "-") || strings.Contains(a.Ref, "..") || strings.Contains(a.Ref, "@{") || strings.IndexFunc(a.Ref, bad) >= 0 {
		return fmt.Errorf("invalid git ref %q", a.Ref)
	}
	if strings.ContainsRune(a.Subdir, 0) {
		return fmt.Errorf("invalid subdirectory %q", a.Subdir)
	}
	return a.checkSum()
}

func (a *GitAddress) checkSum() error {
	if a.Checksum != "" && !someSHA().MatchString(a.Checksum) {
		return fmt.Errorf("invalid checksum %s for Git URL, expected hex commit hash", a.Checksum)
	}
	if a.FetchByCommit && a.Checksum == "" && !commitSHA().MatchString(a.Ref) {
		return errors.New("fetch-by-commit requires a checksum or a commit SHA ref")
	}
	if a.FetchByCommit && a.Checksum != "" && !commitSHA().MatchString(a.Checksum) {
		return fmt.Errorf("fetch-by-commit requires a full commit SHA checksum, got %q", a.Checksum)
	}
	return nil
}

func cleanSubdir(s string) string { return strings.TrimPrefix(path.Join("/", s), "/") }

func (a *GitAddress) keepDir() bool { return a.KeepDir != nil && *a.KeepDir }

func (a *GitAddress) submodules() bool { return a.Submodules == nil || *a.Submodules }
