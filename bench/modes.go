package main

import (
	"fmt"
	"os/exec"
)

// Mode single against mode subid: mk itself is the floor.

// prepared is what the works of modes find in the image: 10,000 files of an owner, a tar of
// 20,000, and sources.
var prepared = []string{
	"FROM bench",
	`RUN mkdir /s && cd /s && i=0; while [ $i -lt 20000 ]; do echo $i > $i; i=$((i+1)); done; chown -R 33:34 /s && tar -C / -cf /s.tar s && rm -r /s`,
	`RUN mkdir /few && cd /few && i=0; while [ $i -lt 10000 ]; do : > $i; i=$((i+1)); done`,
	`RUN mkdir /src && cd /src && i=0; while [ $i -lt 20 ]; do echo "header $i" > $i.h; i=$((i+1)); done`,
}

// compileLike is what a compiler's driver does, without the work: for each of 300 sources look at 20
// headers, start three programs, read the headers, write an object and rename it.
const compileLike = `cd /src && i=0; while [ $i -lt 300 ]; do for h in *.h; do [ -s $h ] || exit; done; cat *.h | md5sum > $i.tmp; mv $i.tmp $i.o; i=$((i+1)); done`

func (b *bench) modes() []*work {
	return []*work{
		b.mode("single/subid: compile-like step", "≤ 1.05", compileLike),
		b.mode("single/subid: tar x, 20,000 files of another owner", "≤ 2", "mkdir /o && tar -xf /s.tar -C /o"),
		b.mode("single/subid: 100,000 chowns", "calls/s", "for u in 1 2 3 4 5 6 7 8 9 10; do chown -R $u /few; done"),
	}
}

func (b *bench) mode(name, mark, script string) *work {
	base, err1 := b.recipe("Prepared", prepared...)
	recipe, err2 := b.recipe(fmt.Sprintf("Mode%d", len(script)), "FROM prepared", "RUN "+script)
	in := func(who, mode string) contestant {
		command := func(args ...string) *exec.Cmd {
			cmd := b.command(b.mk, append(args, b.path("base"))...)
			cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("mk-"+mode), "MK_USERNS="+mode)
			return cmd
		}
		return contestant{
			name: who,
			prepare: func() error {
				for _, err := range []error{err1, err2} {
					if err != nil {
						return err
					}
				}
				for _, image := range [][2]string{{"bench", b.path("base/Dockerfile")}, {"prepared", base}} {
					if out, err := command("build", "-t", image[0], "-f", image[1]).CombinedOutput(); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
				}
				return nil
			},
			command: func() *exec.Cmd { return command("build", "--no-cache", "-f", recipe) },
		}
	}
	return &work{name: name, mark: mark, contestants: []contestant{in("floor", "subid"), in("mk", "single")}}
}
