// Package suite is the Gateway API's conformance suite as a test binary, for the
// test cluster. Command tests/cluster/cmd/conformance builds and runs it; it needs
// a cluster and is not for `go test`.
package suite

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	upstream "sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/flags"
	upsuite "sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/tests/conformance"
)

// Flags beside the suite's own.
var (
	setFlag       = flag.String("set", "all", "profiles to run: mesh, gateway or all")
	meshFlag      = flag.Bool("mesh", true, "enrol the mesh tests' namespaces; without it nearly all mesh tests must fail")
	resultsFlag   = flag.String("results", "", "file that gets each test's result as JSON")
	addressesFlag = flag.String("addresses", "", "prefix of the addresses for Services of type LoadBalancer; empty hands out none")
	versionFlag   = flag.String("mesh-version", "unreleased", "version of the mesh, for the report")
)

// gatewayClass is the mesh's own class of gateways.
const gatewayClass = "istio"

// TestGatewayAPI runs the upsuite.
func TestGatewayAPI(t *testing.T) {
	opts := upstream.DefaultOptions(t)
	var err error
	if opts.ConformanceProfiles, err = conformance.Profiles(*setFlag); err != nil {
		t.Fatal(err)
	}
	opts.SupportedFeatures = conformance.Claimed(*setFlag)
	opts.SkipTests = append(opts.SkipTests, slices.Sorted(maps.Keys(conformance.Skipped()))...)
	if opts.GatewayClassName == flags.DefaultGatewayClassName {
		opts.GatewayClassName = gatewayClass
	}
	opts.Implementation = confv1.Implementation{
		Organization: "ambit-mesh", Project: "ambit", URL: "https://github.com/ambit-mesh/ambit", Version: *versionFlag,
		Contact: []string{"https://github.com/ambit-mesh/ambit/issues"},
	}
	r := newResults()
	opts.Hook = r.hook

	if *addressesFlag != "" {
		prefix, err := netip.ParsePrefix(*addressesFlag)
		if err != nil {
			t.Fatal(err)
		}
		lb := conformance.NewBalancer(opts.Client, prefix)
		usable, unusable := lb.Reserved()
		opts.UsableNetworkAddresses, opts.UnusableNetworkAddresses = conformance.IPAddress(usable), conformance.IPAddress(unusable)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); lb.Run(ctx, t.Logf) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	s, err := upsuite.NewConformanceTestSuite(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.write(t, s, opts.ReportOutputPath) })
	s.Setup(t, tests.ConformanceTests)
	if *meshFlag && slices.Contains(opts.SupportedFeatures, features.SupportMesh) {
		enrol(t, opts.Client, opts.TimeoutConfig)
	}
	if err := s.Run(t, tests.ConformanceTests); err != nil {
		t.Fatal(err)
	}
}

// results collects verdicts and prints each.
type results struct {
	mu    sync.Mutex
	start time.Time
	by    map[string]string
}

func newResults() *results { return &results{start: time.Now(), by: map[string]string{}} }

func (r *results) hook(t *testing.T, test upsuite.ConformanceTest, _ *upsuite.ConformanceTestSuite) {
	verdict := "pass"
	switch {
	case t.Failed():
		verdict = "fail"
	case t.Skipped():
		verdict = "skip"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.by[test.ShortName] = verdict
	if verdict != "skip" {
		fmt.Fprintf(os.Stderr, "RESULT %4.0fs %s %s\n", time.Since(r.start).Seconds(), verdict, test.ShortName)
	}
}

// write stores the results, and the suite's report if a file is named.
func (r *results) write(t *testing.T, s *upsuite.ConformanceTestSuite, report string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if *resultsFlag != "" {
		b, err := json.MarshalIndent(r.by, "", "  ")
		if err == nil {
			err = os.WriteFile(*resultsFlag, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Errorf("write results: %v", err)
		}
	}
	if report == "" {
		return
	}
	rep, err := s.Report()
	if err != nil {
		t.Errorf("make the report: %v", err)
		return
	}
	b, err := yaml.Marshal(rep)
	if err == nil {
		err = os.WriteFile(report, b, 0o644)
	}
	if err != nil {
		t.Errorf("write the report: %v", err)
	}
}
