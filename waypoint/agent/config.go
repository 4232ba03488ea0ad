package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/xds/dial"
)

// Kinds of proxies, as the first part of the node's id names them.
const (
	// KindWaypoint serves the services that use it.
	KindWaypoint = "waypoint"
	// KindRouter is a gateway: Istio's name for one on the wire.
	KindRouter = "router"
)

const (
	// DefaultDirectory holds the sockets and Envoy's bootstrap. It is a volume that lives in memory.
	DefaultDirectory = "/var/run/ambit"
	// DefaultEnvoy is where the image has Envoy.
	DefaultEnvoy = "/usr/local/bin/envoy"
	// DefaultLabelsFile is the pod's labels, by the downward API, where Istio mounts them.
	DefaultLabelsFile = "/etc/istio/pod/labels"
	// defaultGrace is Kubernetes' terminationGracePeriodSeconds when nothing says otherwise.
	defaultGrace = 30 * time.Second
	// graceMargin is left of the grace period for ending Envoy, before the kubelet kills.
	graceMargin = 5 * time.Second
	// defaultDrainMinimum is how long new connections are still taken after a signal to end: as long as it may take
	// until every client has heard that the pod goes. Istio's MINIMUM_DRAIN_DURATION.
	defaultDrainMinimum = 5 * time.Second
	// defaultMaxConnections is how many connections from outside Envoy holds: at some 30 KiB each for TLS and
	// HTTP/2, 2 GiB, which is more than a waypoint is given.
	defaultMaxConnections = 65536
	// maxConcurrency bounds Envoy's workers: more than the largest machines have.
	maxConcurrency = 1024
)

// Config is all that the agent is told from outside. It is printed once at start and holds no secret.
type Config struct {
	Kind        string // argument: waypoint or router
	XDSAddress  string // XDS_ADDRESS: istiod, https://host:port
	XDSRoot     string // XDS_ROOT_CA: PEM file that istiod's certificate is checked against
	MeshRoots   string // MESH_ROOT_CA: PEM file where istiod publishes the mesh's roots, trusted beside those that come with the certificate
	CAAddress   string // CA_ADDRESS: istiod's CA; XDS_ADDRESS if empty
	CARoot      string // CA_ROOT_CA: as XDS_ROOT_CA, for the CA
	TokenFile   string // AUTH_TOKEN: service account token
	CADirectory string // AMBIT_CA_DIR: development CA instead of istiod's
	ClusterID   string // CLUSTER_ID
	Network     string // NETWORK
	TrustDomain string // TRUST_DOMAIN
	Domain      string // DOMAIN_SUFFIX: cluster.local
	NodeName    string // NODE_NAME

	GatewayName    string // GATEWAY_NAME: of the Gateway that this is a replica of
	PodName        string // POD_NAME
	PodNamespace   string // POD_NAMESPACE
	ServiceAccount string // SERVICE_ACCOUNT
	InstanceIP     string // INSTANCE_IP
	LabelsFile     string // POD_LABELS_FILE: downward API; may be missing

	Grace        time.Duration // TERMINATION_GRACE_PERIOD_SECONDS
	DrainMinimum time.Duration // MINIMUM_DRAIN_DURATION
	SecretTTL    time.Duration // SECRET_TTL

	Envoy          string   // ENVOY: path of the binary
	Directory      string   // AMBIT_RUN_DIR: for sockets and the bootstrap
	Concurrency    int      // CPU_LIMIT: whole cores, as the downward API gives limits.cpu; 0 asks the cgroup
	MemoryLimit    uint64   // MEMORY_LIMIT: bytes, as the downward API gives limits.memory; 0 sets no limit on Envoy's heap
	MaxConnections int64    // MAX_DOWNSTREAM_CONNECTIONS
	StatsPrefixes  []string // STATS_INCLUSION_PREFIXES: further Envoy stats to keep, such as "cluster.outbound"

	AdminAddr     string // ADMIN_ADDR: Envoy's
	MetricsAddr   string // STATS_ADDR
	ReadinessAddr string // READINESS_ADDR

	LogLevel      string // LOG_LEVEL
	LogFormat     string // LOG_FORMAT: text or json
	EnvoyLogLevel string // PROXY_LOG_LEVEL
}

