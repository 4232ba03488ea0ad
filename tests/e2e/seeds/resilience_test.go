package seeds

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/tests/demo/probe"
)

// TestAbortAFifth makes 20 % of the requests fail with 500.
func TestAbortAFifth(t *testing.T) {
	apply(t, "product-fault.yaml", "fault", "abort: {httpStatus: 500, percentage: {value: 20}}")
	until(t, "a fifth fails", func(r probe.Report) bool {
		bad := r.Status["500"]
		return bad+r.OK() == 400 && bad > 40 && bad < 130 // of 400; outside is a chance below 1 in a million
	}, "-n", "400", "-c", "4", "http://product/")
}

// TestDelayEverything makes every request three seconds slow.
func TestDelayEverything(t *testing.T) {
	apply(t, "product-fault.yaml", "fault", "delay: {fixedDelay: 3s, percentage: {value: 100}}")
	until(t, "every request takes three seconds", func(r probe.Report) bool {
		return r.OK() == 6 && r.P50 >= 3000 && r.Max < 6000
	}, "-n", "6", "-c", "6", "http://product/")
}

// TestRetriesRideOutFailures repeats what fails, and ends what takes too long.
func TestRetriesRideOutFailures(t *testing.T) {
	r := fetch(t, "-n", "200", "-c", "4", "http://product/?failpercent=20")
	if bad := r.Status["500"]; bad < 15 {
		t.Fatalf("without the rule about 40 of 200 requests should fail: %+v", r)
	}
	apply(t, "product-retries.yaml")
	until(t, "retries", func(r probe.Report) bool { return r.OK() == 200 }, "-n", "200", "-c", "4", "http://product/?failpercent=20")
	r = fetch(t, "http://product/slow?delay=10s")
	if r.Status["504"] != 1 || r.Max < 900 || r.Max > 5000 {
		t.Errorf("a timeout of a second: %+v", r)
	}
}

// TestCircuitBreaker lets one request through and refuses what would wait.
func TestCircuitBreaker(t *testing.T) {
	if r := fetch(t, "-n", "20", "-c", "10", "http://product/?delay=200ms"); r.OK() != 20 {
		t.Fatalf("without the rule all requests succeed: %+v", r)
	}
	apply(t, "product-breaker.yaml", "policy", "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, http2MaxRequests: 1}}")
	until(t, "requests that would wait are refused", func(r probe.Report) bool {
		return r.Status["503"] > 5 && r.OK() > 0
	}, "-n", "30", "-c", "10", "http://product/?delay=200ms")
}

// TestOutlierEjection leaves out the endpoint that fails.
func TestOutlierEjection(t *testing.T) {
	pods, err := world.Pods(t.Context(), namespace, "app=product,version=v2")
	must(t, err)
	control(t, pods[0].Name, "503")
	t.Cleanup(func() { control(t, pods[0].Name, "200") })
	until(t, "an endpoint fails", func(r probe.Report) bool { return r.Status["503"] > 3 }, "-n", "60", "http://product/")
	apply(t, "product-breaker.yaml", "policy", "outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 50}")
	until(t, "it is left out", func(r probe.Report) bool { return r.OK() == 60 }, "-n", "60", "http://product/")
}

// control makes a product pod answer everything with a status. It asks on the pod's loopback.
func control(t *testing.T, pod, status string) {
	t.Helper()
	ctx, cancel := cleanupContext(t)
	defer cancel()
	if _, err := world.Exec(ctx, namespace, pod, "/usr/local/bin/tools", "get", "http://127.0.0.1:8080/control?status="+status); err != nil {
		t.Error(err)
	}
}

// TestStrictRefusesPlaintext changes PERMISSIVE to STRICT: who is in the mesh does not notice, who is not is refused.
func TestStrictRefusesPlaintext(t *testing.T) {
	apply(t, "strict.yaml", "mode", "PERMISSIVE")
	pods, err := world.Pods(t.Context(), namespace, "app=product,version=v1")
	must(t, err)
	direct := "http://" + pods[0].Status.PodIP + ":8080/"
	ask := func() probe.Report {
		r, err := world.Fetch(t.Context(), outside, stranger, "-n", "5", "--timeout", "2s", direct)
		must(t, err)
		return r
	}
	if r := ask(); r.OK() != 5 {
		t.Fatalf("PERMISSIVE takes plaintext: %+v", r)
	}
	apply(t, "strict.yaml", "mode", "STRICT")
	deadline := time.Now().Add(effectTimeout)
	for r := ask(); r.OK() > 0; r = ask() {
		if time.Now().After(deadline) {
			t.Fatalf("STRICT still takes plaintext: %+v", r)
		}
	}
	if r := fetch(t, "-n", "50", "http://product/"); r.OK() != 50 {
		t.Errorf("inside the mesh: %+v", r)
	}
}
