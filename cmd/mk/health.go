package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"mk/container"
	"mk/image"
)

// healthFlags are what a command line says of the health check, over the image's HEALTHCHECK.
type healthFlags struct {
	command                                       string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
	none                                          bool
}

func (f *healthFlags) define(fl *pflag.FlagSet) {
	fl.StringVar(&f.command, "health-cmd", "", "command that checks the container's health, for its shell")
	fl.DurationVar(&f.interval, "health-interval", 0, "time between two checks (default: 30s)")
	fl.DurationVar(&f.timeout, "health-timeout", 0, "time that one may take (default: 30s)")
	fl.DurationVar(&f.startPeriod, "health-start-period", 0, "time in which failures do not count")
	fl.DurationVar(&f.startInterval, "health-start-interval", 0, "time between two checks in the start period (default: 5s)")
	fl.IntVar(&f.retries, "health-retries", 0, "failures in a row that make it unhealthy (default: 3)")
	fl.BoolVar(&f.none, "no-healthcheck", false, "run no check, whatever the image says")
}

// check refuses what docker refuses.
func (f *healthFlags) check() error {
	given := f.command != "" || f.interval != 0 || f.timeout != 0 || f.startPeriod != 0 || f.startInterval != 0 || f.retries != 0
	if f.none && given {
		return errors.New("--no-healthcheck and --health-*: want one or the other")
	}
	for name, d := range map[string]time.Duration{
		"interval": f.interval, "timeout": f.timeout, "start-period": f.startPeriod, "start-interval": f.startInterval,
	} {
		if d < 0 || d > 0 && d < time.Millisecond {
			return fmt.Errorf("--health-%s %v: want a millisecond at least", name, d)
		}
	}
	if f.retries < 0 {
		return fmt.Errorf("--health-retries %d: want a number above 0", f.retries)
	}
	return nil
}

// of makes the check of a container; nil is none.
func (f *healthFlags) of(c image.RunConfig) (*container.Check, error) {
	if f.none {
		return nil, nil
	}
	h := image.Healthcheck{}
	if c.Healthcheck != nil {
		h = *c.Healthcheck
	}
	if f.command != "" {
		h.Test = []string{"CMD-SHELL", f.command}
	}
	if len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil, nil
	}
	check := container.Check{Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	for _, d := range []struct {
		to   *time.Duration
		flag time.Duration
	}{{&check.Interval, f.interval}, {&check.Timeout, f.timeout}, {&check.StartPeriod, f.startPeriod}, {&check.StartInterval, f.startInterval}} {
		if d.flag != 0 {
			*d.to = d.flag
		}
	}
	if f.retries != 0 {
		check.Retries = f.retries
	}
	switch kind, args := h.Test[0], h.Test[1:]; {
	case kind == "CMD" && len(args) > 0:
		check.Args = args
	case kind == "CMD-SHELL" && len(args) == 1:
		shell := c.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		check.Args = slices.Concat(shell, args)
	default:
		return nil, fmt.Errorf("HEALTHCHECK of the image: want CMD or CMD-SHELL and a command, not %q", h.Test)
	}
	return &check, nil
}
