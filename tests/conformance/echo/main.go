// Command echo is the program in the pods of the Gateway API conformance suite's
// mesh tests: a server that answers what it was asked, and, called as "client", a
// client that prints the answers. The suite's own image is Istio's echo; this one
// keeps the part of its interface that the suite uses (package utils/echo of the
// suite), so that the tests need no network and no code of Istio.
//
// What always holds: an answer is lines of Field=value; the client fails unless
// every request was answered, whatever the status.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := serve
	if filepath.Base(os.Args[0]) == "client" {
		run = call
	}
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		stop()
		os.Exit(1)
	}
}
