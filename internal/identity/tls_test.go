package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

const (
	webURI = "spiffe://td/ns/shop/sa/web"
	apiURI = "spiffe://td/ns/shop/sa/api"
)

func always(c *Certificate) func(context.Context) (*Certificate, error) {
	return func(context.Context) (*Certificate, error) { return c, nil }
}

// meet runs one handshake over loopback, followed by one byte each way, and returns
// what each side saw.
func meet(t *testing.T, server, client *tls.Config) (serverState, clientState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	side := func(c *tls.Conn) (tls.ConnectionState, error) {
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return tls.ConnectionState{}, err
		}
		if err := c.Handshake(); err != nil {
			return c.ConnectionState(), err
		}
		// In TLS 1.3 a client learns only now that its certificate was refused.
		if _, err := c.Write([]byte{1}); err != nil {
			return c.ConnectionState(), err
		}
		_, err := c.Read(make([]byte, 1))
		return c.ConnectionState(), err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		serverState, serverErr = side(tls.Server(raw, server))
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientState, clientErr = side(tls.Client(raw, client))
	<-done
	return serverState, clientState, serverErr, clientErr
}

func TestMutualTLS(t *testing.T) {
	ca := newCA(t)
	web, api := ca.issue(t, nil, webURI), ca.issue(t, nil, apiURI)
	ss, cs, serr, cerr := meet(t, ServerTLS(always(api)), ClientTLS(web, []string{"spiffe://td/ns/x/sa/y", apiURI}))
	if serr != nil || cerr != nil {
		t.Fatalf("server: %v, client: %v", serr, cerr)
	}
	for name, s := range map[string]struct {
		state tls.ConnectionState
		peer  string
	}{"server": {ss, webURI}, "client": {cs, apiURI}} {
		if s.state.Version != tls.VersionTLS13 || s.state.NegotiatedProtocol != "h2" || s.state.DidResume || s.state.ServerName != "" {
			t.Errorf("%s: version %x, protocol %q, resumed %v, server name %q", name, s.state.Version, s.state.NegotiatedProtocol, s.state.DidResume, s.state.ServerName)
		}
		if id, err := Peer(s.state); err != nil || id.String() != s.peer {
			t.Errorf("%s sees peer %q, %v; want %q", name, id, err, s.peer)
		}
	}
}

// TestServerRefuses is about clients that a server must not let in.
func TestServerRefuses(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	api := ca.issue(t, nil, apiURI)
	good := ca.issue(t, nil, webURI)
	change := func(cfg *tls.Config, f func(*tls.Config)) *tls.Config { f(cfg); return cfg }
	as := func(c *Certificate) *tls.Config { return ClientTLS(c, []string{apiURI}) }
	trusting := func(c *Certificate) *Certificate { c.Roots = api.Roots; return c }
	for name, tc := range map[string]struct {
		client *tls.Config
		want   string // in the server's error
	}{
		"no certificate":         {change(as(good), func(c *tls.Config) { c.Certificates = nil }), "certificate"},
		"other authority":        {as(trusting(other.issue(t, nil, webURI))), "unknown authority"},
		"other trust domain":     {as(ca.issue(t, nil, "spiffe://td2/ns/shop/sa/web")), "trust domain"},
		"no identity":            {as(ca.issue(t, nil)), "0 URI SANs"},
		"two identities":         {as(ca.issue(t, nil, webURI, apiURI)), "2 URI SANs"},
		"not a SPIFFE id":        {as(ca.issue(t, nil, "https://td/ns/shop/sa/web")), "invalid SPIFFE identity"},
		"not our kind of id":     {as(ca.issue(t, nil, "spiffe://td/node/1")), "invalid SPIFFE identity"},
		"expired":                {as(ca.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, webURI)), "expired"},
		"not yet valid":          {as(ca.issue(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, webURI)), "not yet valid"},
		"for servers only":       {as(ca.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, webURI)), "key usage"},
		"an authority's own":     {as(ca.issue(t, func(c *x509.Certificate) { c.IsCA = true }, webURI)), "authority's own"},
		"http/1.1 only":          {change(as(good), func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }), "application protocol"},
		"some other protocol":    {change(as(good), func(c *tls.Config) { c.NextProtos = []string{"h3"} }), "application protocol"},
		"TLS 1.2":                {change(as(good), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), "unsupported versions"},
		"an unknown certificate": {as(trusting(other.issue(t, nil, apiURI))), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, serr, cerr := meet(t, ServerTLS(always(api)), tc.client)
			if serr == nil || !strings.Contains(serr.Error(), tc.want) {
				t.Errorf("server: %v, want an error with %q", serr, tc.want)
			}
			if cerr == nil {
				t.Error("the client noticed nothing")
			}
		})
	}
}

