package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

// maxFileBytes bounds a local file: 10,000 workloads in YAML are about 5 MiB.
const maxFileBytes = 64 << 20

// The file's form is that of Istio's ztunnel (LOCAL_XDS_PATH), its enum values
// included; see examples/localhost.yaml there. Fields that Istio demands and that
// have an obvious default may be left out.
type fileConfig struct {
	Workloads []fileWorkload `yaml:"workloads"`
	Services  []fileService  `yaml:"services"`
	Policies  []filePolicy   `yaml:"policies"`
}

type fileWorkload struct {
	UID                   string                       `yaml:"uid"`
	Name                  string                       `yaml:"name"`
	Namespace             string                       `yaml:"namespace"`
	TrustDomain           string                       `yaml:"trustDomain"`
	ServiceAccount        string                       `yaml:"serviceAccount"`
	Network               string                       `yaml:"network"`
	ClusterID             string                       `yaml:"clusterId"`
	Node                  string                       `yaml:"node"`
	Hostname              string                       `yaml:"hostname"`
	WorkloadName          string                       `yaml:"workloadName"`
	WorkloadType          string                       `yaml:"workloadType"`
	CanonicalName         string                       `yaml:"canonicalName"`
	CanonicalRevision     string                       `yaml:"canonicalRevision"`
	WorkloadIPs           []netip.Addr                 `yaml:"workloadIps"`
	Services              map[string]map[uint16]uint16 `yaml:"services"`
	Waypoint              *fileGateway                 `yaml:"waypoint"`
	NetworkGateway        *fileGateway                 `yaml:"networkGateway"`
	Protocol              string                       `yaml:"protocol"`
	NetworkMode           string                       `yaml:"networkMode"`
	Status                string                       `yaml:"status"`
	NativeTunnel          bool                         `yaml:"nativeTunnel"`
	ApplicationTunnel     *fileApplicationTunnel       `yaml:"applicationTunnel"`
	AuthorizationPolicies []string                     `yaml:"authorizationPolicies"`
	Locality              fileLocality                 `yaml:"locality"`
	Capacity              *uint32                      `yaml:"capacity"`
}

type fileLocality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
}

// fileGateway's destination is network/ip or namespace/hostname.
type fileGateway struct {
	Destination   string `yaml:"destination"`
	HBONEMTLSPort uint16 `yaml:"hboneMtlsPort"`
}

type fileApplicationTunnel struct {
	Protocol string `yaml:"protocol"`
	Port     uint16 `yaml:"port"`
}

type fileService struct {
	Name              string                 `yaml:"name"`
	Namespace         string                 `yaml:"namespace"`
	Hostname          string                 `yaml:"hostname"`
	VIPs              []string               `yaml:"vips"` // network/ip
	CIDRVIPs          []fileCIDR             `yaml:"cidrVips"`
	Ports             map[uint16]uint16      `yaml:"ports"`
	SubjectAltNames   []string               `yaml:"subjectAltNames"`
	Waypoint          *fileGateway           `yaml:"waypoint"`
	WeightedWaypoints []fileWeightedWaypoint `yaml:"weightedWaypoints"`
	LoadBalancer      *fileLoadBalancer      `yaml:"loadBalancer"`
	IPFamilies        string                 `yaml:"ipFamilies"`
	Canonical         bool                   `yaml:"canonical"`
	Visibility        string                 `yaml:"visibility"`
}

type fileCIDR struct {
	Network string       `yaml:"network"`
	CIDR    netip.Prefix `yaml:"cidr"`
}

type fileWeightedWaypoint struct {
	Destination fileGateway `yaml:"destination"`
	Weight      uint32      `yaml:"weight"`
}

type fileLoadBalancer struct {
	RoutingPreferences []string `yaml:"routingPreferences"`
	Mode               string   `yaml:"mode"`
	HealthPolicy       string   `yaml:"healthPolicy"`
}

// LoadFile replaces the whole state by the content of a YAML file. If anything in it
// is wrong, the state stays as it is and the error says what and where.
func (s *Store) LoadFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load local state: %w", err)
	}
	if info.Size() > maxFileBytes {
		return fmt.Errorf("load local state %q: %d bytes are more than %d", path, info.Size(), maxFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("load local state: %w", err)
	}
	if err := s.load(data); err != nil {
		return fmt.Errorf("load local state %q: %w", path, err)
	}
	return nil
}

