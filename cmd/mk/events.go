package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mk/cmd/mk/template"
	"mk/container"
)

const eventsHelp = `Print what happens to containers: create, start, die, stop, kill, restart, rename,
health_status and destroy; to networks: create, connect, disconnect and destroy; and to
volumes: create, mount, unmount and destroy; as it happens.

With --since, begin with what happened since that time; with --until, end at that
time: both take a time or a duration before now (10m). --filter takes container=,
network=, volume=, event=, image=, label=KEY[=value] and type=container, network or
volume. --format is a Go template or json.

There is no daemon that sees everything: a container whose holder was killed dies
without a word, and mk ps says so.`

// eventsFlags are the words of one mk events.
type eventsFlags struct {
	since, until, format string
	filters              []string
}

func newEvents(*app) *cobra.Command {
	var f eventsFlags
	c := &cobra.Command{
		Use: "events [flags]", Short: "Print what happens to containers, networks and volumes", Long: eventsHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.print(c.Context(), &stdout) },
	}
	c.Flags().StringVar(&f.since, "since", "", "begin with what happened since this time")
	c.Flags().StringVar(&f.until, "until", "", "end at this time")
	c.Flags().StringVar(&f.format, "format", "", "Go template, or json")
	c.Flags().VarP((*list)(&f.filters), "filter", "f", "print only these, as KEY=value")
	return c
}

// errEnough ends the reading of events.
var errEnough = errors.New("enough")

func (f *eventsFlags) print(ctx context.Context, w io.Writer) error {
	since, err := parseTime(f.since)
	if err != nil {
		return fmt.Errorf("--since: %w", err)
	} else if f.since == "" {
		since = time.Now()
	}
	until, err := parseTime(f.until)
	if err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	keep, err := eventFilter(f.filters)
	if err != nil {
		return err
	}
	show, err := eventFormat(f.format)
	if err != nil {
		return err
	}
	s, err := openContainers()
	if err != nil {
		return err
	}
	follow := until.IsZero() || until.After(time.Now())
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
		if !follow {
			ctx = context.Background() // what is past is read to its end
		}
	}
	err = s.Events(ctx, follow, func(e container.Event) error {
		at := time.Unix(0, e.TimeNano)
		if at.Before(since) || !keep(e) {
			return nil
		}
		if !until.IsZero() && at.After(until) {
			return errEnough
		}
		return show(w, e)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// eventFormat is how an event is printed: docker's line, a template, or json.
func eventFormat(format string) (func(io.Writer, container.Event) error, error) {
	switch format {
	case "":
		return func(w io.Writer, e container.Event) error {
			var attributes []string
			for k, v := range e.Actor.Attributes {
				attributes = append(attributes, k+"="+v)
			}
			slices.Sort(attributes)
			_, err := fmt.Fprintf(w, "%s %s %s %s (%s)\n", time.Unix(0, e.TimeNano).Format("2006-01-02T15:04:05.000000000Z07:00"),
				e.Type, e.Action, e.Actor.ID, strings.Join(attributes, ", "))
			return err
		}, nil
	case "json", "{{json .}}":
		return func(w io.Writer, e container.Event) error { return newJSON(w).Encode(e) }, nil
	}
	t, err := template.Parse(format + "\n")
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return func(w io.Writer, e container.Event) error { return t.Execute(w, e) }, nil
}

// eventFilter makes a test of --filter.
func eventFilter(filters []string) (func(container.Event) bool, error) {
	all := filter[container.Event]{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("--filter %s: want KEY=value", f)
		}
		var test func(container.Event) bool
		switch key {
		case "container", "network", "volume":
			test = func(e container.Event) bool {
				return e.Type == key && (e.Actor.Attributes["name"] == value || strings.HasPrefix(e.Actor.ID, value))
			}
		case "event":
			test = func(e container.Event) bool {
				action, _, _ := strings.Cut(e.Action, ":")
				return action == value || e.Action == value
			}
		case "image":
			test = func(e container.Event) bool {
				return strings.TrimSuffix(e.From, ":latest") == strings.TrimSuffix(value, ":latest")
			}
		case "label":
			k, want, has := strings.Cut(value, "=")
			test = func(e container.Event) bool { return hasLabel(e.Actor.Attributes, k, want, !has) }
			key += k
		case "type":
			test = func(e container.Event) bool { return e.Type == value }
		default:
			return nil, fmt.Errorf("--filter %s: want container, network, volume, event, image, label or type", f)
		}
		all.add(key, test)
	}
	return all.keeps, nil
}
