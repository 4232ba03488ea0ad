package istiod

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	istiofake "istio.io/client-go/pkg/clientset/versioned/fake"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
)

// deadline bounds every wait of these tests.
const deadline = 30 * time.Second

// plane is a running control plane on a fake API server or a directory.
type plane struct {
	t     testing.TB
	app   *App
	kube  *fake.Clientset
	istio *istiofake.Clientset
	stop  func()
}

var policyKinds = []*metav1.APIResourceList{
	{GroupVersion: "security.istio.io/v1", APIResources: []metav1.APIResource{
		{Kind: "AuthorizationPolicy"}, {Kind: "PeerAuthentication"}, {Kind: "RequestAuthentication"}}},
	{GroupVersion: "networking.istio.io/v1", APIResources: []metav1.APIResource{
		{Kind: "VirtualService"}, {Kind: "DestinationRule"}, {Kind: "ServiceEntry"}, {Kind: "Gateway"}}},
	{GroupVersion: "telemetry.istio.io/v1", APIResources: []metav1.APIResource{{Kind: "Telemetry"}}},
}

// start runs a control plane; change adapts its settings before.
func start(t testing.TB, clients bool, change func(*Settings), objects ...runtime.Object) *plane {
	t.Helper()
	p := prepare(t, clients, change, objects...)
	p.run()
	return p
}

// prepare makes a control plane that does not run yet.
func prepare(t testing.TB, clients bool, change func(*Settings), objects ...runtime.Object) *plane {
	t.Helper()
	p := &plane{t: t}
	s, err := SettingsFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	s.SecureGRPC, s.HTTP, s.Monitoring = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if change != nil {
		change(&s)
	}
	var c *Clients
	if clients {
		p.kube, p.istio = fake.NewClientset(objects...), istiofake.NewSimpleClientset()
		p.istio.Fake.Resources = policyKinds
		p.kube.PrependReactor("create", "tokenreviews", review)
		c = &Clients{Kube: p.kube, Istio: p.istio}
	}
	log, err := telemetry.NewLogging(io.Discard, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if p.app, err = New(t.Context(), s, c, log); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *plane) run() {
	t := p.t
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.app.Run(ctx) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(deadline):
			t.Error("istiod does not end")
		}
	}
	t.Cleanup(p.stop)
}

// review knows one token, bound to pod zt-1 of the node proxy.
func review(a ktesting.Action) (bool, runtime.Object, error) {
	r := a.(ktesting.CreateAction).GetObject().(*authv1.TokenReview).DeepCopy()
	if r.Spec.Token == "zt" {
		r.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: r.Spec.Audiences, User: authv1.UserInfo{
			Username: "system:serviceaccount:istio-system:ztunnel", Groups: []string{"system:serviceaccounts"},
			Extra: map[string]authv1.ExtraValue{
				"authentication.kubernetes.io/pod-name": {"zt-1"}, "authentication.kubernetes.io/pod-uid": {"uid-zt"},
			},
		}}
	}
	return true, r, nil
}

// dial connects with TLS, trusting what the root ConfigMap or memory says.
func (p *plane) dial() *grpc.ClientConn {
	p.t.Helper()
	secure, _, _ := p.app.Addresses()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(p.app.authority.Bundle().RootsPEM()))
	conn, err := grpc.NewClient(secure.String(), grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{RootCAs: pool, ServerName: ports.IstiodServerName, MinVersion: tls.VersionTLS13})))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func withToken(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer zt", "clusterid", "Kubernetes")
}

