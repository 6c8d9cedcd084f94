package builder

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"mk/snapshot"
)

// tree makes files in dir, one a word or two: "d/ 0700", "f 0644 text",
// "l -> target", "h == f" (hardlink), "s socket", "p fifo".
func tree(t testing.TB, dir string, files ...string) string {
	t.Helper()
	defer unix.Umask(unix.Umask(0o022))
	var dirs []string
	for _, line := range files {
		name, rest, _ := strings.Cut(line, " ")
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		first, text, _ := strings.Cut(rest, " ")
		switch {
		case first == "->":
			must(t, os.Symlink(text, p))
		case first == "==":
			must(t, os.Link(filepath.Join(dir, text), p))
		case first == "fifo":
			must(t, unix.Mkfifo(p, 0o600))
		case first == "socket":
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			must(t, err)
			must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: p}))
			must(t, unix.Close(fd))
			must(t, os.Chmod(p, 0o600))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(p, 0o755))
			dirs = append(dirs, p+"\x00"+first)
		default:
			must(t, os.WriteFile(p, []byte(text), 0o600))
			must(t, unix.Chmod(p, octal(t, first)))
		}
	}
	for _, d := range dirs {
		p, mode, _ := strings.Cut(d, "\x00")
		must(t, unix.Chmod(p, octal(t, mode)))
	}
	return dir
}

func octal(t testing.TB, s string) uint32 {
	t.Helper()
	if s == "" {
		return 0o644
	}
	n, err := strconv.ParseUint(s, 8, 32)
	must(t, err)
	return uint32(n)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// list is the inverse of tree.
func list(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	first := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		mode := fmt.Sprintf("%04o", st.Mode&0o7777)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			out = append(out, name+" -> "+target)
			return err
		case unix.S_IFDIR:
			out = append(out, name+"/ "+mode)
			return nil
		case unix.S_IFIFO:
			out = append(out, name+" fifo")
			return nil
		}
		if f, ok := first[st.Ino]; ok && st.Nlink > 1 {
			out = append(out, name+" == "+f)
			return nil
		}
		first[st.Ino] = name
		must(t, os.Chmod(p, 0o600))
		data, err := os.ReadFile(p)
		out = append(out, strings.TrimSuffix(name+" "+mode+" "+string(data), " "))
		return err
	}))
	return out
}

