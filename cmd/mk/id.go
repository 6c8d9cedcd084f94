package main

import (
	"crypto/rand"
	"encoding/hex"
)

// newContainerID makes a container's ID: 64 hexadecimal digits, as docker's.
func newContainerID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}
