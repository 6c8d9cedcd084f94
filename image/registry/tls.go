package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// hosts is the HTTP transport below all sessions. Connections are shared between them, and
// each host has the certificates that are kept for it: a redirect elsewhere does not take
// a registry's own authority, or the user's certificate, along.
type hosts struct{ client *Client }

func (h hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	t, err := h.client.transport(r.URL.Host)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(r)
}

// transport is the HTTP transport to one host, with port.
func (c *Client) transport(host string) (http.RoundTripper, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.transports[host]; t != nil {
		return t, nil
	}
	settings := &tls.Config{RootCAs: c.RootCAs, InsecureSkipVerify: c.SkipTLSVerify}
	for _, dir := range c.certDirs(host) {
		if err := addCertificates(settings, dir); err != nil {
			return nil, fmt.Errorf("certificates for %s: %w", host, err)
		}
	}
	own := settings.RootCAs != c.RootCAs || settings.Certificates != nil
	if !own { // all hosts without certificates of their own share one
		host = ""
		if t := c.transports[""]; t != nil {
			return t, nil
		}
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: 5 * time.Minute, // some commit an upload by copying it
		MaxIdleConnsPerHost:   16,              // several blobs at once
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true, // blobs are what they are; gzip in transit would hide their size
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       settings,
	}
	if c.transports == nil {
		c.transports = map[string]*http.Transport{}
	}
	c.transports[host] = t
	return t, nil
}

// certDirs are the directories with certificates for a host, those of containers-certs.d(5)
// and docker's. Client.CertDir stands instead of them all.
func (c *Client) certDirs(host string) []string {
	if c.CertDir != "" {
		return []string{c.CertDir}
	}
	if host == "" || host[0] == '.' || strings.ContainsAny(host, "/\x00") {
		return nil // no name of a directory
	}
	dirs := []string{"/etc/docker/certs.d", "/etc/containers/certs.d"}
	if config, err := os.UserConfigDir(); err == nil {
		dirs = append(dirs, filepath.Join(config, "docker", "certs.d"), filepath.Join(config, "containers", "certs.d"))
	}
	for i := range dirs {
		dirs[i] = filepath.Join(dirs[i], host)
	}
	return dirs
}

// addCertificates reads a directory by the rules of containers-certs.d(5): each *.crt holds authorities
// beside the system's, each *.cert a certificate of the user, whose key is in the *.key of the same name.
func addCertificates(to *tls.Config, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // nobody keeps any for us
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(file) {
		case ".crt":
			pem, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			pool := to.RootCAs
			if pool == nil {
				if pool, err = x509.SystemCertPool(); err != nil {
					return err
				}
			} else {
				pool = pool.Clone()
			}
			if !pool.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s: no certificate in it", file)
			}
			to.RootCAs = pool
		case ".cert":
			pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".cert")+".key")
			if err != nil {
				return err
			}
			to.Certificates = append(to.Certificates, pair)
		}
	}
	return nil
}
