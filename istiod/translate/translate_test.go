package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

var testConfig = Config{ClusterID: "Kubernetes", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system"}

// selected is a service that the golden pods are endpoints of, with a numeric and two named target ports.
var selected = &model.Service{
	Key: model.Key{Namespace: "shop", Name: "web"}, Hostname: "web.shop.svc.cluster.local",
	Ports: []model.ServicePort{{Port: 80, Target: 8000}, {Port: 81, TargetName: "http"}, {Port: 82, TargetName: "absent"}},
}

// translateYAML gives what a golden file holds: the wire form of one object, notes and errors.
func translateYAML(t testing.TB, b []byte) string {
	t.Helper()
	var head struct{ Kind string }
	if err := yaml.Unmarshal(b, &head); err != nil {
		t.Fatal(err)
	}
	var out []string
	show := func(m proto.Message, err error) {
		if m != nil && m.ProtoReflect().IsValid() {
			j, merr := protojson.Marshal(m)
			if merr != nil {
				t.Fatal(merr)
			}
			var buf bytes.Buffer
			if err := json.Indent(&buf, j, "", "  "); err != nil {
				t.Fatal(err)
			}
			out = append(out, buf.String())
		} else {
			out = append(out, "nothing")
		}
		if err != nil {
			out = append(out, "error: "+err.Error())
		}
	}
	switch head.Kind {
	case "Pod":
		o := &corev1.Pod{}
		mustYAML(t, b, o)
		p, err := Pod(o)
		if err != nil {
			show(nil, err)
			break
		}
		show(Workload(testConfig, p, WorkloadInputs{Services: []*model.Service{selected}, Policies: []string{"shop/allow"}, Locality: model.Locality{Region: "r", Zone: "z"}}), nil)
	case "Service":
		o := &corev1.Service{}
		mustYAML(t, b, o)
		s, err := Service(testConfig, o)
		if s == nil {
			show(nil, err)
			break
		}
		show(ServiceWire(testConfig, s, ServiceInputs{Distribution: model.DistributionSameZone}), err)
	case "AuthorizationPolicy":
		o := &securityv1.AuthorizationPolicy{}
		mustYAML(t, b, o)
		p, err := AuthorizationPolicy(testConfig, o)
		if p == nil {
			show(nil, err)
			break
		}
		show(p.Wire, err)
		for _, n := range p.Notes {
			out = append(out, "note: "+n)
		}
	default:
		t.Fatalf("kind %q", head.Kind)
	}
	return strings.Join(out, "\n") + "\n"
}

func mustYAML(t testing.TB, b []byte, o any) {
	t.Helper()
	if err := yaml.Unmarshal(b, o); err != nil {
		t.Fatal(err)
	}
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			in, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := translateYAML(t, in)
			golden := strings.TrimSuffix(f, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got; -update writes it)\n%s", diff)
			}
		})
	}
}

func TestOwners(t *testing.T) {
	pod := func(kind, owner, labels string) string {
		return fmt.Sprintf(`{metadata: {name: web-1, namespace: a, generateName: web-, labels: {%s}, ownerReferences: [{kind: %s, name: %s, controller: true}]}}`, labels, kind, owner)
	}
	for _, tt := range []struct {
		name, yaml, owner string
		kind              model.OwnerType
	}{
		{"bare", `{metadata: {name: web-1}}`, "web-1", model.OwnerPod},
		{"deployment", pod("ReplicaSet", "web-5d4", "pod-template-hash: 5d4"), "web", model.OwnerDeployment},
		{"replica set alone", pod("ReplicaSet", "web", "pod-template-hash: 5d4"), "web", model.OwnerPod},
		{"hash in the middle", pod("ReplicaSet", "web-5d4-x", "pod-template-hash: 5d4"), "web-5d4-x", model.OwnerPod},
		{"rollout", pod("ReplicaSet", "web-77", "rollouts-pod-template-hash: '77'"), "web", model.OwnerPod},
		{"job", pod("Job", "import", ""), "import", model.OwnerJob},
		{"cron job", pod("Job", "import-29398620", ""), "import", model.OwnerCronJob},
		{"job with a short number", pod("Job", "import-2939", ""), "import-2939", model.OwnerJob},
		{"job that is only digits", pod("Job", "29398620", ""), "29398620", model.OwnerJob},
		{"stateful set", pod("StatefulSet", "db", ""), "db", model.OwnerPod},
		{"named by label", pod("ReplicaSet", "web-5d4", "pod-template-hash: 5d4, service.istio.io/workload-name: front"), "front", model.OwnerDeployment},
		{"not the controller", `{metadata: {name: web-1, generateName: web-, ownerReferences: [{kind: Job, name: x}]}}`, "web-1", model.OwnerPod},
		{"name not generated", `{metadata: {name: web-1, ownerReferences: [{kind: Job, name: x, controller: true}]}}`, "web-1", model.OwnerPod},
	} {
		o := &corev1.Pod{}
		mustYAML(t, []byte(tt.yaml), o)
		p, err := Pod(o)
		if err != nil || p.Owner != tt.owner || p.OwnerType != tt.kind {
			t.Errorf("%s: got %q %v (%v), want %q %v", tt.name, p.Owner, p.OwnerType, err, tt.owner, tt.kind)
		}
	}
}

