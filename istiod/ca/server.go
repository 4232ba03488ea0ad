package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Keys of a request's metadata.
const (
	metaImpersonated = "ImpersonatedIdentity"
	metaSigner       = "CertSigner"
)

// What callers are told. The reason is in istiod's log: it would help who should not have been here.
const (
	msgAuthenticate = "request authenticate failure"
	msgImpersonate  = "request impersonation authentication failure"
	msgRequest      = "certificate signing request refused"
	msgSign         = "certificate signing failure"
)

// Config is what a Server needs.
type Config struct {
	TrustDomain string
	Lifetimes   Lifetimes
	// TrustedNodeAccounts may ask for identities of pods on their own node.
	TrustedNodeAccounts []model.Key
	Pods                Pods
	// CertificateRenewal lets who has a certificate get another of the same identity; for use without Kubernetes.
	CertificateRenewal bool
	Log                *slog.Logger
	Metrics            prometheus.Registerer
}

// Server serves IstioCertificateService.
type Server struct {
	capb.UnimplementedIstioCertificateServiceServer
	cfg       Config
	authn     *Authenticator
	authz     authorizer
	authority *Authority
	issued    prometheus.Counter
	refused   *prometheus.CounterVec
	seconds   prometheus.Histogram
}

// NewServer makes a server that signs with authority.
func NewServer(cfg Config, authn *Authenticator, authority *Authority) (*Server, error) {
	s := &Server{
		cfg: cfg, authn: authn, authority: authority,
		authz: authorizer{
			trustDomain: cfg.TrustDomain, trusted: map[model.Key]bool{}, pods: cfg.Pods,
			certificateRenewal: cfg.CertificateRenewal, podWait: podWait,
		},
		issued:  prometheus.NewCounter(prometheus.CounterOpts{Name: "istiod_ca_issued_total", Help: "Certificates signed for workloads."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istiod_ca_refused_total", Help: "Requests refused, by step."}, []string{"step"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "istiod_ca_request_seconds", Help: "Time to answer a request.", Buckets: prometheus.ExponentialBuckets(.0005, 2, 14)}),
	}
	for _, k := range cfg.TrustedNodeAccounts {
		s.authz.trusted[k] = true
	}
	if cfg.Metrics != nil {
		expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "istiod_ca_signer_expiry_timestamp_seconds", Help: "When the signing certificate expires.",
		}, func() float64 { return float64(authority.Bundle().NotAfter().Unix()) })
		for _, c := range []prometheus.Collector{s.issued, s.refused, s.seconds, expiry} {
			if err := cfg.Metrics.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics of %q: %w", "ca", err)
			}
		}
	}
	return s, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g *grpc.Server) { capb.RegisterIstioCertificateServiceServer(g, s) }

// CreateCertificate implements IstioCertificateService.
func (s *Server) CreateCertificate(ctx context.Context, req *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	start := time.Now()
	defer func() { s.seconds.Observe(time.Since(start).Seconds()) }()
	log := s.cfg.Log
	if p, ok := peer.FromContext(ctx); ok {
		log = log.With("peer", p.Addr.String())
	}
	caller, err := s.authn.Authenticate(ctx)
	if err != nil {
		return nil, s.refuse(log, "authenticate", err, codes.Unauthenticated, msgAuthenticate)
	}
	log = log.With("caller", caller.Identity.String(), "callerPod", caller.PodName)
	id, err := s.authorize(ctx, caller, req)
	if err != nil {
		msg := msgAuthenticate
		if requested(req) != "" {
			msg = msgImpersonate
		}
		return nil, s.refuse(log.With("requested", requested(req)), "authorize", err, codes.Unauthenticated, msg)
	}
	chain, code, err := s.issue(id, req)
	if err != nil {
		msg := msgRequest
		if code == codes.Internal {
			msg = msgSign
		}
		return nil, s.refuse(log.With("identity", id.String()), "issue", err, code, msg)
	}
	s.issued.Inc()
	log.Debug("certificate signed", "identity", id.String())
	return &capb.IstioCertificateResponse{CertChain: chain}, nil
}

func (s *Server) refuse(log *slog.Logger, step string, err error, code codes.Code, msg string) error {
	s.refused.WithLabelValues(step).Inc()
	log.Warn("certificate refused", "step", step, "error", err)
	return status.Error(code, msg)
}

func requested(req *capb.IstioCertificateRequest) string {
	return req.GetMetadata().GetFields()[metaImpersonated].GetStringValue()
}

func (s *Server) authorize(ctx context.Context, c Caller, req *capb.IstioCertificateRequest) (identity.Identity, error) {
	fields := req.GetMetadata().GetFields()
	if signer := fields[metaSigner].GetStringValue(); signer != "" {
		return identity.Identity{}, fmt.Errorf("authorize caller: there is no signer %q", signer)
	}
	if v, ok := fields[metaImpersonated]; ok {
		if v.GetStringValue() == "" {
			return identity.Identity{}, errors.New("authorize caller: the requested identity is empty")
		}
		return s.authz.impersonated(ctx, c, v.GetStringValue())
	}
	return s.authz.own(ctx, c)
}

// issue validates the request, builds the template and signs it.
func (s *Server) issue(id identity.Identity, req *capb.IstioCertificateRequest) ([]string, codes.Code, error) {
	pub, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, codes.InvalidArgument, err
	}
	ttl, err := s.cfg.Lifetimes.choose(req.GetValidityDuration())
	if err != nil {
		return nil, codes.InvalidArgument, err
	}
	tmpl, err := workloadTemplate(id, ttl, time.Now())
	if err != nil {
		return nil, codes.Internal, err
	}
	chain, err := s.authority.Sign(tmpl, pub)
	if err != nil {
		return nil, codes.Internal, err
	}
	return chain, codes.OK, nil
}
