// Package sds serves the proxy's own certificate and its roots to Envoy, as
// secrets "default" and "ROOTCA" (Istio's names), by Envoy's secret discovery
// service, delta and state-of-the-world. The agent registers it on a unix socket
// that only it and Envoy can open.
//
// It always holds that a change reaches every open stream at once, that a stream
// waits until there is something to say, and that nothing is written to disk. It
// knows no other secrets: users' certificates come from istiod with the rest of
// Envoy's configuration.
package sds

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/agent/certs"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// Names of the secrets, Istio's.
const (
	// Default is the proxy's certificate and key.
	Default = names.SecretIdentity
	// RootCA is the roots of the mesh.
	RootCA = names.SecretRoots
)

// TypeSecret is the resource type.
const TypeSecret = names.TypeSecret

// maxNames bounds what one stream may ask for: Envoy asks for two.
const maxNames = 1000

// Source has the secrets. certs.Keeper is one.
type Source interface {
	Current() (*certs.Secrets, <-chan struct{})
}

// Server serves the secrets.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	source Source
	log    *slog.Logger
}

// New makes a Server.
func New(source Source, log *slog.Logger) *Server { return &Server{source: source, log: log} }

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	secretv3.RegisterSecretDiscoveryServiceServer(g, s)
}

// resources are the secrets as Envoy reads them, by name; none before the first certificate.
func resources(c *certs.Secrets) (map[string]*discovery.Resource, error) {
	out := map[string]*discovery.Resource{}
	if c == nil {
		return out, nil
	}
	for _, secret := range []*tlsv3.Secret{
		{Name: Default, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(c.ChainPEM), PrivateKey: inline(c.KeyPEM),
		}}},
		{Name: RootCA, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(c.RootsPEM),
		}}},
	} {
		packed, err := anypb.New(secret)
		if err != nil {
			return nil, fmt.Errorf("encode secret %q: %w", secret.GetName(), err)
		}
		sum := sha256.Sum256(packed.GetValue())
		out[secret.GetName()] = &discovery.Resource{Name: secret.GetName(), Version: hex.EncodeToString(sum[:8]), Resource: packed}
	}
	return out, nil
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

// receive hands the requests of a stream on, one at a time; the channel is closed at its end.
func receive[R any](ctx context.Context, recv func() (R, error)) <-chan R {
	out := make(chan R)
	go func() { // ends with the stream, which ends when its handler returns
		defer close(out)
		for {
			r, err := recv()
			if err != nil {
				return
			}
			select {
			case out <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// DeltaSecrets implements the incremental protocol.
func (s *Server) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	ctx := stream.Context()
	requests := receive(ctx, stream.Recv)
	held := map[string]string{} // name asked for → version that Envoy has, "" for none
	for nonce := 1; ; {
		current, changed := s.source.Current()
		answer, err := delta(current, held)
		if err != nil {
			return err
		}
		if answer != nil {
			answer.Nonce = strconv.Itoa(nonce)
			nonce++
			if err := stream.Send(answer); err != nil {
				return fmt.Errorf("send secrets: %w", err)
			}
		}
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if err := s.subscribe(r, held); err != nil {
				return err
			}
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Server) subscribe(r *discovery.DeltaDiscoveryRequest, held map[string]string) error {
	if e := r.GetErrorDetail(); e != nil {
		s.log.Error("envoy refused a secret", slog.String("reason", e.GetMessage()))
	}
	for name, version := range r.GetInitialResourceVersions() {
		held[name] = version
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		if _, known := r.GetInitialResourceVersions()[name]; !known {
			held[name] = "" // whoever asks again wants an answer again (xDS protocol, "Subscribing to Resources")
		}
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(held, name)
	}
	if len(held) > maxNames {
		return fmt.Errorf("serve secrets: %d names are more than %d", len(held), maxNames)
	}
	return nil
}

// unknown is the version under which an answer of absence is remembered.
const unknown = "absent"

// delta is what differs from held, which is brought up to date; nil if nothing does.
func delta(current *certs.Secrets, held map[string]string) (*discovery.DeltaDiscoveryResponse, error) {
	if current == nil {
		return nil, nil
	}
	all, err := resources(current)
	if err != nil {
		return nil, err
	}
	out := &discovery.DeltaDiscoveryResponse{TypeUrl: TypeSecret}
	for name, version := range held {
		switch r := all[name]; {
		case r == nil && version != unknown:
			out.RemovedResources = append(out.RemovedResources, name)
			held[name] = unknown
		case r != nil && version != r.GetVersion():
			out.Resources = append(out.Resources, r)
			held[name] = r.GetVersion()
		}
	}
	if len(out.GetResources())+len(out.GetRemovedResources()) == 0 {
		return nil, nil
	}
	slices.Sort(out.RemovedResources)
	slices.SortFunc(out.Resources, func(a, b *discovery.Resource) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// StreamSecrets implements the state-of-the-world protocol.
func (s *Server) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	ctx := stream.Context()
	requests := receive(ctx, stream.Recv)
	var names []string
	sent := ""
	for nonce := 1; ; {
		current, changed := s.source.Current()
		answer, err := whole(current, names)
		if err != nil {
			return err
		}
		if answer != nil && answer.GetVersionInfo() != sent {
			answer.Nonce = strconv.Itoa(nonce)
			nonce++
			sent = answer.GetVersionInfo()
			if err := stream.Send(answer); err != nil {
				return fmt.Errorf("send secrets: %w", err)
			}
		}
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if e := r.GetErrorDetail(); e != nil {
				s.log.Error("envoy refused a secret", slog.String("reason", e.GetMessage()))
			}
			if len(r.GetResourceNames()) > maxNames {
				return fmt.Errorf("serve secrets: %d names are more than %d", len(r.GetResourceNames()), maxNames)
			}
			names = r.GetResourceNames()
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// whole is every secret of these names; nil if there is none to tell of. The version covers names and contents.
func whole(current *certs.Secrets, names []string) (*discovery.DiscoveryResponse, error) {
	if current == nil || len(names) == 0 {
		return nil, nil
	}
	all, err := resources(current)
	if err != nil {
		return nil, err
	}
	names = slices.Clone(names)
	slices.Sort(names)
	out := &discovery.DiscoveryResponse{TypeUrl: TypeSecret}
	sum := sha256.New()
	for _, name := range slices.Compact(names) {
		r := all[name]
		fmt.Fprintf(sum, "%q %q\n", name, r.GetVersion())
		if r != nil {
			out.Resources = append(out.Resources, r.GetResource())
		}
	}
	out.VersionInfo = hex.EncodeToString(sum.Sum(nil)[:8])
	return out, nil
}
