package ztunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/telemetry"
)

// Values of Config.Mode.
const (
	// ModeShared serves the pods of a node, as the node agent tells.
	ModeShared = "shared"
	// ModeDedicated serves the process's own network namespace.
	ModeDedicated = "dedicated"
)

const (
	// defaultGrace is Kubernetes' terminationGracePeriodSeconds when nothing says otherwise.
	defaultGrace = 30 * time.Second
	// graceMargin is left of the grace period for the exit itself, before the kubelet kills.
	graceMargin = 5 * time.Second
	// defaultSecretTTL is the validity asked for certificates, Istio's default.
	defaultSecretTTL = 24 * time.Hour
	// off as a listen address opens no listener.
	off = "off"
	// socksPort is where Istio's proxy serves SOCKS5 in dedicated mode.
	socksPort = 15080
)

// Config is all that the proxy is told from outside. It is printed once at start.
type Config struct {
	Mode        string // PROXY_MODE: shared or dedicated
	XDSAddress  string // XDS_ADDRESS: istiod, https://host:port; empty with LOCAL_XDS_PATH
	XDSRoot     string // XDS_ROOT_CA: PEM file that istiod's certificate is checked against
	CAAddress   string // CA_ADDRESS: istiod's CA; XDS_ADDRESS if empty
	CARoot      string // CA_ROOT_CA: as XDS_ROOT_CA, for the CA
	TokenFile   string // AUTH_TOKEN: service account token
	LocalXDS    string // LOCAL_XDS_PATH: YAML file instead of istiod
	CADirectory string // AMBIT_CA_DIR: development CA instead of istiod's
	ClusterID   string // CLUSTER_ID
	Network     string // NETWORK
	TrustDomain string // TRUST_DOMAIN
	NodeName    string // NODE_NAME

	PodName        string // POD_NAME: of the proxy; in dedicated mode the workload that it serves
	PodNamespace   string // POD_NAMESPACE
	ServiceAccount string // SERVICE_ACCOUNT
	InstanceIP     string // INSTANCE_IP

	ZDSSocket string        // INPOD_UDS: the node agent's socket
	Grace     time.Duration // TERMINATION_GRACE_PERIOD_SECONDS
	SecretTTL time.Duration // SECRET_TTL

	AdminAddr     string // ADMIN_ADDR
	MetricsAddr   string // STATS_ADDR
	ReadinessAddr string // READINESS_ADDR
	SOCKSAddr     string // SOCKS5_ADDR: dedicated mode only; "off" for none
	OutboundAddr  string // OUTBOUND_ADDR: these three are for dedicated mode only
	PlaintextAddr string // INBOUND_PLAINTEXT_ADDR
	HBONEAddr     string // INBOUND_ADDR

	LogLevel  string // LOG_LEVEL
	LogFormat string // LOG_FORMAT: text or json
}

