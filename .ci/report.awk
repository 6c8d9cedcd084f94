# Reads go test -v and prints, for each test that ended as want says (FAIL or SKIP), its name and
# the last lines (-v lines=N) of what it said. Output of tests that run at once is told apart by
# the === lines.
/^=== (RUN|NAME|CONT|PAUSE)/ { current = $3; next }
/^ *--- (PASS|FAIL|SKIP): / {
	if ($2 == want ":") ended[++n] = $3
	next
}
/^panic: / { current = "panic"; if (want == "FAIL") ended[++n] = current }
{ said[current, ++count[current]] = $0 }
END {
	for (i = 1; i <= n; i++) {
		name = ended[i]
		print "--- " want ": " name
		first = count[name] - lines + 1
		for (j = first > 1 ? first : 1; j <= count[name]; j++) print said[name, j]
	}
}