func openRoot(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// ownerList is an OwnerTable that an ordinary user's test can look into.
type ownerList struct {
	mu    sync.Mutex
	table map[string]snapshot.Owner
}

func newOwnerList() *ownerList { return &ownerList{table: map[string]snapshot.Owner{}} }

func (l *ownerList) Set(p string, o snapshot.Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table[p] = o
}

func (l *ownerList) Delete(p string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.table {
		if k == p || strings.HasPrefix(k, p+"/") {
			delete(l.table, k)
		}
	}
}

func (l *ownerList) lines() []string {
	var out []string
	for p, o := range l.table {
		out = append(out, fmt.Sprintf("%s %d:%d", p, o.UID, o.GID))
	}
	slices.Sort(out)
	return out
}

type copyTest struct {
	name    string
	context []string
	ignore  []string
	stage   bool     // the context is a stage's tree: owners count
	owners  []string // of the source's files: "path uid:gid"
	image   []string // what is there before
	copies  []string // "sources… dest" with flags, one after another
	want    []string
	owned   []string // who owns what was made; nil: not looked at
	err     string   // of the last copy
}

// copyTests has a case for each row of the path rules, and more.
var copyTests = []copyTest{
	{name: "file to a new name", context: []string{"f 0640 x"}, copies: []string{"f /d"}, want: []string{"d 0640 x"}},
	{name: "file to a name that is a directory", context: []string{"f 0644 x"}, image: []string{"d/ 0700"}, copies: []string{"f /d"},
		want: []string{"d/ 0700", "d/f 0644 x"}},
	{name: "file to a directory with a slash", context: []string{"f 0644 x"}, copies: []string{"f /d/"}, want: []string{"d/ 0755", "d/f 0644 x"}},
	{name: "file to slash dot", context: []string{"file 0644 x"}, copies: []string{"file /app/."}, want: []string{"app/ 0755", "app/file 0644 x"}},
	{name: "contents of a directory", context: []string{"dir/ 0700", "dir/a 0644 x", "dir/b/ 0711", "dir/b/c 0600 y"},
		copies: []string{"dir /1", "dir/ /2", "dir/. /3"},
		want: []string{"1/ 0755", "1/a 0644 x", "1/b/ 0711", "1/b/c 0600 y", "2/ 0755", "2/a 0644 x", "2/b/ 0711", "2/b/c 0600 y",
			"3/ 0755", "3/a 0644 x", "3/b/ 0711", "3/b/c 0600 y"}},
	{name: "rename below directories that are missing", context: []string{"f 0644 x"}, copies: []string{"f /wd/bar/baz"},
		want: []string{"wd/ 0755", "wd/bar/ 0755", "wd/bar/baz 0644 x"}},
	{name: "up from the working directory", context: []string{"f 0644 x"}, copies: []string{"f /test5/test6/../"}, want: []string{"test5/ 0755", "test5/f 0644 x"}},
	{name: "several sources", context: []string{"a 0644 1", "b 0644 2", "c/d 0644 3"}, copies: []string{"a b c /x/"},
		want: []string{"x/ 0755", "x/a 0644 1", "x/b 0644 2", "x/d 0644 3"}},
	{name: "several directories without a slash", context: []string{"dir1/a 0644 1", "dir2/b 0644 2"}, copies: []string{"dir* /5"},
		want: []string{"5/ 0755", "5/a 0644 1", "5/b 0644 2"}},
	{name: "wildcard with one match renames", context: []string{"foo.go 0644 x", "bar.go 0644 y"}, copies: []string{"f*.go /foo2.go"}, want: []string{"foo2.go 0644 x"}},
	{name: "wildcard in the middle keeps the last name", context: []string{"sub/dir1/dir2/foo 0644 x"}, copies: []string{"sub/*/dir2/foo /x/", "sub/*/dir2/foo /y/bar"},
		want: []string{"x/ 0755", "x/foo 0644 x", "y/ 0755", "y/bar 0644 x"}},
	{name: "each matched directory's contents", context: []string{"dir1/a 0644 1", "dir2/a 0644 2", "dir2/b 0644 3"}, copies: []string{"dir* /4/"},
		want: []string{"4/ 0755", "4/a 0644 2", "4/b 0644 3"}},
	{name: "wildcard of directories only one level", context: []string{"sub/dir1/dir2/foo 0644 x"}, copies: []string{"sub/* /d/"},
		want: []string{"d/ 0755", "d/dir2/ 0755", "d/dir2/foo 0644 x"}},
	{name: "wildcard without a match among others", context: []string{"foo 0644 x"}, copies: []string{"foo nomatch* /"}, want: []string{"foo 0644 x"}},
	{name: "wildcard without a match alone", context: []string{"foo 0644 x"}, copies: []string{"nomatch* /d/"}, want: nil},
	{name: "missing", context: []string{"foo 0644 x"}, copies: []string{"foo x /d/"}, err: `"/x": not found`},
	{name: "missing below a file", context: []string{"foo 0644 x"}, copies: []string{"foo/bar /d/"}, err: `"/foo/bar": not found`},
	{name: "special characters", context: []string{"arr[0].txt 0644 1", "test-äöü.txt 0644 2", "%C3%A4 0644 3", "a+b 0644 4"},
		copies: []string{"arr[[]0].txt /", "test-äöü.txt /", "%C3%A4 /", "a+b /"},
		want:   []string{"%C3%A4 0644 3", "a+b 0644 4", "arr[0].txt 0644 1", "test-äöü.txt 0644 2"}},
	{name: "sources are clamped to the context", context: []string{"x 0644 1"}, copies: []string{"../x /a", "/x /b", "../../../x /c"},
		want: []string{"a 0644 1", "b 0644 1", "c 0644 1"}},
	{name: "parents of the destination are root's", stage: true, context: []string{"f 0644 x"}, owners: []string{"f 100:200"}, copies: []string{"f /p/q/f"},
		want: []string{"p/ 0755", "p/q/ 0755", "p/q/f 0644 x"}, owned: []string{"p 0:0", "p/q 0:0", "p/q/f 100:200"}},
	{name: "parents take chown", context: []string{"f 0644 x"}, copies: []string{"--chown=7:8 f /p/q/f"},
		want: []string{"p/ 0755", "p/q/ 0755", "p/q/f 0644 x"}, owned: []string{"p 7:8", "p/q 7:8", "p/q/f 7:8"}},
	{name: "parents take chmod", context: []string{"foo 0600 x"}, copies: []string{"--chmod=777 foo /parent/foo", "--chmod=770 foo /parent/sub/foo"},
		want: []string{"parent/ 0777", "parent/foo 0777 x", "parent/sub/ 0770", "parent/sub/foo 0770 x"}},
	{name: "new top directory is root's, what is in it is not", stage: true, context: []string{"dir/ 0700", "dir/subdir/ 0750", "dir/subdir/n 0644 x"},
		owners: []string{"dir 100:200", "dir/subdir 101:201", "dir/subdir/n 102:202"}, copies: []string{"dir /dir"},
		want: []string{"dir/ 0755", "dir/subdir/ 0750", "dir/subdir/n 0644 x"}, owned: []string{"dir 0:0", "dir/subdir 101:201", "dir/subdir/n 102:202"}},
	{name: "chown overrides all, the new top directory too", stage: true, context: []string{"dir/subdir/n 0644 x"}, owners: []string{"dir/subdir 101:201"},
		copies: []string{"--chown=300:400 dir /dir"}, want: []string{"dir/ 0755", "dir/subdir/ 0755", "dir/subdir/n 0644 x"},
		owned: []string{"dir 300:400", "dir/subdir 300:400", "dir/subdir/n 300:400"}},
	{name: "existing directory keeps owner and mode", stage: true, context: []string{"dir/ 0700", "dir/subdir/n 0644 x"}, owners: []string{"dir/subdir/n 102:202"},
		image: []string{"e/ 0711", "e/sub/ 0700", "e/file 0600 y"}, copies: []string{"dir/. /e"},
		want:  []string{"e/ 0711", "e/file 0600 y", "e/sub/ 0700", "e/subdir/ 0755", "e/subdir/n 0644 x"},
		owned: []string{"e/subdir 0:0", "e/subdir/n 102:202"}},
	{name: "local files are root's with their modes", context: []string{"d/s 4755 x", "d/t 2711 y", "d/u/ 1777"}, owners: []string{"d/s 5:6"}, copies: []string{"d /d"},
		want: []string{"d/ 0755", "d/s 4755 x", "d/t 2711 y", "d/u/ 1777"}, owned: []string{"d 0:0", "d/s 0:0", "d/t 0:0", "d/u 0:0"}},
	{name: "hardlinks stay hardlinks", stage: true, context: []string{"d/a 0644 x", "d/s/b == d/a", "d/c == d/a"}, copies: []string{"d /d"},
		want: []string{"d/ 0755", "d/a 0644 x", "d/c == d/a", "d/s/ 0755", "d/s/b == d/a"}},
	{name: "hardlink of an ignored file", context: []string{"a 0644 x", "b == a", "c == a"}, ignore: []string{"a"}, copies: []string{". /"}, want: []string{"b 0644 x", "c == b"}},
	{name: "socket becomes an empty file", context: []string{"s socket", "p fifo"}, copies: []string{". /"}, want: []string{"p fifo", "s 0600"}},
	{name: "directory onto a file", context: []string{"d/f 0644 x"}, image: []string{"d 0644 old"}, copies: []string{"d /d"}, err: "cannot copy to non-directory: /d"},
	{name: "nested directory onto a file", context: []string{"t/d/f 0644 x"}, image: []string{"d 0644 old"}, copies: []string{"t /"}, err: "cannot copy to non-directory: /d"},
	{name: "file onto a directory of its name", context: []string{"x 0644 1"}, image: []string{"d/x/ 0755"}, copies: []string{"x /d/"}, err: "cannot replace to directory /d/x with file"},
	{name: "file as a directory", context: []string{"x 0644 1"}, image: []string{"d 0644 f"}, copies: []string{"x /d/"}, err: "mkdir /d: not a directory"},
	{name: "nested file replaces a symlink", context: []string{"t/f 0644 new"}, image: []string{"f -> g", "g 0644 old"}, copies: []string{"t /"}, want: []string{"f 0644 new", "g 0644 old"}},
	{name: "named file replaces a symlink in a directory", context: []string{"f 0644 new"}, image: []string{"d/f -> ../g", "g 0644 old"}, copies: []string{"f /d/"},
		want: []string{"d/ 0755", "d/f 0644 new", "g 0644 old"}},
	{name: "nested file replaces a directory", context: []string{"t/f 0644 new"}, image: []string{"f/a/b 0644 old"}, copies: []string{"t /"}, want: []string{"f 0644 new"}},
	{name: "nested directory replaces a symlink", context: []string{"t/m/f 0644 new"}, image: []string{"m -> o", "o/ 0755"}, copies: []string{"t /"},
		want: []string{"m/ 0755", "m/f 0644 new", "o/ 0755"}},
	{name: "nested symlink replaces a directory", context: []string{"t/m -> o"}, image: []string{"m/x 0644 old"}, copies: []string{"t /"}, want: []string{"m -> o"}},
	{name: "named symlink is followed", context: []string{"bar 0644 x", "foo -> bar"}, copies: []string{"foo /"}, want: []string{"foo 0644 x"}},
	{name: "matched symlinks are followed", context: []string{"sub/lfile 0644 1", "sub/l0 -> subfile", "sub/subfile 0644 2", "sub/l1 -> second", "sub/second -> baz", "sub/baz 0644 3"},
		copies: []string{"sub/l* /all/"}, want: []string{"all/ 0755", "all/l0 0644 2", "all/l1 0644 3", "all/lfile 0644 1"}},
	{name: "deeper symlinks are kept", context: []string{"d/l -> /nowhere", "d/m -> ../x"}, copies: []string{"d /"}, want: []string{"l -> /nowhere", "m -> ../x"}},
	{name: "named symlink that dangles", context: []string{"l -> nowhere"}, copies: []string{"l /"}, err: `"/l": not found`},
	{name: "through a symlink", context: []string{"sub/foo 0644 x", "link -> sub"}, copies: []string{"link/foo ."}, want: []string{"foo 0644 x"}},
	{name: "through an absolute symlink", stage: true, context: []string{"out/sub/foo 0644 x", "sub -> /out/sub", "sub2 -> out/sub"}, copies: []string{"/sub/foo /", "/sub2/foo /bar"},
		want: []string{"bar 0644 x", "foo 0644 x"}},
	{name: "source symlinks stay inside", context: []string{"etc/passwd 0644 mine", "l -> ../../../etc/passwd", "a -> /etc"}, copies: []string{"l /l", "a/passwd /p"},
		want: []string{"l 0644 mine", "p 0644 mine"}},
	{name: "link to a file outside its directory (#1197)", context: []string{"bar 0644 x", "foo/sub -> ../bar"}, copies: []string{"foo /", "foo/sub /bar"},
		want: []string{"bar 0644 x", "sub -> ../bar"}},
	{name: "destination symlinks are followed inside", context: []string{"f 0644 x"}, image: []string{"tmp/ 0755", "s -> ../../tmp/x"}, copies: []string{"f /s/"},
		want: []string{"s -> ../../tmp/x", "tmp/ 0755", "tmp/x/ 0755", "tmp/x/f 0644 x"}},
	{name: "dangling destination symlink is made", context: []string{"f 0644 x"}, image: []string{"l -> /a/b"}, copies: []string{"f /l"}, want: []string{"a/ 0755", "a/b 0644 x", "l -> /a/b"}},
	{name: "working directory is a dangling symlink", context: []string{"d/f 0644 x"}, image: []string{"wd -> /real/wd"}, copies: []string{"d /wd/e"},
		want: []string{"real/ 0755", "real/wd/ 0755", "real/wd/e/ 0755", "real/wd/e/f 0644 x", "wd -> /real/wd"}},
	{name: "again", context: []string{"d/a/b 0644 x", "f 0644 y"}, copies: []string{"d /d", "d /d", "f /d/a/b", "f /d/a/b", "d /d"}, want: []string{"d/ 0755", "d/a/ 0755", "d/a/b 0644 x"}},
	{name: "nested directories that exist take the source's mode", context: []string{"d/a/ 0700", "d/a/b 0644 x"}, image: []string{"a/ 0755"}, copies: []string{"d /"}, want: []string{"a/ 0700", "a/b 0644 x"}},
	{name: "whole root file system", stage: true, context: []string{"bin -> usr/bin", "usr/bin/x 0755 x", "tmp/ 1777"}, copies: []string{"/ /"}, want: []string{"bin -> usr/bin", "tmp/ 1777", "usr/ 0755", "usr/bin/ 0755", "usr/bin/x 0755 x"}},
	{name: "read-only directory", context: []string{"d/ro/ 0555", "d/ro/f 0444 x"}, copies: []string{"d /"}, want: []string{"ro/ 0555", "ro/f 0444 x"}},
	{name: "loop", context: []string{"a -> b", "b -> a"}, copies: []string{"a /x"}, err: "too many levels of symbolic links"},

	// --chmod
	{name: "chmod 0", context: []string{"foo 0600 x"}, copies: []string{"--chmod=0 foo /f"}, want: []string{"f 0000 x"}},
	{name: "chmod of a tree", context: []string{"d/a 0600 x", "d/s/ 0700", "d/s/b 0640 y", "d/l -> a"}, copies: []string{"--chmod=4711 d /d"},
		want: []string{"d/ 0711", "d/a 4711 x", "d/l -> a", "d/s/ 4711", "d/s/b 4711 y"}},
	{name: "symbolic chmod", context: []string{"file 0666 x", "dirs/d/ 0524"}, copies: []string{"--chmod=go-w file /f1", "--chmod=u=rw,g=r,o=r file /f2", "--chmod=a+X file /f3", "--chmod=a+X dirs /"},
		want: []string{"d/ 0535", "f1 0644 x", "f2 0644 x", "f3 0666 x"}},
	{name: "bad chmod", context: []string{"foo 0600 x"}, copies: []string{"--chmod=64a foo /f"}, err: "invalid chmod parameter: '64a'. it should be octal string and between 0 and 07777"},

	// --parents
	{name: "parents", context: []string{"foo1/ 0700", "foo1/foo2/ 0711", "foo1/foo2/bar 0600 x", "foo1/foo2/baz 0600 y", "foo1/other 0600 z"},
		copies: []string{"--parents foo1/foo2/bar /", "--parents foo1/foo2/ba* /test"},
		want: []string{"foo1/ 0700", "foo1/foo2/ 0711", "foo1/foo2/bar 0600 x", "test/ 0755", "test/foo1/ 0700", "test/foo1/foo2/ 0711",
			"test/foo1/foo2/bar 0600 x", "test/foo1/foo2/baz 0600 y"}},
	{name: "parents from a pivot", context: []string{"x/y/a.txt 0644 1", "x/y/b 0644 2"}, copies: []string{"--parents ./x/./y/*.txt /p/"}, want: []string{"p/ 0755", "p/y/ 0755", "p/y/a.txt 0644 1"}},
	{name: "parents with a dot at the end", context: []string{"test/a/b 0644 1"}, copies: []string{"--parents /test/a/. /out/"}, want: []string{"out/ 0755", "out/test/ 0755", "out/test/a/ 0755", "out/test/a/b 0644 1"}},
	{name: "parents from the first of two pivots", context: []string{"test/a/b/c/d 0644 1"}, copies: []string{"--parents /test/a/./b/./c /out/"}, want: []string{"out/ 0755", "out/b/ 0755", "out/b/c/ 0755", "out/b/c/d 0644 1"}},
	{name: "parents by wildcards before and behind the pivot", context: []string{"a/b/c/d/e/bay 0644 1", "a/b/c/d/foo 0644 2", "a/b2/c/d/e/bar 0644 3"}, copies: []string{"--parents /a/b*/./c/**/e /out/"},
		want: []string{"out/ 0755", "out/c/ 0755", "out/c/d/ 0755", "out/c/d/e/ 0755", "out/c/d/e/bar 0644 3", "out/c/d/e/bay 0644 1"}},
	{name: "parents missing", context: []string{"test/a 0644 1"}, copies: []string{"--parents /test/nonexistent-file /out/"}, err: `"/test/nonexistent-file": not found`},
	{name: "parents missing behind the pivot", context: []string{"test/a 0644 1"}, copies: []string{"--parents /test/./b /out/"}, err: `"/test/b": not found`},
	{name: "parents without a match", context: []string{"test/a/b/c 0644 1"}, copies: []string{"--parents /test/a/b2*/c /out/", "--parents /test/a/./c2* /out2/"}, want: []string{"out/ 0755", "out2/ 0755"}},
	{name: "parents of everything", context: []string{"a/b 0644 1"}, copies: []string{"--parents . /out/"}, want: []string{"out/ 0755", "out/a/ 0755", "out/a/b 0644 1"}},
	{name: "parents keep a symlink", context: []string{"d/l -> f", "d/f 0644 1"}, copies: []string{"--parents d/l /"}, want: []string{"d/ 0755", "d/l -> f"}},

	// --exclude
	{name: "exclude below the first level", context: excludeTree, copies: []string{"--exclude=*/*.png --exclude=*/*.jpeg . /1"},
		want: []string{"1/ 0755", "1/dir1/ 0755", "1/dir1/102.txt 0644 3", "1/dir2/ 0755", "1/dir2/201.pdf 0644 6", "1/dir3/ 0755", "1/dir3/301.mp3 0644 9", "1/dir3/302.mpeg 0644 10"}},
	{name: "exclude in the copied directory", context: excludeTree, copies: []string{"--exclude=*.mp3 dir3/ /3/"}, want: []string{"3/ 0755", "3/302.mpeg 0644 10"}},
	{name: "exclude in each match", context: excludeTree, copies: []string{"--exclude=*.mp3 --exclude=*.jpeg --exclude=*.png --exclude=*.pdf --exclude=*.txt dir* /4/"},
		want: []string{"4/ 0755", "4/302.mpeg 0644 10"}},
	{name: "exclude everything", context: excludeTree, copies: []string{"--exclude=* dir* /6"}, want: []string{"6/ 0755"}},
	{name: "exclude with an exception", context: excludeTree, copies: []string{"--exclude=dir* --exclude=!dir3/*.mp3 . /7"}, want: []string{"7/ 0755", "7/dir3/ 0755", "7/dir3/301.mp3 0644 9"}},
	{name: "exclude is not for names of the destination", context: excludeTree, copies: []string{"--exclude=8 dir3 /8"}, want: []string{"8/ 0755", "8/301.mp3 0644 9", "8/302.mpeg 0644 10"}},
	{name: "exclude a matched file", context: []string{"home.txt 0644 1", "homb 0644 2"}, copies: []string{"--exclude=*.txt hom* /d/"}, want: []string{"d/ 0755", "d/homb 0644 2"}},

	// .dockerignore
	{name: "ignored file is not found", context: []string{"a 0644 1"}, ignore: []string{"a"}, copies: []string{"a /"}, err: `"/a": not found`},
	{name: "ignored through a symlink", context: []string{"d/a 0644 1", "l -> d"}, ignore: []string{"d"}, copies: []string{"l/a /"}, err: `"/l/a": not found`},
	{name: "exceptions", context: []string{"a/b 0644 1", "a/c 0644 2", "bar 0644 3", "bay 0644 4"}, ignore: []string{"a", "ba*", "!bay", "!a/b"}, copies: []string{". /"}, want: []string{"a/ 0755", "a/b 0644 1", "bay 0644 4"}},
	{name: "ignored directory with an exception, named", context: []string{"a/b 0644 1", "a/c 0644 2"}, ignore: []string{"*", "!a/b"}, copies: []string{"a /d"}, want: []string{"d/ 0755", "d/b 0644 1"}},
	{name: "everything but", context: []string{"a/b/c 0644 1", "a/b/d 0644 2", "x 0644 3"}, ignore: []string{"*", "!a/b/c"}, copies: []string{". /"}, want: []string{"a/ 0755", "a/b/ 0755", "a/b/c 0644 1"}},
	{name: "everything", context: []string{"a/b 0644 1"}, ignore: []string{"*", "!nothing/*"}, copies: []string{". /d"}, want: []string{"d/ 0755"}},
	{name: "ignored among matches", context: []string{"a1 0644 1", "a2 0644 2"}, ignore: []string{"a1"}, copies: []string{"a* /d/"}, want: []string{"d/ 0755", "d/a2 0644 2"}},
}

var excludeTree = []string{"dir1/101.png 0644 2", "dir1/102.txt 0644 3", "dir2/201.pdf 0644 6", "dir2/202.jpeg 0644 7", "dir3/301.mp3 0644 9", "dir3/302.mpeg 0644 10"}

func TestCopy(t *testing.T) {
	for _, test := range copyTests {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, newOwnerList())
		})
		if os.Geteuid() == 0 {
			t.Run(test.name+" as root", func(t *testing.T) { test.run(t, nil) })
		}
	}
}

