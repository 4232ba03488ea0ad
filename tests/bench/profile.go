package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/linux"
)

func dialIn(ns *linux.NetNS) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return ns.Dial(ctx, ap, linux.DialOptions{})
	}
}

// profile takes a CPU profile of every ztunnel while one measurement runs, into
// dir/<scenario>-<node>.pprof. The returned function waits for them.
func (m *mesh) profile(ctx context.Context, dir, scenario string, d time.Duration) func() {
	var wg sync.WaitGroup
	for _, n := range m.fabric.Nodes {
		wg.Go(func() {
			url := fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/profile?seconds=%d", ports.ZtunnelAdmin, max(1, int(d.Seconds())))
			b, err := get(ctx, n.NetNS, url)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, scenario+"-"+n.Name+".pprof"), b, 0o644)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench: profile:", err)
			}
		})
	}
	return wg.Wait
}