func (p *plane) get(path string) string {
	p.t.Helper()
	_, _, debug := p.app.Addresses()
	resp, err := http.Get("http://" + debug.String() + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d: %s", resp.StatusCode, b)
	}
	return string(b)
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(deadline)
	defer limit.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("never: %s", what)
		}
	}
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func podObject(ns, name, ip, node, sa string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "uid-zt", ResourceVersion: "1", Labels: labels},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: sa, Containers: []corev1.Container{{
			Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func decodeAddress(t testing.TB, b []byte) *workload.Address {
	t.Helper()
	a := &workload.Address{}
	if err := proto.Unmarshal(b, a); err != nil {
		t.Fatal(err)
	}
	return a
}

// awaitWorkload acknowledges responses until one holds the pod in the wanted form.
func awaitWorkload(t testing.TB, c *pushtest.Client, uid string, ok func(*workload.Workload) bool) {
	t.Helper()
	for {
		for _, r := range c.Next().GetResources() {
			if w := decodeAddress(t, r.GetResource().GetValue()).GetWorkload(); r.GetName() == uid && ok(w) {
				return
			}
		}
	}
}

func TestKubernetesToProxy(t *testing.T) {
	ctx := t.Context()
	p := start(t, true, nil,
		namespace("istio-system", nil), namespace("shop", map[string]string{ports.LabelDataplaneMode: "ambient"}),
		podObject("istio-system", "zt-1", "10.0.0.9", "n1", "ztunnel", nil),
		podObject("shop", "web-1", "10.0.0.1", "n1", "web", map[string]string{"app": "web"}))
	eventually(t, "ready", func() bool { return strings.HasPrefix(p.get("/ready"), "ready") })

	c := pushtest.Open(withToken(ctx), t, p.dial(), pushtest.Node("zt-1", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	if diff := cmp.Diff([]string{"Kubernetes//Pod/istio-system/zt-1", "Kubernetes//Pod/shop/web-1"}, names(pushtest.Names(c.Next()))); diff != "" {
		t.Fatalf("first state (-want +got):\n%s", diff)
	}
	c.Subscribe(ports.TypeAuthorization, nil)
	c.Next()

	web := "Kubernetes//Pod/shop/web-1"
	if _, err := p.kube.CoreV1().Services("shop").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitWorkload(t, c, web, func(w *workload.Workload) bool {
		l := w.GetServices()["shop/web.shop.svc.cluster.local"]
		return l != nil && l.GetPorts()[0].GetTargetPort() == 8080
	})

	// The agent's annotation turns the tunnel on.
	pod, err := p.kube.CoreV1().Pods("shop").Get(ctx, "web-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Annotations = map[string]string{ports.AnnotationRedirection: ports.AnnotationRedirectionEnabled}
	pod.ResourceVersion = "2"
	if _, err := p.kube.CoreV1().Pods("shop").Update(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitWorkload(t, c, web, func(w *workload.Workload) bool { return w.GetTunnelProtocol() == workload.TunnelProtocol_HBONE })

	// A policy with a selector: first itself, then the workload that refers to it.
	if _, err := p.istio.SecurityV1().AuthorizationPolicies("shop").Create(ctx, &securityv1.AuthorizationPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"},
		Spec: securityapi.AuthorizationPolicy{
			Action:   securityapi.AuthorizationPolicy_DENY,
			Selector: &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}},
			Rules:    []*securityapi.Rule{{From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: []string{"cluster.local/ns/shop/sa/evil"}}}}}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r := c.Next()
	auth := &security.Authorization{}
	if err := proto.Unmarshal(r.GetResources()[0].GetResource().GetValue(), auth); err != nil {
		t.Fatal(err)
	}
	if r.GetTypeUrl() != ports.TypeAuthorization || auth.GetName() != "deny" || auth.GetAction() != security.Action_DENY {
		t.Fatalf("got %v", auth)
	}
	awaitWorkload(t, c, web, func(w *workload.Workload) bool {
		return slices.Equal(w.GetAuthorizationPolicies(), []string{"shop/deny"})
	})

	held := c.Held
	c.Close()
	if err := p.kube.CoreV1().Pods("shop").Delete(ctx, "web-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is gone", func() bool { return !strings.Contains(p.get("/debug/workloads"), "web-1") })
	again := pushtest.Open(withToken(ctx), t, p.dial(), pushtest.Node("zt-1", "n1"))
	again.Subscribe(ports.TypeAddress, held[ports.TypeAddress])
	for !slices.Contains(again.Next().GetRemovedResources(), web) {
	}
	if len(again.Held[ports.TypeAddress]) != 0 {
		t.Errorf("a reconnect was sent again what it held: %v", again.Held)
	}
	if page := p.get("/debug/syncz"); !strings.Contains(page, "zt-1") {
		t.Errorf("syncz does not show the proxy: %s", page)
	}
}

func names(in []string) []string { slices.Sort(in); return in }

func TestCertificateForPodOnTheCallersNode(t *testing.T) {
	p := start(t, true, nil,
		namespace("istio-system", nil), namespace("shop", map[string]string{ports.LabelDataplaneMode: "ambient"}), namespace("plain", nil),
		podObject("istio-system", "zt-1", "10.0.0.9", "n1", "ztunnel", nil),
		podObject("shop", "web-1", "10.0.0.1", "n1", "web", nil), podObject("shop", "far-1", "10.0.1.1", "n2", "far", nil),
		podObject("plain", "out-1", "10.0.0.2", "n1", "out", nil))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	client := capb.NewIstioCertificateServiceClient(p.dial())
	ask := func(id string) (*capb.IstioCertificateResponse, error) {
		return client.CreateCertificate(withToken(t.Context()), &capb.IstioCertificateRequest{Csr: csr, Metadata: &structpb.Struct{
			Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id)}}})
	}
	// At once: istiod waits for its own caches.
	got, err := ask("spiffe://cluster.local/ns/shop/sa/web")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.GetCertChain()); n != 2 {
		t.Errorf("chain of %d", n)
	}
	for _, id := range []string{"spiffe://cluster.local/ns/shop/sa/far", "spiffe://cluster.local/ns/plain/sa/out"} {
		if _, err := ask(id); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: got %v, want a refusal", id, err)
		}
	}
}