func (test copyTest) run(t *testing.T, owners *ownerList) {
	// t.TempDir has the test's name, which is too long for a socket.
	base, err := os.MkdirTemp("", "mk")
	must(t, err)
	umask := unix.Umask(0o022)
	t.Cleanup(func() {
		unix.Umask(umask)
		filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
		os.RemoveAll(base)
	})
	must(t, os.Mkdir(base+"/image", 0o755))
	must(t, os.Mkdir(base+"/context", 0o755))
	context := tree(t, base+"/context", test.context...)
	image := tree(t, base+"/image", test.image...)
	unix.Umask(0o077) // has no part in what COPY makes
	remembered := map[string]snapshot.Owner{}
	for _, line := range test.owners {
		var p string
		var o snapshot.Owner
		fmt.Sscanf(strings.Replace(line, ":", " ", 1), "%s %d %d", &p, &o.UID, &o.GID)
		remembered[p] = o
	}
	files := &Files{Root: openRoot(t, context), Ignore: test.ignore, Local: !test.stage, Owners: func(p string) (snapshot.Owner, bool) {
		o, ok := remembered[p]
		if !ok {
			return snapshot.Owner{}, true // else the owner is whoever runs the test
		}
		return o, true
	}}
	for i, line := range test.copies {
		err := copyLineTo(t, files, openRoot(t, image), owners, line)
		if i == len(test.copies)-1 && test.err != "" {
			if err == nil || !strings.HasSuffix(err.Error(), test.err) {
				t.Fatalf("COPY %s: %v, want %s", line, err, test.err)
			}
			return
		}
		if err != nil {
			t.Fatalf("COPY %s: %v", line, err)
		}
	}
	if owners != nil && test.owned != nil {
		if got := owners.lines(); !slices.Equal(got, test.owned) {
			t.Errorf("owners:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.owned, "\n"))
		}
	}
	for _, line := range test.owned {
		p, want, _ := strings.Cut(line, " ")
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(image, p), &st))
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); owners == nil && got != want {
			t.Errorf("%s is owned by %s, want %s", p, got, want)
		}
	}
	if got := list(t, image); !slices.Equal(got, test.want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
	}
}

// copyLineTo performs "--flag=x source… dest".
func copyLineTo(t *testing.T, files *Files, root *os.File, owners *ownerList, line string) error {
	t.Helper()
	from, into := CopySources{}, CopyInto{Root: root}
	if owners != nil {
		into.Owners, into.Remember = owners, true
	}
	words := strings.Fields(line)
	for strings.HasPrefix(words[0], "--") {
		flag, value, _ := strings.Cut(words[0], "=")
		words = words[1:]
		switch flag {
		case "--parents":
			from.Parents = true
		case "--add":
			into.Add = true
		case "--exclude":
			from.Exclude = append(from.Exclude, value)
		case "--chmod":
			into.Chmod = value
		case "--chown":
			into.Owner = &CopyOwner{}
			fmt.Sscanf(value, "%d:%d", &into.Owner.UID, &into.Owner.GID)
		}
	}
	from.Words, into.Dest = words[:len(words)-1], words[len(words)-1]
	sel, err := files.Select(context.Background(), from)
	if err != nil {
		return err
	}
	return sel.CopyTo(context.Background(), into)
}
