package container

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newTestStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "containers"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store, name string) *Container {
	t.Helper()
	d, err := s.New(Record{ID: NewID(), Name: name})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c, err := d.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStoreOfContainers(t *testing.T) {
	s := newTestStore(t)
	c := create(t, s, "web")
	for _, name := range []string{"web", c.ID, c.ID[:12], c.ID[:3]} {
		if got, err := s.Find(name); err != nil || got.ID != c.ID {
			t.Errorf("Find(%s): %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "we", "../web", "x" + c.ID, "nothere"} {
		if _, err := s.Find(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("Find(%q): %v", name, err)
		}
	}
	if _, err := s.New(Record{ID: NewID(), Name: "web"}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a second one of the name: %v", err)
	}
	d, err := s.New(Record{ID: NewID(), Name: "both"}) // taken by another before it is one
	if err != nil {
		t.Fatal(err)
	}
	both := create(t, s, "both")
	if _, err := d.Commit(); !errors.Is(err, ErrNameTaken) {
		t.Errorf("the second of two at a time: %v", err)
	}
	d.Close()
	if err := both.Remove(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.Rename("other"); err != nil {
		t.Fatal(err)
	}
	create(t, s, "web")
	if any := create(t, s, ""); !strings.Contains(any.Name, "_") {
		t.Errorf("made-up name %q", any.Name)
	}
	for _, name := range []string{"a", "-ab", "a/b", "a b", "ä", "..", ""} {
		if err := c.Rename(name); err == nil {
			t.Errorf("Rename(%q) succeeded", name)
		}
	}
	if all, err := s.List(); err != nil || len(all) != 3 {
		t.Errorf("List: %d, %v", len(all), err)
	}
	if err := c.Remove(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Remove: %v", err)
	}
	// Whoever found it before it was removed does not bring it back by a new name.
	if err := c.Rename("back"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Rename after Remove: %v", err)
	}
}

// A name that is given between finding and removing goes with the container.
func TestRemoveAfterRename(t *testing.T) {
	s := newTestStore(t)
	c := create(t, s, "web")
	found, err := s.Find("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Rename("other"); err != nil {
		t.Fatal(err)
	}
	lock, err := found.hold()
	if err != nil {
		t.Fatal(err)
	}
	err = found.Remove(func() error {
		// Its holder removes it: it is no container any more, and nobody else's to clear away.
		if litter, err := s.Litter(); err != nil || len(litter) != 0 {
			t.Errorf("Litter of one being removed: %v, %v", litter, err)
		}
		return errors.New("killed")
	})
	if err == nil {
		t.Error("Remove said nothing of the files that are left")
	}
	lock.Close()
	if litter, err := s.Litter(); err != nil || len(litter) != 1 {
		t.Errorf("Litter of a removal that broke off: %v, %v", litter, err)
	}
	if names, err := os.ReadDir(filepath.Join(s.dir, "names")); err != nil || len(names) != 0 {
		t.Errorf("names: %v, %v", names, err)
	}
}

// A kill may fall between any two steps of making, renaming and removing.
func TestLeftByTheDead(t *testing.T) {
	s := newTestStore(t)
	if err := os.Symlink(NewID(), filepath.Join(s.dir, "names", "web")); err != nil {
		t.Fatal(err)
	}
	c := create(t, s, "web") // the name led nowhere
	other := create(t, s, "other")
	os.Remove(filepath.Join(s.dir, "names", "other"))
	os.Symlink(c.ID, filepath.Join(s.dir, "names", "other")) // a rename that was not finished
	if got, err := s.Find("other"); err == nil {
		t.Errorf("Find(other) is %s, which is called %s", got.ID, got.Name)
	}
	if err := other.Rename("other"); err != nil {
		t.Errorf("take the name again: %v", err)
	}
	half, err := s.New(Record{ID: NewID()})
	if err != nil {
		t.Fatal(err)
	}
	if litter, err := s.Litter(); err != nil || len(litter) != 0 {
		t.Errorf("Litter of one being made: %v, %v", litter, err)
	}
	half.change.Close()
	if litter, err := s.Litter(); err != nil || len(litter) != 1 {
		t.Errorf("Litter of a dead one: %v, %v", litter, err)
	}
}

func TestRunningIsTheLock(t *testing.T) {
	s := newTestStore(t)
	c := create(t, s, "web")
	if st, err := c.Status(); err != nil || st.State() != StateCreated {
		t.Errorf("new: %v, %v", st, err)
	}
	lock, err := c.hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.hold(); !errors.Is(err, ErrRunning) {
		t.Errorf("a second holder: %v", err)
	}
	if err := c.setStatus(Status{Pid: 1, Started: c.Created.AddDate(2020, 0, 0)}); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Status(); err != nil || st.State() != StateRunning {
		t.Errorf("held: %v, %v", st, err)
	}
	lock.Close() // as the kernel does it for the killed
	if st, err := c.Status(); err != nil || st.State() != StateExited || st.Code != 137 || st.Pid != 0 {
		t.Errorf("holder killed: %v, %v", st, err)
	}
}

func TestLogLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := newLogWriter(path)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", maxLogLine+10)
	for _, piece := range []string{"be", "gin\nsecond\npar", "t\n", "\"q\\\x00\x1b[m\té\u2028\xff\n", long + "\n", "no end"} {
		l.write("stdout", []byte(piece))
	}
	l.write("stderr", []byte("err\n"))
	l.flush()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	n := 0
	for line := range strings.Lines(string(text)) {
		var ll LogLine
		if err := json.Unmarshal([]byte(line), &ll); err != nil || ll.Time.IsZero() {
			t.Fatalf("line %q: %v", line, err)
		}
		if n++; ll.Stream == "stdout" {
			got.WriteString(ll.Log)
		}
	}
	want := "begin\nsecond\npart\n\"q\\\x00\x1b[m\té\u2028\ufffd\n" + long + "\nno end"
	if got.String() != want || n != 8 {
		t.Errorf("%d lines: %q", n, got.String())
	}
}

func TestRestarts(t *testing.T) {
	for _, test := range []struct {
		policy       string
		code, before int
		want         bool
	}{
		{"", 1, 0, false}, {"no", 1, 0, false}, {"always", 0, 9, true}, {"unless-stopped", 0, 9, true},
		{"on-failure", 0, 0, false}, {"on-failure", 1, 99, true}, {"on-failure:2", 1, 1, true}, {"on-failure:2", 1, 2, false},
	} {
		if got := restarts(test.policy, test.code, test.before); got != test.want {
			t.Errorf("%s after %d, %d times: %v", test.policy, test.code, test.before, got)
		}
	}
}