func TestRootConfigMapInEveryNamespace(t *testing.T) {
	ending := namespace("ending", nil)
	ending.Status.Phase = corev1.NamespaceTerminating
	p := start(t, true, nil, namespace("istio-system", nil), namespace("shop", nil), ending)
	ctx := t.Context()
	want := p.app.authority.Bundle().RootsPEM()
	has := func(ns string) func() bool {
		return func() bool {
			m, err := p.kube.CoreV1().ConfigMaps(ns).Get(ctx, ports.RootConfigMap, metav1.GetOptions{})
			return err == nil && m.Data[ports.RootConfigMapKey] == want
		}
	}
	eventually(t, "roots in shop", has("shop"))
	if _, err := p.kube.CoreV1().Namespaces().Create(ctx, namespace("late", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "roots in late", has("late"))
	if err := p.kube.CoreV1().ConfigMaps("shop").Delete(ctx, ports.RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "roots repaired in shop", has("shop"))
	if has("ending")() {
		t.Error("wrote into a namespace that is being deleted")
	}
}

// Without the policy kinds the mesh works, says so, and takes them up when they appear.
func TestPolicyKindsAppearLater(t *testing.T) {
	p := prepare(t, true, nil, namespace("istio-system", nil), namespace("shop", nil))
	p.istio.Fake.Resources = nil
	p.run()
	eventually(t, "ready", func() bool { return strings.HasPrefix(p.get("/ready"), "ready") })
	if page := p.get("/debug/problems"); !strings.Contains(page, "security.istio.io/v1") || !strings.Contains(page, "not installed") {
		t.Errorf("problems do not name the missing kinds: %s", page)
	}
	if _, err := p.istio.SecurityV1().AuthorizationPolicies("shop").Create(t.Context(), &securityv1.AuthorizationPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.istio.Fake.Lock()
	p.istio.Fake.Resources = policyKinds
	p.istio.Fake.Unlock()
	eventually(t, "the policy", func() bool { return strings.Contains(p.get("/debug/policies"), "shop/late") })
	if page := p.get("/debug/problems"); strings.Contains(page, "not installed") {
		t.Errorf("problems still name the kinds: %s", page)
	}
}

const meshYAML = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web}
status: {phase: Running, podIP: 10.0.0.1}
`

func TestDirectoryToProxy(t *testing.T) {
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
	write(meshYAML)
	p := start(t, false, func(s *Settings) { s.ConfigDir, s.GRPC = dir, "127.0.0.1:0" })
	_, plain, _ := p.app.Addresses()
	conn, err := grpc.NewClient(plain.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := pushtest.Open(t.Context(), t, conn, pushtest.Node("host", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	uid := "Kubernetes//Pod/shop/web-1"
	awaitWorkload(t, c, uid, func(w *workload.Workload) bool { return w.GetStatus() == workload.WorkloadStatus_UNHEALTHY })
	write(strings.Replace(meshYAML, "podIP: 10.0.0.1", `podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]`, 1))
	awaitWorkload(t, c, uid, func(w *workload.Workload) bool { return w.GetStatus() == workload.WorkloadStatus_HEALTHY })

	// A bad file leaves everything as it was, and is named.
	write("kind: Pod\n\tbad")
	var problems struct {
		Source []struct{ Object, Reason string }
	}
	eventually(t, "the bad file is named", func() bool {
		return json.Unmarshal([]byte(p.get("/debug/problems")), &problems) == nil && len(problems.Source) == 1
	})
	if !strings.Contains(problems.Source[0].Object, "mesh.yaml") || !strings.Contains(problems.Source[0].Reason, "document 1") {
		t.Errorf("problem %+v", problems.Source[0])
	}
	if !strings.Contains(p.get("/debug/workloads"), uid) {
		t.Error("the last good content is gone")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for !slices.Contains(c.Next().GetRemovedResources(), uid) {
	}
}

// Istiod's end must end streams with a code on which proxies reconnect, and return.
func TestShutdownEndsStreams(t *testing.T) {
	p := start(t, true, nil, namespace("istio-system", nil), podObject("istio-system", "zt-1", "10.0.0.9", "n1", "ztunnel", nil))
	c := pushtest.Open(withToken(t.Context()), t, p.dial(), pushtest.Node("zt-1", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	c.Next()
	p.stop()
	if _, err := c.RecvErr(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestStreamWithoutCredentialsIsRefused(t *testing.T) {
	p := start(t, true, nil, namespace("istio-system", nil))
	c := pushtest.Open(t.Context(), t, p.dial(), pushtest.Node("zt-1", "n1"))
	if _, err := c.RecvErr(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v, want Unauthenticated", err)
	}
}
