// Package proxy tests the whole node proxy on one machine: two nodes as network
// namespaces, pods behind them, one ztunnel process on each node (this test
// binary, started again), a scripted node agent that captures pods with
// cni-plugin/redirect/nft and lends their listeners, workloads from a file, and
// a development CA. It needs root.
//
// It does not test capture itself (tests/node/capture) nor the control plane.
package proxy

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel"
)

// envZtunnel makes this binary a ztunnel.
const envZtunnel = "AMBIT_TEST_ZTUNNEL"

func TestMain(m *testing.M) {
	if os.Getenv(envZtunnel) != "" {
		if err := runZtunnel(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runZtunnel() error {
	cfg, err := ztunnel.LoadConfig(os.LookupEnv)
	if err != nil {
		return err
	}
	logging, err := telemetry.NewLogging(os.Stdout, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return ztunnel.Run(ctx, cfg, logging)
}
