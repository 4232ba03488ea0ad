// Package dial connects to istiod, for the xDS client and the certificate client:
// one address form, one way to check the server, one way to prove who calls.
//
// It always holds that over https:// the server is verified against the roots in a
// file that is read anew at each handshake, so rotated roots need no restart, and
// that the token is read anew at each call. Proxies set in the environment are
// ignored: the control plane is inside the cluster. It does not retry; callers do.
package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ambit-mesh/ambit/api/ports"
)

const (
	// keepaliveAfter is when a silent connection is probed. Servers must allow pings
	// this often (istiod's enforcement minimum is 15 s); shorter than the idle limits
	// of the usual load balancers and NATs.
	keepaliveAfter = 30 * time.Second
	// keepaliveTimeout is how long an answer to a probe may take.
	keepaliveTimeout = 10 * time.Second
	// connectTimeout bounds TCP connect and TLS handshake of one attempt.
	connectTimeout = 10 * time.Second
	// maxConnectBackoff keeps gRPC's own wait between attempts short: a control plane
	// that comes back must be found within seconds.
	maxConnectBackoff = 5 * time.Second
	// maxTokenBytes bounds the token file; a projected token is about 1 KiB.
	maxTokenBytes = 64 << 10
)

// Options say where istiod is and who calls.
type Options struct {
	Address    string // https://host:port, or http://host:port for plaintext
	RootFile   string // PEM; needed for https
	ServerName string // checked against the server's certificate; default ports.IstiodServerName
	TokenFile  string // empty means no token
	ClusterID  string
}

// Check says what is wrong with o, without connecting.
func (o Options) Check() error {
	_, _, err := o.target()
	return err
}

func (o Options) target() (hostPort string, secure bool, err error) {
	u, err := url.Parse(o.Address)
	if err != nil {
		return "", false, fmt.Errorf("parse address %q: %w", o.Address, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
		strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", false, fmt.Errorf("parse address %q: want https://host:port or http://host:port", o.Address)
	}
	secure = u.Scheme == "https"
	if secure && o.RootFile == "" {
		return "", false, fmt.Errorf("check address %q: https needs a file of root certificates", o.Address)
	}
	return u.Host, secure, nil
}

// New makes a connection that dials when first used. The caller closes it.
func New(o Options, extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	hostPort, secure, err := o.target()
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if secure {
		name := o.ServerName
		if name == "" {
			name = ports.IstiodServerName
		}
		transport = &rootFileTLS{rootFile: o.RootFile, serverName: name}
	}
	connect := backoff.DefaultConfig
	connect.MaxDelay = maxConnectBackoff
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(caller{tokenFile: o.TokenFile, clusterID: o.ClusterID}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: connect, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveAfter, Timeout: keepaliveTimeout}),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}, extra...)
	conn, err := grpc.NewClient("dns:///"+hostPort, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", o.Address, err)
	}
	return conn, nil
}

// caller adds to each call who makes it.
type caller struct{ tokenFile, clusterID string }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c caller) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := map[string]string{}
	if c.clusterID != "" {
		md["clusterid"] = c.clusterID
	}
	if c.tokenFile == "" {
		return md, nil
	}
	token, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	text := strings.TrimSpace(string(token))
	if text == "" || len(text) > maxTokenBytes || strings.ContainsAny(text, "\r\n") {
		return nil, fmt.Errorf("read token %q: not one line of up to %d bytes", c.tokenFile, maxTokenBytes)
	}
	md["authorization"] = "Bearer " + text
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: with http://
// the user has chosen to do without.
func (c caller) RequireTransportSecurity() bool { return false }

// rootFileTLS is TLS with the roots of a file read at each handshake.
type rootFileTLS struct{ rootFile, serverName string }

// ClientHandshake implements credentials.TransportCredentials.
func (r *rootFileTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	data, err := os.ReadFile(r.rootFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read roots: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, nil, fmt.Errorf("read roots %q: no certificate in it", r.rootFile)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: r.serverName}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials.
func (r *rootFileTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("accept connection: these credentials are for clients")
}

// Info implements credentials.TransportCredentials.
func (r *rootFileTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: r.serverName}
}

// Clone implements credentials.TransportCredentials.
func (r *rootFileTLS) Clone() credentials.TransportCredentials { c := *r; return &c }

// OverrideServerName implements credentials.TransportCredentials.
func (r *rootFileTLS) OverrideServerName(name string) error {
	r.serverName = name
	return nil
}
