package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"mk/container"
	"mk/image"
)

const rmiHelp = `Remove names of images, and images that have no other name.

What only they used stays on disk until 'mk prune'; other processes may be
reading it.`

func newRmi(a *app) *cobra.Command {
	var force, all, ignore, noPrune bool
	c := &cobra.Command{
		Use: "rmi [flags] IMAGE...", Short: "Remove images", Long: rmiHelp,
		Args: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("rmi: want images, or --all")
			}
			return nil
		},
		RunE: a.withStore(func(c *cobra.Command, s *store, args []string) error {
			if all {
				tagged, err := s.images.List()
				if err != nil {
					return err
				}
				for _, t := range tagged {
					if name := t.Name; name != "" {
						args = append(args, name)
					} else {
						args = append(args, t.Descriptor.Digest.String())
					}
				}
			}
			var failed error
			for _, name := range args {
				if err := s.removeImage(name, force); err != nil {
					if (force || ignore) && errors.Is(err, image.ErrNotFound) {
						continue
					}
					fmt.Fprintf(os.Stderr, "mk: remove %s: %v\n", name, err)
					failed = &exitError{status: exitFailed}
				}
			}
			return failed
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "remove an image by its ID even if it has several names; ignore missing ones")
	c.Flags().BoolVarP(&all, "all", "a", false, "remove all images")
	c.Flags().BoolVarP(&ignore, "ignore", "i", false, "missing images are no error")
	c.Flags().BoolVar(&noPrune, "no-prune", false, "no meaning here: what is removed is a name; 'mk prune' frees the disk")
	return c
}

// removeImage takes one name away or, given an ID, the image with its names. An image that a
// container needs keeps its place in the store, without a name, and loses its last name only by force.
func (s *store) removeImage(name string, force bool) error {
	d, err := s.images.Lookup(name)
	if err != nil {
		return err
	}
	tagged, err := s.images.List()
	if err != nil {
		return err
	}
	names, byName := 0, false
	ref, referr := image.ParseReference(name)
	for _, t := range tagged {
		if t.Descriptor.Digest == d.Digest && t.Name != "" {
			names++
			byName = byName || referr == nil && t.Name == ref.String()
		}
	}
	user, err := s.userOf(d.Digest)
	if err != nil {
		return err
	}
	switch {
	case user != nil && !force && (!byName || names == 1):
		return fmt.Errorf("container %s (%s) needs it: remove that first, or use --force to take only the name away", user.ShortID(), user.Name)
	case !byName && names > 1 && !force:
		return fmt.Errorf("it has %d names: remove them one by one, or use --force", names)
	}
	var gone []string
	if byName {
		gone = []string{ref.String()}
		_, err = s.images.Untag(name)
	} else {
		gone, err = s.images.Remove(d.Digest)
	}
	if err == nil && user != nil {
		err = s.images.Tag("", d)
	}
	if err != nil {
		return err
	}
	for _, n := range gone {
		if ref, err := image.ParseReference(n); err == nil {
			n = ref.Familiar()
		}
		if n != "" {
			fmt.Fprintln(&stdout, "Untagged:", n)
		}
	}
	if !byName && user == nil {
		fmt.Fprintln(&stdout, "Deleted:", d.Digest)
	}
	return nil
}

// userOf is a container that is made of an image or mounts it; nil when there is none.
func (s *store) userOf(d digest.Digest) (*container.Container, error) {
	all, err := s.containers.List()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		v, err := look(c)
		if err != nil {
			return nil, err
		}
		if v.images()[d.String()] {
			return c, nil
		}
	}
	return nil, nil
}

// images are the digests of the images that a container needs to be started again.
func (v seen) images() map[string]bool {
	need := map[string]bool{v.ImageTarget: true}
	for _, p := range v.words.Places {
		if p.Type == "image" {
			need[p.Source] = true
		}
	}
	return need
}
