package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	rpc "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ambit-mesh/ambit/tests/bench/load"
)

func TestWaypointReportEndsWithJSON(t *testing.T) {
	sample := func(scenario string, through bool, units uint64) waySample {
		return waySample{scenario, through, load.Result{Units: units, Elapsed: time.Second}, map[string]time.Duration{
			roleClient: time.Second, threadRole("wrk:worker_0"): time.Second, threadRole("dispatcher"): time.Second}}
	}
	r := wayResult{
		pushes: []push{{full: time.Second, resources: map[string]int{"a/b.v3.Cluster": 7}}, {full: 3 * time.Second}, {full: 2 * time.Second}},
		rss:    150e6, rssLoaded: 160e6,
		samples: []waySample{sample("h1_16", false, 1000), sample("h1_16", true, 400), sample("h2c_16", false, 1000), sample("h2c_16", true, 700)},
	}
	for i := range 200 {
		r.changes = append(r.changes, change{ack: time.Duration(i+1) * time.Millisecond, bytes: i})
	}
	var out bytes.Buffer
	if err := r.report(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var got waySummary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("last line %q: %v", lines[len(lines)-1], err)
	}
	want := waySummary{FullPushS: 3, ChangeAckP99ms: 199, ChangeBytes: 199, EnvoyRSSMB: 150, H1: 0.4, H2C: 0.7}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "wrk:worker_0") || strings.Contains(out.String(), "dispatcher") || !strings.Contains(out.String(), "7 Cluster") {
		t.Errorf("table:\n%s", out.String())
	}
}

func TestNotesPairResponsesWithAcknowledgements(t *testing.T) {
	n := notes{sent: map[string]*note{}}
	for _, nonce := range []string{"1", "2"} {
		n.response(&discovery.DeltaDiscoveryResponse{Nonce: nonce, TypeUrl: "t", Resources: []*discovery.Resource{{Name: "a"}, {Name: "b"}}})
	}
	n.request(&discovery.DeltaDiscoveryRequest{TypeUrl: "t", ResourceNamesSubscribe: []string{"c"}}) // acknowledges nothing
	n.request(&discovery.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: "1"})
	got := n.total()
	if got.unacked != 1 || got.responses != 2 || got.resources["t"] != 4 || got.bytes == 0 || got.refused != "" || got.lastAck.IsZero() {
		t.Errorf("after one acknowledgement: %+v", got)
	}
	n.request(&discovery.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: "2", ErrorDetail: &rpc.Status{Message: "bad"}})
	if got := n.total(); got.unacked != 0 || got.refused != "t: bad" {
		t.Errorf("after a refusal: %+v", got)
	}
}

func TestReadStat(t *testing.T) {
	s, err := readStat("/proc/self/stat")
	if err != nil || s.command == "" || s.started <= 0 {
		t.Errorf("readStat of this process = %+v, %v", s, err)
	}
	file := t.TempDir() + "/stat"
	if err := os.WriteFile(file, []byte("1 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 12345 0"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readStat(file)
	if want := (stat{command: "a b) c", cpu: 2 * time.Second, started: 123450 * time.Millisecond}); err != nil || got != want {
		t.Errorf("readStat = %+v, %v; want %+v", got, err, want)
	}
}
