package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/ztunnel/state"
)

func TestBaggageLeavesOutWhatIsUnknown(t *testing.T) {
	w := &state.Workload{
		ClusterID: "c", Namespace: "ns", WorkloadType: "deployment", WorkloadName: "shop", CanonicalName: "shop-svc",
		CanonicalRevision: "v2", Locality: state.Locality{Region: "r", Zone: "z"},
	}
	for _, tt := range []struct {
		name string
		w    *state.Workload
		want string
	}{
		{"none", nil, ""},
		{"empty", &state.Workload{}, ""},
		{"name only, kind defaults to pod", &state.Workload{WorkloadName: "p"}, "k8s.pod.name=p"},
		{"all", w, "k8s.cluster.name=c,k8s.namespace.name=ns,k8s.deployment.name=shop,service.name=shop-svc,service.version=v2,cloud.region=r,cloud.availability_zone=z"},
	} {
		if got := baggage(tt.w); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseBaggageKeepsWhatItKnows(t *testing.T) {
	got := parseBaggage("k8s.cluster.name=c, k8s.namespace.name=ns,k8s.job.name=j,service.name=,unknown=x,broken,cloud.region=r,cloud.availability_zone=z,service.version=v")
	want := baggageInfo{cluster: "c", namespace: "ns", workload: "j", region: "r", zone: "z", revision: "v"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestForwardedNamesClientAndService(t *testing.T) {
	for _, tt := range []struct{ client, host, want string }{
		{"10.0.0.1:5", "", `for="10.0.0.1:5"`},
		{"10.0.0.1:5", "a.b.svc", `for="10.0.0.1:5";host=a.b.svc`},
		{"[fd00::1]:5", "a", `for="[fd00::1]:5";host=a`},
	} {
		got := forwarded(netip.MustParseAddrPort(tt.client), tt.host)
		if got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if back := parseForwardedHost(got); back != tt.host {
			t.Errorf("parse %q: got host %q, want %q", got, back, tt.host)
		}
	}
}

func TestParseForwardedHostRefusesOddities(t *testing.T) {
	for value, want := range map[string]string{
		`host="quoted.host"`:         "quoted.host",
		`for=x;HOST=upper`:           "upper",
		`host=`:                      "",
		``:                           "",
		"host=\xff":                  "",
		`for=a, host=second-element`: "",
	} {
		if got := parseForwardedHost(value); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}

func TestMalformedTraceparentIsReplaced(t *testing.T) {
	good := "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	if got := traceparentOr(good); got != good {
		t.Errorf("a good one was replaced by %q", got)
	}
	for _, bad := range []string{
		"", "00", strings.ToUpper(good), good + "0", strings.Replace(good, "-", "_", 1),
		"00-00000000000000000000000000000000-0123456789abcdef-01",
		"00-0123456789abcdef0123456789abcdef-0000000000000000-01",
		"ff-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
		"00-0123456789abcdef0123456789abcdeg-0123456789abcdef-01",
		"0-00123456789abcdef0123456789abcdef-0123456789abcdef-01",
		strings.Repeat("-", traceLength), strings.Repeat("é", traceLength/2) + "-",
	} {
		got := traceparentOr(bad)
		if got == bad || !validTraceparent(got) {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func TestParseAuthority(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want authority
		bad  bool
	}{
		{in: "10.0.0.1:80", want: authority{addr: netip.MustParseAddrPort("10.0.0.1:80"), port: 80}},
		{in: "[::ffff:10.0.0.1]:80", want: authority{addr: netip.MustParseAddrPort("10.0.0.1:80"), port: 80}},
		{in: "[fd00::1]:80", want: authority{addr: netip.MustParseAddrPort("[fd00::1]:80"), port: 80}},
		{in: "Web.Shop.svc:8080", want: authority{host: "web.shop.svc", port: 8080}},
		{in: "10.0.0.1", bad: true},
		{in: "10.0.0.1:0", bad: true},
		{in: "10.0.0.1:70000", bad: true},
		{in: "web", bad: true},
		{in: "web:", bad: true},
		{in: ":80", bad: true},
		{in: "we b:80", bad: true},
		{in: "web:80:90", bad: true},
		{in: "fd00::1:80", bad: true},
		{in: "[fe80::1%eth0]:80", bad: true},
		{in: strings.Repeat("a", maxHost+1) + ":80", bad: true},
		{in: "", bad: true},
	} {
		got, err := parseAuthority(tt.in)
		if (err != nil) != tt.bad {
			t.Errorf("%q: error %v, want error %t", tt.in, err, tt.bad)
			continue
		}
		if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(authority{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, d)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:80", "a.b:1", ":", "", "a:99999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAuthority(s)
		if err != nil {
			return
		}
		if a.port == 0 || (a.host == "") == !a.addr.IsValid() {
			t.Errorf("%q: accepted as %+v", s, a)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
	f.Add(`for="[::1]:1";host=a`)
	f.Add("k8s.cluster.name=c,a=b=c")
	f.Fuzz(func(t *testing.T, s string) {
		if !validTraceparent(traceparentOr(s)) {
			t.Errorf("traceparent of %q is not valid", s)
		}
		parseForwardedHost(s)
		parseBaggage(s)
	})
}
