package container

import (
	"bytes"
	"context"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Check is a health check: a command that the holder runs in the container again and again. Its
// exit status 0 means healthy. The zero times and counts are docker's: see settled.
type Check struct {
	Args          []string
	Interval      time.Duration // between the end of one and the next
	Timeout       time.Duration // of one; then it is killed, and has failed
	StartPeriod   time.Duration // in which failures do not count
	StartInterval time.Duration // between two in the start period
	Retries       int           // failures in a row that make the container unhealthy
}

// Health is what the checks of a run have shown.
type Health struct {
	Status        string // starting, healthy or unhealthy
	FailingStreak int
	Log           []Probe // the last of them, the newest last
}

// Probe is one check.
type Probe struct {
	Start, End time.Time
	ExitCode   int // -1: it did not end in time, or could not be started
	Output     string
}

// The words of Health.Status.
const (
	HealthStarting  = "starting"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

const (
	maxProbes      = 5       // kept, as docker does
	maxProbeOutput = 4 << 10 // bytes of each
)

// settled puts docker's defaults in place of zeros.
func (c Check) settled() Check {
	for _, d := range []struct {
		to    *time.Duration
		value time.Duration
	}{{&c.Interval, 30 * time.Second}, {&c.Timeout, 30 * time.Second}, {&c.StartInterval, 5 * time.Second}} {
		if *d.to == 0 {
			*d.to = d.value
		}
	}
	if c.Retries == 0 {
		c.Retries = 3
	}
	return c
}

// watch checks one run of the container until ctx ends, and writes down what it finds.
func (h *Holder) watch(ctx context.Context, p *Process) {
	c := h.c.Health.settled()
	started := time.Now()
	for {
		h.mu.Lock()
		starting := h.status.Health.Status == HealthStarting && time.Since(started) < c.StartPeriod
		h.mu.Unlock()
		wait := c.Interval
		if starting {
			wait = c.StartInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		probe := c.probe(ctx, p)
		if ctx.Err() != nil {
			return // it failed because the container ended
		}
		h.note(c, probe, time.Since(started) < c.StartPeriod)
	}
}

// note makes a probe part of the status; early: within the start period.
func (h *Holder) note(c Check, probe Probe, early bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proc == nil {
		return
	}
	health := *h.status.Health // readers may have the old one
	health.Log = append(health.Log[max(0, len(health.Log)-maxProbes+1):len(health.Log):len(health.Log)], probe)
	switch {
	case probe.ExitCode == 0:
		health.Status, health.FailingStreak = HealthHealthy, 0
	case health.Status == HealthStarting && early:
	default:
		if health.FailingStreak++; health.FailingStreak >= c.Retries {
			health.Status = HealthUnhealthy
		}
	}
	changed := health.Status != h.status.Health.Status
	h.status.Health = &health
	h.c.setStatus(h.status)
	if changed {
		h.c.tell("health_status: "+health.Status, nil)
	}
}

// probe runs the check once.
func (c Check) probe(ctx context.Context, p *Process) (probe Probe) {
	probe = Probe{Start: time.Now(), ExitCode: -1}
	defer func() { probe.End = time.Now() }()
	r, w, err := os.Pipe()
	if err != nil {
		probe.Output = err.Error()
		return probe
	}
	defer r.Close()
	check, err := p.Exec(&Exec{Args: c.Args}, IO{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		probe.Output = err.Error()
		return probe
	}
	read := make(chan struct{})
	var out bytes.Buffer
	go func() {
		defer close(read)
		io.Copy(&out, io.LimitReader(r, maxProbeOutput))
		io.Copy(io.Discard, r)
	}()
	ended := make(chan ExitStatus, 1)
	go func() {
		status, err := check.Wait()
		if err != nil {
			status.Code = -1
		}
		ended <- status
	}()
	late := false
	select {
	case status := <-ended:
		probe.ExitCode = status.Code
	case <-ctx.Done():
		check.killSession()
		<-ended
	case <-time.After(c.Timeout):
		late = true
		check.killSession()
		<-ended
	}
	// What it started may still have the pipe open, for as long as it likes.
	r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-read
	probe.Output = out.String()
	if late {
		probe.Output = "Health check exceeded timeout (" + c.Timeout.String() + "): " + probe.Output
	}
	return probe
}

// killSession ends a command of Exec and what it started, as far as that stayed in its process group.
func (p *Process) killSession() {
	unix.Kill(-p.Pid(), unix.SIGKILL)
}
