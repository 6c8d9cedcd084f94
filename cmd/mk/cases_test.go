package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What the tables of docs name as a case's test is there: a script, or a Go test of a package of
// mk. Every number has a line.
func TestLanguageCasesAreShown(t *testing.T) { casesAreShown(t, "../../docs/language.md", 1, 98) }
func TestAttacksAreShown(t *testing.T)       { casesAreShown(t, "../../docs/attacks.md", 22, 29) }

func casesAreShown(t *testing.T, table string, first, last int) {
	page, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, pattern := range []string{"../../*/*_test.go", "../../*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(text)
		}
	}
	numbers := map[int]bool{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 || strings.Contains(line, "---|") {
			continue
		}
		shown := strings.TrimSpace(cells[len(cells)-2])
		if shown == "shown by" {
			continue
		}
		if len(cells) == 5 {
			number(t, numbers, strings.TrimSpace(cells[1]))
		}
		for name := range strings.SplitSeq(shown, ", ") {
			if strings.HasPrefix(name, "Test") {
				if !strings.Contains(tests.String(), "func "+name+"(") {
					t.Errorf("%s: there is no test %s", strings.TrimSpace(cells[1]), name)
				}
			} else if _, err := os.Stat("testdata/script/" + name + ".txtar"); err != nil {
				t.Errorf("%s: %v", strings.TrimSpace(cells[1]), err)
			}
		}
	}
	for n := first; n <= last; n++ {
		if !numbers[n] {
			t.Errorf("case %d has no line", n)
		}
	}
}

// number notes the numbers of a cell like "79–81, 94".
func number(t *testing.T, numbers map[int]bool, cell string) {
	for part := range strings.SplitSeq(cell, ", ") {
		first, last, isRange := strings.Cut(part, "–")
		from := parseNumber(t, first)
		to := from
		if isRange {
			to = parseNumber(t, last)
		}
		for n := from; n <= to; n++ {
			numbers[n] = true
		}
	}
}

func parseNumber(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
