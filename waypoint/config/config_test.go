package config

import (
	"errors"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

func TestTunnelWithoutIdentityIsRefused(t *testing.T) {
	e := endpointsOf(nil, pod("10.1.0.1:80"), pod("10.1.0.2:80", func(e *model.ProxyEndpoint) { e.Identity = "" }))
	if _, err := Endpoints(waypoint(), e[0]); !errors.Is(err, errNoIdentity) {
		t.Errorf("error %v: nobody would be pinned", err)
	}
}

func TestTextThatCannotBeSentIsAnError(t *testing.T) {
	p := waypoint(func(p *model.Proxy) { p.TrustDomain = "\xff" })
	if _, err := Proxy(p); err == nil {
		t.Error("a trust domain that is not UTF-8 was accepted")
	}
	if _, err := Cluster(waypoint(), web(clusterTLS(model.ClusterTLS{ClientTLS: model.ClientTLS{Mode: model.TLSSimple, SNI: "\xff"}}))); err == nil {
		t.Error("a server name that is not UTF-8 was accepted")
	}
}

func TestLabelFormat(t *testing.T) {
	for expr, want := range map[string]string{
		`'100%'`:                      "100%%",
		` "fixed" `:                   "fixed",
		`'a' + 'b'`:                   "%CEL('a' + 'b')%",
		`request.headers['x-a']`:      "%REQ(x-a)%",
		`request.headers["x-a"]`:      "%REQ(x-a)%",
		`request.headers['a)%REQ(b']`: names.Unknown,
		"request.host":                "%REQ(:AUTHORITY)%",
		"request.size":                "%CEL(request.size)%",
	} {
		if got := labelFormat(expr); got != want {
			t.Errorf("%s becomes %s, want %s", expr, got, want)
		}
	}
}

func TestTLSVersion(t *testing.T) {
	const def = tlsv3.TlsParameters_TLSv1_2
	for s, want := range map[string]tlsv3.TlsParameters_TlsProtocol{
		"": def, "TLS_AUTO": def, "nonsense": def,
		"TLSV1_0": tlsv3.TlsParameters_TLSv1_0, "TLSv1.1": tlsv3.TlsParameters_TLSv1_1,
		"1.2": tlsv3.TlsParameters_TLSv1_2, "TLSV1_3": tlsv3.TlsParameters_TLSv1_3,
	} {
		if got := tlsVersion(s, def); got != want {
			t.Errorf("%q is %v, want %v", s, got, want)
		}
	}
}

func TestInPlace(t *testing.T) {
	l := model.Locality{Region: "r", Zone: "z", Subzone: "s"}
	for pattern, want := range map[string]bool{
		"*": true, "r": true, "r/*": true, "r/z": true, "r/z/*": true, "r/z/s": true,
		"r/z/s/more": false, "other/*": false, "r/other/*": false, "r/z/other": false, "": false,
	} {
		if got := inPlace(pattern, l); got != want {
			t.Errorf("%q: %v, want %v", pattern, got, want)
		}
	}
}