func (s *Store) load(data []byte) error {
	var file fileConfig
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("parse: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := newBuilder(emptySnapshot(), s.cfg.Node)
	for i, f := range file.Workloads {
		if err := addFileWorkload(b, f, s.intern); err != nil {
			return fmt.Errorf("workload %d (%q): %w", i+1, f.UID, err)
		}
	}
	for i, f := range file.Services {
		if err := addFileService(b, f, s.intern); err != nil {
			return fmt.Errorf("service %d (%q): %w", i+1, f.Hostname, err)
		}
	}
	next := b.snapshot()
	for i, f := range file.Policies {
		a, err := f.message()
		if err != nil {
			return fmt.Errorf("policy %d (%q): %w", i+1, f.Name, err)
		}
		p, err := policy.Compile(a)
		if err != nil {
			return fmt.Errorf("policy %d: %w", i+1, err)
		}
		next.policies.set(p)
	}
	next.policies.index()
	old := s.current.Load()
	next.Generation, next.PolicyGeneration = old.Generation, old.PolicyGeneration+1
	s.publish(next)
	return nil
}

func addFileWorkload(b *builder, f fileWorkload, intern *interner) error {
	m, err := f.message()
	if err != nil {
		return err
	}
	w, err := convertWorkload(m, intern)
	if err != nil {
		return err
	}
	if _, ok := b.workloads.Get(w.UID); ok {
		return fmt.Errorf("uid %q occurs twice", w.UID)
	}
	b.setWorkload(w)
	return nil
}

func addFileService(b *builder, f fileService, intern *interner) error {
	m, err := f.message()
	if err != nil {
		return err
	}
	svc, err := convertService(m, intern)
	if err != nil {
		return err
	}
	if _, ok := b.services.Get(svc.Key()); ok {
		return fmt.Errorf("service %q occurs twice", svc.Key())
	}
	b.setService(svc)
	return nil
}

func (f *fileWorkload) message() (*workload.Workload, error) {
	if f.Namespace == "" {
		return nil, errors.New("namespace is missing")
	}
	m := &workload.Workload{
		Uid: f.UID, Name: f.Name, Namespace: f.Namespace, TrustDomain: f.TrustDomain, ServiceAccount: f.ServiceAccount,
		Network: f.Network, ClusterId: f.ClusterID, Node: f.Node, Hostname: f.Hostname, WorkloadName: f.WorkloadName,
		CanonicalName: f.CanonicalName, CanonicalRevision: f.CanonicalRevision, NativeTunnel: f.NativeTunnel,
		AuthorizationPolicies: f.AuthorizationPolicies, Services: map[string]*workload.PortList{},
		Locality: &workload.Locality{Region: f.Locality.Region, Zone: f.Locality.Zone, Subzone: f.Locality.Subzone},
		Capacity: fileCapacity(f.Capacity),
	}
	if m.Uid == "" {
		m.Uid = "local//Pod/" + f.Namespace + "/" + f.Name
	}
	for _, ip := range f.WorkloadIPs {
		m.Addresses = append(m.Addresses, ip.AsSlice())
	}
	for key, ports := range f.Services {
		m.Services[key] = &workload.PortList{Ports: filePorts(ports)}
	}
	var err error
	if m.Waypoint, err = f.Waypoint.message(); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if m.NetworkGateway, err = f.NetworkGateway.message(); err != nil {
		return nil, fmt.Errorf("networkGateway: %w", err)
	}
	errs := []error{
		enum("protocol", f.Protocol, &m.TunnelProtocol, "TCP", "HBONE"),
		enum("networkMode", f.NetworkMode, &m.NetworkMode, "Standard", "HostNetwork"),
		enum("status", f.Status, &m.Status, "Healthy", "Unhealthy"),
		enum("workloadType", f.WorkloadType, &m.WorkloadType, "deployment", "cronjob", "pod", "job"),
	}
	if t := f.ApplicationTunnel; t != nil {
		m.ApplicationTunnel = &workload.ApplicationTunnel{Port: uint32(t.Port)}
		errs = append(errs, enum("applicationTunnel.protocol", t.Protocol, &m.ApplicationTunnel.Protocol, "NONE", "PROXY"))
	}
	return m, errors.Join(errs...)
}

func (f *fileService) message() (*workload.Service, error) {
	m := &workload.Service{
		Name: f.Name, Namespace: f.Namespace, Hostname: f.Hostname, Ports: filePorts(f.Ports),
		SubjectAltNames: f.SubjectAltNames, Canonical: f.Canonical,
	}
	for _, vip := range f.VIPs {
		network, ip, err := networkAddress(vip)
		if err != nil {
			return nil, fmt.Errorf("vips: %w", err)
		}
		m.Addresses = append(m.Addresses, &workload.NetworkAddress{Network: network, Address: ip.AsSlice()})
	}
	for _, c := range f.CIDRVIPs {
		if !c.CIDR.IsValid() {
			return nil, errors.New("cidrVips: cidr is missing")
		}
		bits := uint32(c.CIDR.Bits())
		m.Addresses = append(m.Addresses, &workload.NetworkAddress{Network: c.Network, Address: c.CIDR.Addr().AsSlice(), Length: &bits})
	}
	var err error
	if m.Waypoint, err = f.Waypoint.message(); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for _, ww := range f.WeightedWaypoints {
		gw, err := ww.Destination.message()
		if err != nil {
			return nil, fmt.Errorf("weightedWaypoints: %w", err)
		}
		m.WeightedWaypoints = append(m.WeightedWaypoints, &workload.WeightedWaypoint{Destination: gw, Weight: ww.Weight})
	}
	errs := []error{
		enum("ipFamilies", f.IPFamilies, &m.IpFamilies, "Automatic", "IPv4", "IPv6", "Dual"),
		enum("visibility", f.Visibility, &m.Visibility, "Public", "Namespace"),
	}
	if lb := f.LoadBalancer; lb != nil {
		m.LoadBalancing = &workload.LoadBalancing{}
		for _, p := range lb.RoutingPreferences {
			var scope workload.LoadBalancing_Scope
			errs = append(errs, enum("loadBalancer.routingPreferences", p, &scope, "", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"))
			m.LoadBalancing.RoutingPreference = append(m.LoadBalancing.RoutingPreference, scope)
		}
		errs = append(errs,
			enum("loadBalancer.mode", lb.Mode, &m.LoadBalancing.Mode, "Standard", "Strict", "Failover", "Passthrough"),
			enum("loadBalancer.healthPolicy", lb.HealthPolicy, &m.LoadBalancing.HealthPolicy, "OnlyHealthy", "AllowAll"))
	}
	return m, errors.Join(errs...)
}

func (f *fileGateway) message() (*workload.GatewayAddress, error) {
	if f == nil {
		return nil, nil
	}
	left, right, ok := strings.Cut(f.Destination, "/")
	if !ok || right == "" {
		return nil, fmt.Errorf("destination %q is neither network/ip nor namespace/hostname", f.Destination)
	}
	m := &workload.GatewayAddress{HboneMtlsPort: uint32(f.HBONEMTLSPort)}
	if ip, err := netip.ParseAddr(right); err == nil {
		m.Destination = &workload.GatewayAddress_Address{Address: &workload.NetworkAddress{Network: left, Address: ip.AsSlice()}}
	} else {
		m.Destination = &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{Namespace: left, Hostname: right}}
	}
	return m, nil
}

func networkAddress(s string) (network string, ip netip.Addr, err error) {
	network, text, ok := strings.Cut(s, "/")
	if !ok {
		return "", netip.Addr{}, fmt.Errorf("%q is not network/ip", s)
	}
	if ip, err = netip.ParseAddr(text); err != nil {
		return "", netip.Addr{}, fmt.Errorf("%q is not network/ip: %w", s, err)
	}
	return network, ip, nil
}

// enum sets *out to the position of value in names; an empty value is the first.
func enum[E ~int32](field, value string, out *E, names ...string) error {
	for i, n := range names {
		if value == n || value == "" {
			*out = E(i)
			return nil
		}
	}
	return fmt.Errorf("%s: %q is not one of %s", field, value, strings.Join(names, ", "))
}

// filePolicy is nested as rules, clauses, matches.
type filePolicy struct {
	Name      string          `yaml:"name"`
	Namespace string          `yaml:"namespace"`
	Scope     string          `yaml:"scope"`
	Action    string          `yaml:"action"`
	Rules     [][][]fileMatch `yaml:"rules"`
	DryRun    bool            `yaml:"dryRun"`
}

func (f *filePolicy) message() (*security.Authorization, error) {
	m := &security.Authorization{Name: f.Name, Namespace: f.Namespace, DryRun: f.DryRun}
	if f.Scope == "" || f.Action == "" {
		return nil, errors.New("scope and action must be given")
	}
	for _, rule := range f.Rules {
		r := &security.Rule{}
		for _, clause := range rule {
			c := &security.Clause{}
			for i := range clause {
				c.Matches = append(c.Matches, clause[i].message())
			}
			r.Clauses = append(r.Clauses, c)
		}
		m.Rules = append(m.Rules, r)
	}
	return m, errors.Join(
		enum("scope", f.Scope, &m.Scope, "Global", "Namespace", "WorkloadSelector"),
		enum("action", f.Action, &m.Action, "Allow", "Deny"))
}
