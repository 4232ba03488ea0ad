package seeds

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/tests/demo/probe"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
	"github.com/ambit-mesh/ambit/tests/demo/token"
)

// cleanupContext is for what must also run after the test's own context ended.
func cleanupContext(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.Background(), effectTimeout)
}

const (
	edgeNamespace = "istio-ingress"
	edge          = "istio-ingressgateway"
)

// ingress installs chart gateway and returns the address of its Service.
func ingress(t *testing.T) string {
	t.Helper()
	manifest, err := world.InstallGateway(t.Context(), edge, edgeNamespace, map[string]any{"replicaCount": 1, "autoscaling": map[string]any{"enabled": false}})
	t.Cleanup(func() {
		ctx, cancel := cleanupContext(t)
		defer cancel()
		if err := world.Delete(ctx, manifest); err != nil {
			t.Error(err)
		}
	})
	must(t, err)
	ip, err := world.Kubectl(t.Context(), "-n", edgeNamespace, "get", "service", edge, "-o", "jsonpath={.spec.clusterIP}")
	must(t, err)
	return strings.TrimSpace(ip)
}

// TestIngressWithTLSAndToken serves a host at the edge over TLS, sends plain HTTP there, and asks for a token of the
// application's own issuer, whose keys istiod fetches inside the mesh.
func TestIngressWithTLSAndToken(t *testing.T) {
	ip := ingress(t)
	edgeCert := newCertificate(t, "minikube.me")
	secret := edgeCert.secret("hands-on-certificate", edgeNamespace)
	must(t, world.Apply(t.Context(), secret))
	apply(t, "ingress.yaml")
	roots := edgeCert.roots()
	ask := func(args ...string) func(context.Context) (probe.Report, error) {
		args = append([]string{"--cacert", roots, "--connect", ip + ":443"}, append(args, "https://minikube.me/product-composite/1")...)
		return func(ctx context.Context) (probe.Report, error) { return world.Fetch(ctx, outside, stranger, args...) }
	}
	good, err := keys.Token("anna", time.Hour, nil)
	must(t, err)
	old, err := keys.Token("anna", -time.Hour, nil)
	must(t, err)
	other, err := token.NewIssuer("http://auth-server.local")
	must(t, err)
	forged, err := other.Token("mallory", time.Hour, nil)
	must(t, err)
	for _, c := range []struct{ what, status, bearer string }{
		{"a good token", "200", good}, {"no token", "403", ""}, {"an old token", "401", old}, {"a forged token", "401", forged},
	} {
		var args []string
		if c.bearer != "" {
			args = []string{"-H", "Authorization: Bearer " + c.bearer}
		}
		untilStatus(t, c.what, c.status, ask(args...))
	}
	untilStatus(t, "plain HTTP is sent to https", "301", func(ctx context.Context) (probe.Report, error) {
		return world.Fetch(ctx, outside, stranger, "--connect", ip+":80", "http://minikube.me/product-composite/1")
	})
	untilStatus(t, "nothing is at another path", "404", func(ctx context.Context) (probe.Report, error) {
		return world.Fetch(ctx, outside, stranger, "--cacert", roots, "--connect", ip+":443", "https://minikube.me/")
	})
}

// untilStatus asks until one request is answered with the status.
func untilStatus(t *testing.T, what, status string, ask func(context.Context) (probe.Report, error)) probe.Report {
	t.Helper()
	var last probe.Report
	err := stage.Poll(t.Context(), effectTimeout, func(ctx context.Context) error {
		var err error
		if last, err = ask(ctx); err != nil {
			return err
		}
		if last.Status[status] != last.Requests {
			return errors.New("another answer")
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: want %s: %v: %+v", what, status, err, last)
	}
	return last
}

// roots is the certificate as an argument of `tools fetch`.
func (c certificate) roots() string { return "data:" + base64.StdEncoding.EncodeToString(c.chain) }

// secret is the certificate as a TLS Secret.
func (c certificate) secret(name, namespace string) string {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: %s, namespace: %s}\ndata: {tls.crt: %s, tls.key: %s}\n",
		name, namespace, b64(c.chain), b64(c.key))
}
