package istiod

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Limits and defaults of workload certificates, as Istio's.
const (
	defaultCertTTL = 24 * time.Hour
	maxCertTTL     = 90 * 24 * time.Hour
)

// Settings is everything that istiod can be told. Names of the environment variables are Istio's where it has them.
type Settings struct {
	// Namespace and Pod are istiod's own (POD_NAMESPACE, POD_NAME).
	Namespace, Pod string
	// ClusterID is part of every workload's uid (CLUSTER_ID).
	ClusterID string
	// Network of all addresses in this cluster (NETWORK).
	Network string
	// TrustDomain of all identities (TRUST_DOMAIN).
	TrustDomain string
	// Domain is the cluster's DNS domain (DOMAIN_SUFFIX).
	Domain string
	// RootNamespace is where policies apply to the whole mesh (ROOT_NAMESPACE).
	RootNamespace string
	// TrustedNodeAccounts are "namespace/name" of node proxies' service accounts (CA_TRUSTED_NODE_ACCOUNTS).
	TrustedNodeAccounts []model.Key
	// CertTTL and MaxCertTTL of workloads (DEFAULT_WORKLOAD_CERT_TTL, MAX_WORKLOAD_CERT_TTL).
	CertTTL, MaxCertTTL time.Duration
	// WaypointBypass says who may pass by the waypoints of services that do not say it (WAYPOINT_BYPASS).
	WaypointBypass model.Bypass
	// LogLevel and LogFormat (LOG_LEVEL, LOG_FORMAT).
	LogLevel, LogFormat string
	// Image of waypoints and gateways (WAYPOINT_IMAGE); none are deployed if it is empty. Pull policy and secrets,
	// separated by commas, are for it (WAYPOINT_IMAGE_PULL_POLICY, WAYPOINT_IMAGE_PULL_SECRETS).
	Image, ImagePullPolicy string
	ImagePullSecrets       []string

	// Addresses to listen on. GRPC is plaintext and off when empty.
	GRPC, SecureGRPC, HTTP, Monitoring string
	// ConfigDir is read instead of Kubernetes.
	ConfigDir string
	// CADir holds the authority in directory mode; empty keeps it in memory.
	CADir string
	// Kubeconfig is for a run outside of the cluster.
	Kubeconfig string
}

// SettingsFromEnv reads the environment. Flags are set on the result by the command.
func SettingsFromEnv() (Settings, error) {
	s := Settings{
		Namespace:   env("POD_NAMESPACE", ports.SystemNamespace),
		Pod:         env("POD_NAME", "istiod"),
		ClusterID:   env("CLUSTER_ID", ports.DefaultClusterID),
		Network:     os.Getenv("NETWORK"),
		TrustDomain: env("TRUST_DOMAIN", ports.DefaultTrustDomain),
		Domain:      env("DOMAIN_SUFFIX", "cluster.local"),
		LogLevel:    os.Getenv("LOG_LEVEL"),
		LogFormat:   os.Getenv("LOG_FORMAT"),

		Image:            os.Getenv("WAYPOINT_IMAGE"),
		ImagePullPolicy:  os.Getenv("WAYPOINT_IMAGE_PULL_POLICY"),
		ImagePullSecrets: strings.FieldsFunc(os.Getenv("WAYPOINT_IMAGE_PULL_SECRETS"), func(r rune) bool { return r == ',' || r == ' ' }),

		SecureGRPC: fmt.Sprintf(":%d", ports.XDSTLS),
		HTTP:       fmt.Sprintf(":%d", ports.IstiodDebug),
		Monitoring: fmt.Sprintf(":%d", ports.IstiodMonitoring),
	}
	s.RootNamespace = env("ROOT_NAMESPACE", s.Namespace)
	var errs [4]error
	s.TrustedNodeAccounts, errs[0] = accounts(env("CA_TRUSTED_NODE_ACCOUNTS", s.Namespace+"/ztunnel"))
	s.CertTTL, errs[1] = duration("DEFAULT_WORKLOAD_CERT_TTL", defaultCertTTL)
	s.MaxCertTTL, errs[2] = duration("MAX_WORKLOAD_CERT_TTL", maxCertTTL)
	s.WaypointBypass, errs[3] = translate.Bypass(env("WAYPOINT_BYPASS", "refuse"))
	if err := errors.Join(errs[:]...); err != nil {
		return s, err
	}
	if s.CertTTL > s.MaxCertTTL {
		return s, fmt.Errorf("read DEFAULT_WORKLOAD_CERT_TTL %s: more than MAX_WORKLOAD_CERT_TTL %s", s.CertTTL, s.MaxCertTTL)
	}
	return s, nil
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func duration(name string, fallback time.Duration) (time.Duration, error) {
	v := os.Getenv(name)
	if v == "" {
		return fallback, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	if d <= 0 {
		return 0, fmt.Errorf("read %s: %s is not positive", name, v)
	}
	return d, nil
}

func accounts(s string) ([]model.Key, error) {
	var out []model.Key
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		ns, name, ok := strings.Cut(part, "/")
		if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("read CA_TRUSTED_NODE_ACCOUNTS: %q is not namespace/name", part)
		}
		out = append(out, model.Key{Namespace: ns, Name: name})
	}
	return out, nil
}

// serverNames are the DNS names that proxies may reach istiod by.
func (s Settings) serverNames() []string {
	names := []string{"istiod." + s.Namespace + ".svc", "istiod." + s.Namespace + ".svc." + s.Domain, "istiod." + s.Namespace, "istiod"}
	if s.Namespace != ports.SystemNamespace {
		names = append(names, ports.IstiodServerName)
	}
	if s.ConfigDir != "" {
		names = append(names, "localhost")
	}
	return names
}

// AddFlags binds what is set by flags. Their names are Istio's where it has them.
func (s *Settings) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&s.SecureGRPC, "secureGRPCAddr", s.SecureGRPC, "address of xDS and CA with TLS")
	f.StringVar(&s.GRPC, "grpcAddr", s.GRPC, "address of xDS and CA without TLS, where proxies need no credentials to read; empty turns it off")
	f.StringVar(&s.HTTP, "httpAddr", s.HTTP, "address of readiness and debug pages")
	f.StringVar(&s.Monitoring, "monitoringAddr", s.Monitoring, "address of metrics")
	f.StringVar(&s.ConfigDir, "config-dir", s.ConfigDir, "directory of YAML to read instead of Kubernetes")
	f.StringVar(&s.CADir, "ca-dir", s.CADir, "directory of the authority's key and certificate with --config-dir; made if empty, in memory if not given")
	f.StringVar(&s.Kubeconfig, "kubeconfig", s.Kubeconfig, "credentials for a run outside of the cluster")
}
