package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// packages are many files, many maintainer scripts, and users of their own.
const packages = "openssh-server nginx postgresql man-db systemd git"

// installs are apt-get install of a large set of packages, that are downloaded before: in a chroot of
// a user namespace for the floor, as a RUN step in mode subid, and in mode single.
func (b *bench) installs(debian func() error) *work {
	recipe, err := b.recipe("Install", "FROM downloaded", "RUN DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-download --no-install-recommends "+packages)
	downloaded := sync.OnceValue(func() error { return errors.Join(err, b.download(debian)) })
	step := func(mode string) contestant {
		return contestant{name: map[string]string{"subid": "mk", "single": "mk in mode single"}[mode], prepare: downloaded, command: func() *exec.Cmd {
			return b.in(mode, "build", "-q", "--no-cache", "--security-opt", "no-new-privileges=false", "-f", recipe, b.path("base"))
		}}
	}
	return &work{name: "apt-get install of openssh-server, nginx, postgresql, man-db, systemd, git", mark: "≤ 1.15", contestants: []contestant{
		{name: "floor", prepare: func() error {
			if err := downloaded(); err != nil {
				return err
			}
			_, err := output(b.command("unshare", "--map-root-user", "--map-auto", "sh", "-c", "rm -rf $BENCH/chroot && mkdir $BENCH/chroot && tar --exclude='dev/*' -C $BENCH/chroot -xf $BENCH/downloaded.tar"))
			return err
		}, command: func() *exec.Cmd {
			return b.command("unshare", "--map-root-user", "--map-auto", "-mpf", "sh", "-c",
				"mount -t proc proc $BENCH/chroot/proc && mount --rbind /dev $BENCH/chroot/dev && exec chroot $BENCH/chroot env PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-download --no-install-recommends "+packages)
		}},
		step("subid"), step("single"),
	}}
}

// debian makes the image "debian", a minbase, in the store of mode subid. It takes mmdebstrap, and the
// distribution's mirror.
func (b *bench) debian() error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return err
	}
	if _, err := output(b.command("sh", "-c", ". /etc/os-release && exec mmdebstrap --mode=unshare --variant=minbase --quiet $VERSION_CODENAME $BENCH/debian.tar")); err != nil {
		return err
	}
	_, err := output(b.in("subid", "import", b.path("debian.tar"), "debian"))
	return err
}

// compiling is gcc and make at 200 small sources of five headers of libc each.
func (b *bench) compiling(debian func() error) *work {
	return b.compared("single/subid: gcc at 200 sources", "≤ 1.05", "compiler", "make -s -C /src", func() error {
		return errors.Join(debian(), b.inBothModes("compiler", "FROM debian",
			"RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev make",
			`RUN mkdir /src && cd /src && i=0; while [ $i -lt 200 ]; do for h in stdio stdlib string unistd sys/stat; do echo "#include <$h.h>"; done > f$i.c; `+
				`echo "int f$i(char **v) { struct stat s; return stat(v[0], &s) == 0 && s.st_size > $i ? printf(\"%s\", v[1]) : (int)strlen(v[0]); }" >> f$i.c; i=$((i+1)); done`,
			`RUN cd /src && printf 'all: $(patsubst %%.c,%%.o,$(wildcard *.c))\n%%.o: %%.c\n\tgcc -O2 -MD -c -o $@ $<\n' > Makefile`))
	})
}

// unpacking is the distribution's tar, which opens each file, and changes owner, mode and times of what it opened.
func (b *bench) unpacking(debian func() error) *work {
	return b.compared("single/subid: tar x --same-owner, 20,000 files", "≤ 2", "packed", "mkdir /o && tar -xf /s.tar --same-owner -C /o", func() error {
		return errors.Join(debian(), b.inBothModes("packed", "FROM debian", "RUN "+pack))
	})
}

// download makes the image "downloaded" in the stores of both modes: a minbase that has the packages
// as files.
func (b *bench) download(debian func() error) error {
	if err := debian(); err != nil {
		return err
	}
	recipe := []string{"FROM debian", "RUN rm -f /etc/apt/apt.conf.d/docker-clean; apt-get update -qq && apt-get install -qq -y --download-only --no-install-recommends " + packages}
	if err := b.inBothModes("downloaded", recipe...); err != nil {
		return err
	}
	if _, err := output(b.in("subid", "build", "-q", "-o", "type=tar,dest="+b.path("downloaded.tar"), "-f", b.path("downloaded"), b.path("base"))); err != nil {
		return err
	}
	if st, err := os.Stat(b.path("downloaded.tar")); err != nil || st.Size() == 0 {
		return fmt.Errorf("the downloaded tree is empty: %w", err)
	}
	return nil
}

// hashAll reads all files of a tree through Go's SHA-256, which uses what the processor has for it;
// sha256sum may not.
func hashAll(dir string) error {
	hash := sha256.New()
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(hash, f)
		return err
	})
}

// layerDigest is the making of a layer's tar and its digest again, which is what mk check does for
// each tree: of 10,000 files and 500 MiB.
func (b *bench) layerDigest() *work {
	recipe, err := b.recipe("Layer", "FROM scratch", "COPY . /files")
	store := func(args ...string) *exec.Cmd {
		cmd := b.command(b.mk, args...)
		cmd.Env = append(cmd.Env, "MK_ROOT="+b.path("mk-layer"))
		return cmd
	}
	build := sync.OnceValue(func() error {
		if err != nil {
			return err
		}
		_, err := output(store("build", "-q", "-t", "layer", "-f", recipe, b.path("files")))
		return err
	})
	return &work{name: "layer tar and digest of 500 MiB", mark: "≤ 1.20", contestants: []contestant{
		{name: "floor", prepare: build, measure: func() error { return hashAll(b.path("files")) }},
		{name: "mk", prepare: build, command: func() *exec.Cmd { return store("check") }},
		{name: "tar | sha256sum", command: func() *exec.Cmd { return b.command("sh", "-c", "tar -C $BENCH/files -cf - . | sha256sum") }},
	}}
}
