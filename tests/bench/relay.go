package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/linux"
)

const (
	// maxMessage bounds a message of the relay's, in bytes, as those of istiod's proxies are.
	maxMessage = 200 << 20
	// relayValidity is how long its certificate holds: longer than any run.
	relayValidity = time.Hour
)

// relay stands in for a token: without Kubernetes nobody reviews tokens, and istiod believes certificates only. A proxy
// connects to it in plaintext in its own network namespace, and it connects to istiod with the proxy's certificate. It
// also notes what passes, so that the measurement is of the wire and not of what istiod says of itself.
type relay struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	client discovery.AggregatedDiscoveryServiceClient
	conn   *grpc.ClientConn
	server *grpc.Server
	ended  chan struct{}
	notes  *notes
}

// startRelay listens at addr in ns for a proxy that is id, and connects to istiod from there.
func startRelay(ns *linux.NetNS, addr, istiod netip.AddrPort, caDir string, id identity.Identity) (*relay, error) {
	config, err := certified(caDir, id)
	if err != nil {
		return nil, err
	}
	f, err := ns.Listen(linux.ListenOptions{Addr: addr})
	if err != nil {
		return nil, err
	}
	l, err := linux.ListenerFromFile(f)
	if err != nil {
		return nil, err
	}
	dial := dialIn(ns)
	conn, err := grpc.NewClient("passthrough:///"+istiod.String(), grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	r := &relay{
		client: discovery.NewAggregatedDiscoveryServiceClient(conn), conn: conn, ended: make(chan struct{}), notes: &notes{sent: map[string]*note{}},
		server: grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage)),
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(r.server, r)
	go func() {
		defer close(r.ended)
		r.server.Serve(l) // ends with Stop
	}()
	return r, nil
}

func (r *relay) close() error {
	r.server.Stop()
	<-r.ended
	return r.conn.Close()
}

// certified is TLS with a certificate of id, signed by the development CA that is istiod's authority too.
func certified(caDir string, id identity.Identity) (*tls.Config, error) {
	signer, err := ca.Directory(caDir)
	if err != nil {
		return nil, err
	}
	key, csr, err := identity.NewRequest(id)
	if err != nil {
		return nil, err
	}
	chain, err := signer.Sign(context.Background(), id, csr, relayValidity)
	if err != nil {
		return nil, err
	}
	cert, err := identity.NewCertificate(id, key, chain)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(caDir, ca.RootCertFile))
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read roots of %q: %w", caDir, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: ports.IstiodServerName, Certificates: []tls.Certificate{cert.TLS}}, nil
}

// DeltaAggregatedResources implements discovery.AggregatedDiscoveryServiceServer. The proxy's token does not go further.
func (r *relay) DeltaAggregatedResources(proxy discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(proxy.Context())
	defer cancel()
	istiod, err := r.client.DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		for {
			req, err := proxy.Recv()
			if err == nil {
				r.notes.request(req)
				err = istiod.Send(req)
			}
			if err != nil {
				cancel()
				return
			}
		}
	}()
	for {
		resp, err := istiod.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		r.notes.response(resp)
		if err := proxy.Send(resp); err != nil {
			return err
		}
	}
}

// note is a response: when it passed, and when its acknowledgement did.
type note struct {
	nonce, typeURL string
	names          map[string]bool
	resources      int
	bytes          int
	at, acked      time.Time
	refused        string
}

// notes are all responses of a relay since the last reset.
type notes struct {
	mu    sync.Mutex
	order []*note
	sent  map[string]*note
	// last is when anything passed, in either direction.
	last time.Time
}

func (n *notes) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.order, n.sent = nil, map[string]*note{}
}

func (n *notes) response(r *discovery.DeltaDiscoveryResponse) {
	x := &note{nonce: r.GetNonce(), typeURL: r.GetTypeUrl(), resources: len(r.GetResources()), bytes: proto.Size(r), names: map[string]bool{}, at: time.Now()}
	for _, res := range r.GetResources() {
		x.names[res.GetName()] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.order = append(n.order, x)
	n.sent[x.nonce] = x
	n.last = x.at
}

func (n *notes) request(r *discovery.DeltaDiscoveryRequest) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = now
	if x := n.sent[r.GetResponseNonce()]; x != nil && x.acked.IsZero() {
		x.acked, x.refused = now, r.GetErrorDetail().GetMessage()
	}
}

// look calls f with all responses, in order, and the time of the last message.
func (n *notes) look(f func(order []*note, last time.Time)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n.order, n.last)
}

// total is what has been sent and acknowledged, and the first refusal.
type total struct {
	bytes, responses, unacked int
	resources                 map[string]int
	lastAck                   time.Time
	last                      time.Time
	refused                   string
}

func (n *notes) total() total {
	t := total{resources: map[string]int{}}
	n.look(func(order []*note, last time.Time) {
		t.last = last
		for _, x := range order {
			t.bytes += x.bytes
			t.responses++
			t.resources[x.typeURL] += x.resources
			switch {
			case x.acked.IsZero():
				t.unacked++
			case x.acked.After(t.lastAck):
				t.lastAck = x.acked
			}
			if x.refused != "" && t.refused == "" {
				t.refused = x.typeURL + ": " + x.refused
			}
		}
	})
	return t
}
