package show

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/tests/demo/probe"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
	"github.com/ambit-mesh/ambit/tests/demo/token"
)

const (
	// samples is how many requests show a split: outside of 5 to 40 % for a share of 20 % is a chance below one in a million.
	samples = 200
	// tokenLife is more than the demo takes.
	tokenLife = time.Hour
)

// waypoint deploys one and sends the catalog's traffic through it, while the load goes on.
func (d *demo) waypoint(ctx context.Context) error {
	d.command("ambit waypoint apply -n %s --wait", stage.Namespace)
	begin := time.Now()
	if _, err := d.Ambit(ctx, "waypoint", "apply", "-n", stage.Namespace, "--wait"); err != nil {
		return err
	}
	d.check(true, "a waypoint runs", "a stock Envoy, configured by istiod, within %.1f s", time.Since(begin).Seconds())
	for _, ns := range []string{stage.Namespace, stage.Outside} {
		if err := d.ResetLoad(ctx, ns); err != nil {
			return err
		}
	}
	d.command("kubectl -n %s label service catalog istio.io/use-waypoint=waypoint", stage.Namespace)
	if _, err := d.Kubectl(ctx, "-n", stage.Namespace, "label", "service", "catalog", "istio.io/use-waypoint=waypoint"); err != nil {
		return err
	}
	var seen probe.Report
	err := stage.Poll(ctx, logTimeout, func(ctx context.Context) error {
		var err error
		if seen, err = d.visit(ctx, "http://catalog/products"); err != nil {
			return err
		}
		if seen.LastHeaders.Get("server") != "envoy" && seen.LastHeaders.Get("x-envoy-upstream-service-time") == "" {
			return errors.New("the answer does not come through an Envoy")
		}
		return nil
	})
	d.check(err == nil, "the catalog's traffic passes the waypoint", "status %v, header server: %s%s", seen.Status, seen.LastHeaders.Get("server"), errorText(err))
	r, err := d.MoreTraffic(ctx, glance)
	if err != nil {
		return err
	}
	d.check(r.Broken() == 0, "no request failed on the way there", "%s", stage.Describe(r))
	return nil
}

// visit makes requests from a load generator's pod, each on a new connection.
func (d *demo) visit(ctx context.Context, url string, args ...string) (probe.Report, error) {
	return d.Fetch(ctx, stage.Namespace, "app="+stage.Load, append(args, url)...)
}

// secondCatalog is the new version, with a Service of its own for each version, and splitRoute who gets which.
const secondCatalog = `apiVersion: apps/v1
kind: Deployment
metadata: {name: catalog-new, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog, version: v2}}
  template:
    metadata: {labels: {app: catalog, version: v2}}
    spec:
      serviceAccountName: catalog
      terminationGracePeriodSeconds: 2
      containers:
      - name: catalog
        image: %s
        args: [catalog]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: catalog-v1, namespace: shop}
spec: {selector: {app: catalog, version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog-v2, namespace: shop}
spec: {selector: {app: catalog, version: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}
`

const splitRoute = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: catalog, port: 80}]
  rules:
  - backendRefs:
    - {name: catalog-v1, port: 80, weight: 80}
    - {name: catalog-v2, port: 80, weight: 20}
`

// split rolls a new version out to some. The route is there before the new version is, so that it gets no more.
func (d *demo) split(ctx context.Context) error {
	// The route comes first: without it the new pods would get their share of everything at once.
	services := secondCatalog[strings.Index(secondCatalog, "---"):]
	if err := d.Apply(ctx, services); err != nil {
		return err
	}
	d.command("kubectl apply -f - <<<'%s'", strings.ReplaceAll(strings.TrimSpace(splitRoute), "\n", `\n`))
	if err := d.Apply(ctx, strings.ReplaceAll(splitRoute, "weight: 20", "weight: 0")); err != nil {
		return err
	}
	if err := d.Apply(ctx, fmt.Sprintf(secondCatalog, d.Image("shop"))); err != nil {
		return err
	}
	if err := d.WaitRollout(ctx, stage.Namespace, "deployment", "catalog-new"); err != nil {
		return err
	}
	if err := d.Apply(ctx, splitRoute); err != nil {
		return err
	}
	versions := map[string]int{}
	err := stage.Poll(ctx, logTimeout, func(ctx context.Context) error {
		r, err := d.visit(ctx, "http://catalog/products", "-n", fmt.Sprint(samples))
		if err != nil {
			return err
		}
		clear(versions)
		for pod, n := range r.Pods {
			if strings.HasPrefix(pod, "catalog-new-") {
				versions["new"] += n
			} else {
				versions["old"] += n
			}
		}
		if versions["old"]+versions["new"] != samples || versions["new"] < samples*5/100 || versions["new"] > samples*40/100 {
			return fmt.Errorf("%v of %d requests: %v", versions, samples, r.Status)
		}
		return nil
	})
	d.check(err == nil, "some visitors see the new catalog", "%d of %d requests went to the new version%s", versions["new"], samples, errorText(err))
	return nil
}

const tokenPolicy = `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: catalog, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: catalog}]
  jwtRules:
  - issuer: staff@shop
    jwks: '%s'
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: stock-for-staff, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: catalog}]
  action: DENY
  rules:
  - to: [{operation: {paths: ["/stock"]}}]
    from: [{source: {notRequestPrincipals: ["*"]}}]
`

// token asks for one where the stock is told.
func (d *demo) token(ctx context.Context) error {
	keys, good, err := issue("staff@shop", "anna")
	if err != nil {
		return err
	}
	_, forged, err := issue("staff@shop", "mallory")
	if err != nil {
		return err
	}
	d.command("kubectl apply -f RequestAuthentication staff@shop, AuthorizationPolicy DENY /stock without a token")
	if err := d.Apply(ctx, fmt.Sprintf(tokenPolicy, keys)); err != nil {
		return err
	}
	ask := func(want, bearer string) (string, error) {
		var got probe.Report
		err := stage.Poll(ctx, logTimeout, func(ctx context.Context) error {
			args := []string{}
			if bearer != "" {
				args = []string{"-H", "Authorization: Bearer " + bearer}
			}
			var err error
			if got, err = d.visit(ctx, "http://catalog/stock", args...); err != nil {
				return err
			}
			if got.Status[want] != 1 {
				return fmt.Errorf("status %v, want %s", got.Status, want)
			}
			return nil
		})
		return fmt.Sprintf("%v", got.Status), err
	}
	for _, c := range []struct{ what, want, bearer string }{
		{"without a token the stock is not told", "403", ""},
		{"nor with a token of somebody else's key", "401", forged},
		{"with a good token it is", "200", good},
	} {
		got, err := ask(c.want, c.bearer)
		d.check(err == nil, c.what, "status %s%s", got, errorText(err))
	}
	r, err := d.MoreTraffic(ctx, glance)
	if err != nil {
		return err
	}
	d.check(r.Broken() == 0, "visitors looked at products all the time", "%s", stage.Describe(r))
	return nil
}

// issue makes an issuer, and a token of it.
func issue(issuer, subject string) (keys, signed string, err error) {
	i, err := token.NewIssuer(issuer)
	if err != nil {
		return "", "", err
	}
	signed, err = i.Token(subject, tokenLife, nil)
	return i.Keys(), signed, err
}