// LoadConfig reads the environment through lookup (os.LookupEnv) and checks it.
func LoadConfig(lookup func(string) (string, bool)) (Config, error) {
	var errs []error
	get := func(key, def string) string {
		if v, ok := lookup(key); ok && v != "" {
			return v
		}
		return def
	}
	c := Config{
		Mode:       strings.ToLower(get("PROXY_MODE", ModeShared)),
		XDSAddress: get("XDS_ADDRESS", ""), XDSRoot: get("XDS_ROOT_CA", ports.RootCertFile),
		TokenFile: get("AUTH_TOKEN", ports.TokenFile),
		LocalXDS:  get("LOCAL_XDS_PATH", ""), CADirectory: get("AMBIT_CA_DIR", ""),
		ClusterID: get("CLUSTER_ID", ports.DefaultClusterID), Network: get("NETWORK", ""),
		TrustDomain: get("TRUST_DOMAIN", ports.DefaultTrustDomain), NodeName: get("NODE_NAME", ""),
		PodName: get("POD_NAME", ""), PodNamespace: get("POD_NAMESPACE", ""),
		ServiceAccount: get("SERVICE_ACCOUNT", ""), InstanceIP: get("INSTANCE_IP", ""),
		ZDSSocket: get("INPOD_UDS", ports.ZDSSocket),
		AdminAddr: get("ADMIN_ADDR", loopback(ports.ZtunnelAdmin)), MetricsAddr: get("STATS_ADDR", anywhere(ports.Metrics)),
		ReadinessAddr: get("READINESS_ADDR", anywhere(ports.Readiness)), SOCKSAddr: get("SOCKS5_ADDR", loopback(socksPort)),
		OutboundAddr:  get("OUTBOUND_ADDR", loopback(ports.ZtunnelOutbound)),
		PlaintextAddr: get("INBOUND_PLAINTEXT_ADDR", anywhere(ports.ZtunnelInboundPlaintext)),
		HBONEAddr:     get("INBOUND_ADDR", anywhere(ports.HBONE)),
		LogLevel:      get(telemetry.EnvLogLevel, ""), LogFormat: get(telemetry.EnvLogFormat, ""),
	}
	c.CAAddress, c.CARoot = get("CA_ADDRESS", c.XDSAddress), get("CA_ROOT_CA", c.XDSRoot)
	var err error
	if c.Grace, err = seconds(get("TERMINATION_GRACE_PERIOD_SECONDS", ""), defaultGrace); err != nil {
		errs = append(errs, fmt.Errorf("read TERMINATION_GRACE_PERIOD_SECONDS: %w", err))
	}
	if c.SecretTTL, err = seconds(get("SECRET_TTL", ""), defaultSecretTTL); err != nil {
		errs = append(errs, fmt.Errorf("read SECRET_TTL: %w", err))
	}
	return c, errors.Join(append(errs, c.check())...)
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// anywhere is every address of the host, with IPv6 or without.
func anywhere(port int) string { return ":" + strconv.Itoa(port) }

// seconds reads "30" or "30s".
func seconds(v string, def time.Duration) (time.Duration, error) {
	if v == "" {
		return def, nil
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration", v)
	}
	return d, nil
}

func (c Config) check() error {
	var errs []error
	if c.Mode != ModeShared && c.Mode != ModeDedicated {
		errs = append(errs, fmt.Errorf("PROXY_MODE %q: want %s or %s", c.Mode, ModeShared, ModeDedicated))
	}
	if c.XDSAddress == "" && c.LocalXDS == "" {
		errs = append(errs, errors.New("set XDS_ADDRESS (istiod) or LOCAL_XDS_PATH (a file)"))
	}
	if c.CAAddress == "" && c.CADirectory == "" {
		errs = append(errs, errors.New("set CA_ADDRESS (istiod) or AMBIT_CA_DIR (development CA; make one with: ztunnel dev-ca <dir>)"))
	}
	if c.Mode == ModeDedicated && (c.PodName == "" || c.PodNamespace == "") {
		errs = append(errs, errors.New("dedicated mode: set POD_NAME and POD_NAMESPACE to the workload that is served"))
	}
	for _, a := range []string{c.AdminAddr, c.MetricsAddr, c.ReadinessAddr, c.OutboundAddr, c.PlaintextAddr, c.HBONEAddr, c.SOCKSAddr} {
		if _, err := listenAddress(a); err != nil && a != off {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// listenAddress reads host:port, where an empty host is every address.
func listenAddress(a string) (netip.AddrPort, error) {
	full := a
	if strings.HasPrefix(a, ":") {
		full = "[::]" + a
	}
	ap, err := netip.ParseAddrPort(full)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("parse listen address %q: %w", a, err)
	}
	return ap, nil
}

// drainTime is how long live connections may go on after a signal to end.
func (c Config) drainTime() time.Duration { return max(c.Grace-graceMargin, 0) }

// LogValue shows the configuration; it holds no secret, only paths to them.
func (c Config) LogValue() slog.Value {
	type plain Config // without this method
	return slog.AnyValue(fmt.Sprintf("%+v", plain(c)))
}
