package image

import (
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// verifier passes bytes on and hashes them. The last byte is followed by io.EOF
// only if all of them together have the expected digest and size; this is the one place
// where content is checked on its way out.
type verifier struct {
	rc     io.ReadCloser
	want   digest.Digest
	size   int64 // -1: not known
	n      int64
	hash   hash.Hash
	result error // once the end was seen
}

func newVerifier(rc io.ReadCloser, want digest.Digest, size int64) io.ReadCloser {
	return &verifier{rc: rc, want: want, size: size, hash: want.Algorithm().Hash()}
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.result != nil {
		return 0, v.result
	}
	n, err := v.rc.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	switch {
	case v.size >= 0 && v.n > v.size: // do not wait for the end of what has none
		v.result = compare(v.want, v.size, "", v.n)
		return 0, v.result
	case err == io.EOF:
		v.result = compare(v.want, v.size, digest.NewDigest(v.want.Algorithm(), v.hash), v.n)
		if v.result == nil {
			v.result = io.EOF
		}
		return n, v.result
	}
	return n, err
}

func (v *verifier) Close() error { return v.rc.Close() }

// compare says how content differs from what was expected; size -1 is not compared.
func compare(want digest.Digest, size int64, got digest.Digest, n int64) error {
	switch {
	case size >= 0 && n > size:
		return fmt.Errorf("%s: more than the expected %d bytes: %w", want, size, ErrDigest)
	case size >= 0 && n != size:
		return fmt.Errorf("%s: %d bytes where %d were expected: %w", want, n, size, ErrDigest)
	case got != want:
		return fmt.Errorf("%s: got %s: %w", want, got, ErrDigest)
	}
	return nil
}
