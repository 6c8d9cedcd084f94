package builder

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"mk/snapshot"
)

// Record says what a step made the last time it ran with this key.
type Record struct {
	Key      Key
	Snapshot snapshot.ID
	Digests  snapshot.Digests
	Made     time.Time // when the step ended, to the second: history says so for ever
	Used     time.Time // when a build last wanted it, to the minute
	Text     string    // the key's text
}

// Records is the step cache: a directory of small text files, safe for many
// processes at once because a file is only ever renamed into place, complete.
//
//	keys/<mode>/k/<key>      one Record
//	keys/<mode>/s/<step>     the keys under which this step ran, newest last
//	keys/<mode>/p/<place>    the key that the step at this place of this recipe had last, and
//	                         a line "base <digest>" if it runs on a base image as it is
//	keys/<mode>/f/<digest>   the listing of files behind a "files" line of a key
//	keys/<mode>/m/<question> the digest of files picked from an immutable tree
//
// A record of a snapshot that is gone counts as no record. Its mtime is when it was used. A record is
//
//	snapshot <id>
//	content <digest>
//	diffid <digest>
//	chain <digest>
//	size <bytes>
//	made <seconds since 1970>
//
//	<the key's text>
type Records struct{ dir string }

// OpenRecords returns the cache in dir, which is made when something is kept.
func OpenRecords(dir string) *Records { return &Records{dir} }

// Dir tells where the records are.
func (r *Records) Dir() string { return r.dir }

// Get returns the record of a key, which is used by that, or fs.ErrNotExist.
func (r *Records) Get(k Key) (*Record, error) {
	rec, err := r.read(k)
	if err != nil {
		return nil, err
	}
	touch(filepath.Join(r.dir, "k", string(k)), rec.Used)
	return rec, nil
}

// UsedGrain is how exactly times of use are kept: builds one after the other in which nothing changed write nothing.
const UsedGrain = time.Minute

// touch says by a file's times that it is used now, unless they said so a moment ago. Where that is refused, it
// is forgotten earlier, which is no reason to fail.
func touch(file string, used time.Time) {
	if now := time.Now(); now.Sub(used) >= UsedGrain {
		os.Chtimes(file, now, now)
	}
}

func (r *Records) read(k Key) (*Record, error) {
	f, err := os.Open(filepath.Join(r.dir, "k", string(k)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size()) // it is never written to once it has its name
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	rec := &Record{Key: k, Used: st.ModTime()}
	head, text, ok := bytes.Cut(b, []byte("\n\n"))
	if !ok {
		return nil, fs.ErrNotExist // not ours: as good as none
	}
	rec.Text = string(text)
	for s := bufio.NewScanner(bytes.NewReader(head)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), " ")
		switch name {
		case "snapshot":
			rec.Snapshot = snapshot.ID(value)
		case "content":
			rec.Digests.Content = digest.Digest(value)
		case "diffid":
			rec.Digests.DiffID = digest.Digest(value)
		case "chain":
			rec.Digests.Chain = digest.Digest(value)
		case "size":
			rec.Digests.Size, _ = strconv.ParseInt(value, 10, 64)
		case "made":
			n, _ := strconv.ParseInt(value, 10, 64)
			rec.Made = time.Unix(n, 0).UTC()
		}
	}
	if rec.Snapshot == "" || rec.Digests.DiffID.Validate() != nil || rec.Digests.Content.Validate() != nil {
		return nil, fs.ErrNotExist
	}
	return rec, nil
}

// Put keeps a record under its key. The rename of the record is the commit
// point; the list of the step's keys is only a way to find it again.
func (r *Records) Put(t *KeyText, id snapshot.ID, d snapshot.Digests, made time.Time) error {
	k := t.Key()
	text := fmt.Sprintf("snapshot %s\ncontent %s\ndiffid %s\nchain %s\nsize %d\nmade %d\n\n%s",
		id, d.Content, d.DiffID, d.Chain, d.Size, made.Unix(), t)
	if err := r.write("k", string(k), []byte(text)); err != nil {
		return fmt.Errorf("keep step record: %w", err)
	}
	step := t.Step()
	known := r.StepKeys(step)
	for _, o := range known {
		if o == k {
			return nil
		}
	}
	const keep = 32 // a step that alternates between more trees than this is run again
	if len(known) >= keep {
		known = known[len(known)-keep+1:]
	}
	var b strings.Builder
	for _, o := range append(known, k) {
		b.WriteString(string(o) + "\n")
	}
	return r.write("s", string(step), []byte(b.String()))
}

