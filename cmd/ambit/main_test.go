package main

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ambit-mesh/ambit/cmd/ambit/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ambit": func() { os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the tool as a person would; UPDATE=1 accepts new output.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			// No cluster: a command that contacts one without need fails.
			e.Setenv("KUBECONFIG", "")
			e.Setenv("KUBERNETES_SERVICE_HOST", "")
			return nil
		},
	})
}
