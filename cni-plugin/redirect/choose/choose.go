// Package choose picks how pods are captured on this node, by trying. The node
// agent calls it once, when it starts.
package choose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/ebpf"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/nft"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// Where the agent's container sees the node's root and /proc, if nothing else
// is said. Outside a container the second ones exist.
const (
	hostRoot    = "/host"
	defaultProc = "/proc"
)

// Probe returns the best Redirector that works on this node: by BPF, else by
// nftables, saying why. Mode forces one; then its failure is the caller's.
//
// While pods are captured one way, they are not captured another: their
// listeners and their live connections belong to the first.
func Probe(ctx context.Context, cfg redirect.Config) (redirect.Redirector, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fill(&cfg)
	byBPF, byNFT := ebpf.Captured(cfg), nft.Captured(cfg)
	switch {
	case cfg.Mode == redirect.ModeEBPF && byNFT:
		return nil, errors.New("capture by BPF: pods of this node are captured by nftables; take them out of the mesh, or restart the node")
	case cfg.Mode == redirect.ModeNFT && byBPF:
		return nil, errors.New("capture by nftables: pods of this node are captured by BPF; take them out of the mesh, or restart the node")
	case cfg.Mode == redirect.ModeEBPF:
		return newEBPF(cfg)
	case cfg.Mode == redirect.ModeNFT:
		return newNFT(cfg)
	case cfg.Mode != redirect.ModeAuto:
		return nil, fmt.Errorf("use redirect mode %q: want %q, %q or nothing", cfg.Mode, redirect.ModeEBPF, redirect.ModeNFT)
	case byNFT && !byBPF:
		cfg.Log.Info("pods are captured by nftables, as before; BPF is tried when none is left")
		return newNFT(cfg)
	}
	r, err := newEBPF(cfg)
	if err == nil || byBPF {
		return r, err
	}
	cfg.Log.Warn("BPF can't capture on this node, falling back to nftables", slog.Any("reason", err))
	n, nftErr := newNFT(cfg)
	if nftErr != nil {
		return nil, errors.Join(err, nftErr)
	}
	return n, nil
}

func newEBPF(cfg redirect.Config) (redirect.Redirector, error) {
	r, err := ebpf.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("capture by BPF: %w", err)
	}
	cfg.Log.Info("pods are captured by BPF", slog.String("cgroup", cfg.CgroupRoot), slog.String("bpf_dir", cfg.BPFDir))
	return r, nil
}

func newNFT(cfg redirect.Config) (redirect.Redirector, error) {
	prepare := func() error { return ebpf.MakeBPFDir(filepath.Join(cfg.BPFDir, "node")) }
	r, err := nft.New(cfg, prepare)
	if err != nil {
		return nil, fmt.Errorf("capture by nftables: %w", err)
	}
	return r, nil
}

func fill(cfg *redirect.Config) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.BPFDir == "" {
		cfg.BPFDir = ports.BPFDir
	}
	if cfg.StateDir == "" {
		cfg.StateDir = filepath.Join(filepath.Dir(ports.PluginSocket), "captured")
	}
	if cfg.HostProc == "" {
		cfg.HostProc = defaultProc
	}
	if cfg.CgroupRoot == "" {
		root, err := linux.FindCgroup2(hostRoot, "/")
		if err != nil {
			cfg.Log.Warn("no cgroup2 hierarchy", slog.Any("error", err)) // BPF will say that it can't do without
		}
		cfg.CgroupRoot = root
	}
}
