package istiod

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayfake "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned/fake"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

const waypointYAML = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, uid: u-gw}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}
spec: {clusterIP: 10.96.0.10, selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: mesh, port: 15008, appProtocol: hbone}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waypoint-1, namespace: shop, uid: u-wp, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {nodeName: n1, serviceAccountName: waypoint}
status: {phase: Running, podIP: 10.0.0.9, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  uid: u1
  labels: {app: web}
  annotations: {ambient.istio.io/redirection: enabled}
spec: {nodeName: n1, serviceAccountName: web}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /cart}}]
    backendRefs: [{name: web, port: 80}]
`

// waypointNode is what the agent of a waypoint says of itself.
func waypointNode(t testing.TB) *core.Node {
	t.Helper()
	md, err := structpb.NewStruct(map[string]any{"NAMESPACE": "shop", "NAME": "waypoint-1", "GATEWAY_NAME": "waypoint", "SERVICE_ACCOUNT": "waypoint"})
	if err != nil {
		t.Fatal(err)
	}
	return &core.Node{Id: "waypoint~10.0.0.9~waypoint-1.shop~shop.svc.cluster.local", Cluster: "waypoint.shop", Metadata: md}
}

// dialAs connects with a certificate of the mesh for an identity.
func (p *plane) dialAs(id string) *grpc.ClientConn {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		p.t.Fatal(err)
	}
	chain, err := p.app.authority.Sign(&x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, &key.PublicKey)
	if err != nil {
		p.t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(chain[0]))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(p.app.authority.Bundle().RootsPEM()))
	secure, _, _ := p.app.Addresses()
	conn, err := grpc.NewClient(secure.String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: pool, ServerName: ports.IstiodServerName, MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}},
	})))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// envoy subscribes as an Envoy does, and keeps the newest content of everything.
type envoy struct {
	*pushtest.Client
	content map[string]map[string][]byte
}

func openEnvoy(t testing.TB, conn grpc.ClientConnInterface, node *core.Node, cluster string, tables ...string) *envoy {
	e := &envoy{pushtest.Open(t.Context(), t, conn, node), map[string]map[string][]byte{}}
	e.Subscribe(push.TypeCluster, nil)
	e.Names(push.TypeEndpoints, []string{cluster}, nil, nil)
	e.Subscribe(push.TypeListener, nil)
	e.Subscribe(push.TypeScope, nil)
	e.Names(push.TypeRoute, tables, nil, nil)
	return e
}

// await acknowledges what comes until a resource has the wanted content.
func (e *envoy) await(t testing.TB, typeURL, name string, ok func([]byte) bool) {
	t.Helper()
	for !ok(e.content[typeURL][name]) {
		r, err := e.RecvErr()
		if err != nil {
			t.Fatalf("wait for %s %q: %v; held: %v", typeURL, name, err, e.Held)
		}
		e.Ack(r)
		if e.content[r.GetTypeUrl()] == nil {
			e.content[r.GetTypeUrl()] = map[string][]byte{}
		}
		for _, res := range r.GetResources() {
			e.content[r.GetTypeUrl()][res.GetName()] = res.GetResource().GetValue()
		}
		for _, gone := range r.GetRemovedResources() {
			delete(e.content[r.GetTypeUrl()], gone)
		}
	}
}

func there(b []byte) bool { return b != nil }

func TestDirectoryToWaypoint(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mesh.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file+".tmp", []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".tmp", file); err != nil {
			t.Fatal(err)
		}
	}
	write(waypointYAML)
	p := start(t, false, func(s *Settings) { s.ConfigDir = dir })
	const table, cluster = "shop/web.shop.svc.cluster.local:80", "outbound|80||web.shop.svc.cluster.local"

	// Another pod of the namespace is refused what is the waypoint's.
	stranger := pushtest.Open(t.Context(), t, p.dialAs("spiffe://cluster.local/ns/shop/sa/web"), waypointNode(t))
	stranger.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: push.TypeCluster})
	if _, err := stranger.RecvErr(); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("a stranger got %v, want PermissionDenied", err)
	}

	e := openEnvoy(t, p.dialAs("spiffe://cluster.local/ns/shop/sa/waypoint"), waypointNode(t), cluster, "connect", table)
	e.await(t, push.TypeCluster, cluster, there)
	e.await(t, push.TypeListener, "connect_terminate", there)
	e.await(t, push.TypeEndpoints, cluster, func(b []byte) bool {
		cla := &endpoint.ClusterLoadAssignment{}
		return proto.Unmarshal(b, cla) == nil && len(cla.GetEndpoints()) == 1 &&
			strings.Contains(protojson.Format(cla), "spiffe://cluster.local/ns/shop/sa/web")
	})
	paths := func(want string) func([]byte) bool {
		return func(b []byte) bool {
			rc := &routev3.RouteConfiguration{}
			if proto.Unmarshal(b, rc) != nil || len(rc.GetVirtualHosts()) != 1 {
				return false
			}
			return strings.Contains(protojson.Format(rc), want)
		}
	}
	e.await(t, push.TypeRoute, table, paths("/cart"))
	if n := len(e.content[push.TypeScope]); n != 2 {
		t.Errorf("%d scopes, want those of the service's name and its address", n)
	}

	// One change of a route is one change of its table.
	write(strings.Replace(waypointYAML, "value: /cart", "value: /basket", 1))
	e.await(t, push.TypeRoute, table, paths("/basket"))

	// ztunnels learn which waypoint the service uses.
	z := pushtest.Open(t.Context(), t, p.dialAs("spiffe://cluster.local/ns/istio-system/sa/ztunnel"), pushtest.Node("zt-1", "n1"))
	z.Subscribe(ports.TypeAddress, nil)
	found := false
	for !found {
		for _, r := range z.Next().GetResources() {
			a := &workload.Address{}
			if err := proto.Unmarshal(r.GetResource().GetValue(), a); err != nil {
				t.Fatal(err)
			}
			found = found || a.GetService().GetName() == "web" &&
				a.GetService().GetWaypoint().GetHostname().GetHostname() == "waypoint.shop.svc.cluster.local"
		}
	}
	if page := p.get("/debug/statuses?name=shop/web"); !strings.Contains(page, "WaypointAccepted") {
		t.Errorf("the service's status does not say that it is bound: %s", page)
	}
	if page := p.get("/debug/proxies"); !strings.Contains(page, table) {
		t.Errorf("the page of proxies lacks %q: %s", table, page)
	}

	// Without its waypoint the service is reached straight; the waypoint goes on for those who have not heard of it.
	write(strings.Replace(waypointYAML, "labels: {istio.io/use-waypoint: waypoint}", "labels: {}", 1))
	for direct := false; !direct; {
		for _, r := range z.Next().GetResources() {
			a := &workload.Address{}
			if err := proto.Unmarshal(r.GetResource().GetValue(), a); err != nil {
				t.Fatal(err)
			}
			direct = direct || a.GetService().GetName() == "web" && a.GetService().GetWaypoint() == nil
		}
	}
	if page := p.get("/debug/proxies"); !strings.Contains(page, table) {
		t.Errorf("the waypoint forgot at once what it served: %s", page)
	}
}

// The Gateway API may be there in part, as older releases have it: what is there works, and what is missing is named.
func TestGatewayAPIInPart(t *testing.T) {
	p := prepare(t, true, nil, namespace("istio-system", nil), namespace("shop", map[string]string{ports.LabelUseWaypoint: "waypoint"}),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s"}, Data: map[string][]byte{"password": {1}}})
	api := gatewayfake.NewSimpleClientset()
	api.Fake.Resources = []*metav1.APIResourceList{{GroupVersion: "gateway.networking.k8s.io/v1", APIResources: []metav1.APIResource{
		{Kind: "GatewayClass"}, {Kind: "Gateway"}, {Kind: "HTTPRoute"}}}}
	p.app.clients.Gateway = api
	p.app.source = watch.NewKubernetes(*p.app.clients, p.app.log.Logger("watch"))
	ctx := t.Context()
	v1 := api.GatewayV1()
	if _, err := v1.GatewayClasses().Create(ctx, &gwv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-waypoint"}, Spec: gwv1.GatewayClassSpec{ControllerName: "istio.io/mesh-controller"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.run()
	eventually(t, "ready", func() bool { return strings.HasPrefix(p.get("/ready"), "ready") })
	missing := func() string { return fmt.Sprint(p.app.source.Conditions()) }
	if got := missing(); !strings.Contains(got, "TCPRoute") || strings.Contains(got, "HTTPRoute") {
		t.Errorf("the kinds that are missing are not named: %s", got)
	}
	group, kind := gwv1.Group(""), gwv1.Kind("Service")
	if _, err := v1.HTTPRoutes("shop").Create(ctx, &gwv1.HTTPRoute{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "r"}, Spec: gwv1.HTTPRouteSpec{
			CommonRouteSpec: gwv1.CommonRouteSpec{ParentRefs: []gwv1.ParentReference{{Group: &group, Kind: &kind, Name: "web"}}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the route is judged", func() bool { return strings.Contains(p.get("/debug/statuses?name=shop/r"), "Accepted") })
	api.Fake.Lock()
	api.Fake.Resources[0].APIResources = append(api.Fake.Resources[0].APIResources, metav1.APIResource{Kind: "TCPRoute"})
	api.Fake.Unlock()
	eventually(t, "a kind that came later is not missing", func() bool { return !strings.Contains(missing(), "TCPRoute") })
}
