package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"mk/image"
	"mk/image/registry"
)

// registryFlags are the words of the commands that talk to a registry, podman's.
type registryFlags struct {
	verify   bool
	certDir  string
	authfile string
	creds    string
	retry    int
	delay    time.Duration
}

func (f *registryFlags) register(fl *pflag.FlagSet) {
	f.registerConnection(fl)
	fl.StringVar(&f.creds, "creds", "", "credentials for this time, as USER:PASSWORD; other users of this machine may see them")
}

// registerConnection is register without credentials on the command line.
func (f *registryFlags) registerConnection(fl *pflag.FlagSet) {
	fl.BoolVar(&f.verify, "tls-verify", true, "verify the registry's certificate, and speak no plain http but to this machine")
	fl.StringVar(&f.certDir, "cert-dir", "", "directory of *.crt, *.cert and *.key (default: certs.d/HOST of docker and of containers)")
	fl.StringVar(&f.authfile, "authfile", "", "the file that credentials are kept in (default: docker's and podman's)")
	fl.IntVar(&f.retry, "retry", 5, "how often to repeat a request that failed")
	fl.DurationVar(&f.delay, "retry-delay", 0, "wait before the first repetition, doubled each time (default 500ms)")
}

// apply sets a client up for a command about an image of one registry.
func (f *registryFlags) apply(c *registry.Client, domain string) error {
	c.SkipTLSVerify, c.CertDir, c.Backoff = !f.verify, f.certDir, f.delay
	if c.Retries = f.retry; f.retry <= 0 {
		c.Retries = -1
	}
	switch {
	case f.creds != "":
		user, password, ok := strings.Cut(f.creds, ":")
		if !ok || user == "" {
			return fmt.Errorf("--creds: want USER:PASSWORD")
		}
		c.Keychain = registry.OneLogin(domain, user, password)
	case f.authfile != "":
		c.Keychain = registry.FileKeychain(f.authfile)
	}
	return nil
}

// at reads an image's name and sets the store's client up for its registry.
func (s *store) at(name string, f *registryFlags) (image.Reference, error) {
	ref, err := image.ParseReference(name)
	if err != nil {
		return ref, err
	}
	return ref, f.apply(s.client, ref.Domain())
}

// newClient is a registry client set up from the environment.
func newClient() (*registry.Client, error) {
	mirrors, err := registry.DefaultMirrors()
	if err != nil {
		return nil, err
	}
	return &registry.Client{Mirrors: mirrors, UserAgent: "mk/" + version}, nil
}

// printProgress prints what became of each blob, a line each.
func printProgress(e registry.Event) {
	switch e.State {
	case registry.Complete:
		fmt.Fprintf(os.Stderr, "%s: done, %s\n", shortID(e.Digest), size(e.Done))
	case registry.Exists:
		fmt.Fprintf(os.Stderr, "%s: exists already\n", shortID(e.Digest))
	case registry.Mounted:
		fmt.Fprintf(os.Stderr, "%s: mounted\n", shortID(e.Digest))
	}
}