// LoadConfig reads the environment through lookup (os.LookupEnv) and checks it.
func LoadConfig(kind string, lookup func(string) (string, bool)) (Config, error) {
	get := func(key, def string) string {
		if v, ok := lookup(key); ok && v != "" {
			return v
		}
		return def
	}
	c := Config{
		Kind:       kind,
		XDSAddress: get("XDS_ADDRESS", "https://"+ports.IstiodServerName+":"+strconv.Itoa(ports.XDSTLS)),
		XDSRoot:    get("XDS_ROOT_CA", ports.RootCertFile), TokenFile: get("AUTH_TOKEN", ports.TokenFile),
		MeshRoots:   get("MESH_ROOT_CA", ports.RootCertFile),
		CADirectory: get("AMBIT_CA_DIR", ""), ClusterID: get("CLUSTER_ID", ports.DefaultClusterID), Network: get("NETWORK", ""),
		TrustDomain: get("TRUST_DOMAIN", ports.DefaultTrustDomain), Domain: get("DOMAIN_SUFFIX", "cluster.local"),
		NodeName: get("NODE_NAME", ""), GatewayName: get("GATEWAY_NAME", ""), PodName: get("POD_NAME", ""),
		PodNamespace: get("POD_NAMESPACE", ""), ServiceAccount: get("SERVICE_ACCOUNT", ""), InstanceIP: get("INSTANCE_IP", ""),
		LabelsFile: get("POD_LABELS_FILE", DefaultLabelsFile),
		Envoy:      get("ENVOY", DefaultEnvoy), Directory: get("AMBIT_RUN_DIR", DefaultDirectory),
		AdminAddr:   get("ADMIN_ADDR", "127.0.0.1:"+strconv.Itoa(ports.ZtunnelAdmin)),
		MetricsAddr: get("STATS_ADDR", ":"+strconv.Itoa(ports.Metrics)), ReadinessAddr: get("READINESS_ADDR", ":"+strconv.Itoa(ports.Readiness)),
		LogLevel: get(telemetry.EnvLogLevel, ""), LogFormat: get(telemetry.EnvLogFormat, ""),
		EnvoyLogLevel: get("PROXY_LOG_LEVEL", "warning"),
	}
	c.CAAddress, c.CARoot = get("CA_ADDRESS", c.XDSAddress), get("CA_ROOT_CA", c.XDSRoot)
	for prefix := range strings.SplitSeq(get("STATS_INCLUSION_PREFIXES", ""), ",") {
		if prefix = strings.TrimSpace(prefix); prefix != "" {
			c.StatsPrefixes = append(c.StatsPrefixes, prefix)
		}
	}
	err := c.loadNumbers(get)
	return c, errors.Join(err, c.check())
}

