package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// environ is a list of NAME=value, each name once.
type environ []string

func (e environ) has(name string) bool {
	return slices.ContainsFunc(e, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// set sets one NAME=value, in the place of an earlier one.
func (e *environ) set(kv string) {
	name, _, _ := strings.Cut(kv, "=")
	for i, old := range *e {
		if strings.HasPrefix(old, name+"=") {
			(*e)[i] = kv
			return
		}
	}
	*e = append(*e, kv)
}

func (e *environ) unset(name string) {
	*e = slices.DeleteFunc(*e, func(old string) bool { return strings.HasPrefix(old, name+"=") })
}

// add adds the words of --env-file and, over them, --env: NAME=value, or NAME for mk's own value,
// which where mk has none takes the variable away.
func (e *environ) add(words, files []string) error {
	one := func(word string) error {
		name, _, set := strings.Cut(word, "=")
		if name == "" {
			return fmt.Errorf("%q: want NAME=value", word)
		}
		if set {
			e.set(word)
		} else if value, ok := os.LookupEnv(name); ok {
			e.set(name + "=" + value)
		} else {
			e.unset(name)
		}
		return nil
	}
	for _, file := range files {
		err := eachLine(file, func(line string) error {
			if name, _, _ := strings.Cut(line, "="); strings.ContainsAny(name, " \t") {
				return fmt.Errorf("%q: a name has no spaces: want NAME=value", line)
			}
			return one(line)
		})
		if err != nil {
			return fmt.Errorf("--env-file: %w", err)
		}
	}
	for _, word := range words {
		if err := one(word); err != nil {
			return fmt.Errorf("--env %w", err)
		}
	}
	return nil
}

// eachLine calls f for each line of a file that is neither empty nor a comment.
func eachLine(file string, f func(string) error) error {
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	const longest = 1 << 20 // bytes of a line; what the kernel takes as a variable is shorter
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, longest)
	for first := true; scan.Scan(); first = false {
		line := scan.Text()
		if first {
			line = strings.TrimPrefix(line, "\ufeff") // as editors of Windows begin a file
		}
		line = strings.TrimLeft(line, " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := f(line); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}
