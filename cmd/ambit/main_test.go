package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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
	bare := httptest.NewServer(http.HandlerFunc(bareCluster))
	t.Cleanup(bare.Close) // scripts run after this function has returned
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			// No cluster: a command that contacts one without need fails.
			e.Setenv("KUBECONFIG", "")
			e.Setenv("KUBERNETES_SERVICE_HOST", "")
			return os.WriteFile(filepath.Join(e.WorkDir, "bare.kubeconfig"), []byte(fmt.Sprintf(kubeconfig, bare.URL)), 0o600)
		},
	})
}

// bareCluster answers like an API server that has a namespace, and of further kinds not even the definitions.
func bareCluster(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/v1/namespaces/shop" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"istio.io/use-waypoint":"old"}}}`)
}

// kubeconfig names a server, and shop as the namespace to work in.
const kubeconfig = `{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c, user: u, namespace: shop}}], users: [{name: u, user: {}}]}
`
