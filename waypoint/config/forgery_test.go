package config

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// TestForgedHeaders sends every header that a client may not say, in every spelling that an application could take for it.
func TestForgedHeaders(t *testing.T) {
	spell := func(name string) []string {
		words := strings.Split(name, "-")
		out := []string{name, strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.ReplaceAll(name, "-", ".")}
		for i := range words[1:] {
			out = append(out, strings.Join(words[:i+1], "-")+"_"+strings.Join(words[i+1:], "-"))
		}
		return append(out, strings.ToUpper(strings.ReplaceAll(name, "-", "_")), strings.Join(words, "~"))
	}
	both(t, func(t *testing.T, s *stage) {
		for _, name := range []string{
			"x-forwarded-client-cert", "x-ambit-authority", "x-ambit-anything", "x-envoy-anything",
			"x-envoy-attempt-count", "x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
			"x-envoy-expected-rq-timeout-ms", "x-envoy-external-address", "x-envoy-force-trace", "x-envoy-hedge-on-per-try-timeout", "x-envoy-internal",
			"x-envoy-ip-tags", "x-envoy-is-timeout-retry", "x-envoy-max-retries", "x-envoy-original-dst-host", "x-envoy-original-host",
			"x-envoy-original-path", "x-envoy-original-url", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-envoy-retriable-header-names",
			"x-envoy-retriable-status-codes", "x-envoy-retry-grpc-on", "x-envoy-retry-on", "x-envoy-upstream-alt-stat-name",
			"x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-upstream-rq-timeout-ms",
			"x-envoy-upstream-stream-duration-ms",
		} {
			t.Run(name, func(t *testing.T) {
				var lines []string
				for _, n := range spell(name) {
					lines = append(lines, n+": "+forged, n+": 10.9.9.9 "+forged)
				}
				statuses, last := s.say(t, get("/", append(lines, "X_Own: kept", "X-Forwarded-Host: front.example")...))
				got, garbage := s.app.take()
				checkHeard(t, got, garbage, s.xfcc)
				if !slices.Equal(statuses, []int{200}) || !last || len(got) != 2 {
					t.Fatalf("answers %v, %d requests", statuses, len(got))
				}
				if v := got[0].field("x-own"); !slices.Equal(v, []string{"kept"}) {
					t.Errorf("the client's own header: %q", v)
				}
				if v := got[0].field("x-forwarded-host"); !slices.Equal(v, []string{"front.example"}) {
					t.Errorf("what a proxy before ours says: %q", v)
				}
			})
		}
	})
}

// TestForgedBaggage: what the source's node says of the source is for telemetry, and no pod says it. A gateway's clients
// may have baggage of their own, which goes on.
func TestForgedBaggage(t *testing.T) {
	s := waypointStage(t, nil)
	s.say(t, get("/", "baggage: k8s.deployment.name=forged", "Baggage: again=forged"))
	got, garbage := s.app.take()
	checkHeard(t, got, garbage, s.xfcc)
	if len(got) == 0 || len(got[0].field("baggage")) > 0 {
		t.Errorf("%+v", got)
	}
}

// TestUpgradeNamesNoOtherHeaders: an upgrade is passed on with the header that says what is for the next hop only.
func TestUpgradeNamesNoOtherHeaders(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		c := s.open(t)
		c.SetDeadline(time.Now().Add(deadline))
		io.WriteString(c, get("/ws", "Connection: Upgrade, X-Forwarded-Client-Cert, x-request-id", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
		br := bufio.NewReader(c)
		resp := must(http.ReadResponse(br, nil))(t)
		if resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("status %d", resp.StatusCode)
		}
		io.WriteString(c, "frame")
		b := make([]byte, 5)
		if _, err := io.ReadFull(br, b); err != nil || string(b) != "frame" {
			t.Errorf("read %q, %v", b, err)
		}
		got, garbage := s.app.take()
		checkHeard(t, got, garbage, s.xfcc)
		if v := got[0].field("connection"); !slices.Equal(v, []string{"upgrade"}) {
			t.Errorf("connection: %q", v)
		}
	})
}

// TestForgedClaims: a header that a token's claims are written to says what the token says, or nothing.
func TestForgedClaims(t *testing.T) {
	s := waypointStage(t, func(w *world) {
		rule := model.JWTRule{
			Issuer: "https://issuer.example", JWKS: model.UnusableJWKS, OutputHeader: "x-payload",
			ClaimToHeaders: []model.ClaimHeader{{Header: "x-subject", Claim: "sub"}},
		}
		w.input.proxy.HTTP.JWT = []model.JWTRequirement{{Name: "r", Rules: []model.JWTRule{rule}}}
		for _, table := range w.input.tables {
			table.Hosts[0].Policy.JWT, table.Hosts[0].Policy.Requirement = []model.JWTRule{rule}, "r"
		}
	})
	statuses, _ := s.say(t, get("/", "X-Payload: forged", "x-subject: forged"))
	got, _ := s.app.take()
	if !slices.Equal(statuses, []int{200}) || len(got) == 0 {
		t.Fatalf("answers %v", statuses)
	}
	for _, name := range []string{"x-payload", "x-subject"} {
		if v := got[0].field(name); len(v) > 0 {
			t.Errorf("%s: %q", name, v)
		}
	}
}

// TestPortOfUnknownProtocol: what does not look like HTTP is not judged as HTTP, so a policy on requests must deny all of it.
func TestPortOfUnknownProtocol(t *testing.T) {
	s := waypointStage(t, func(w *world) { w.input.tables[1].Hosts[0].Rules[0].Clusters[0].Cluster = bannerSvc })
	s.pod.app(2525, s.app.addr())
	alice := s.client(t, aliceID)
	s.open = func(t *testing.T) net.Conn { return alice.dial(t, autoVIP) }
	if statuses, _ := s.say(t, get("/a")); !slices.Equal(statuses, []int{200}) {
		t.Errorf("HTTP: %v", statuses)
	}
	s.app.take()
	for _, raw := range []string{
		get("/admin"), "\r\n" + get("/admin"), "\n\n" + get("/admin"), " " + get("/admin"), "get /admin HTTP/1.1\r\nHost: web\r\n\r\n",
		"GET /admin HTTP/1.1\nHost: web\n\n", "GET\t/admin HTTP/1.1\r\nHost: web\r\n\r\n", "GET /admin\r\n", "X /admin HTTP/1.1\r\nHost: web\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + get("/admin"), "\x00" + get("/admin"), strings.Repeat("A", 70<<10) + " /admin HTTP/1.1\r\n\r\n",
	} {
		statuses, _ := s.say(t, raw)
		got, garbage := s.app.take()
		for _, h := range got {
			if h.target != "/last" {
				t.Errorf("%.40q: the application got %q", raw, h.head)
			}
		}
		if slices.Contains(statuses, 200) || len(garbage) > 0 {
			t.Errorf("%.40q: answers %v, the application got %.80q", raw, statuses, garbage)
		}
	}
}
