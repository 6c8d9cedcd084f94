package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strings"
	"text/tabwriter"

	"mk/cmd/mk/template"
)

// printRows prints values by a --format: "table TEMPLATE", a template, or json. heads are headings
// of a table in place of the usual ones.
func printRows[T any](w io.Writer, format string, rows []T, heads ...map[string]string) error {
	list := make([]any, len(rows))
	for i, r := range rows {
		list[i] = r
	}
	return printList(w, format, list, reflect.TypeFor[T](), heads)
}

// printList is printRows of values of a type: what has a type parameter is in the binary once a type.
func printList(w io.Writer, format string, rows []any, of reflect.Type, heads []map[string]string) error {
	if format == "json" {
		enc := newJSON(w)
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
	flush := func() error { return nil }
	if table {
		tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		fmt.Fprintln(tw, tableHead(t, of, heads))
		w, flush = tw, tw.Flush
	}
	for _, r := range rows {
		if err := t.Execute(w, r); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	return flush()
}

// headings are docker's, where they are not the field's name in capitals.
var headings = map[string]string{
	"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY",
	"SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}

// head is what a table's template sees in its first line, in place of a row: headings by the names of fields.
type head map[string]string

// Label is docker's heading for a label: the last part of its key.
func (head) Label(key string) string {
	return strings.NewReplacer("-", " ", "_", " ").Replace(key[strings.LastIndex(key, ".")+1:])
}

// tableHead makes the first line of a table by its template. What cannot be done with a heading, as a range
// over it, ends the line, as it does docker's: the rows say what is wrong, if anything is.
func tableHead(t *template.Template, of reflect.Type, heads []map[string]string) string {
	h := head{}
	for i := range of.NumField() {
		name := of.Field(i).Name
		h[name] = strings.ToUpper(name)
	}
	maps.Copy(h, headings)
	for _, own := range heads {
		maps.Copy(h, own)
	}
	var line strings.Builder
	t.ExecuteHead(&line, h)
	return strings.TrimSuffix(line.String(), "\n")
}

// newJSON prints < > & as they are, as docker and podman do.
func newJSON(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc
}

// printDocuments prints documents as JSON, or each by a template.
func printDocuments[T any](docs []T, format string) error {
	if format == "" || format == "json" {
		enc := newJSON(&stdout)
		enc.SetIndent("", "    ")
		return enc.Encode(docs)
	}
	t, err := template.Parse(format + "\n")
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	for _, doc := range docs {
		if err := t.Execute(&stdout, doc); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	return nil
}
