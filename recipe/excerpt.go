package recipe

import (
	"fmt"
	"strings"
)

const rule = "--------------------\n"

// Excerpt prints the lines around pos as buildx does, those of pos marked; "" when
// pos is not among the lines.
//
//	Recipe:3
//	--------------------
//	   1 |     FROM busybox
//	   2 |
//	   3 | >>> RUN false
//	--------------------
func Excerpt(lines []string, pos Position) string {
	if pos.Start < 1 || pos.Start > len(lines) {
		return ""
	}
	start, end := pos.Start, min(max(pos.End, pos.Start), len(lines))
	last := end
	context := 2
	if start == end {
		context = 4
	}
	// Lines are taken in turn above and below. A turn counts one even when there
	// is nothing to take, so an excerpt at either end of the file is shorter.
	for taken := 0; taken < context; taken++ {
		if start > 1 {
			start--
			taken++
		}
		if end < len(lines) {
			end++
			taken++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n%s", pos.File, pos.Start, rule)
	for i := start; i <= end; i++ {
		mark := "   "
		if i >= pos.Start && i <= last {
			mark = ">>>"
		}
		fmt.Fprintf(&b, " %3d | %s %s\n", i, mark, lines[i-1])
	}
	b.WriteString(rule)
	return b.String()
}

// FormatWarnings prints warnings as buildx --check does: rule, address, detail
// and excerpt of each.
func FormatWarnings(lines []string, warnings []Warning) string {
	var b strings.Builder
	for _, w := range warnings {
		b.WriteString("\nWARNING: " + w.Rule)
		if w.URL != "" {
			b.WriteString(" - " + w.URL)
		}
		b.WriteString("\n" + w.Detail + "\n" + Excerpt(lines, w.Pos))
	}
	return b.String()
}
