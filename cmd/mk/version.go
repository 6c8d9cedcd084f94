package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// version is set by the Makefile: -ldflags "-X main.version=…".
var version = "0.1.0-dev"

const versionHelp = `Print mk's version.

--format is a Go template over .Client and .Server, each with .Version .GoVersion .Os .Arch, or
json. There is no server: what scripts ask of docker's is mk, too.`

// versionDocument is what templates see, by docker's names.
type versionDocument struct{ Client, Server versionOf }

type versionOf struct{ Version, GoVersion, Os, Arch string }

func newVersion(*app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "version", Short: "Print mk's version", Long: versionHelp, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionOf{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if format != "" {
				return printRows(&stdout, format, []versionDocument{{v, v}})
			}
			_, err := fmt.Fprintf(&stdout, "mk %s %s/%s %s\n", v.Version, v.Os, v.Arch, v.GoVersion)
			return err
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template, or json")
	return c
}
