package main

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"mk/container"
)

const portHelp = `List the ports of the machine that lead to a running container, or those that lead
to one port of it.`

func newPort(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTOCOL]]", Short: "List the published ports of a container", Long: portHelp, Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := findContainers(args[:1])
			if err != nil {
				return err
			}
			n, err := all[0].Network()
			if err != nil {
				return err
			}
			var ports []container.Port
			if n != nil {
				ports = n.Ports
			}
			if len(args) == 1 {
				for _, p := range ports {
					for _, at := range listens(p) {
						fmt.Fprintf(&stdout, "%s -> %s\n", portName(p), at)
					}
				}
				return nil
			}
			want := args[1]
			if !strings.Contains(want, "/") {
				want += "/tcp"
			}
			found := false
			for _, p := range ports {
				if portName(p) == want {
					found = true
					fmt.Fprintln(&stdout, strings.Join(listens(p), "\n"))
				}
			}
			if !found {
				return &exitError{status: exitFailed, err: fmt.Errorf("port: no public port %s published for %s", want, args[0])}
			}
			return nil
		},
	}
}

// listens are the addresses that a published port listens on.
func listens(p container.Port) []string {
	ips := []string{p.IP}
	if p.IP == "" {
		ips = []string{"0.0.0.0", "::"}
	}
	var out []string
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip, strconv.Itoa(int(p.Host))))
	}
	return out
}

// portsText is the column of ps: what is published, and then what is only exposed.
func portsText(exposed []string, published []container.Port) string {
	var words []string
	for _, p := range published {
		for _, at := range listens(p) {
			words = append(words, at+"->"+portName(p))
		}
	}
	for _, e := range exposed {
		if !slices.ContainsFunc(published, func(p container.Port) bool { return portName(p) == e }) {
			words = append(words, e)
		}
	}
	return strings.Join(words, ", ")
}
