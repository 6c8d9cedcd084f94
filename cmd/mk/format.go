package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"mk/cmd/mk/template"
)

// printRows prints values by a --format: "table TEMPLATE", a template, or json. heads are headings
// of a table in place of the usual ones.
func printRows[T any](w io.Writer, format string, rows []T, heads ...map[string]string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	body, table := strings.CutPrefix(format, "table ")
	body = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(body)
	t, err := template.Parse(body + "\n")
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	out := w
	if table {
		tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		defer tw.Flush()
		out = tw
		fmt.Fprintln(tw, tableHead(body, append(heads, headings)...))
	}
	for _, r := range rows {
		if err := t.Execute(out, r); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	return nil
}

// headings are docker's, where they are not the field's name in capitals.
var headings = map[string]string{
	"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY",
}

// tableHead makes the first line of a table out of its template's fields.
func tableHead(body string, headings ...map[string]string) string {
	var cells []string
	for _, cell := range strings.Split(body, "\t") {
		name := strings.Trim(cell, "{}. ")
		for _, known := range headings {
			if h, ok := known[name]; ok {
				name = h
				break
			}
		}
		cells = append(cells, strings.ToUpper(name))
	}
	return strings.Join(cells, "\t")
}

// printDocuments prints documents as JSON, or each by a template.
func printDocuments[T any](docs []T, format string) error {
	if format == "" || format == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		return enc.Encode(docs)
	}
	t, err := template.Parse(format + "\n")
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	for _, doc := range docs {
		if err := t.Execute(os.Stdout, doc); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	return nil
}
