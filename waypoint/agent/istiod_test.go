package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"context"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/api/ports"
)

const testToken = "token-of-the-pod"

// authority is a CA of the test's.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (a *authority) pem() string { return pemOf(a.cert.Raw) }

// sign makes a leaf for pub: of a SPIFFE id, or of a DNS name.
func (a *authority) sign(pub any, life time.Duration, uri, dns string) ([]byte, error) {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if dns != "" {
		c.DNSNames = []string{dns}
	}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			return nil, err
		}
		c.URIs = []*url.URL{u}
	}
	return x509.CreateCertificate(rand.Reader, c, a.cert, pub, a.key)
}

func (a *authority) pair(t testing.TB, uri, dns string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(key.Public(), time.Hour, uri, dns)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// testIstiod is a control plane: certificates for who has the token, and one set of resources.
type testIstiod struct {
	capb.UnimplementedIstioCertificateServiceServer
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	addr     string
	rootFile string
	server   *grpc.Server
	served   chan struct{}

	mu        sync.Mutex
	mesh      *authority    // signs workloads
	roots     string        // sent with certificates
	life      time.Duration // of the next certificate
	id        string
	resources map[string]map[string]proto.Message // type → name → resource
	version   int
	changed   chan struct{}
	node      *corev3.Node
	refusals  []string
	streams   int
}

func newIstiod(t testing.TB, id string) *testIstiod {
	t.Helper()
	mesh := newAuthority(t, "first")
	s := &testIstiod{
		mesh: mesh, roots: mesh.pem(), life: 10 * time.Second, id: id, resources: map[string]map[string]proto.Message{},
		changed: make(chan struct{}), addr: "127.0.0.1:0", rootFile: filepath.Join(t.TempDir(), "root-cert.pem"),
	}
	s.publish(t, mesh.pem())
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

// publish writes the file of roots as the kubelet does, by a rename.
func (s *testIstiod) publish(t testing.TB, roots string) {
	t.Helper()
	if err := os.WriteFile(s.rootFile+".new", []byte(roots), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.rootFile+".new", s.rootFile); err != nil {
		t.Fatal(err)
	}
}

func (s *testIstiod) start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	cert := s.mesh.pair(t, "", ports.IstiodServerName)
	s.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	capb.RegisterIstioCertificateServiceServer(s.server, s)
	discovery.RegisterAggregatedDiscoveryServiceServer(s.server, s)
	s.served = make(chan struct{})
	go func(server *grpc.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(l)
	}(s.server, s.served)
}

func (s *testIstiod) stop() {
	s.server.Stop()
	<-s.served
}

func authenticated(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("authorization"); len(v) != 1 || v[0] != "Bearer "+testToken {
		return status.Error(codes.Unauthenticated, "no token")
	}
	return nil
}

// CreateCertificate signs for the one identity. A request for another is one that only node proxies may make.
func (s *testIstiod) CreateCertificate(ctx context.Context, r *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	if err := authenticated(ctx); err != nil {
		return nil, err
	}
	if len(r.GetMetadata().GetFields()) > 0 {
		return nil, status.Error(codes.Unauthenticated, "impersonation")
	}
	block, _ := pem.Decode([]byte(r.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	der, err := s.mesh.sign(csr.PublicKey, s.life, s.id, "")
	if err != nil {
		return nil, err
	}
	s.life = time.Hour // only the first is renewed within a test
	return &capb.IstioCertificateResponse{CertChain: []string{pemOf(der), s.roots}}, nil
}

// resource is one of a change.
type resource struct {
	typeURL, name string
	message       proto.Message // nil removes it
}

// set puts resources in place, together: an answer with some of them only would be a configuration too.
func (s *testIstiod) set(all ...resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range all {
		if s.resources[r.typeURL] == nil {
			s.resources[r.typeURL] = map[string]proto.Message{}
		}
		s.resources[r.typeURL][r.name] = r.message
	}
	s.version++
	close(s.changed)
	s.changed = make(chan struct{})
}

// DeltaAggregatedResources answers each type that is asked for with all there is of it, and again at each change.
func (s *testIstiod) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if err := authenticated(stream.Context()); err != nil {
		return err
	}
	s.mu.Lock()
	s.streams++
	s.mu.Unlock()
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	sent := map[string]int{} // type → version
	for nonce := 1; ; {
		s.mu.Lock()
		changed := s.changed
		var answers []*discovery.DeltaDiscoveryResponse
		for typeURL, version := range sent {
			if version != s.version { // and before the first change there is nothing to say, as before istiod has synced
				answers = append(answers, s.all(typeURL))
				sent[typeURL] = s.version
			}
		}
		s.mu.Unlock()
		for _, a := range answers {
			a.Nonce = strconv.Itoa(nonce)
			nonce++
			if err := stream.Send(a); err != nil {
				return err
			}
		}
		select {
		case r, ok := <-requests:
			if !ok {
				return errors.New("stream ended")
			}
			s.note(r)
			if _, known := sent[r.GetTypeUrl()]; !known {
				sent[r.GetTypeUrl()] = 0
			}
		case <-changed:
		}
	}
}

func (s *testIstiod) note(r *discovery.DeltaDiscoveryRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.GetNode() != nil {
		s.node = r.GetNode()
	}
	if e := r.GetErrorDetail(); e != nil {
		s.refusals = append(s.refusals, r.GetTypeUrl()+": "+e.GetMessage())
	}
}

// all is every resource of the type. The caller holds mu.
func (s *testIstiod) all(typeURL string) *discovery.DeltaDiscoveryResponse {
	out := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, SystemVersionInfo: strconv.Itoa(s.version)}
	for name, m := range s.resources[typeURL] {
		if m == nil {
			out.RemovedResources = append(out.RemovedResources, name)
			continue
		}
		packed, err := anypb.New(m)
		if err != nil {
			s.refusals = append(s.refusals, err.Error())
			continue
		}
		out.Resources = append(out.Resources, &discovery.Resource{Name: name, Version: fmt.Sprint(s.version), Resource: packed})
	}
	return out
}

func (s *testIstiod) read(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}