// StepKeys lists the keys under which the same step ran before.
func (r *Records) StepKeys(step Key) []Key {
	b, err := os.ReadFile(filepath.Join(r.dir, "s", string(step)))
	if err != nil {
		return nil
	}
	var keys []Key
	for _, l := range strings.Fields(string(b)) {
		keys = append(keys, Key(l))
	}
	return keys
}

// SetLast remembers what the step at a place of a recipe had, for the next build
// to explain itself by.
func (r *Records) SetLast(place, text string) error {
	if r.Last(place) == text { // of a build in which nothing changed: reading is cheaper than a rename
		return nil
	}
	return r.write("p", string(hashKey(place)), []byte(text))
}

// Last returns what SetLast kept, or "".
func (r *Records) Last(place string) string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "p", string(hashKey(place))))
	return string(b)
}

// SetListing keeps the listing of files that a selection's digest stands for.
func (r *Records) SetListing(sel *Selection) error {
	name := sel.Digest().Encoded()
	if _, err := os.Lstat(filepath.Join(r.dir, "f", name)); err == nil {
		return nil
	}
	return r.writeBy("f", name, sel.WriteListing)
}

// OpenListing opens what SetListing kept; fs.ErrNotExist: nothing. The caller closes it.
func (r *Records) OpenListing(d digest.Digest) (*os.File, error) {
	if d.Validate() != nil {
		return nil, fs.ErrNotExist
	}
	return os.Open(filepath.Join(r.dir, "f", d.Encoded()))
}

// Memo answers a question about an immutable tree that was answered before.
func (r *Records) Memo(question string) (string, bool) {
	b, err := os.ReadFile(filepath.Join(r.dir, "m", string(hashKey(question))))
	return string(b), err == nil
}

// SetMemo keeps an answer.
func (r *Records) SetMemo(question, answer string) error {
	return r.write("m", string(hashKey(question)), []byte(answer))
}

// All lists the records, the last used first.
func (r *Records) All() ([]*Record, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, "k"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []*Record
	for _, e := range entries {
		if rec, err := r.read(Key(e.Name())); err == nil { // else as good as none
			all = append(all, rec)
		}
	}
	slices.SortStableFunc(all, func(a, b *Record) int { return b.Used.Compare(a.Used) })
	return all, nil
}

// Prune removes the records that keep does not want, with what only they led to, and with all everything
// that is remembered of earlier builds. The caller holds the exclusive lock.
func (r *Records) Prune(all bool, keep func(*Record) bool) error {
	if all {
		return os.RemoveAll(r.dir)
	}
	listings := map[string]bool{} // that a text speaks of
	read := func(text string) {
		for _, rest := range strings.Split(text, "sha256:")[1:] {
			listings[rest[:min(64, len(rest))]] = true
		}
	}
	err := r.removeFrom("k", func(name string) bool {
		rec, err := r.read(Key(name))
		if err != nil || !keep(rec) {
			return false
		}
		read(rec.Text)
		return true
	})
	if err != nil {
		return err
	}
	err = r.removeFrom("p", func(name string) bool {
		b, err := os.ReadFile(filepath.Join(r.dir, "p", name))
		read(string(b))
		return err == nil
	})
	if err != nil {
		return err
	}
	if err := r.removeFrom("f", func(name string) bool { return listings[name] }); err != nil {
		return err
	}
	err = r.removeFrom("s", func(name string) bool {
		return slices.ContainsFunc(r.StepKeys(Key(name)), func(k Key) bool {
			_, err := os.Lstat(filepath.Join(r.dir, "k", string(k)))
			return err == nil
		})
	})
	if err != nil {
		return err
	}
	return r.removeFrom("m", func(string) bool { return true })
}

// removeFrom removes the files of a kind that are not wanted, and what killed processes had not put in place.
func (r *Records) removeFrom(kind string, want func(name string) bool) error {
	dir := filepath.Join(r.dir, kind)
	if err := removeUnfinished(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if want(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// unfinished is the beginning of the names of files that are not in place yet.
const unfinished = ".tmp-"

// removeUnfinished removes from dir what killed processes had not put in place.
func removeUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), unfinished) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// write puts a whole file in place by rename, so that no reader sees a part.
func (r *Records) write(kind, name string, data []byte) error {
	return r.writeBy(kind, name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (r *Records) writeBy(kind, name string, write func(io.Writer) error) error {
	dir := filepath.Join(r.dir, kind)
	f, err := os.CreateTemp(dir, unfinished)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		f, err = os.CreateTemp(dir, unfinished)
	}
	if err != nil {
		return err
	}
	err = write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
