package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
)

// Mode single against mode subid: mk itself is the floor.

// pack makes a tar of 20,000 files of another owner.
const pack = `mkdir /s && cd /s && i=0; while [ $i -lt 20000 ]; do echo $i > $i; i=$((i+1)); done; chown -R 33:34 /s && tar -C / -cf /s.tar s && rm -r /s`

// prepared is what the works of modes find in the image: 10,000 files of an owner, a tar of
// 20,000, and sources.
var prepared = []string{
	"FROM bench",
	"RUN " + pack,
	`RUN mkdir /few && cd /few && i=0; while [ $i -lt 10000 ]; do : > $i; i=$((i+1)); done`,
	`RUN mkdir /src && cd /src && i=0; while [ $i -lt 20 ]; do echo "header $i" > $i.h; i=$((i+1)); done`,
}

// compileLike is what a compiler's driver does, without the work: for each of 300 sources look at 20
// headers, start three programs, read the headers, write an object and rename it.
const compileLike = `cd /src && i=0; while [ $i -lt 300 ]; do for h in *.h; do [ -s $h ] || exit; done; cat *.h | md5sum > $i.tmp; mv $i.tmp $i.o; i=$((i+1)); done`

func (b *bench) modes(debian func() error) []*work {
	prepare := sync.OnceValue(func() error {
		return errors.Join(b.inBothModes("bench"), b.inBothModes("prepared", prepared...))
	})
	return []*work{
		b.compared("single/subid: compile-like step", "≤ 1.05", "prepared", compileLike, prepare),
		b.compiling(debian),
		b.unpacking(debian),
		b.compared("single/subid: busybox tar x of them", "–", "prepared", "mkdir /o && tar -xf /s.tar -C /o", prepare),
		b.compared("single/subid: 100,000 chowns", "calls/s", "prepared", "for u in 1 2 3 4 5 6 7 8 9 10; do chown -R $u /few; done", prepare),
	}
}

// compared is a RUN step on an image in mode single, and in mode subid as the floor.
func (b *bench) compared(name, mark, image, script string, prepare func() error) *work {
	recipe, err := b.recipe(fmt.Sprintf("On-%s-%d", image, len(script)), "FROM "+image, "RUN "+script)
	once := sync.OnceValue(func() error { return errors.Join(err, prepare()) })
	in := func(who, mode string) contestant {
		return contestant{name: who, prepare: once, command: func() *exec.Cmd {
			return b.in(mode, "build", "-q", "--no-cache", "-f", recipe, b.path("base"))
		}}
	}
	return &work{name: name, mark: mark, contestants: []contestant{in("floor", "subid"), in("mk", "single")}}
}

// inBothModes builds an image in the store of mode subid, and brings it into that of mode single. Without
// a recipe it is that of the bench's base.
func (b *bench) inBothModes(image string, recipe ...string) error {
	file := b.path("base/Dockerfile")
	if len(recipe) > 0 {
		var err error
		if file, err = b.recipe(image, recipe...); err != nil {
			return err
		}
	}
	archive := b.path(image + ".oci")
	for _, cmd := range []*exec.Cmd{
		b.in("subid", "build", "-q", "-t", image, "--security-opt", "no-new-privileges=false", "-f", file, b.path("base")),
		b.in("subid", "save", "-q", "-o", archive, image),
		b.in("single", "load", "-q", "-i", archive),
	} {
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	return os.Remove(archive)
}
