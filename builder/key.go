package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keyFormat opens every key: raising it forgets all records of older mks.
const keyFormat = "mk step 1"

// Key is the hash of everything that can change a step's result. Equal keys
// may share a snapshot. It is not the digest of a content: that is of what a
// step made, a Key is of what went into it.
type Key string

// KeyText is a key before it is hashed: one line a fact, printed as it stands
// by --explain. The first lines are always the format, the platform, and the
// content of the tree that the step starts from.
type KeyText struct{ lines []string }

// newKeyText begins a key for a step on a tree with the given content.
func newKeyText(platform, parent string) *KeyText {
	return &KeyText{lines: []string{keyFormat, "platform " + platform, parentPrefix + parent}}
}

const parentPrefix = "parent "

// Add writes one fact: a word that says of what kind it is, and its values,
// quoted so that no value can look like two.
func (t *KeyText) Add(kind string, values ...string) {
	var b strings.Builder
	b.WriteString(kind)
	for _, v := range values {
		b.WriteByte(' ')
		b.WriteString(strconv.Quote(v))
	}
	t.lines = append(t.lines, b.String())
}

// addEpoch adds the build's epoch, if it has one, which is in the layer's times.
func (t *KeyText) addEpoch(epoch *time.Time) {
	if epoch != nil {
		t.Add("epoch", strconv.FormatInt(epoch.Unix(), 10))
	}
}

// On is the key of the same step on a tree with other content.
func (t *KeyText) On(parent string) *KeyText {
	lines := slices.Clone(t.lines)
	lines[2] = parentPrefix + parent
	return &KeyText{lines}
}

func (t *KeyText) String() string { return strings.Join(t.lines, "\n") + "\n" }

// Key hashes the text.
func (t *KeyText) Key() Key { return hashKey(t.String()) }

// Step hashes the text without the parent's line: all records of the same
// step on whatever tree have it in common.
func (t *KeyText) Step() Key {
	rest := make([]string, 0, len(t.lines))
	for _, l := range t.lines {
		if !strings.HasPrefix(l, parentPrefix) {
			rest = append(rest, l)
		}
	}
	return hashKey(strings.Join(rest, "\n"))
}

func hashKey(s string) Key {
	h := sha256.Sum256([]byte(s))
	return Key(hex.EncodeToString(h[:16]))
}