func TestAppProtocol(t *testing.T) {
	app := func(s string) *string { return &s }
	for _, tt := range []struct {
		port corev1.ServicePort
		want model.AppProtocol
	}{
		{corev1.ServicePort{Name: "http", Port: 80}, model.ProtocolHTTP1},
		{corev1.ServicePort{Name: "HTTP-web", Port: 80}, model.ProtocolHTTP1},
		{corev1.ServicePort{Name: "http2", Port: 80}, model.ProtocolHTTP2},
		{corev1.ServicePort{Name: "grpc-api", Port: 80}, model.ProtocolGRPC},
		{corev1.ServicePort{Name: "grpc-web", Port: 80}, model.ProtocolUnknown},
		{corev1.ServicePort{Name: "tcp", Port: 80}, model.ProtocolTCP},
		{corev1.ServicePort{Name: "https", Port: 443}, model.ProtocolTLS},
		{corev1.ServicePort{Name: "web", Port: 80}, model.ProtocolUnknown},
		{corev1.ServicePort{Name: "db", Port: 3306}, model.ProtocolTCP},
		{corev1.ServicePort{Name: "mysql", Port: 3306}, model.ProtocolUnknown},
		{corev1.ServicePort{Name: "tcp", Port: 80, AppProtocol: app("http")}, model.ProtocolHTTP1},
		{corev1.ServicePort{Port: 80, AppProtocol: app("kubernetes.io/h2c")}, model.ProtocolHTTP2},
		{corev1.ServicePort{Port: 80, AppProtocol: app("kubernetes.io/ws")}, model.ProtocolHTTP1},
		{corev1.ServicePort{Port: 80, AppProtocol: app("kubernetes.io/wss")}, model.ProtocolTLS},
	} {
		if got := appProtocol(tt.port); got != tt.want {
			t.Errorf("%q %d: got %v, want %v", tt.port.Name, tt.port.Port, got, tt.want)
		}
	}
}

// denies evaluates a converted policy as the node proxy would, for a caller without identity.
func denies(a *security.Authorization, port uint32) bool {
	for _, r := range a.GetRules() {
		all := true
		for _, c := range r.GetClauses() {
			any := false
			for _, m := range c.GetMatches() {
				ok := true
				if len(m.GetDestinationPorts()) > 0 && m.GetDestinationPorts()[0] != port {
					ok = false
				}
				if len(m.GetNotDestinationPorts()) > 0 && m.GetNotDestinationPorts()[0] == port {
					ok = false
				}
				any = any || ok // not_principals: presence holds for a caller without identity
			}
			all = all && any
		}
		if all {
			return true
		}
	}
	return false
}

// Every combination of modes at four levels, against the rule that the innermost
// level which says something decides.
func TestPeerAuthenticationInheritance(t *testing.T) {
	const exceptionPort, otherPort = 8080, 9090
	modes := []model.MTLSMode{model.MTLSUnset, model.MTLSDisable, model.MTLSPermissive, model.MTLSStrict}
	pa := func(ns, name string, m model.MTLSMode) *model.PeerAuthentication {
		return &model.PeerAuthentication{Key: model.Key{Namespace: ns, Name: name}, Mode: m}
	}
	for _, mesh := range modes {
		for _, ns := range modes {
			for _, own := range modes {
				for _, port := range modes {
					w := pa("a", "w", own)
					w.Selector = map[string]string{"app": "x"}
					w.Ports = map[uint16]model.MTLSMode{exceptionPort: port}
					m := MTLS{Mesh: pa("istio-system", "mesh", mesh), Namespace: pa("a", "ns", ns), Workload: w}
					byDefault := innermost(own, ns, mesh)
					want := map[uint32]bool{otherPort: byDefault == model.MTLSStrict, exceptionPort: innermost(port, byDefault) == model.MTLSStrict}
					for p, strict := range want {
						if got := plaintextDenied(t, m, p); got != strict {
							t.Errorf("mesh %v, namespace %v, workload %v, port %v: plaintext to %d denied: %v, want %v", mesh, ns, own, port, p, got, strict)
						}
					}
				}
			}
		}
	}
}

func innermost(modes ...model.MTLSMode) model.MTLSMode {
	for _, m := range modes {
		if m != model.MTLSUnset {
			return m
		}
	}
	return model.MTLSUnset
}

func plaintextDenied(t *testing.T, m MTLS, port uint32) bool {
	t.Helper()
	converted := m.Converted()
	for _, name := range m.PolicyNames(testConfig) {
		switch name {
		case "istio-system/" + StaticStrictName:
			return true
		case ConvertedName(m.Workload.Key):
			if converted == nil {
				t.Fatalf("%+v: refers to a converted policy that does not exist", m.Workload)
			}
			return denies(converted, port)
		default:
			t.Fatalf("unknown policy %q", name)
		}
	}
	return false
}

