package recipe

import "strings"

// Suggest finds the option that word was probably meant to be: the nearest one
// by fewer than three edits, the first of equals. It is "" when nothing is near,
// and also when word is itself an option, since then its spelling is not at fault.
func Suggest(word string, options []string) string {
	best, nearest := "", 3
	for _, o := range options {
		if o == word {
			return ""
		}
		if d := distance(word, o); d < nearest {
			best, nearest = o, d
		}
	}
	return best
}

// didYouMean is BuildKit's tail of an error message, "" without a suggestion.
func didYouMean(word string, options []string) string {
	if s := Suggest(word, options); s != "" {
		return " (did you mean " + s + "?)"
	}
	return ""
}

// distance is Levenshtein's, in runes.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range x {
		corner := row[0]
		row[0] = i + 1
		for j, s := range y {
			d := corner
			if r != s {
				d = 1 + min(corner, row[j], row[j+1])
			}
			corner, row[j+1] = row[j+1], d
		}
	}
	return row[len(y)]
}

// cut splits KEY=value.
func cut(kv string) (key, value string) {
	key, value, _ = strings.Cut(kv, "=")
	return key, value
}
