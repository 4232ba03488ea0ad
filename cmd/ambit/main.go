// Command ambit is the mesh's command-line tool, run in a person's shell or in
// CI: it installs the mesh into a cluster, removes it again, and says what
// version it is. It holds no state of its own: what is installed is recorded by
// Helm in the cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/cmd/ambit/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
