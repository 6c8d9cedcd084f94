// Package container runs a process in a root.
package container
