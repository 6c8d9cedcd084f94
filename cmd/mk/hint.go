package main

import (
	"crypto/tls"
	"errors"

	"golang.org/x/sys/unix"

	"mk/builder"
	"mk/image"
	"mk/image/registry"
	"mk/userns"
)

// hint turns an error into the one thing its reader can do about it, or "".
func hint(err error) string {
	if advice := userns.Advice(err); advice != "" {
		return advice
	}
	var stranger *builder.UnknownHostError
	switch {
	case err == stdout.lost():
		return "" // the disk that is full is not the store's
	case errors.As(err, &stranger):
		return "ask the server's owner for its key; then, for github.com: ssh-keyscan github.com >> ~/.ssh/known_hosts"
	case errors.Is(err, errNoContext):
		return "for the current directory: mk build ."
	case errors.Is(err, userns.ErrNoEmulator):
		return "install an emulator: apt-get install qemu-user-static"
	case errors.Is(err, unix.ENOSPC):
		return "free some space: 'mk prune' removes what nothing uses, 'mk prune --all' the whole cache"
	case errors.Is(err, registry.ErrUnauthorized):
		return "the registry wants credentials: mk login REGISTRY"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return "put the registry's authority into ~/.config/containers/certs.d/HOST:PORT/ca.crt, or give --tls-verify=false"
	case errors.Is(err, registry.ErrTooManyRequests):
		return "the registry limits requests: log in with 'mk login', or name a mirror in MK_REGISTRY_MIRRORS or ~/.config/mk/mirrors"
	case errors.Is(err, image.ErrNotFound):
		return "mk images lists what is here; mk pull brings one"
	}
	return ""
}
