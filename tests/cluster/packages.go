package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
)

// requirement is a Debian package and a file that proves it is there.
type requirement struct{ pkg, file string }

// debianPackages are what a node and the tests use beside the Go toolchain.
func debianPackages() []requirement {
	return []requirement{
		{"containerd", "/usr/bin/containerd"},
		{"runc", "/usr/sbin/runc"},
		{"containernetworking-plugins", "/usr/lib/cni/ptp"},
		{"nftables", "/usr/sbin/nft"},
		{"iptables", "/usr/sbin/iptables"},
		{"conntrack", "/usr/sbin/conntrack"},
		{"iproute2", "/usr/sbin/ip"},
		{"util-linux", "/usr/bin/nsenter"},
		{"mount", "/usr/bin/mount"},
		{"tcpdump", "/usr/bin/tcpdump"},
	}
}

// installPackages asks apt for what is missing, and for nothing if all is there.
func (c *Cluster) installPackages(ctx context.Context) error {
	var missing []string
	for _, r := range debianPackages() {
		if _, err := os.Stat(r.file); err != nil {
			missing = append(missing, r.pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for _, args := range [][]string{{"update", "-q"}, slices.Concat([]string{"install", "-y", "-q", "--no-install-recommends"}, missing)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s (packages %v are missing): %w\n%s", args[0], missing, err, lastLines(out))
		}
	}
	return nil
}
