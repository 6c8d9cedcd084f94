package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"mk/container"
)

const logsHelp = `Print what a container wrote, to the streams it wrote it to.

--since and --until take a time (2006-01-02T15:04:05, RFC 3339, seconds since
1970) or a duration before now (10m). With -f, go on until the container ends.`

// logsFlags are the words of one mk logs.
type logsFlags struct {
	follow, timestamps   bool
	tail                 string
	since, until         string
	sinceTime, untilTime time.Time
}

func newLogs(a *app) *cobra.Command {
	var f logsFlags
	c := &cobra.Command{
		Use: "logs [flags] CONTAINER", Short: "Print what a container wrote", Long: logsHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := findContainers(args)
			if err != nil {
				return err
			}
			return f.print(c.Context(), all[0])
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on until the container ends")
	fl.BoolVarP(&f.timestamps, "timestamps", "t", false, "begin each line with its time")
	fl.StringVarP(&f.tail, "tail", "n", "all", "only the last N lines")
	fl.StringVar(&f.since, "since", "", "only what was written after this time")
	fl.StringVar(&f.until, "until", "", "only what was written before this time")
	return c
}

func (f *logsFlags) print(ctx context.Context, c *container.Container) error {
	var err error
	if f.sinceTime, err = parseTime(f.since); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	if f.untilTime, err = parseTime(f.until); err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	log, err := os.Open(c.Path("log"))
	if errors.Is(err, fs.ErrNotExist) {
		running, rerr := c.Running()
		if rerr != nil || !running {
			return rerr // it never started, and so wrote nothing
		}
		return fmt.Errorf("logs of %s: none is kept: it was started with --rm in the foreground, and writes there", c.Name)
	} else if err != nil {
		return err
	}
	defer log.Close()
	if f.tail != "all" && f.tail != "" {
		n, err := strconv.Atoi(f.tail)
		if err != nil {
			return fmt.Errorf("--tail %s: want a number or all", f.tail)
		}
		if n >= 0 {
			if err := seekTail(log, n); err != nil {
				return err
			}
		}
	}
	out, errs := bufio.NewWriter(&stdout), bufio.NewWriter(os.Stderr)
	r := bufio.NewReaderSize(log, 64<<10)
	begun := map[string]bool{} // the stream's last line had no newline: what comes belongs to it
	var rest []byte
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			rest = append(rest, line...) // it is being written
			out.Flush()
			errs.Flush()
			if !f.follow {
				return nil
			}
			running, err := c.Running()
			if err != nil {
				return err
			}
			if !wait(ctx, 50*time.Millisecond) {
				return ctx.Err()
			}
			if !running {
				f.follow = false // one last look: it may have written before it ended
			}
			continue
		}
		if err != nil {
			return err
		}
		if len(rest) > 0 {
			line, rest = append(rest, line...), nil
		}
		var l container.LogLine
		if err := json.Unmarshal(line, &l); err != nil {
			continue // cut off by a kill
		}
		if !f.sinceTime.IsZero() && l.Time.Before(f.sinceTime) {
			continue
		}
		if !f.untilTime.IsZero() && l.Time.After(f.untilTime) {
			break
		}
		to := out
		if l.Stream == "stderr" {
			to = errs
		}
		if f.timestamps && !begun[l.Stream] {
			fmt.Fprint(to, l.Time.Format("2006-01-02T15:04:05.000000000Z07:00"), " ")
		}
		if _, err := to.WriteString(l.Log); err != nil {
			return err
		}
		begun[l.Stream] = len(l.Log) > 0 && l.Log[len(l.Log)-1] != '\n'
		if to == errs { // the order of the two streams is kept as far as it can be
			out.Flush()
			errs.Flush()
		} else {
			errs.Flush()
		}
	}
	return errors.Join(out.Flush(), errs.Flush())
}

// seekTail goes to where the last n lines of a file begin, reading it from its end.
func seekTail(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	buf := make([]byte, 64<<10)
	lines := 0
	for at := end; at > 0; {
		size := min(int64(len(buf)), at)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if lines++; lines == n {
				_, err := f.Seek(at+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// parseTime reads a time as docker takes it; "" is the zero time.
func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	if s, err := strconv.ParseFloat(text, 64); err == nil {
		return time.UnixMicro(int64(s * 1e6)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither a time nor a duration", text)
}