func (c *Config) loadNumbers(get func(key, def string) string) error {
	var errs []error
	note := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("read %s: %w", key, err))
		}
	}
	duration := func(key string, to *time.Duration, def time.Duration) {
		var err error
		*to, err = seconds(get(key, ""), def)
		note(key, err)
	}
	duration("TERMINATION_GRACE_PERIOD_SECONDS", &c.Grace, defaultGrace)
	duration("MINIMUM_DRAIN_DURATION", &c.DrainMinimum, defaultDrainMinimum)
	duration("SECRET_TTL", &c.SecretTTL, identity.DefaultValidity)
	number := func(key string, def, most uint64) uint64 {
		n, err := strconv.ParseUint(get(key, strconv.FormatUint(def, 10)), 10, 64)
		if err == nil && n > most {
			err = fmt.Errorf("%d is more than %d", n, most)
		}
		note(key, err)
		return n
	}
	c.Concurrency = int(number("CPU_LIMIT", 0, maxConcurrency))
	c.MemoryLimit = number("MEMORY_LIMIT", 0, 1<<50)
	c.MaxConnections = int64(number("MAX_DOWNSTREAM_CONNECTIONS", defaultMaxConnections, 1<<31))
	return errors.Join(errs...)
}

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
	if c.Kind != KindWaypoint && c.Kind != KindRouter {
		errs = append(errs, fmt.Errorf("check kind %q: want %s or %s", c.Kind, KindWaypoint, KindRouter))
	}
	for _, v := range []struct{ key, value string }{
		{"POD_NAME", c.PodName}, {"POD_NAMESPACE", c.PodNamespace}, {"SERVICE_ACCOUNT", c.ServiceAccount}, {"GATEWAY_NAME", c.GatewayName},
	} {
		if v.value == "" {
			errs = append(errs, fmt.Errorf("read %s: it is not set", v.key))
		}
	}
	if _, err := netip.ParseAddr(c.InstanceIP); err != nil {
		errs = append(errs, fmt.Errorf("read INSTANCE_IP: %w", err))
	}
	if c.PodNamespace != "" && c.ServiceAccount != "" {
		if err := c.identity().Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if c.MaxConnections == 0 {
		errs = append(errs, errors.New("read MAX_DOWNSTREAM_CONNECTIONS: 0 would refuse every connection"))
	}
	if _, err := netip.ParseAddrPort(c.AdminAddr); err != nil {
		errs = append(errs, fmt.Errorf("read ADMIN_ADDR: %w", err))
	}
	errs = append(errs, c.xds().Check())
	if c.CADirectory == "" {
		errs = append(errs, c.ca().Check())
	}
	return errors.Join(errs...)
}

// identity is who the proxy is.
func (c Config) identity() identity.Identity {
	return identity.Identity{TrustDomain: c.TrustDomain, Namespace: c.PodNamespace, ServiceAccount: c.ServiceAccount}
}

func (c Config) xds() dial.Options {
	return dial.Options{
		Address: c.XDSAddress, RootFile: c.XDSRoot, ServerName: serverName(c.XDSAddress), TokenFile: c.TokenFile, ClusterID: c.ClusterID,
	}
}

func (c Config) ca() dial.Options {
	return dial.Options{
		Address: c.CAAddress, RootFile: c.CARoot, ServerName: serverName(c.CAAddress), TokenFile: c.TokenFile, ClusterID: c.ClusterID,
	}
}

// serverName is the name that istiod must prove. An address that is a service's
// name is that name; any other, such as a forwarded port, stands for the default.
func serverName(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ports.IstiodServerName
	}
	host := strings.TrimSuffix(u.Hostname(), ".cluster.local")
	if strings.HasSuffix(host, ".svc") {
		return host
	}
	return ports.IstiodServerName
}

// ipv6 tells whether the pod's first address is of version 6.
func (c Config) ipv6() bool {
	a, err := netip.ParseAddr(c.InstanceIP)
	return err == nil && a.Is6() && !a.Is4In6()
}

// drainMaximum is how long live connections may go on after a signal to end.
func (c Config) drainMaximum() time.Duration { return max(c.Grace-graceMargin, 0) }

// socket is where Envoy finds its configuration and its secrets.
func (c Config) socket() string { return filepath.Join(c.Directory, "xds.sock") }

// bootstrapFile is what Envoy is started with.
func (c Config) bootstrapFile() string { return filepath.Join(c.Directory, "envoy.json") }

// LogValue shows the configuration; it holds no secret, only paths to them.
func (c Config) LogValue() slog.Value {
	type plain Config // without this method
	return slog.AnyValue(fmt.Sprintf("%+v", plain(c)))
}