func TestOldestPeerAuthenticationDecides(t *testing.T) {
	at := func(name string, sec int64) *model.PeerAuthentication {
		return &model.PeerAuthentication{Key: model.Key{Namespace: "a", Name: name}, Created: time.Unix(sec, 0)}
	}
	for _, in := range [][]*model.PeerAuthentication{{at("new", 2), at("old", 1)}, {at("old", 1), at("new", 2)}, {at("other", 1), at("old", 1), at("zzz", 1)}} {
		if got := Oldest(in); got.Name != "old" {
			t.Errorf("got %q", got.Name)
		}
	}
}

func TestPeerAuthenticationPortOutOfRange(t *testing.T) {
	o := &securityv1.PeerAuthentication{}
	mustYAML(t, []byte(`{metadata: {name: p, namespace: a}, spec: {portLevelMtls: {"70000": {mode: STRICT}}}}`), o)
	if _, err := PeerAuthentication(o); err == nil || !strings.Contains(err.Error(), "portLevelMtls") {
		t.Errorf("got %v", err)
	}
}

func TestEndpointSlice(t *testing.T) {
	o := &discoveryv1.EndpointSlice{}
	mustYAML(t, []byte(`{metadata: {name: s, namespace: a, labels: {kubernetes.io/service-name: web}}, addressType: IPv4,
	  endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p, namespace: a, uid: u}}, {addresses: [1.2.3.4, nonsense], zone: z}, {addresses: [nonsense]}],
	  ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}, {name: none}, {name: far, port: 70000}]}`), o)
	want := &model.EndpointSlice{Key: model.Key{Namespace: "a", Name: "s"}, Service: "web", Endpoints: []model.Endpoint{{Pod: model.Key{Namespace: "a", Name: "p"}, PodUID: "u"}},
		Addresses: []model.AddressEndpoint{{Addresses: []netip.Addr{netip.MustParseAddr("1.2.3.4")}, Ready: true, Zone: "z"}},
		Ports:     map[string]uint16{"http": 8080}}
	if diff := cmp.Diff(want, EndpointSlice(o), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	o.AddressType = discoveryv1.AddressTypeFQDN
	if got := EndpointSlice(o); got != nil {
		t.Errorf("names instead of addresses: %v", got)
	}
}

func TestWaypointOnTheWire(t *testing.T) {
	w := &model.Waypoint{Key: model.Key{Namespace: "a", Name: "w"}, Address: netip.MustParseAddr("10.0.0.1"), HBONEPort: 15008}
	if got := waypointAddress(testConfig, w); got.GetAddress().GetAddress()[3] != 1 || got.GetHboneMtlsPort() != 15008 {
		t.Errorf("by address: %v", got)
	}
	w.Hostname = "w.a.svc.cluster.local"
	if got := waypointAddress(testConfig, w); got.GetHostname().GetHostname() != w.Hostname || got.GetHostname().GetNamespace() != "a" {
		t.Errorf("by name: %v", got)
	}
	if waypointAddress(testConfig, nil) != nil {
		t.Error("a waypoint out of nothing")
	}
}

func fuzzSeeds(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// No policy may crash istiod, change its input, give another result the second
// time, or as an ALLOW policy with an error keep a rule that has it.
func FuzzAuthorizationPolicy(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &securityv1.AuthorizationPolicy{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		before := o.DeepCopy()
		p, err := AuthorizationPolicy(testConfig, o)
		again, _ := AuthorizationPolicy(testConfig, before)
		if !proto.Equal(&o.Spec, &before.Spec) {
			t.Error("the input was changed")
		}
		if (p == nil) != (again == nil) || p != nil && !proto.Equal(p.Wire, again.Wire) {
			t.Error("two results of one input")
		}
		if err != nil && p != nil && p.Wire.GetAction() == security.Action_ALLOW && len(p.Wire.GetRules()) >= len(o.Spec.GetRules()) && len(o.Spec.GetRules()) > 0 {
			t.Error("a rule with an error is in an ALLOW policy")
		}
	})
}

func FuzzPod(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &corev1.Pod{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		p, err := Pod(o)
		if err != nil {
			return
		}
		w := Workload(testConfig, p, WorkloadInputs{Services: []*model.Service{selected}})
		if w != nil && (len(w.GetAddresses()) == 0 || w.GetWorkloadName() == "" && o.Name != "") {
			t.Errorf("workload without address or name: %v", w)
		}
	})
}

func FuzzService(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &corev1.Service{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		s, err := Service(testConfig, o)
		if err != nil || s == nil {
			return
		}
		a, c := ServiceWire(testConfig, s, ServiceInputs{}), ServiceWire(testConfig, s, ServiceInputs{})
		if diff := cmp.Diff(a, c, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	})
}