func TestServerAccepts(t *testing.T) {
	ca := newCA(t)
	api, web := ca.issue(t, nil, apiURI), ca.issue(t, nil, webURI)
	for name, tc := range map[string]struct {
		client *Certificate
		protos []string
		more   []string // trust domains
		proto  string
	}{
		"no ALPN":                     {web, nil, nil, ""},
		"h2 among others":             {web, []string{"http/1.1", "h2"}, nil, "h2"},
		"a trust domain that is said": {ca.issue(t, nil, "spiffe://td2/ns/shop/sa/web"), []string{"h2"}, []string{"td", "td2"}, "h2"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := ClientTLS(tc.client, []string{apiURI})
			cfg.NextProtos = tc.protos
			ss, _, serr, cerr := meet(t, ServerTLS(always(api), tc.more...), cfg)
			if serr != nil || cerr != nil || ss.NegotiatedProtocol != tc.proto {
				t.Errorf("server: %v, client: %v, protocol %q; want %q", serr, cerr, ss.NegotiatedProtocol, tc.proto)
			}
		})
	}
}

// TestClientRefuses is about servers that a client must not talk to.
func TestClientRefuses(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	web := ca.issue(t, nil, webURI)
	trusting := func(c *Certificate) *Certificate { c.Roots = web.Roots; return c }
	server := func(edit func(*x509.Certificate), uris ...string) *Certificate {
		c := ca.issue(t, edit, uris...)
		c.Identity = Identity{"td", "shop", "api"}
		return c
	}
	for name, tc := range map[string]struct {
		server  *Certificate
		allowed []string
		want    string
	}{
		"another identity":     {server(nil, apiURI), []string{"spiffe://td/ns/shop/sa/db"}, "is not one of"},
		"nothing allowed":      {server(nil, apiURI), nil, "is not one of"},
		"prefix of an allowed": {server(nil, apiURI), []string{apiURI + "2"}, "is not one of"},
		"no identity":          {server(nil), []string{apiURI}, "is not one of"},
		"other authority":      {trusting(other.issue(t, nil, apiURI)), []string{apiURI}, "unknown authority"},
		"expired":              {server(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, apiURI), []string{apiURI}, "expired"},
		"for clients only":     {server(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, apiURI), []string{apiURI}, "key usage"},
		"an authority's own":   {server(func(c *x509.Certificate) { c.IsCA = true }, apiURI), []string{apiURI}, "authority's own"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, serr, cerr := meet(t, ServerTLS(always(tc.server)), ClientTLS(web, tc.allowed))
			if cerr == nil || !strings.Contains(cerr.Error(), tc.want) || !errors.Is(cerr, ErrPeer) {
				t.Errorf("client: %v, want ErrPeer with %q", cerr, tc.want)
			}
			if serr == nil {
				t.Error("the server noticed nothing")
			}
		})
	}
	t.Run("any URI SAN suffices", func(t *testing.T) {
		_, _, serr, cerr := meet(t, ServerTLS(always(server(nil, "spiffe://x/ns/y/sa/z", apiURI))), ClientTLS(web, []string{apiURI}))
		if serr != nil || cerr != nil {
			t.Errorf("server: %v, client: %v", serr, cerr)
		}
	})
}

// TestRotation: certificate and roots of a running server change between handshakes.
func TestRotation(t *testing.T) {
	old, next := newCA(t), newCA(t)
	current := old.issue(t, nil, apiURI)
	server := ServerTLS(func(context.Context) (*Certificate, error) { return current, nil })
	oldClient, newClient := old.issue(t, nil, webURI), next.issue(t, nil, webURI)
	check := func(c *Certificate, want bool) {
		t.Helper()
		_, _, serr, cerr := meet(t, server, ClientTLS(c, []string{apiURI}))
		if got := serr == nil && cerr == nil; got != want {
			t.Errorf("handshake succeeded = %v, want %v (server: %v, client: %v)", got, want, serr, cerr)
		}
	}
	check(oldClient, true)
	check(newClient, false)
	// Both roots are known before the new one signs.
	both := old.issue(t, nil, apiURI)
	both.Roots.AddCert(next.cert)
	current = both
	newClient.Roots.AddCert(old.cert)
	check(oldClient, true)
	check(newClient, true)
	current = next.issue(t, nil, apiURI)
	check(newClient, true)
	check(oldClient, false)
}

func TestServerWithoutCertificate(t *testing.T) {
	web := newCA(t).issue(t, nil, webURI)
	server := ServerTLS(func(context.Context) (*Certificate, error) { return nil, errors.New("none yet") })
	if _, _, serr, _ := meet(t, server, ClientTLS(web, []string{apiURI})); serr == nil || !strings.Contains(serr.Error(), "none yet") {
		t.Errorf("server: %v", serr)
	}
}

func TestPeerWithoutCertificate(t *testing.T) {
	if id, err := Peer(tls.ConnectionState{}); !errors.Is(err, ErrPeer) || !id.IsZero() {
		t.Errorf("Peer = %v, %v; want ErrPeer", id, err)
	}
}
